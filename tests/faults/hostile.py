"""What is sent in a soak: good requests of all kinds, and what only somebody who means ill, or has bad luck, sends."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress

from PIL import Image

from tests.conftest import DATA, encoded, png_of_size
from tests.faults.clients import BROKEN, ask, get, post

Attack = Callable[[int], Awaitable[int]]  # of a port; the status that came of it
DRIPS = 12  # bytes, in as many fifths of a second
JSON = "application/json"


def good_requests() -> Iterator[tuple[str, bytes]]:
    """Each kind of picture, each way to send it, each extra, of real photos."""
    paths = sorted((DATA / "clothing" / "validation").glob("*/*.jpg"))[::40]
    jpeg = paths[0].read_bytes()
    with Image.open(paths[1]) as opened:
        photo = opened.convert("RGB")
    yield "jpeg", post(jpeg, "/predict?top=all")
    yield "ping", get("/ping")
    yield "png", post(encoded(photo, "PNG"), "/predict?top=3", "image/png")
    yield "webp", post(encoded(photo, "WEBP"), "/predict", "image/webp")
    yield "large", post(encoded(photo.resize((3000, 2000)), "JPEG"), "/predict?top=all")
    yield "base64", post(json.dumps({"image": base64.b64encode(jpeg).decode(), "top": 2}).encode(), kind=JSON)
    yield "explain", post(jpeg, "/predict?explain=1")
    yield "form", post(form(*(path.read_bytes() for path in paths[:3])), "/predict", FORM)


FORM = "multipart/form-data; boundary=b"


def form(*contents: bytes) -> bytes:
    head = b'--b\r\nContent-Disposition: form-data; name="image"; filename="x.jpg"\r\n\r\n'
    return b"".join(head + content + b"\r\n" for content in contents) + b"--b--\r\n"


def _asks(request: bytes) -> Attack:
    async def attack(port: int) -> int:
        return (await ask(port, request)).status

    return attack


def leaves(request: bytes, after: float) -> Attack:
    """Sends it all, and is gone without a word, with what it was sent unread."""

    async def attack(port: int) -> int:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request)
        await writer.drain()
        await asyncio.sleep(after)
        raw = writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # reset, not closed
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
        return BROKEN

    return attack


def _drips(request: bytes) -> Attack:
    async def attack(port: int) -> int:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        with suppress(OSError):
            for byte in request[:DRIPS]:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0.2)
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
        return BROKEN

    return attack


def _gif_of_many_frames() -> bytes:
    file = io.BytesIO()
    frames = [Image.new("L", (64, 64), shade) for shade in range(200)]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    return file.getvalue()


JPEG = encoded(Image.effect_noise((400, 300), 60), "JPEG")
BIG = post(encoded(Image.effect_noise((1500, 1000), 60), "JPEG"))
HOSTILE: list[tuple[str, Attack, tuple[int, ...]]] = [
    ("no HTTP", _asks(b"\x16\x03\x01hello\r\n\r\n"), (400,)),
    ("NUL in a header", _asks(b"GET / HTTP/1.1\r\nA: \0\r\n\r\n"), (400,)),
    ("two lengths", _asks(b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"), (400,)),
    ("endless head", _asks(b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 8000), (431, BROKEN)),
    ("bad chunks", _asks(b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n"), (400,)),
    ("truncated JPEG", _asks(post(JPEG[:-3000])), (422,)),
    ("bomb", _asks(post(png_of_size(50_000, 50_000), kind="image/png")), (422,)),
    ("wide bomb", _asks(post(png_of_size(25_000_000, 1), kind="image/png")), (422,)),
    ("many frames", _asks(post(_gif_of_many_frames(), kind="image/gif")), (200, 422)),
    ("noise", _asks(post(bytes(range(256)) * 100)), (415,)),
    ("wrong JSON", _asks(post(b'{"image": ' + b"[" * 10_000, kind=JSON)), (400,)),
    ("wrong base64", _asks(post(b'{"image": "%%%"}', kind=JSON)), (400,)),
    ("half a form", _asks(post(form(JPEG)[:-20], kind=FORM)), (400,)),
    ("too large", _asks(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n"), (413,)),
    ("nowhere", _asks(get("/../../etc/passwd")), (400, 404)),
    ("leaves at once", leaves(BIG, 0), (BROKEN,)),
    ("leaves while it is worked for", leaves(BIG, 0.02), (BROKEN,)),
    ("leaves in the middle", leaves(BIG[: len(BIG) // 2], 0.1), (BROKEN,)),
    ("drips", _drips(BIG), (BROKEN,)),
]
