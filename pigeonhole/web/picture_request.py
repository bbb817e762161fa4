"""Read a request's body so that its pictures land in the upload folder, and nowhere else.

Werkzeug's own parser puts larger files into the system's temporary folder, and takes a form it cannot read for an empty
one. This request class gives it files of ours, counts them, and says what is wrong with the form.
"""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import IO, Any, NoReturn, cast

from flask import Flask, Request, current_app
from werkzeug.exceptions import ClientDisconnected, RequestEntityTooLarge
from werkzeug.formparser import FormDataParser
from werkzeug.utils import secure_filename

from pigeonhole.errors import (
    BadContentEncoding,
    BadMultipart,
    IncompleteBody,
    NoImage,
    RequestError,
    TooLarge,
    TooManyFiles,
)
from pigeonhole.intake import base64_pictures
from pigeonhole.intake.uploads import Upload, Uploads
from pigeonhole.settings import MIB, Settings

MAX_FIELDS = 10  # parts of a form that are no files
MAX_NAME = 100  # characters of a client's name for a file or a field that are echoed
WERKZEUG_BUFFER = 64 * 1024  # bytes; Werkzeug's parser holds so much of a file at a time, and counts it as form memory


@dataclass(frozen=True)
class SentPicture:
    """A picture that a request brought, and the client's name for it."""

    file: IO[bytes]
    name: str | None = None

    @property
    def harmless_name(self) -> str:
        """The name without anything that could be a path or a command; may be empty."""
        return _harmless(self.name)


def how_to_send(fields: Sequence[str]) -> str:
    """A way that works, for the sentence of a refusal."""
    return f"send one with `curl -F {fields[0]}=@photo.jpg`."


class PictureRequest(Request):
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
        app.extensions["memory"] = threading.Lock()
        app.url_map.merge_slashes = False  # it answers with HTML, and sends on to whatever Host the client named

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

    @property
    def memory(self) -> AbstractContextManager[object]:
        """Guards memory: one at a time reads pictures out of text, which may take 130 MB for 10."""
        return cast(AbstractContextManager[object], current_app.extensions["memory"])

    @property
    def most_values(self) -> int:
        """How many values, about, the JSON of a request with as many pictures as are taken has at most."""
        return 1_000 + 4 * self.settings.max_files

    @property
    def has_body(self) -> bool:
        return bool(self.content_length) or "chunked" in self.headers.get("Transfer-Encoding", "").lower()

    @property
    def shown_content_type(self) -> str:
        return re.sub(r"[^\w.+*/-]", "", self.mimetype)[:MAX_NAME]

    def check_head(self) -> None:
        """Refuse what the head alone tells will not do.

        Raises:
            BadContentEncoding: the body is compressed, whatever it then says it is.
            TooLarge: it is announced as larger than a body may be.
        """
        coding = self.headers.get("Content-Encoding", "identity").lower()
        transfer = self.headers.get("Transfer-Encoding", "chunked").lower()  # gunicorn reads "gzip, chunked" as chunked
        if (coding, transfer) != ("identity", "chunked"):
            raise BadContentEncoding("the body is compressed; send it as it is.")
        if (self.content_length or 0) > self.settings.max_body_bytes:
            raise self._too_large()

    def body(self) -> Upload:
        """The whole body in a file.

        Raises:
            TooLarge: it is larger than a body may be.
            IncompleteBody: it ends before its announced length.
            NoSpace: there is no room for it.
        """
        into = self.uploads.new()
        count = 0
        try:
            stream = super()._get_stream_for_parsing()
            while chunk := stream.read(WERKZEUG_BUFFER):
                count += len(chunk)
                if count > self.settings.max_body_bytes:
                    raise self._too_large()
                into.write(chunk)
        except RequestEntityTooLarge as error:
            raise self._too_large() from error
        except (OSError, ClientDisconnected) as error:
            raise IncompleteBody("the body is cut off.") from error
        if count < (self.content_length or 0):
            raise IncompleteBody("the body is shorter than its Content-Length.")
        into.seek(0)
        return into

    def decoded(self, texts: Sequence[str]) -> Sequence[SentPicture]:
        """The pictures that base64 texts hold, each in a file; a refusal of one of several says which.

        Raises:
            TooManyFiles: they are more than are taken.
            BadBase64, NoSpace: as they say.
        """
        if len(texts) > self.settings.max_files:
            raise self._too_many()
        contents = []
        for number, text in enumerate(texts, 1):
            with blamed_on(None, number, len(texts)):
                contents.append(base64_pictures.decoded(text))
        return self.kept(contents)

    def kept(self, contents: Sequence[bytes]) -> Sequence[SentPicture]:
        """Pictures that came inside something else, each in a file; raises TooManyFiles, NoSpace."""
        if len(contents) > self.settings.max_files:
            raise self._too_many()
        pictures = [SentPicture(self.uploads.new()) for _ in contents]
        for picture, content in zip(pictures, contents, strict=True):
            picture.file.write(content)
            picture.file.seek(0)
        return pictures

    def images(self, fields: Sequence[str]) -> Sequence[SentPicture]:
        """The images uploaded under the names `fields`, in the order they were sent; at least one.

        Raises:
            NoImage: the form holds no file under an accepted name.
            BadMultipart, TooLarge, TooManyFiles, NoSpace: as `images_if_any`.
        """
        return self.images_if_any(fields) or self._explain_absence(fields)

    def images_if_any(self, fields: Sequence[str]) -> Sequence[SentPicture]:
        """The same where there may be none: browsers send a field for files also when nothing was chosen.

        Raises:
            BadMultipart: the form cannot be read.
            NoImage: a picture was sent as something else.
            TooLarge, TooManyFiles, NoSpace: as they say.
        """
        try:
            files = self.files
        except (ValueError, OSError, ClientDisconnected) as error:
            raise BadMultipart("the form is cut off or not multipart/form-data; " + how_to_send(fields)) from error
        except RequestEntityTooLarge as error:
            raise self._too_large() from error
        if 0 < self._read.count < (self.content_length or 0):
            raise BadMultipart("the form is shorter than its Content-Length; " + how_to_send(fields))
        if any(len(text.encode()) > self.settings.max_form_bytes for texts in self.form.listvalues() for text in texts):
            raise self._too_large()
        self._check_parts(fields)
        images = [file for name in fields for file in files.getlist(name) if file.filename]
        images.sort(key=lambda image: self.uploads.files.index(cast(Upload, image.stream)))
        return [SentPicture(image.stream, image.filename) for image in images]

    def make_form_data_parser(self) -> FormDataParser:
        parser = super().make_form_data_parser()
        parser.silent = False
        return parser

    def _get_stream_for_parsing(self) -> IO[bytes]:
        self._read.stream = super()._get_stream_for_parsing()
        return cast(IO[bytes], self._read)

    def _get_file_stream(self, *args: Any, **kwargs: Any) -> Upload:
        if len(self.uploads.files) == self.settings.max_files:
            raise self._too_many()
        return self.uploads.new()

    def _too_many(self) -> TooManyFiles:
        return TooManyFiles(f"more than {self.settings.max_files} pictures were sent; send fewer in one request.")

    def _too_large(self) -> TooLarge:
        limits = self.settings
        return TooLarge(
            f"the request is too large; at most {limits.max_body_bytes / MIB:g} MiB in all, {limits.max_files} files, "
            f"{MAX_FIELDS} other fields and {limits.max_form_bytes / 1024:g} KiB of text in each are accepted."
        )

    def _check_parts(self, fields: Sequence[str]) -> None:
        """Refuse what is meant as a picture and is no file, also where a file stands beside it."""
        if any(not file.filename and file.stream.read(1) for name in fields for file in self.files.getlist(name)):
            raise NoImage("the image has no file name; " + how_to_send(fields))
        if any(name in self.form for name in fields):
            raise NoImage("the image was sent as text, not as a file; " + how_to_send(fields))

    def _explain_absence(self, fields: Sequence[str]) -> NoReturn:
        if names := sorted({_harmless(name) or "a part without a name" for name in (*self.files, *self.form)}):
            raise NoImage(f"no image found: the form has {', '.join(names)}, not `{fields[0]}`; " + how_to_send(fields))
        raise NoImage("no image found; " + how_to_send(fields))


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
def blamed_on(picture: SentPicture | None, number: int, of: int) -> Iterator[None]:
    """Let a refusal say which of several pictures it is about, by its number and the client's name for it."""
    try:
        yield
    except RequestError as error:
        if of > 1:
            name = f" ({picture.harmless_name})" if picture and picture.harmless_name else ""
            error.args = (f"picture {number}{name}: {error}",)
        raise


def _harmless(name: str | None) -> str:
    return secure_filename(name or "")[:MAX_NAME]
