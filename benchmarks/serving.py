"""Pigeonhole against the obvious Flask app: one client's time for a photo, eight clients' throughput, start and memory.

    python benchmarks/serving.py [--model export.pkl] [--photos FOLDER]

The servers are up at the same time and are asked in turns, so that what else the machine does meets all of them.
Figures are medians over the rounds. Everything stays on this machine's loopback, and ends by itself.
"""

from __future__ import annotations

import argparse
import http.client
import io
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
GUNICORN = [sys.executable, "-m", "gunicorn"]
OURS = [*GUNICORN, "-c", "python:pigeonhole.gunicorn_conf", "app:app"]
CLIENTS = 8
BOUNDARY = "a-boundary-that-no-photo-holds"


@dataclass
class Server:
    name: str
    port: int
    process: subprocess.Popen[bytes]
    first_answer: float  # seconds from its start

    def memory(self) -> float:
        """What its worker holds, in MB (resident set size)."""
        (worker,) = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        lines = Path(f"/proc/{worker}/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


@contextmanager
def running(name: str, command: Sequence[str], photo: bytes, **environment: str) -> Iterator[Server]:
    with socket.socket() as probe, tempfile.TemporaryDirectory() as folder:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "UPLOADS": folder, "PORT": str(port), **environment}
        quiet = subprocess.DEVNULL
        process = subprocess.Popen(
            [part.format(port=port) for part in command], cwd=ROOT, env=environment, stdout=quiet, stderr=quiet
        )
        try:
            yield Server(name, port, process, _first_answer(port, process, photo))
        finally:
            process.terminate()
            process.wait(30)


def _first_answer(port: int, process: subprocess.Popen[bytes], photo: bytes) -> float:
    began = time.monotonic()
    while process.poll() is None and time.monotonic() < began + 300:
        try:
            ask(http.client.HTTPConnection("127.0.0.1", port, timeout=60), photo)
            return time.monotonic() - began
        except (OSError, http.client.HTTPException):
            time.sleep(0.02)
    raise SystemExit("a server does not start")


def ask(connection: http.client.HTTPConnection, photo: bytes) -> tuple[float, bytes]:
    """Seconds for one upload, and the answer."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="x.jpg"\r\n\r\n'.encode()
    body = head + photo + f"\r\n--{BOUNDARY}--\r\n".encode()
    began = time.monotonic()
    connection.request("POST", "/predict", body, {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"})
    response = connection.getresponse()
    answer = response.read()
    if response.status != 200:
        raise http.client.HTTPException(f"{response.status} {answer[:200]!r}")
    return time.monotonic() - began, answer


def one_client(server: Server, photos: Sequence[bytes], requests: int) -> float:
    """The median time of one client's requests, in milliseconds."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    times = [ask(connection, photos[number % len(photos)])[0] for number in range(requests)]
    connection.close()
    return statistics.median(times) * 1000


def many_clients(server: Server, photos: Sequence[bytes], requests: int) -> float:
    """Answers a second for `CLIENTS` clients at once."""

    def client(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        for turn in range(requests // CLIENTS):
            ask(connection, photos[(number + turn) % len(photos)])
        connection.close()

    began = time.monotonic()
    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(client, range(CLIENTS)))
    return requests // CLIENTS * CLIENTS / (time.monotonic() - began)


def photos_of(folder: Path | None, size: tuple[int, int], count: int) -> list[bytes]:
    """JPEGs of that size: of the folder's photos, or of noise where there are none."""
    paths = sorted(folder.rglob("*.jpg"))[:: max(1, len(list(folder.rglob("*.jpg"))) // count)] if folder else []
    pictures = [Image.open(path).convert("RGB") for path in paths[:count]]
    if not pictures:
        random = np.random.default_rng(1)
        pictures = [Image.fromarray(random.integers(0, 256, (30, 40, 3)).astype(np.uint8)) for _ in range(count)]
    photos = []
    for picture in pictures:
        file = io.BytesIO()
        picture.resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        photos.append(file.getvalue())
    return photos


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "export.pkl", help="the export")
    parser.add_argument("--photos", type=Path, metavar="FOLDER", help="real photos; otherwise noise is sent")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=40, help="of one client in a round; of eight, four times that")
    options = parser.parse_args()
    model = str(options.model.resolve())
    subprocess.run([sys.executable, "-m", "pigeonhole", "compile", model], cwd=ROOT, check=True)
    small, large = (photos_of(options.photos, size, 10) for size in ((800, 600), (4000, 3000)))
    obvious = [*GUNICORN, "--bind", "127.0.0.1:{port}", "--threads", "8", "--timeout", "300"]
    with ExitStack() as stack:
        servers = [
            stack.enter_context(running(name, command, small[0], MODEL=model, **environment))
            for name, command, environment in (
                ("obvious Flask app", [*obvious, "--chdir", str(ROOT / "benchmarks"), "obvious:app"], {}),
                ("Pigeonhole, learner", OURS, {"ENGINE": "learner"}),
                ("Pigeonhole, exact", OURS, {"PRECISION": "exact"}),
                ("Pigeonhole, auto", OURS, {}),
            )
        ]
        measures: dict[str, Callable[[Server], float]] = {
            "one client, 800x600, ms": lambda server: one_client(server, small, options.requests),
            "8 clients, 800x600, /s": lambda server: many_clients(server, small, 4 * options.requests),
            "one client, 12 MP, ms": lambda server: one_client(server, large, max(1, options.requests // 4)),
        }
        results: dict[str, dict[str, list[float]]] = {
            title: {server.name: [] for server in servers} for title in measures
        }
        for _ in range(options.rounds):
            for title, measure in measures.items():
                for server in servers:
                    results[title][server.name].append(measure(server))
        print(f"{'':<26}" + "".join(f"{server.name:>22}" for server in servers))
        for title in measures:
            medians = [statistics.median(results[title][server.name]) for server in servers]
            print(f"{title:<26}" + "".join(f"{value:>12.1f} ({value / medians[0]:>5.2f}x)" for value in medians))
        print(f"{'first answer, s':<26}" + "".join(f"{server.first_answer:>22.1f}" for server in servers))
        print(f"{'memory, MB':<26}" + "".join(f"{server.memory():>22.0f}" for server in servers))


if __name__ == "__main__":
    main()
