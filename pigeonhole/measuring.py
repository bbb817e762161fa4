"""Run the service here for a moment, on some of the cores, and see what it holds and how much it answers."""

from __future__ import annotations

import http.client
import io
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from PIL import Image

from pigeonhole.errors import NotMeasured
from pigeonhole.machine import anonymous_memory, children, descendants, killed_for_memory
from pigeonhole.model.probes import made_up
from pigeonhole.settings import environment_with
from pigeonhole.sizing import Held

ROOT = Path(__file__).resolve().parents[1]
SERVE = ("-m", "gunicorn", "-c", "python:pigeonhole.gunicorn_conf", "app:app")
START_SECONDS = 600  # a model may have to be downloaded and compiled
LOAD_SECONDS = 150  # gunicorn gives a worker 120 to load its model
STOP_SECONDS = 30
ASK_SECONDS = 60
DISTINCT = 8  # photos that are sent in turns
UNSET = (  # what would keep us out, or tell others of it
    *("API_KEYS", "API_KEYS_FILE", "RATE_LIMIT", "TRUSTED_HOSTS"),
    *("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"),
)


class Service:
    """The service that listens on `port`, whose master is `process`."""

    def __init__(self, port: int, process: int) -> None:
        self._port, self._process = port, process

    def held(self) -> Held:
        """By the master, and by its largest worker."""
        return Held(
            anonymous_memory(self._process), max(anonymous_memory(worker) for worker in children(self._process))
        )

    def memory(self) -> int:
        """Anonymous memory of all its processes, in bytes."""
        return sum(map(anonymous_memory, [self._process, *descendants(self._process)]))

    def seconds(self, photos: Sequence[bytes], requests: int) -> float:
        """The median time of one client's photo."""
        with self._connected() as connection:
            return statistics.median(_ask(connection, photos[turn % len(photos)]) for turn in range(requests))

    def per_second(self, photos: Sequence[bytes], clients: int, seconds: float) -> float:
        """Photos answered for `clients` that each send the next one when the last is answered."""
        until = time.monotonic() + seconds

        def client(number: int) -> int:
            answered = 0
            with self._connected() as connection:
                while time.monotonic() < until:
                    _ask(connection, photos[(number + answered) % len(photos)])
                    answered += 1
            return answered

        began = time.monotonic()
        with ThreadPoolExecutor(clients) as pool:
            return sum(pool.map(client, range(clients))) / (time.monotonic() - began)

    @contextmanager
    def _connected(self) -> Iterator[http.client.HTTPConnection]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=ASK_SECONDS)
        try:
            yield connection
        finally:
            connection.close()


@contextmanager
def serving(**settings: str) -> Iterator[Service]:
    """The service with the settings of the environment, but for those given, and for nobody but this process.

    It listens on loopback, asks for no key, and keeps pictures in a folder of its own.

    Raises:
        NotMeasured: it does not start.
    """
    killed = killed_for_memory()
    with tempfile.TemporaryDirectory() as uploads:
        port = _free_port()
        own = {"HOST": "127.0.0.1", "PORT": str(port), "UPLOADS": uploads, "LOG_LEVEL": "error"}
        environment = environment_with(**{**dict.fromkeys(UNSET, ""), **own, **settings})
        process = subprocess.Popen([sys.executable, *SERVE], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
        try:
            _wait(port, process)
            yield Service(port, process.pid)
        except NotMeasured as error:
            if killed_for_memory() == killed:
                raise
            raise NotMeasured("there is too little memory here to measure in, whatever --memory says.") from error
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def on_cores(count: int) -> Iterator[None]:
    """This process, and what it starts, on `count` of the cores that it may use."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(sorted(before)[:count]))
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@cache
def photos(size: tuple[int, int]) -> list[bytes]:
    """JPEGs of made-up pictures of `size`, width and height."""
    small = min(size, (800, 600))
    files = [io.BytesIO() for _ in range(DISTINCT)]
    for seed, file in enumerate(files):
        made_up(small, seed).resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=88)
    return [file.getvalue() for file in files]


def _ask(connection: http.client.HTTPConnection, photo: bytes) -> float:
    """Seconds until `photo` was answered."""
    began = time.monotonic()
    try:
        connection.request("POST", "/predict", photo, {"Content-Type": "image/jpeg"})
        response = connection.getresponse()
        said = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise NotMeasured(f"the service did not answer a photo while it was measured: {error}") from error
    if response.status != 200:
        raise NotMeasured(f"the service refused a photo while it was measured: {said.decode('utf-8', 'replace')}")
    return time.monotonic() - began


def _wait(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise NotMeasured("the service does not start; the reason stands above.")
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1):
                break
        except OSError:
            time.sleep(0.05)
    # who connects is answered once the first worker has loaded its model
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LOAD_SECONDS)
    try:
        connection.request("GET", "/ready")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        raise NotMeasured("the service does not start; the reason stands above.") from error
    finally:
        connection.close()
    if status != 200:
        raise NotMeasured("the service does not get ready.")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
