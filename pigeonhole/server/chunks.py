"""Undo the chunked transfer coding as its bytes arrive (RFC 9112, section 7.1)."""

from __future__ import annotations

import re

from pigeonhole.errors import BadRequest

SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})(?:[ \t]*;[\t -~\x80-\xff]*)?")
TRAILER_LINE = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t -~\x80-\xff]*")
MAX_LINE = 1024  # bytes
MAX_FRAMING = 64 * 1024  # bytes that are no content
FRAMING = 8  # and an eighth of the content: 10 MB in chunks of a byte would keep a core busy for half a minute


class Chunks:
    """Fed with bytes, it gives the content; `is_done` once the last chunk and its trailers are here."""

    def __init__(self) -> None:
        self._rest = b""  # a line that is not here yet
        self._left = 0  # bytes of the chunk that are still to come
        self._expects = self._size
        self._content = self._framing = 0
        self.is_done = False
        self.surplus = b""  # what came behind the body

    @property
    def announced(self) -> int:
        """Bytes of content that are to come of the chunk at hand."""
        return self._left

    def feed(self, data: bytes) -> bytes:
        """The content in `data`.

        Raises:
            BadRequest: this is no chunked body, or in chunks so small that they are an attack.
        """
        data = self._rest + data
        self._rest = b""
        pieces, place = [], 0
        while not self.is_done and place < len(data):
            if self._left:
                piece = data[place : place + self._left]
                pieces.append(piece)
                place += len(piece)
                self._left -= len(piece)
                self._content += len(piece)
                continue
            end = data.find(b"\r\n", place)
            if end < 0:
                self._rest = data[place:]
                if len(self._rest) > MAX_LINE or (self._expects == self._end_of_chunk and self._rest != b"\r"):
                    raise _wrong()
                break
            self._expects(data[place:end])
            self._count_framing(end + 2 - place)
            place = end + 2
        if self.is_done:
            self.surplus = data[place:]
        return b"".join(pieces)

    def _size(self, line: bytes) -> None:
        match = SIZE_LINE.fullmatch(line)
        if match is None:
            raise _wrong()
        self._left = int(match[1], 16)
        self._expects = self._end_of_chunk if self._left else self._trailer

    def _end_of_chunk(self, line: bytes) -> None:
        if line:
            raise _wrong()
        self._expects = self._size

    def _trailer(self, line: bytes) -> None:
        if not line:
            self.is_done = True
        elif not TRAILER_LINE.fullmatch(line):
            raise _wrong()

    def _count_framing(self, size: int) -> None:
        self._framing += size
        if self._framing > MAX_FRAMING + self._content // FRAMING:
            raise BadRequest("the body comes in chunks that are too small.")


def _wrong() -> BadRequest:
    return BadRequest("the body is announced as chunked, and is not well-formed.")
