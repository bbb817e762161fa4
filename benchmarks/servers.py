"""The servers of the contest: how each is set up, started, watched and stopped."""

from __future__ import annotations

import base64
import http.client
import json
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.environments import OURS, PEERS, ROOT, folder_of
from benchmarks.load import multipart, request
from tests.faults.watch import descendants, memory, processor_seconds

BODY_BYTES = 256 << 20  # a PNG of 24 megapixels has over 40 MB
START_SECONDS = 180
STOP_SECONDS = 30


class NotStarted(Exception):
    """A server does not answer; what it printed last is the message."""


def open_inference(photo: bytes) -> bytes:
    """The photo as base64 in the Open Inference Protocol's JSON, the one way for clients that only have HTTP."""
    tensor = {
        "name": "image",
        "shape": [1],
        "datatype": "BYTES",
        "parameters": {"content_type": "base64"},
        "data": [base64.b64encode(photo).decode()],
    }
    return request("/v2/models/classifier/infer", "application/json", json.dumps({"inputs": [tensor]}).encode())


@dataclass(frozen=True)
class Peer:
    """One server of the contest. In `command` and `environ`, {port} to {port3}, {folder} and {cores} are filled in."""

    key: str
    title: str
    framework: str  # the folder in peers/ and the environment
    way: str  # how it answers: by_hand's VARIANT, or ours
    command: Sequence[str]
    environ: Mapping[str, str] = field(default_factory=dict)
    as_request: Callable[[bytes], bytes] = multipart

    @property
    def is_ours(self) -> bool:
        return self.framework == OURS

    @property
    def needs(self) -> str | None:
        """Which file of requirements the model needs beside the framework's."""
        return None if self.is_ours else "openvino" if self.way == "openvino" else "torch"

    @property
    def environment(self) -> Path:
        return folder_of(self.framework, self.needs)


WAYS = {"learner": "learner.predict", "torch": "PyTorch", "openvino": "export.onnx in OpenVINO"}
FRAMEWORKS: dict[str, tuple[str, tuple[str, ...], dict[str, str]]] = {
    "flask": (
        "Flask, gunicorn",
        ("gunicorn", "--bind=127.0.0.1:{port}", "--threads=8", "--timeout=300", "app:app"),
        {},
    ),
    "fastapi": ("FastAPI, uvicorn", ("uvicorn", "--host=127.0.0.1", "--port={port}", "app:app"), {}),
    "litserve": ("LitServe", ("python", "app.py"), {}),
    "bentoml": (
        "BentoML",
        ("bentoml", "serve", "--host=127.0.0.1", "--port={port}", "service:Classifier"),
        {"BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": "{folder}"},
    ),
    # Ray's workers give way to all other programs, unless they are told not to: to what asks them, too
    "ray_serve": (
        "Ray Serve",
        ("python", "app.py"),
        {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0", "FOLDER": "{folder}"},
    ),
    "mlserver": (
        "MLServer",
        ("mlserver", "start", "."),
        {
            "MLSERVER_HOST": "127.0.0.1",
            "MLSERVER_HTTP_PORT": "{port}",
            "MLSERVER_GRPC_PORT": "{port2}",
            "MLSERVER_METRICS_PORT": "{port3}",
            "MLSERVER_PARALLEL_WORKERS": "{cores}",
        },
    ),
}
GUNICORN = ("gunicorn", "-c", "python:pigeonhole.gunicorn_conf", "app:app")
OUR_ENVIRON = {"PORT": "{port}", "UPLOADS": "{folder}", "MAX_BODY_BYTES": str(BODY_BYTES)}


def _peer(framework: str, way: str) -> Peer:
    name, command, environ = FRAMEWORKS[framework]
    as_request = open_inference if framework == "mlserver" else multipart
    return Peer(f"{framework}-{way}", f"{name}: {WAYS[way]}", framework, way, command, environ, as_request)


def _for_one_client(peer: Peer) -> Peer:
    """The same with OpenVINO's other hint: all cores for one picture, where THROUGHPUT gives it one core."""
    return replace(
        peer, key=f"{peer.key}-latency", title=f"{peer.title}, LATENCY", environ={**peer.environ, "HINT": "LATENCY"}
    )


EVERYONE = (
    Peer("pigeonhole", "Pigeonhole", OURS, "auto", GUNICORN, OUR_ENVIRON),
    Peer(
        "pigeonhole-exact",
        "Pigeonhole, PRECISION=exact",
        OURS,
        "exact",
        GUNICORN,
        {**OUR_ENVIRON, "PRECISION": "exact"},
    ),
    _peer("flask", "learner"),
    *(_peer(framework, "torch") for framework in FRAMEWORKS if framework != "flask"),
    *(_peer(framework, "openvino") for framework in FRAMEWORKS),
    _for_one_client(_peer("fastapi", "openvino")),
)
OBVIOUS = "flask-learner"


class Server:
    """One that runs; `first_answer` is in seconds from its start."""

    def __init__(self, peer: Peer, port: int, process: subprocess.Popen[bytes], first_answer: float) -> None:
        self.peer, self.port, self.process, self.first_answer = peer, port, process, first_answer

    def processes(self) -> list[int]:
        return [self.process.pid, *descendants(self.process.pid)]

    def memory_mb(self) -> float:
        """Of all its processes, pages that they share counted once (proportional set size)."""
        return sum(map(memory, self.processes()))

    def cpu_seconds(self) -> float:
        seconds = 0.0
        for pid in self.processes():
            with suppress(FileNotFoundError):
                seconds += processor_seconds(pid)
        return seconds


@contextmanager
def running(
    peer: Peer, export: Path, photo: bytes, cores: Sequence[int], environ: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """The server, on `cores` only, from its first answer on; `export` is the learner, beside which is its .onnx.

    Raises:
        NotStarted: it ended, or did not answer in time.
    """
    model = export if peer.way in ("learner", "torch") else export.with_suffix(".onnx")
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, free_ports(3) as ports:
        values = {"port": ports[0], "port2": ports[1], "port3": ports[2], "folder": folder, "cores": len(cores)}
        settings = {name: value.format(**values) for name, value in {**peer.environ, **(environ or {})}.items()}
        settings |= {"MODEL": str(model), "VARIANT": peer.way, "PORT": str(ports[0]), "HOME": folder, "TMPDIR": folder}
        settings |= {"PATH": f"{peer.environment / 'bin'}:{os.environ['PATH']}", "PYTHONDONTWRITEBYTECODE": ""}
        settings["PYTHONPATH"] = str(ROOT) if peer.is_ours else f"{PEERS / 'shared'}:{ROOT}"
        command = [peer.command[0].format(**values), *(part.format(**values) for part in peer.command[1:])]
        command[0] = str(peer.environment / "bin" / command[0])
        with (Path(folder) / "log").open("w+b") as log:
            began = time.monotonic()
            process = subprocess.Popen(
                command,
                cwd=ROOT if peer.is_ours else PEERS / peer.framework,
                env=settings,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=lambda: os.sched_setaffinity(0, cores),  # noqa: PLW1509  one thread runs here
            )
            known: list[int] = []
            try:
                try:
                    wait_for_answer(process, ports[0], peer.as_request(photo))
                except NotStarted as error:
                    log.seek(0)
                    text = log.read().decode(errors="replace")
                    raise NotStarted(f"{peer.key}: {error}\n{text[-3000:]}") from None
                server = Server(peer, ports[0], process, time.monotonic() - began)
                yield server
            finally:
                known = descendants(process.pid)
                _stop(process, known)


def wait_for_answer(process: subprocess.Popen[bytes], port: int, request: bytes) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise NotStarted(f"it ended with status {process.returncode}.")
        with suppress(OSError, http.client.HTTPException), socket.create_connection(("127.0.0.1", port)) as connection:
            connection.settimeout(60)
            connection.sendall(request)
            response = http.client.HTTPResponse(connection, method="POST")
            response.begin()
            if response.status == 200 and response.read():
                return
        time.sleep(0.02)
    raise NotStarted(f"no answer in {START_SECONDS} seconds.")


def _stop(process: subprocess.Popen[bytes], others: Sequence[int]) -> None:
    """Ask it to end, and end those of its processes that are left behind."""
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    deadline = time.monotonic() + 5
    while any(map(_is_there, others)) and time.monotonic() < deadline:
        time.sleep(0.1)
    for pid in others:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _is_there(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


@contextmanager
def free_ports(count: int) -> Iterator[list[int]]:
    """Ports that were free a moment ago."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    yield ports
