"""HTTP as it must not be, and the corners of HTTP as it may be (F)."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from tests.cases.case import Case, as_params, case
from tests.cases.conftest import Holds
from tests.cases.house import House, check_answer, check_log
from tests.cases.messages import CANARY, CHUNKED, FORM, LAST, PNG, chunked, form, get, message, part, post, then_hang_up
from tests.cases.wire import Line

HOST = b"Host: localhost\r\n"
PING = message(b"GET /ping", [])
SMUGGLED = message(b"GET /nowhere", [])
BODY = form(part())
HELLO = bytes.fromhex("16030100a5010000a10303") + bytes(range(154))  # how TLS begins
MUTATIONS = 300


def ping(*headers: bytes) -> bytes:
    """On a connection that may be kept, so that it matters whether it is."""
    return message(b"GET /ping", headers)


def framed(*headers: bytes, body: bytes = b"0\r\n\r\n") -> bytes:
    """A body framed by these headers, and behind it a request that must not be seen as one."""
    return message(b"POST /predict", [PNG, *headers], body + SMUGGLED)


def hosted(*hosts: bytes) -> bytes:
    return get(b"/ping").replace(HOST, b"".join(b"Host: %b\r\n" % host for host in hosts))


def old(start: bytes, *headers: bytes, body: bytes = b"") -> bytes:
    return b"\r\n".join([start + b" HTTP/1.0", *headers, b"", body])


def one_after_the_other(*requests: bytes) -> Callable[[Line], None]:
    """Each when the one before it is answered."""

    def talk(line: Line) -> None:
        for number, request in enumerate(requests, 1):
            line.send(request)
            line.listen(number)

    return talk


def kept_post(body: bytes, kind: bytes) -> bytes:
    return message(b"POST /predict", [kind, b"Content-Length: %d" % len(body)], body)


REFUSED = "400, closed or 501, closed or 413, closed"
LENGTHS = (b"-1", b"+1", b"1e3", b"0x10", b"1_0", b"1 0", b"1,1", b"1, 2", b"", b"x", b"1.0", b"\xb2", b"1;q=1")
CODINGS = (b"xchunked", b"chunked, chunked", b"chunked, identity", b"identity, chunked, x", b"\x0bchunked",
           b"chunked\x0b", b"chunked;q=1", b'"chunked"', b"x", b"cow", b"")  # fmt: skip
FRAMINGS = [
    case("F1", "a header of 9,000 bytes", ping(b"X: " + b"y" * 9_000), "431 head_too_large, closed"),
    case("F1", "120 headers", ping(*[b"X: y"] * 120), "431 head_too_large, closed"),
    case("F1", "a URL of 5,000 bytes", message(b"GET /ping?" + b"x" * 5_000, []), "414 url_too_long, closed"),
    case("F1", "a head of 1 MB", ping(*[b"X: " + b"y" * 1_000] * 1_000), "431 head_too_large, closed"),
    case("F2", "CL.TE", framed(b"Content-Length: 5", CHUNKED), REFUSED),
    case("F2", "TE.CL", framed(CHUNKED, b"Content-Length: 5"), REFUSED),
    case("F2", "TE.TE", framed(CHUNKED, b"Transfer-Encoding: x"), REFUSED),
    *(
        case("F2", f"Transfer-Encoding: {each!r}"[:60], framed(b"Transfer-Encoding: " + each), REFUSED)
        for each in CODINGS
    ),
    case("F2", "Transfer-Encoding, a space, a colon", framed(b"Transfer-Encoding : chunked"), REFUSED),
    case("F2", "a space before Transfer-Encoding", framed(b" Transfer-Encoding: chunked"), REFUSED),
    case(
        "F2",
        "Transfer_Encoding, and a length",
        framed(b"Transfer_Encoding: chunked", b"Content-Length: 5"),
        "400, closed or 415, closed",
    ),
    *(case("F2", f"Content-Length: {each!r}"[:60], framed(b"Content-Length: " + each), REFUSED) for each in LENGTHS),
    case("F2", "Content-Length of 4,000 digits", framed(b"Content-Length: " + b"9" * 4_000), REFUSED),
    case("F2", "two lengths that differ", framed(b"Content-Length: 5", b"Content-Length: 6"), REFUSED),
    case("F2", "two lengths that do not", framed(b"Content-Length: 5", b"Content-Length: 5"), REFUSED),
    case("F2", "a chunk that smuggles", framed(CHUNKED, body=b"5\r\nxxxxx\r\n0\r\n\r\n"), "415, closed"),
    case("F2", "a trailer that frames", framed(CHUNKED, body=b"0\r\nContent-Length: 9\r\n\r\n"), REFUSED),
    case("F3", "obs-fold", ping(b"X: a\r\n b"), "400 bad_request, closed"),
    case("F3", "bare LF", PING.replace(b"\r\n", b"\n"), "400 bad_request, closed"),
    case("F3", "one bare LF", ping(b"X: a\nY: b"), "400 bad_request, closed"),
    case("F3", "bare CR", ping(b"X: a\rY: b"), "400 bad_request, closed"),
    case("F3", "NUL in a value", ping(b"X: a\0b"), "400 bad_request, closed"),
    case("F3", "NUL in a path", message(b"GET /ping\0", []), "400 bad_request, closed"),
    Case("F3", "control bytes", [ping(b"X: a%cb" % code) for code in (1, 8, 11, 27, 127)], "400 bad_request, closed"),
    Case(
        "F3",
        "bytes above ASCII in a path",
        [message(b"GET /%cx" % code, []) for code in (128, 233, 255)],
        "400 bad_request, closed",
    ),
    case("F3", "lower-case method", message(b"get /ping", []), "400 bad_request, closed"),
    case("F3", "HTTP/0.9", b"GET /ping\r\n\r\n", "400 bad_request, closed"),
    case("F3", "HTTP/2.0", PING.replace(b"HTTP/1.1", b"HTTP/2.0"), "400, closed or 505, closed"),
    case("F3", "the preface of HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "400, closed or 505, closed"),
    case("F3", "the hello of TLS, then an end", then_hang_up(HELLO), "400, closed or closed"),
    case("F4", "HTTP/1.0", old(b"GET /ping"), "200 pong, closed"),
    case(
        "F4",
        "HTTP/1.0 with a body",
        old(b"POST /predict", PNG, b"Content-Length: %d" % len(CANARY), body=CANARY),
        "200 label, closed",
    ),
    case("F4", "HTTP/1.0 with chunks", old(b"POST /predict", PNG, CHUNKED, body=chunked(CANARY)), "400, closed"),
    case(
        "F4",
        "HTTP/1.0 that is kept",
        one_after_the_other(*[old(b"GET /ping", b"Connection: keep-alive")] * 2),
        "200 pong, 200 pong",
    ),
    case(
        "F4",
        "a connection that is used again",
        one_after_the_other(kept_post(CANARY, PNG), kept_post(BODY, FORM), PING),
        "200 label, 200 label, 200 pong",
    ),
    case("F4", "an empty line between requests", PING + b"\r\n" + PING, "200 pong, 200 pong"),
    case(
        "F5",
        "5 at once, in order",
        PING + SMUGGLED + kept_post(CANARY, PNG) + SMUGGLED + PING,
        "200 pong, 404 not_found, 200 label, 404 not_found, 200 pong",
    ),
    case("F5", "behind one that says it is the last", ping(LAST) + PING, "200 pong, closed"),
    case("F5", "behind a rejected upload", kept_post(b"x" * (11 << 20), PNG) + PING, "413 too_large, closed"),
    case("F5", "behind a form that is none", kept_post(b"x" * 99, FORM) + PING, "400 bad_multipart, closed"),
    case("F6", "HEAD", message(b"HEAD /ping", [LAST]), "200"),
    case("F6", "HEAD of what is not there", message(b"HEAD /nowhere", [LAST]), "404"),
    case("F6", "OPTIONS", message(b"OPTIONS /predict", [LAST]), "204 or 200"),
    case(
        "F6",
        "a preflight",
        message(b"OPTIONS /predict", [LAST, b"Origin: https://example.org", b"Access-Control-Request-Method: POST"]),
        "204 or 200",
    ),
    case("F6", "OPTIONS *", message(b"OPTIONS *", [LAST]), "204 or 200 or 404 or 400"),
]


@pytest.mark.parametrize("case", as_params(FRAMINGS))
def test_framing(case: Case, holds: Holds) -> None:
    """Where a request ends is certain, or the connection does."""
    holds(case)


@pytest.mark.parametrize("path", [b"/predict", b"/ping"])
def test_options(house: House, path: bytes) -> None:
    """F6: OPTIONS says what is allowed."""
    allowed = house.ask(message(b"OPTIONS " + path, [LAST])).headers["allow"].split(", ")
    assert set(allowed) == {"GET", "HEAD", "OPTIONS"} | ({"POST"} if path == b"/predict" else set())


HIDDEN = b"""
    /static/ /tmp/ /uploads/ /.git/config /.env /console /app.py /export.pkl /Pipfile /export.onnx /page/
    /page/../app.py /page/%2e%2e/app.py /page/..%2fapp.py /page//etc/passwd /page/..%5capp.py /etc/passwd
    /proc/self/environ /server-status /wp-login.php /favicon.ico/x /examples/../app.py
    /%2e%2e/%2e%2e/etc/passwd /..%252f..%252fetc/passwd /cgi-bin/.%2e/etc/passwd
""".split()
SPELLINGS = b"""
    /./ping /x/../ping /%2e/ping /x/%2e%2e/ping /ping%00 /ping;x /PING /ping/ /ping%20 /ping%0a
    ///localhost/ping /ping%ff /p%C4%B1ng /ping\\
""".split()
BAD_HOSTS = (b"a b", b"a/b", b"x@y", b"[::1", b"a:b", b"a,b", b"\xff", b"<x>", b"a?b")
GOOD_HOSTS = (b"localhost:5000", b"[::1]:80", b"127.0.0.1", b"example.org", b"a-b.c")
TARGETS = [
    Case("F7", "other spellings of /ping", [*map(get, SPELLINGS)], "404 not_found"),
    case("F7", "//ping", get(b"//ping"), "404 not_found or 200 pong"),
    case("F7", "/%70ing is /ping", get(b"/%70ing"), "200 pong"),
    case("F7", "an empty query", get(b"/ping?"), "200 pong"),
    case("F7", "absolute form", get(b"http://localhost/ping"), "200 pong"),
    case("F7", "no path", get(b"ping"), "404 or 400"),
    case("F7", "*", get(b"*"), "404 or 400"),
    case("F7", "a fragment", get(b"/ping#x"), "400 or 200 pong"),
    Case("F7", "what is not served", [*map(get, HIDDEN)], "404 not_found"),
    case("F8", "no Host", hosted(), "400"),
    case("F8", "two Hosts", hosted(b"localhost", b"localhost"), "400"),
    Case("F8", "bad Hosts", [*map(hosted, BAD_HOSTS)], "400"),
    Case("F8", "good Hosts", [*map(hosted, GOOD_HOSTS)], "200 pong"),
    case(
        "F9",
        "X-Forwarded-*, Forwarded",
        get(
            b"/ping",
            b"X-Forwarded-For: 10.0.0.1",
            b"X-Forwarded-Host: evil.example",
            b"X-Forwarded-Proto: https",
            b"X-Forwarded-Prefix: /x",
            b"Forwarded: for=10.0.0.1;host=evil.example",
        ),
        "200 pong",
    ),
    case("F9", "SCRIPT_NAME, PATH_INFO", get(b"/ping", b"SCRIPT_NAME: /ping", b"PATH_INFO: /nowhere"), "200 pong"),
    case(
        "F9",
        "SCRIPT-NAME, X-Original-URL, X-Rewrite-URL, X-HTTP-Method-Override",
        get(
            b"/ping",
            b"SCRIPT-NAME: /ping",
            b"X-Original-URL: /nowhere",
            b"X-Rewrite-URL: /nowhere",
            b"X-HTTP-Method-Override: DELETE",
        ),
        "200 pong",
    ),
    case(
        "F9", "a scheme in three ways", get(b"/ping", b"X-Forwarded-Protocol: ssl", b"X-Forwarded-Ssl: on"), "200 pong"
    ),
    case("F9", "X-Request-ID", get(b"/ping", b"X-Request-ID: forged"), "200 pong"),
    case("F9", "X-Request-ID of 7 KB", get(b"/ping", b"X-Request-ID: " + b"x" * 7_000), "200 pong"),
    case("F9", "X-Request-ID of 10 KB", get(b"/ping", b"X-Request-ID: " + b"x" * 10_240), "431 head_too_large"),
    case("F9", "X-Request-ID with CR", get(b"/ping", b"X-Request-ID: a\rSet-Cookie: b"), "400"),
    case(
        "F9",
        "Proxy, Upgrade, HTTP2-Settings",
        get(b"/ping", b"Proxy: http://127.0.0.1:1", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk"),
        "200 pong",
    ),
    case(
        "F9",
        "Range, If-None-Match, If-Match",
        get(b"/ping", b"Range: bytes=0-1", b"If-None-Match: *", b'If-Match: "x"'),
        "200 pong",
    ),
]


@pytest.mark.parametrize("case", as_params(TARGETS))
def test_targets(case: Case, holds: Holds) -> None:
    """What a request is about is what it says first, and nothing besides makes it another."""
    holds(case)


VERSIONS = b"""
    HTTP/1 HTTP/1. HTTP/11.1 HTTP/1.10 HTTP/x.y http/1.1 HTTP1.1 HTTPS/1.1 FTP/1.1 HTTP/-1.1 HTTP/0.9 HTTP/3.0
    ICY/1.0
""".split()
METHODS = b"""
    GE(T GET: G\xc9T G\x00ET [GET] GET, \xef\xbb\xbfGET G/T - #GET
""".split()
FIELDS = b"""
    \xe9 a(b) a,b [a] a/b a=b {a} a@b X\xff
""".split()
ODD_LINES = (
    b" : x", b"a b: x", b"a : x", b"a\t: x", b"a\x00: x", b"a\r: x", b"x", b": x", b'"a": x', b"X: \x7f",
    b"X: \x1b[31m", b"X: a\r",
)  # fmt: skip
MALFORMED: dict[str, bytes] = {
    "nothing but an empty line": b"\r\n\r\n",
    "no version": b"GET /ping \r\n" + HOST + b"\r\n",
    "no target": b"GET  HTTP/1.1\r\n" + HOST + b"\r\n",
    "two spaces": PING.replace(b"GET /", b"GET  /"),
    "a tab": PING.replace(b"GET /", b"GET\t/"),
    "a space first": b" " + PING,
    "four words": PING.replace(b" HTTP", b" x HTTP"),
    "a space behind": PING.replace(b"HTTP/1.1", b"HTTP/1.1 "),
    **{f"version {each.decode()}": PING.replace(b"HTTP/1.1", each) for each in VERSIONS},
    **{f"method {each!r}": PING.replace(b"GET", each) for each in (b"", *METHODS)},
    **{f"header {each!r}": ping(each) for each in (*(name + b": x" for name in FIELDS), *ODD_LINES)},
    "a header before the request": b"Host: x\r\n" + PING,
    "two content types": message(b"POST /predict", [PNG, FORM]),
    "an answer": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "SSH": b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
    "SMTP": b"EHLO localhost\r\n\r\n",
    "RTSP": b"OPTIONS rtsp://localhost/x RTSP/1.0\r\nCSeq: 1\r\n\r\n",
    "the PROXY protocol": b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n" + PING,
    "the PROXY protocol, 2": bytes.fromhex("0d0a0d0a000d0a515549540a2111000c") + bytes(12) + PING,
    "Redis": b"*1\r\n$4\r\nPING\r\n\r\n",
    "JSON": b'{"image": "x"}\r\n\r\n',
}
ODD = [case("F10", words, then_hang_up(data), "400 bad_request, closed") for words, data in MALFORMED.items()]


@pytest.mark.parametrize("case", as_params(ODD))
def test_malformed(case: Case, holds: Holds) -> None:
    """What is no HTTP is told so, and nothing else comes of it."""
    holds(case)


def mutated(data: bytes, chance: random.Random) -> bytes:
    """A few bytes changed, cut out or doubled."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at, size = chance.randrange(len(changed)), chance.choice((1, 1, 2, 9, 40))
        piece = bytes(changed[at : at + size])
        changed[at : at + size] = chance.choice([b"", piece * 2, chance.randbytes(size), b"\r\n", b"\0", b" ", b"9"])
        changed = changed or bytearray(b"x")
    return bytes(changed)


@pytest.mark.parametrize("kind", ["heads", "forms"], ids="F10 mutated {}".format)
def test_mutated(house: House, record_property: Callable[[str, object], None], kind: str) -> None:
    """Whatever becomes of a good request, it is answered, refused or dropped: no 5xx, no hang, nothing left."""
    chance = random.Random(7)
    good = [ping(b"X: y", b"Accept: */*"), kept_post(BODY, FORM)]
    if kind == "forms":
        good = [post(form(part(b"GIF89a")), FORM)]
    requests = [then_hang_up(mutated(chance.choice(good), chance)) for _ in range(MUTATIONS)]
    heard = house.hear(case := Case("F10", f"{MUTATIONS} mutated {kind}", requests, "no 5xx, no hang"))
    record_property("case", [case.id, case.words, case.expected, "no 5xx, no hang"])
    assert [line.answers for line in heard.lines if not line.closed] == []
    assert max(answer.status for answer in heard.answers) in range(400, 500)
    for answer in heard.answers:
        check_answer(answer)
    check_log(heard)
    house.check_house()
