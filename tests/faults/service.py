"""A server of its own for a run under load, with what watches it and what it is sent."""

from __future__ import annotations

import io
import os
import random
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from tests.conftest import DATA, GUNICORN, ROOT, Server, free_port, wait_until_up
from tests.faults.clients import Reply, ask
from tests.faults.watch import Watch


@dataclass(frozen=True)
class Service:
    """A running server, and what watches it."""

    server: Server
    watch: Watch

    @property
    def port(self) -> int:
        return int(self.server.url.rpartition(":")[2])


@contextmanager
def serving(app: str = "app:app", *arguments: str, **environment: str) -> Iterator[Service]:
    """A server of its own with an upload folder of its own, stopped afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        uploads, log = Path(folder) / "uploads", Path(folder) / "log"
        uploads.mkdir()
        port = free_port()
        variables = {**os.environ, "PORT": str(port), "UPLOADS": str(uploads), "LOG_LEVEL": "error", **environment}
        with log.open("w") as output:
            process = subprocess.Popen(
                (*GUNICORN[:-1], *arguments, app), cwd=ROOT, env=variables, stdout=output, stderr=output, text=True
            )
        server = Server(f"http://127.0.0.1:{port}", process, log)
        try:
            wait_until_up(server)
            yield Service(server, Watch(process.pid, uploads))
        finally:
            if process.poll() is None:
                server.stop()


def photos(count: int) -> Iterator[bytes]:
    """Distinct photos: real ones of clothing, each cropped and tinted in its own way."""
    paths = sorted((DATA / "clothing").glob("*/*/*.jpg"))
    for number in range(count):
        rng = random.Random(number)
        with Image.open(paths[number * 7 % len(paths)]) as opened:
            photo = opened.convert("RGB")
        width, height = photo.size
        left, top = rng.randrange(width // 5), rng.randrange(height // 5)
        photo = photo.crop((left, top, width - rng.randrange(width // 5), height - rng.randrange(height // 5)))
        tints = [rng.uniform(0.7, 1) for _ in range(3)]
        bands = zip(photo.split(), tints, strict=True)
        photo = Image.merge("RGB", [band.point([int(level * tint) for level in range(256)]) for band, tint in bands])
        file = io.BytesIO()
        photo.save(file, "JPEG", quality=85)
        yield file.getvalue()


async def answered(port: int, request: bytes) -> Reply:
    """What it is answered when nobody else asks."""
    reply = await ask(port, request)
    assert reply.status == 200, reply
    return reply
