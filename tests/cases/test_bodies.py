"""Bodies and forms that are cut, lie about their length, or are made to cost (B)."""

from __future__ import annotations

import base64
import gzip
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from pigeonhole.settings import MIB
from tests.cases.case import Case, as_params, case
from tests.cases.conftest import Holds
from tests.cases.house import PING, Heard, House
from tests.cases.messages import (
    CANARY,
    FORM,
    IMAGE,
    JSON,
    LAST,
    PNG,
    chunked,
    form,
    get,
    message,
    part,
    post,
    post_chunked,
    text,
    then_hang_up,
    upload,
)
from tests.cases.wire import Line, Talk

LIMIT = 10 * MIB
BODY = form(part())
OBJECT = b'{"image": "%b"}' % base64.b64encode(CANARY)
READ_DEADLINE = 10  # seconds a head, and a body, may take to arrive
SLACK = 3  # seconds that a busy machine may take to notice
CHEAP = 0.1  # seconds of computing
BOMB = gzip.compress(bytes(50 * MIB))


def cut_at_every_twentieth(body: bytes, kind: bytes) -> list[Talk]:
    """Announced whole, and sent in part."""
    head = message(b"POST /predict", [LAST, kind, b"Content-Length: %d" % len(body)])
    return [then_hang_up(head + body[: len(body) * share // 20]) for share in range(20)]


def announced(length: int | bytes, body: bytes, kind: bytes = FORM) -> bytes:
    """On a connection that may be kept."""
    return message(b"POST /predict", [kind, b"Content-Length: %b" % str(length).encode()], body)


def padded(size: int) -> bytes:
    """A form of exactly that many bytes, with zeros behind its picture's end."""
    return form(part(CANARY.ljust(size - len(form(part(b""))), b"\0")))


def mixed(inner: bytes) -> bytes:
    """A part that holds parts (RFC 2388, no more in RFC 7578)."""
    return part(form(inner, boundary=b"c"), b'form-data; name="image"', b"Content-Type: multipart/mixed; boundary=c")


def expecting(what: bytes, length: int) -> Talk:
    """A picture announced with that length, and sent only when the server says 100 Continue, as curl does."""

    def talk(line: Line) -> None:
        line.send(message(b"POST /predict", [LAST, PNG, b"Content-Length: %d" % length, b"Expect: " + what]))
        line.listen()
        if line.answers and line.answers[0].is_interim:
            line.send(CANARY)

    return talk


LONG = b"b" * 7_000
GET_PING = b"GET /ping HTTP/1.1\r\nHost: localhost\r\n\r\n"
METHODS = (b"PUT", b"PATCH", b"DELETE", b"TRACE", b"BREW", b"PROPFIND")
BODIES = [
    case("B1", "no boundary", post(BODY, b"Content-Type: multipart/form-data"), "400 bad_multipart"),
    case("B1", "empty boundary", post(BODY, b"Content-Type: multipart/form-data; boundary="), "400 bad_multipart"),
    case("B1", "wrong boundary", post(BODY, b"Content-Type: multipart/form-data; boundary=c"), "400 bad_multipart"),
    case("B1", "no closing boundary", post(BODY[: -len(b"--b--\r\n")], FORM), "400 bad_multipart"),
    Case("B2", "form cut at every 1/20th", cut_at_every_twentieth(BODY, FORM), "400"),
    case("B2", "all of a form, and less than announced", then_hang_up(announced(len(BODY) + 9, BODY)), "400"),
    Case("B2", "picture cut at every 1/20th", cut_at_every_twentieth(CANARY, PNG), "400"),
    Case("B2", "JSON cut at every 1/20th", cut_at_every_twentieth(OBJECT, JSON), "400"),
    case("B4", "Content-Length too small, form", announced(len(BODY) - 9, BODY), "400, closed"),
    case("B4", "Content-Length too small, picture", announced(len(CANARY) - 99, CANARY, PNG), "422, closed"),
    case("B4", "Content-Length: 0 with a body", announced(0, BODY), "400, closed"),
    case("B4", "no Content-Length with a body", message(b"POST /predict", [FORM], BODY), "400, closed"),
    case("B4", "too small, and a request behind", announced(9, BODY[:9] + GET_PING), "400, closed"),
    case("B5", "11 files", upload(*[part()] * 11), "413 too_many_files"),
    case("B5", "11 other fields", upload(part(), *[text(b"x", b"y")] * 21), "413 too_large"),
    case("B5", "1,001 parts", upload(*[text(b"x", b"y")] * 1_001), "413 too_large"),
    case("B5", "100,000 parts", upload(*[text(b"x", b"y")] * 100_000), "413 too_large", cpu=1),
    case("B6", "text of 64 KiB and 1 byte", upload(part(), text(b"x", b"y" * 65_537)), "413 too_large", CHEAP),
    case("B6", "text of 64 KiB", upload(part(), text(b"x", b"y" * 65_536)), "200 label"),
    case("B6", "part header of 1 MB", upload(part(CANARY, IMAGE, b"X: " + b"y" * MIB)), "413 or 400", CHEAP),
    case("B6", "boundary of 7 KB", post(form(part(), boundary=LONG), FORM + LONG[1:]), "200 label", CHEAP),
    case("B6", "boundary, then 9 MB of dashes", post(BODY[:-2] + b"-" * 9 * MIB, FORM), "413 too_large", CHEAP),
    case("B6", "9 MB of dashes for a picture", upload(part(b"-" * 9 * MIB)), "415 not_an_image", CHEAP),
    case("B7", "CR LF, then 9 MB without", upload(part(b"\r\n" + b"x" * 9 * MIB)), "415 not_an_image", cpu=1),
    case("B7", "9 MB of CR", upload(part(b"\r" * 9 * MIB)), "415 not_an_image", cpu=1),
    case("B7", "9 MB of LF", upload(part(b"\n" * 9 * MIB)), "415 not_an_image", cpu=1),
    case("B7", "9 MB of CR LF dashes", upload(part(b"\r\n--" * (9 * MIB // 4))), "415 not_an_image", cpu=1),
    case("B7", "9 MB of all but the boundary", upload(part(b"\r\n--a" * (9 * MIB // 5))), "415 not_an_image", cpu=1),
    case("B8", "a picture and a url", upload(part(), text(b"url", b"https://example.org/x.png")), "400 bad_parameter"),
    case("B8", "wrong field", upload(part(CANARY, b'form-data; name="photo"; filename="x.png"')), "400 no_image"),
    case("B8", "unknown fields beside", upload(part(), text(b"x", b"y"), text(b"submit", b"Go")), "200 label"),
    case("B8", "an unknown query", post(BODY, FORM, to=b"/predict?utm_source=x&_=1"), "200 label"),
    case("B9", "GET: it takes ?url=", get(b"/predict"), "400 no_image"),
    Case("B9", "PUT PATCH DELETE TRACE BREW", [message(each + b" /predict") for each in METHODS], "405 bad_method"),
    case("B9", "CONNECT", message(b"CONNECT localhost:80"), "404 or 405 or 400"),
    case("B10", "good chunks", post_chunked(chunked(BODY, 99), FORM), "200 label"),
    case(
        "B10",
        "good chunks, extension and trailer",
        post_chunked(b"%x;a=b\r\n%b\r\n0\r\nX-Sum: 1\r\n\r\n" % (len(BODY), BODY), FORM),
        "200 label",
    ),
    case("B10", "chunks over the limit", post_chunked(chunked(padded(LIMIT + 1)), FORM), "413 too_large"),
    Case(
        "B10",
        "chunks cut off",
        [
            then_hang_up(post_chunked(chunked(BODY)[:-5], FORM)),
            then_hang_up(post_chunked(chunked(BODY)[:-50], FORM)),
            then_hang_up(post_chunked(chunked(CANARY)[:-5], PNG)),
            then_hang_up(post_chunked(b"5", PNG)),
        ],
        "400",
    ),
    Case(
        "B10",
        "bad sizes",
        [
            post_chunked(size + b"\r\n" + BODY + b"\r\n0\r\n\r\n", FORM)
            for size in (b"xyz", b"-5", b"+5", b"0x5", b"5.", b" 5", b"5_0", b"", b";", b"\xb2")
        ],
        "400, closed",
    ),
    case("B10", "a size of 2**64", post_chunked(b"ffffffffffffffff\r\n" + BODY, FORM), "413, closed or 400, closed"),
    case(
        "B10", "a size of 4,000 digits", post_chunked(b"f" * 4_000 + b"\r\n" + BODY, FORM), "413, closed or 400, closed"
    ),
    Case(
        "B10",
        "bad terminators",
        [
            post_chunked(b"%x\r\n%bXX0\r\n\r\n" % (len(BODY), BODY), FORM),
            post_chunked(b"%x\r\n%b\n0\n\n" % (len(BODY), BODY), FORM),
            post_chunked(b"%x\n%b\r\n0\r\n\r\n" % (len(BODY), BODY), FORM),
        ],
        "400, closed",
    ),
    case("B11", "Expect: 100-continue", expecting(b"100-continue", len(CANARY)), "100, 200 label"),
    case("B11", "Expect: 100-continue, 11 MiB", expecting(b"100-continue", 11 * MIB), "413 too_large"),
    case("B11", "Expect: foo", expecting(b"foo", len(CANARY)), "417 bad_expectation"),
    case("B13", "a form of exactly the limit", post(padded(LIMIT), FORM), "200 label"),
    case("B13", "a form of a byte more", post(padded(LIMIT + 1), FORM), "413 too_large"),
    case("B13", "a picture of exactly the limit", post(CANARY.ljust(LIMIT, b"\0"), PNG), "200 label"),
    case("B13", "a picture of a byte more", post(CANARY.ljust(LIMIT + 1, b"\0"), PNG), "413 too_large"),
    case("B13", "JSON of exactly the limit", post(OBJECT.ljust(LIMIT), JSON), "200 label"),
    case("B13", "JSON of a byte more", post(OBJECT.ljust(LIMIT + 1), JSON), "413 too_large"),
    case("B13", "chunks of exactly the limit", post_chunked(chunked(padded(LIMIT)), FORM), "200 label"),
    Case(
        "B14",
        "a gzipped body, and one that says so",
        [
            post(gzip.compress(BODY), FORM, b"Content-Encoding: gzip"),
            post(BODY, FORM, b"Content-Encoding: br"),
            post(OBJECT, JSON, b"Content-Encoding: zstd"),
        ],
        "415 bad_content_encoding",
    ),
    case("B14", "a bomb of 50 MB", post(BOMB, PNG, b"Content-Encoding: gzip"), "415 bad_content_encoding", CHEAP),
    case("B15", "a form within the form", upload(mixed(part())), "400 no_image"),
    case(
        "B15",
        "Content-Transfer-Encoding: base64",
        upload(part(base64.b64encode(CANARY), IMAGE, b"Content-Transfer-Encoding: base64")),
        "415 not_an_image",
    ),
    Case(
        "B15",
        "the part's type is another, or none",
        [
            upload(part(CANARY, IMAGE, b"Content-Type: text/html")),
            upload(part(CANARY, IMAGE, b"Content-Type: x/y; charset=utf-7")),
            upload(part(CANARY, IMAGE)),
        ],
        "200 label",
    ),
]


@pytest.mark.parametrize("case", as_params(BODIES))
def test_bodies(case: Case, holds: Holds) -> None:
    """A body is taken whole and as it is announced, or refused, at a price."""
    holds(case)


def stalled(data: bytes) -> Talk:
    """Sent, and the connection left open."""
    return lambda line: line.send(data)


def dripped(at_once: bytes, data: bytes, size: int, every: float) -> Talk:
    return lambda line: line.drip([at_once, *(data[at : at + size] for at in range(0, len(data), size))], every)


LARGE = padded(LIMIT)
SLOW = [
    Case(id, words, [talk], "408 slow_upload, closed", patience=READ_DEADLINE + SLACK)
    for id, words, talk in (
        ("B3", "Content-Length too large, left open", stalled(announced(len(BODY) + 9, BODY))),
        ("B3", "chunks without an end, left open", stalled(post_chunked(chunked(BODY)[:-5], FORM))),
        ("B12", "1 byte in 5 s", dripped(announced(len(BODY), b""), BODY, 1, 5)),
        ("B12", "10 MB at 1 KB/s", dripped(announced(LIMIT, b""), LARGE, 1_024, 1)),
        ("B12", "a head at 1 byte/s", dripped(b"G", get(b"/ping")[1:], 1, 1)),
    )
]


@pytest.fixture(scope="module")
def slow(house: House) -> Mapping[str, Heard]:
    """What came of all the slow ones, who were slow at the same time, while others were served as ever."""
    house.new_lines()
    with ThreadPoolExecutor(len(SLOW)) as pool:
        lines = [pool.submit(house.talk, case, case.sends[0]) for case in SLOW]
        pings = []
        while not all(line.done() for line in lines):
            pings.append(min(house.ping() for _ in range(3)))
            time.sleep(0.05)
    assert max(pings) < PING
    log = house.new_lines()
    return {case.name: heard_of(house, line.result(), log) for case, line in zip(SLOW, lines, strict=True)}


def heard_of(house: House, line: Line, log: Sequence[str]) -> Heard:
    """With those lines of the common log that are about it."""
    ids = [answer.headers.get("x-request-id", "none") for answer in line.answers]
    return house.heard([line], 0, [each for each in log if any(id in each for id in ids)])


@pytest.mark.parametrize("case", as_params(SLOW))
def test_slow(case: Case, slow: Mapping[str, Heard], holds: Holds) -> None:
    """Who is slow is let go at a deadline, and holds up nobody."""
    holds(case, slow[case.name])
