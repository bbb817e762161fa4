"""The chunked coding, undone as its bytes arrive."""

from __future__ import annotations

import time

import pytest

from pigeonhole.errors import BadRequest
from pigeonhole.server.chunks import Chunks

GOOD = {
    "empty": (b"0\r\n\r\n", b""),
    "two": (b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", b"abcde"),
    "line ends inside": (b"4\r\n\r\n\r\n\r\n0\r\n\r\n", b"\r\n\r\n"),
    "extension": (b'3;a=b;c="d e"\r\nabc\r\n0 ;x\r\n\r\n', b"abc"),
    "trailers": (b"1\r\na\r\n0\r\nX-Sum: 1\r\nY:\r\n\r\n", b"a"),
    "capital and zeros": (b"00A\r\n0123456789\r\n000\r\n\r\n", b"0123456789"),
}


@pytest.mark.parametrize(("body", "content"), GOOD.values(), ids=GOOD.keys())
@pytest.mark.parametrize("step", [1, 2, 3, 1000])
def test_good_bodies(body: bytes, content: bytes, step: int) -> None:
    """However a body is cut by the network, its content and what comes behind it are the same."""
    chunks, data = Chunks(), body + b"GET /"
    got, surplus = b"", b""
    for start in range(0, len(data), step):
        if chunks.is_done:
            surplus += data[start : start + step]
        else:
            got += chunks.feed(data[start : start + step])
            surplus = chunks.surplus
    assert (got, chunks.is_done, surplus) == (content, True, b"GET /")


def feed(chunks: Chunks, *pieces: bytes) -> None:
    for piece in pieces:
        chunks.feed(piece)


BAD = {
    "no size": b"\r\nabc\r\n",
    "no number": b"xyz\r\n",
    "negative": b"-1\r\na\r\n",
    "0x": b"0x3\r\nabc\r\n",
    "underscore": b"1_0\r\n",
    "plus": b"+3\r\nabc\r\n",
    "17 digits": b"0" * 16 + b"1\r\na\r\n",
    "bare LF": b"3\nabc\n0\n\n\r\n",
    "bare CR in an extension": b"3;a\rb\r\nabc\r\n",
    "wrong end of a chunk": b"3\r\nabcXX\r\n",
    "longer than said": b"3\r\nabcd\r\n0\r\n\r\n",
    "endless size line": b"1" * 2000,
    "endless extension": b"1;" + b"a" * 2000,
    "no trailer": b"0\r\nnonsense\r\n\r\n",
}


@pytest.mark.parametrize("body", BAD.values(), ids=BAD.keys())
@pytest.mark.parametrize("step", [1, 5000])
def test_bad_bodies(body: bytes, step: int) -> None:
    """What is not well-formed is refused, and never taken for content."""
    with pytest.raises(BadRequest):
        feed(Chunks(), *(body[start : start + step] for start in range(0, len(body), step)))


@pytest.mark.parametrize("body", [b"1\r\na\r\n", b"0\r\n" + b"a: b\r\n" * 20_000], ids=["bytes", "trailers"])
def test_tiny_chunks(body: bytes) -> None:
    """Ten megabytes in chunks of a byte, or of trailers, are given up before they cost anything."""
    chunks, began = Chunks(), time.process_time()
    with pytest.raises(BadRequest):
        feed(chunks, *[body * (100_000 // len(body) + 1)] * 100)
    assert time.process_time() - began < 1
