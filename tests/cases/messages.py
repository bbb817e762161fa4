"""Requests, byte for byte: well formed but for what they are told to be."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from tests.cases.wire import Line, Talk
from tests.conftest import encoded

CANARY = encoded(Image.linear_gradient("L").resize((64, 48)).convert("RGB"))
IMAGE = b'form-data; name="image"; filename="x.png"'
FORM = b"Content-Type: multipart/form-data; boundary=b"
JSON = b"Content-Type: application/json"
PNG = b"Content-Type: image/png"
CHUNKED = b"Transfer-Encoding: chunked"
LAST = b"Connection: close"  # so that nobody has to wait whether more comes


def message(start: bytes, headers: Sequence[bytes] = (LAST,), body: bytes = b"") -> bytes:
    """A request of HTTP/1.1 with nothing but a Host added."""
    return b"\r\n".join([start + b" HTTP/1.1", b"Host: localhost", *headers, b"", body])


def get(path: bytes, *headers: bytes) -> bytes:
    return message(b"GET " + path, [LAST, *headers])


def post(body: bytes, *headers: bytes, to: bytes = b"/predict") -> bytes:
    """With its length."""
    return message(b"POST " + to, [LAST, b"Content-Length: %d" % len(body), *headers], body)


def post_chunked(chunks: bytes, *headers: bytes) -> bytes:
    return message(b"POST /predict", [LAST, CHUNKED, *headers], chunks)


def chunked(body: bytes, size: int = 1 << 20) -> bytes:
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in [*pieces, b""])


def part(content: bytes = CANARY, disposition: bytes = IMAGE, *headers: bytes) -> bytes:
    """A part of a form, without its boundary."""
    return b"\r\n".join([b"Content-Disposition: " + disposition, *headers, b"", content])


def form(*parts: bytes, boundary: bytes = b"b") -> bytes:
    opened = b"".join(b"--%b\r\n%b\r\n" % (boundary, each) for each in parts)
    return opened + b"--%b--\r\n" % boundary


def text(name: bytes, value: bytes) -> bytes:
    return part(value, b'form-data; name="%b"' % name)


def upload(*parts: bytes) -> bytes:
    return post(form(*parts), FORM)


def named(name: bytes, content: bytes = CANARY) -> bytes:
    """An upload of the canary under a file name that is quoted, and nothing but."""
    return upload(part(content, b'form-data; name="image"; filename="%b"' % name))


def then_hang_up(data: bytes) -> Talk:
    def talk(line: Line) -> None:
        line.send(data)
        line.hang_up()

    return talk
