"""One request while it arrives: fed with bytes, it becomes gunicorn's request with the whole body in a file.

gunicorn's own parser reads the head, once all of it is here. The body is received before anybody works for it, so that
a slow client costs a socket and a little memory, and no thread.
"""

from __future__ import annotations

import io
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from gunicorn.http.body import ChunkedReader
from gunicorn.http.errors import ExpectationFailed, LimitRequestHeaders, LimitRequestLine, NoMoreData, ParseException
from gunicorn.http.message import Request
from gunicorn.http.unreader import IterUnreader

from pigeonhole.errors import (
    BadExpectation,
    BadRequest,
    HeadTooLarge,
    IncompleteBody,
    TooLarge,
    URLTooLong,
)
from pigeonhole.intake.uploads import Uploads
from pigeonhole.server.chunks import Chunks

MIB = 1024 * 1024
MAX_HEAD = 32 * 1024  # bytes; a thousand clients that send endless heads take 32 MB
IN_MEMORY = 64 * 1024  # bytes of a body that need no file
BEGINS = re.compile(rb"[A-Z\r]")  # what a request can begin with; one line end may stand before it
BARE_LF = re.compile(rb"(?<!\r)\n")
END_OF_HEAD = b"\r\n\r\n"
WITHOUT_BODY = ("GET", "HEAD", "OPTIONS")


@dataclass(frozen=True)
class Limits:
    """What a request may be, and where its body is kept."""

    body_bytes: int
    folder: Path


class Incoming:
    """Feed it until it `is_whole`; then `request` and `body` are there, and `surplus` is what came behind.

    `began` is when its first byte came and `received` when its last one did, by `time.monotonic`.
    """

    def __init__(self, gunicorn: Any, client: Any, number: int, limits: Limits) -> None:
        self._gunicorn, self._client, self._number, self._limits = gunicorn, client, number, limits
        self._head = bytearray()
        self._chunks: Chunks | None = None
        self._length = 0  # of a body that is not chunked
        self.request: Any = None
        self.body: IO[bytes] = io.BytesIO()
        self._uploads = Uploads(limits.folder)
        self.size = 0  # bytes of the body that are here
        self.surplus = b""
        self.is_whole = False
        self.began = self.received = 0.0

    @property
    def has_begun(self) -> bool:
        return self.began > 0

    @property
    def is_quick(self) -> bool:
        """Nothing has to be decoded or fetched for it: it has neither a body nor a query."""
        return self.request.method in WITHOUT_BODY and not self.size and not self.request.query

    @property
    def waits_for_word(self) -> bool:
        """The client sends no body before it is told to go on."""
        return self.request is not None and not self.is_whole and self.request._expected_100_continue

    def feed(self, data: bytes) -> None:
        """Take what arrived.

        Raises:
            BadRequest, URLTooLong, HeadTooLarge, BadExpectation: of a head or of a chunk.
            TooLarge: more is announced, or came, than a body may have.
            NoSpace: there is no room for it.
        """
        if not self.has_begun:
            self.began = time.monotonic()
        if self.request is None:
            looked_at = max(0, len(self._head) - len(END_OF_HEAD) + 1)  # what was looked at is not looked at again
            self._head += data
            if not self._head_is_over(looked_at):
                return
            data = self._read_head()
        self._receive(data)

    def end(self) -> None:
        """Nothing more comes; raises BadRequest or IncompleteBody, since it is not whole."""
        if self.request is None:
            raise BadRequest("the request is cut off.")
        raise IncompleteBody("the body is cut off.")

    def close(self) -> None:
        self.body.close()
        self._uploads.close()

    def _head_is_over(self, start: int) -> bool:
        """It is all here, or what is here is enough to refuse it; what stands before `start` is known."""
        return bool(
            self._head.find(END_OF_HEAD, start) >= 0
            or len(self._head) > MAX_HEAD
            or not BEGINS.match(self._head)
            or BARE_LF.search(self._head, start)
        )

    def _read_head(self) -> bytes:
        """Parse it; what came behind it is returned."""
        head, self._head = bytes(self._head), bytearray()
        unreader = IterUnreader([head])
        end = head.find(END_OF_HEAD)
        with _refused(len(head) if end < 0 else end):
            self.request = Request(self._gunicorn, unreader, self._client, self._number)
        self.request.version = min(self.request.version, (1, 1))  # it is answered in the same
        rest = cast(bytes, unreader.take_buffered())
        if len(head) - len(rest) > MAX_HEAD:
            raise head_too_large()
        reader = self.request.body.reader
        if isinstance(reader, ChunkedReader):
            self._chunks = Chunks()
        else:
            self._length = reader.length
            self._check(self._length)
        return rest

    def _receive(self, data: bytes) -> None:
        if self._chunks is not None:
            content = self._chunks.feed(data)
            self.is_whole, self.surplus = self._chunks.is_done, self._chunks.surplus
            announced = self._chunks.announced
        else:
            left = self._length - self.size
            content, self.surplus = data[:left], data[left:]
            self.is_whole = len(content) == left
            announced = 0
        self._check(self.size + len(content) + announced)
        self._keep(content)
        if self.is_whole:
            self.body.seek(0)
            self.received = time.monotonic()

    def _keep(self, content: bytes) -> None:
        self.size += len(content)
        if self.size > IN_MEMORY and isinstance(self.body, io.BytesIO):
            file = self._uploads.new()
            file.write(self.body.getbuffer())
            self.body = file
        self.body.write(content)

    def _check(self, size: int) -> None:
        if size > self._limits.body_bytes:
            raise body_too_large(self._limits.body_bytes)


@contextmanager
def _refused(size: int) -> Iterator[None]:
    try:
        yield
    except LimitRequestLine as error:
        raise URLTooLong("the address is too long.") from error
    except LimitRequestHeaders as error:
        raise head_too_large() from error
    except ExpectationFailed as error:
        raise BadExpectation("the only expectation that is met is 100-continue.") from error
    except (ParseException, NoMoreData, StopIteration, ValueError) as error:
        raise (head_too_large() if size > MAX_HEAD else BadRequest("the request is not well-formed HTTP.")) from error


def head_too_large() -> HeadTooLarge:
    return HeadTooLarge(f"the head of the request is too large; at most {MAX_HEAD // 1024} KiB are accepted.")


def body_too_large(most: int) -> TooLarge:
    return TooLarge(f"the body is too large; at most {most / MIB:.3g} MiB are accepted.")
