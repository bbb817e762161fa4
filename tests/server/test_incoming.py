"""A request while it arrives."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from gunicorn.config import Config

from pigeonhole.errors import (
    BadExpectation,
    BadRequest,
    HeadTooLarge,
    IncompleteBody,
    NoSpace,
    RequestError,
    TooLarge,
    URLTooLong,
)
from pigeonhole.server.incoming import IN_MEMORY, MAX_HEAD, Incoming, Limits

LIMIT = 200_000
POST = b"POST /predict?top=3 HTTP/1.1\r\nHost: x\r\n"


@pytest.fixture
def arriving(uploads: Path) -> Callable[[], Incoming]:
    return lambda: Incoming(Config(), ("127.0.0.1", 1), 1, Limits(LIMIT, uploads))


def feed(incoming: Incoming, data: bytes, step: int) -> Incoming:
    for start in range(0, len(data), step):
        incoming.feed(data[start : start + step])
    return incoming


BODY = bytes(range(256)) * 300  # more than stays in memory
WHOLE = {
    "length": POST + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY,
    "chunked": POST + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % len(BODY) + BODY + b"\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("data", WHOLE.values(), ids=WHOLE.keys())
@pytest.mark.parametrize("step", [1000, 1001, 10**6])
def test_a_whole_request(arriving: Callable[[], Incoming], data: bytes, step: int) -> None:
    """However it is cut, the request has its head and its body, and knows when it came."""
    assert len(BODY) > IN_MEMORY
    before = time.monotonic()
    incoming = feed(arriving(), data, step)
    assert (incoming.is_whole, incoming.size, incoming.body.read()) == (True, len(BODY), BODY)
    assert (incoming.request.method, incoming.request.path, incoming.request.query) == ("POST", "/predict", "top=3")
    assert before <= incoming.began <= incoming.received <= time.monotonic()
    incoming.close()


@pytest.mark.parametrize("data", WHOLE.values(), ids=WHOLE.keys())
def test_what_comes_behind(arriving: Callable[[], Incoming], data: bytes) -> None:
    """The beginning of the next request is kept, and is none of this one's."""
    incoming = feed(arriving(), data + b"GET /ping", 10**6)
    assert (incoming.size, incoming.surplus) == (len(BODY), b"GET /ping")
    incoming.close()


@pytest.mark.parametrize(
    ("head", "quick"),
    [
        (b"GET /ping HTTP/1.1\r\n\r\n", True),
        (b"\r\nHEAD / HTTP/1.0\r\n\r\n", True),
        (b"GET /predict?url=x HTTP/1.1\r\n\r\n", False),
        (b"GET /ping HTTP/1.1\r\nContent-Length: 1\r\n\r\nx", False),
        (b"POST / HTTP/1.1\r\n\r\n", False),
    ],
)
def test_quick_requests(arriving: Callable[[], Incoming], head: bytes, quick: bool) -> None:
    """Quick is what has neither a body nor a query; one empty line may stand before it."""
    incoming = feed(arriving(), head, 3)
    assert (incoming.is_whole, incoming.is_quick) == (True, quick)


REFUSED: dict[str, tuple[bytes, type[RequestError]]] = {
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00", BadRequest),
    "lower-case method": (b"get / HTTP/1.1\r\n\r\n", BadRequest),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", BadRequest),
    "HTTP/0.9": (b"GET /\r\n\r\n", BadRequest),
    "bare LF": (b"GET / HTTP/1.1\nHost: x\n\n", BadRequest),
    "bare LF after a line": (b"GET / HTTP/1.1\r\nHost: x\n", BadRequest),
    "folded": (b"GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n", BadRequest),
    "NUL": (b"GET / HTTP/1.1\r\nA: \x00\r\n\r\n", BadRequest),
    "two lengths": (POST + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\n", BadRequest),
    "length and chunked": (POST + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", BadRequest),
    "unknown coding": (POST + b"Transfer-Encoding: xchunked\r\n\r\n", BadRequest),
    "5,000 digits": (POST + b"Content-Length: " + b"1" * 5000 + b"\r\n\r\n", BadRequest),
    "4,000 digits": (POST + b"Content-Length: " + b"1" * 4000 + b"\r\n\r\n", TooLarge),
    "one byte more": (POST + b"Content-Length: %d\r\n\r\n" % (LIMIT + 1), TooLarge),
    "a chunk of 16 EiB": (POST + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n", TooLarge),
    "one chunk more": (POST + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % (LIMIT + 1) + bytes(LIMIT + 1), TooLarge),
    "long address": (b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\n\r\n", URLTooLong),
    "long address, no end": (b"GET /" + b"a" * MAX_HEAD, URLTooLong),
    "long header": (b"GET / HTTP/1.1\r\nA: " + b"a" * 9000 + b"\r\n\r\n", HeadTooLarge),
    "120 headers": (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 120 + b"\r\n", HeadTooLarge),
    "endless head": (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 10_000, HeadTooLarge),
    "long head": (b"GET / HTTP/1.1\r\n" + (b"A: " + b"a" * 7000 + b"\r\n") * 5 + b"\r\n", HeadTooLarge),
    "expectation": (POST + b"Expect: the unexpected\r\n\r\n", BadExpectation),
}


@pytest.mark.parametrize(("data", "error"), REFUSED.values(), ids=REFUSED.keys())
@pytest.mark.parametrize("step", [7, 10**6])
def test_refused(arriving: Callable[[], Incoming], data: bytes, error: type[RequestError], step: int) -> None:
    """What is malformed or too much is refused as soon as that is seen, and not waited for."""
    incoming = arriving()
    with pytest.raises(error):
        feed(incoming, data, step)
    incoming.close()


@pytest.mark.parametrize(("data", "error"), [(b"GET / HT", BadRequest), (WHOLE["length"][:-1], IncompleteBody)])
def test_cut_off(arriving: Callable[[], Incoming], data: bytes, error: type[RequestError]) -> None:
    """A client that stops in the middle is told so."""
    incoming = feed(arriving(), data, 10**6)
    with pytest.raises(error):
        incoming.end()
    incoming.close()


def test_go_on(arriving: Callable[[], Incoming]) -> None:
    """A client that asks whether to go on waits for a word, until the body comes."""
    incoming = feed(arriving(), POST + b"Expect: 100-Continue\r\nContent-Length: 2\r\n\r\n", 10**6)
    assert incoming.waits_for_word
    incoming.feed(b"ab")
    assert (incoming.waits_for_word, incoming.is_whole) == (False, True)


def test_no_space(arriving: Callable[[], Incoming], uploads: Path) -> None:
    """Without the folder a large body cannot be kept; a small one needs none."""
    uploads.rmdir()
    try:
        feed(arriving(), POST + b"Content-Length: 100\r\n\r\n" + bytes(100), 10**6)
        with pytest.raises(NoSpace):
            feed(arriving(), WHOLE["length"], 10**6)
    finally:
        uploads.mkdir()
