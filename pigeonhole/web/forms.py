"""Read a multipart form so that its files land in the upload folder, and nowhere else.

Werkzeug's own parser puts larger files into the system's temporary folder, and takes a form it cannot read for an empty
one. This request class gives it files of ours, counts them, and says what is wrong with the form.
"""

from __future__ import annotations

import io
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import IO, Any, NoReturn, cast

from flask import Flask, Request, Response, current_app, request
from gunicorn.http.errors import ParseException
from werkzeug.datastructures import FileStorage
from werkzeug.exceptions import ClientDisconnected, RequestEntityTooLarge
from werkzeug.formparser import FormDataParser
from werkzeug.utils import secure_filename

from pigeonhole.errors import BadMultipart, NoImage, RequestError, TooLarge, TooManyFiles
from pigeonhole.intake.uploads import Upload, Uploads
from pigeonhole.settings import MIB, Settings

IMAGE_FIELDS = ("image", "file", "image_file")  # ours first; the others are what clients of older systems send
TRY = "send one with `curl -F image=@photo.jpg`."
MAX_FIELDS = 10  # parts of a form that are no files
MAX_NAME = 100  # characters of a client's name for a file or a field that are echoed
WERKZEUG_BUFFER = 64 * 1024  # bytes; Werkzeug's parser holds so much of a file at a time, and counts it as form memory
HEARD_OUT_BYTES = 4  # times the largest body
HEARD_OUT_SECONDS = 5


class FormRequest(Request):
    """A request whose uploads are `Uploads` of ours, closed with the request."""

    @classmethod
    def install(cls, app: Flask, settings: Settings) -> None:
        """Make every request of `app` one of these, with the limits of `settings`."""
        app.request_class = cls
        app.config.update(
            SETTINGS=settings,
            MAX_CONTENT_LENGTH=settings.max_body_bytes + 1,  # Werkzeug refuses a chunked body that just reaches it
            # Werkzeug's limit is only there to stop early; `images` holds each text to the exact one
            MAX_FORM_MEMORY_SIZE=settings.max_form_bytes + WERKZEUG_BUFFER,
            MAX_FORM_PARTS=settings.max_files + MAX_FIELDS,
        )
        app.after_request(_hear_out)

    @property
    def settings(self) -> Settings:
        return cast(Settings, current_app.config["SETTINGS"])

    @cached_property
    def _read(self) -> _Counted:
        return _Counted()

    @cached_property
    def uploads(self) -> Uploads:
        return Uploads(self.settings.uploads)

    def close(self) -> None:
        self.uploads.close()
        super().close()

    def images(self) -> Sequence[FileStorage]:
        """The uploaded images, in the order they were sent; at least one.

        Raises:
            BadMultipart: the form cannot be read.
            NoImage: it holds no file under an accepted name.
            TooLarge, TooManyFiles, NoSpace: as they say.
        """
        if (self.content_length or 0) > self.settings.max_body_bytes:
            raise self._too_large()
        try:
            files = self.files
        except (ValueError, OSError, ClientDisconnected, ParseException) as error:
            raise BadMultipart("the form is cut off or not multipart/form-data; " + TRY) from error
        except RequestEntityTooLarge as error:
            raise self._too_large() from error
        if 0 < self._read.count < (self.content_length or 0):  # gunicorn takes who hangs up for one who is done
            raise BadMultipart("the form is shorter than its Content-Length; " + TRY)
        if any(len(text.encode()) > self.settings.max_form_bytes for texts in self.form.listvalues() for text in texts):
            raise self._too_large()
        images = [file for name in IMAGE_FIELDS for file in files.getlist(name) if file.filename]
        if not images:
            self._explain_absence()
        return sorted(images, key=lambda image: self.uploads.files.index(cast(Upload, image.stream)))

    def make_form_data_parser(self) -> FormDataParser:
        parser = super().make_form_data_parser()
        parser.silent = False
        return parser

    def _get_stream_for_parsing(self) -> IO[bytes]:
        self._read.stream = super()._get_stream_for_parsing()
        return cast(IO[bytes], self._read)

    def _get_file_stream(self, *args: Any, **kwargs: Any) -> Upload:
        if len(self.uploads.files) == self.settings.max_files:
            raise TooManyFiles(f"the form has more than {self.settings.max_files} files; send fewer in one request.")
        return self.uploads.new()

    def _too_large(self) -> TooLarge:
        limits = self.settings
        return TooLarge(
            f"the request is too large; at most {limits.max_body_bytes / MIB:g} MiB in all, {limits.max_files} files, "
            f"{MAX_FIELDS} other fields and {limits.max_form_bytes / 1024:g} KiB of text in each are accepted."
        )

    def _explain_absence(self) -> NoReturn:
        if any(file.stream.read(1) for name in IMAGE_FIELDS for file in self.files.getlist(name)):
            raise NoImage("the image has no file name; " + TRY)
        if any(name in self.form for name in IMAGE_FIELDS):
            raise NoImage("the image was sent as text, not as a file; " + TRY)
        if names := sorted({_harmless(name) or "a part without a name" for name in (*self.files, *self.form)}):
            raise NoImage(f"no image found: the form has {', '.join(names)}, not `image`; " + TRY)
        raise NoImage("no image found; " + TRY)


class _Counted:
    """A stream that knows how many bytes were read from it; before it is given one, none."""

    def __init__(self) -> None:
        self.stream: IO[bytes] = io.BytesIO()
        self.count = 0

    def read(self, size: int = -1) -> bytes:
        data = self.stream.read(size)
        self.count += len(data)
        return data


@contextmanager
def blamed_on(image: FileStorage, among: Sequence[FileStorage]) -> Iterator[None]:
    """Let a refusal say which of several files it is about, by the client's name for it made harmless."""
    try:
        yield
    except RequestError as error:
        if len(among) > 1:
            error.args = (f"{_harmless(image.filename) or 'a file'}: {error}",)
        raise


def _harmless(name: str | None) -> str:
    return secure_filename(name or "")[:MAX_NAME]


def _hear_out(response: Response) -> Response:
    """Read what the client still sends of a refused request: one whose pipe breaks never gets to read the answer.

    Bounded in bytes and time; gunicorn itself closes the connection of a client that sends even more.
    """
    connection = request.environ.get("gunicorn.socket")
    if response.status_code < 400 or connection is None:
        return response
    # a read of gunicorn's comes back when it is full, however slowly: only the end of the stream stops it in time
    clock = threading.Timer(HEARD_OUT_SECONDS, _stop_listening, (connection,))
    clock.daemon = True
    clock.start()
    patience = HEARD_OUT_BYTES * (request.max_content_length or 0)
    try:
        while patience > 0 and (chunk := request.environ["wsgi.input"].read(WERKZEUG_BUFFER)):
            patience -= len(chunk)
    except (OSError, ParseException):  # the client is gone, or sends rubbish
        pass
    finally:
        clock.cancel()
    return response


def _stop_listening(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RD)
