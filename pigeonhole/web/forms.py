"""Read a multipart form so that its files land in the upload folder, and nowhere else.

Werkzeug's own parser puts larger files into the system's temporary folder, and takes a form it cannot read for an empty
one. This request class gives it files of ours, counts them, and says what is wrong with the form.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, NoReturn, cast

from flask import Flask, Request, Response, current_app, request
from werkzeug.datastructures import FileStorage
from werkzeug.exceptions import ClientDisconnected, RequestEntityTooLarge
from werkzeug.formparser import FormDataParser
from werkzeug.utils import secure_filename

from pigeonhole.errors import BadMultipart, NoImage, RequestError, TooLarge, TooManyFiles
from pigeonhole.intake.uploads import Upload, Uploads
from pigeonhole.settings import MIB, Settings

PARSER_BUFFER = 64 * 1024  # bytes of a file that Werkzeug holds at a time, and counts as if they were text
MAX_NAME = 100  # characters of a client's file name that are echoed
HEARD_OUT = 4  # times the largest body are read and thrown away before the connection is closed on a client
IMAGE_FIELDS = ("image", "file", "image_file")  # ours first; the others are what clients of older systems send
TRY = "send one with `curl -F image=@photo.jpg`"


class FormRequest(Request):
    """A request whose uploads are `Uploads` of ours, closed with the request."""

    @classmethod
    def install(cls, app: Flask, settings: Settings) -> None:
        """Make every request of `app` one of these, with the limits of `settings`."""
        app.request_class = cls
        app.config.update(
            SETTINGS=settings,
            MAX_CONTENT_LENGTH=settings.max_body_bytes,
            MAX_FORM_MEMORY_SIZE=settings.max_form_bytes + PARSER_BUFFER,
            MAX_FORM_PARTS=settings.max_files,
        )
        app.after_request(_hear_out)

    @property
    def settings(self) -> Settings:
        return cast(Settings, current_app.config["SETTINGS"])

    @cached_property
    def uploads(self) -> Uploads:
        return Uploads(self.settings.uploads)

    def close(self) -> None:
        self.uploads.close()
        super().close()

    def _get_file_stream(self, *args: Any, **kwargs: Any) -> Upload:
        return self.uploads.new()

    def make_form_data_parser(self) -> FormDataParser:
        parser = super().make_form_data_parser()
        parser.silent = False
        return parser

    def images(self) -> Sequence[FileStorage]:
        """The uploaded images, in the order they were sent; at least one.

        Raises:
            BadMultipart: the form cannot be read.
            NoImage: it holds no file under an accepted name.
            TooLarge, TooManyFiles, NoSpace: as they say.
        """
        try:
            files = self.files
        except (ValueError, ClientDisconnected) as error:
            raise BadMultipart("the form is cut off or not multipart/form-data; " + TRY + ".") from error
        except RequestEntityTooLarge as error:
            raise self._too_large() from error
        if any(len(text.encode()) > self.settings.max_form_bytes for texts in self.form.listvalues() for text in texts):
            raise self._too_large()
        sent = [file for name in IMAGE_FIELDS for file in files.getlist(name) if file.filename]
        return sent or self._explain_absence()

    def _too_large(self) -> RequestError:
        limits = self.settings
        if len(self.uploads.files) == limits.max_files:
            return TooManyFiles(f"the form has more than {limits.max_files} files; send fewer in one request.")
        return TooLarge(
            f"the request is too large; at most {limits.max_body_bytes / MIB:g} MiB in all, {limits.max_files} parts "
            f"and {limits.max_form_bytes / 1024:g} KiB of text are accepted."
        )

    def _explain_absence(self) -> NoReturn:
        if any(file.stream.read(1) for name in IMAGE_FIELDS for file in self.files.getlist(name)):
            raise NoImage("the image has no file name; " + TRY + ".")
        if any(name in self.form for name in IMAGE_FIELDS):
            raise NoImage("the image was sent as text, not as a file; " + TRY + ".")
        if names := sorted(
            {secure_filename(name or "")[:MAX_NAME] or "a part without a name" for name in (*self.files, *self.form)}
        ):
            raise NoImage(f"no image found: the form has {', '.join(names)}, not `image`; " + TRY + ".")
        raise NoImage("no image found; " + TRY + ".")


def _hear_out(response: Response) -> Response:
    """Read what the client still sends of a refused upload: one whose pipe breaks never gets to read the answer."""
    environ = request.environ
    if not environ.get("wsgi.input_terminated"):  # the server does not say where the body ends
        return response
    patience = HEARD_OUT * current_app.config["MAX_CONTENT_LENGTH"]
    try:
        while patience > 0 and (chunk := environ["wsgi.input"].read(PARSER_BUFFER)):
            patience -= len(chunk)
    except Exception:  # the connection or its chunks are broken; gunicorn has many kinds
        patience = 0
    if patience <= 0:
        response.headers["Connection"] = "close"
    return response


@contextmanager
def blamed_on(image: FileStorage, among: Sequence[FileStorage]) -> Iterator[None]:
    """Let a refusal say which of several files it is about, by the client's name for it made harmless."""
    try:
        yield
    except RequestError as error:
        if len(among) > 1:
            error.args = (f"{secure_filename(image.filename or '')[:MAX_NAME] or 'the file'}: {error}",)
        raise
