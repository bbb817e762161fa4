"""Servers that models come from: one of ours, as good or as bad as a test wants it, moto's S3 and MLflow's own.

Ours also speaks as much of Google's storage and of a model hub as it takes to read a file.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from tests.conftest import free_port

MLFLOW_ALONE = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
}


@dataclass
class Page:
    """What is at a path. `cuts` are the bytes after which the next answers break off; each piece follows a pause."""

    content: bytes = b""
    etag: str | None = None
    status: int = 200
    ranges: bool = True
    partial: bool = False  # says so, whatever it sends
    length: int | None = -1  # what HEAD says: -1 for what it is, None for nothing, and GET says nothing then either
    cap: int | None = None  # a part has no more bytes, whatever is asked for
    cuts: list[int] = field(default_factory=list)
    pause: float = 0
    headers: dict[str, str] = field(default_factory=dict)

    PIECE = 1 << 20  # bytes


class Web(ThreadingHTTPServer):
    """Pages by their path; `seen` has a line for each request: method, path, range."""

    daemon_threads = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.pages: dict[str, Page] = {}
        self.seen: list[str] = []
        self.queries: list[str] = []

    def put(self, path: str, content: bytes, **options: object) -> Page:
        """Have `content` at `path`; its ETag is of its content."""
        etag = f'"{hashlib.md5(content).hexdigest()}"'
        self.pages[path] = Page(content, **{"etag": etag, **options})  # type: ignore[arg-type]
        return self.pages[path]

    def put_json(self, path: str, answer: object) -> None:
        self.put(path, json.dumps(answer).encode(), headers={"Content-Type": "application/json"})

    def put_object(self, bucket: str, name: str, content: bytes) -> Page:
        """An object of Google's storage (JSON API: objects.get, with and without alt=media)."""
        place = f"b/{bucket}/o/{quote(name, safe='')}"
        about = {"name": name, "bucket": bucket, "size": str(len(content)), "generation": "1", "etag": "x"}
        self.put_json(f"/storage/v1/{place}", {**about, "updated": "2026-01-01T00:00:00Z"})
        return self.put(f"/download/storage/v1/{place}", content)

    def put_in_hub(self, repository: str, name: str, content: bytes, sha256: str | None = None) -> Page:
        """A file of a model hub, kept as large files are, in the branch `main`."""
        sha256 = sha256 or hashlib.sha256(content).hexdigest()
        large = {"oid": sha256, "size": len(content), "pointerSize": 134}
        entry = {"type": "file", "path": name, "oid": "1" * 40, "size": len(content), "lfs": large}
        api = f"/api/models/{repository}"
        for path in (api, f"{api}/revision/main"):
            self.put_json(path, {"id": repository, "sha": "1" * 40, "siblings": [], "tags": []})
        self.put_json(f"{api}/tree/main", [entry])
        return self.put(f"/{repository}/resolve/main/{name}", content)

    def got(self, method: str = "GET") -> list[str]:
        """The ranges that were asked for, of whatever path; empty where none was."""
        return [line.split(" ", 2)[2] for line in self.seen if line.startswith(method + " ")]

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Web

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        self.server.queries.append(query)
        self.server.seen.append(
            f"{self.command} {unquote(path)} {self.headers.get('Range', '').removeprefix('bytes=')}"
        )
        page = self.server.pages.get(path, Page(b"no such page", status=404))
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")) if page.ranges else None
        start, end = (int(asked[1]), int(asked[2]) + 1) if asked else (0, len(page.content))
        content = page.content[start:end][: page.cap if asked else None]
        self.send_response(
            206 if page.status == 200 and (asked or (page.partial and self.headers.get("Range"))) else page.status
        )
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{start + len(content) - 1}/{len(page.content)}")
        if page.etag:
            self.send_header("ETag", page.etag)
        if page.length is not None:
            self.send_header(
                "Content-Length", str(page.length if self.command == "HEAD" and page.length >= 0 else len(content))
            )
        for name, value in page.headers.items():
            self.send_header(name, value)
        self.close_connection = page.length is None
        self.end_headers()
        if self.command == "GET":
            self._send(content, page)

    do_HEAD = do_GET  # noqa: N815

    def _send(self, content: bytes, page: Page) -> None:
        cut = page.cuts.pop(0) if page.cuts else None
        whole = content if cut is None else content[:cut]
        for at in range(0, len(whole), Page.PIECE):
            time.sleep(page.pause)
            self.wfile.write(whole[at : at + Page.PIECE])
        self.close_connection |= cut is not None

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving() -> Iterator[Web]:
    """A web of no pages, until the end of the block."""
    with Web() as web:
        thread = threading.Thread(target=web.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield web
        finally:
            web.shutdown()
            thread.join()


@contextmanager
def running(command: Sequence[str], folder: Path, port: int, path: str) -> Iterator[str]:
    """A server in a process of its own, from when `path` answers until the end of the block; its address."""
    address = f"http://127.0.0.1:{port}"
    with (folder / "log").open("w") as log:
        environment = {**os.environ, **MLFLOW_ALONE}
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    try:
        _wait_for(address + path, process, folder / "log")
        yield address
    finally:
        process.terminate()
        process.wait(30)


def _wait_for(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except OSError:
            time.sleep(0.05)
    raise AssertionError(log.read_text())


def sent(method: str, address: str, content: bytes) -> Any:
    """What the server says to this, as JSON; None if it says nothing."""
    request = urllib.request.Request(address, content, {"Content-Type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=30) as response:
        answer = response.read()
    return json.loads(answer) if answer.startswith(b"{") else None


@contextmanager
def s3(folder: Path) -> Iterator[str]:
    """moto's S3, with a bucket `models`."""
    port = free_port()
    with running(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], folder, port, "/"
    ) as address:
        sent("PUT", address + "/models", b"")
        yield address


@dataclass(frozen=True)
class MLflow:
    """A tracking server that keeps artifacts, too."""

    address: str

    def ask(self, path: str, **body: object) -> Any:
        return sent("POST", f"{self.address}/api/2.0/mlflow/{path}", json.dumps(body).encode())

    def experiment(self, location: str | None = None) -> str:
        place = {"artifact_location": location} if location else {}
        return str(self.ask("experiments/create", name=f"of {time.time_ns()}", **place)["experiment_id"])

    def run(self, location: str | None = None) -> tuple[str, str]:
        """The ID of a new run that has ended, and where its artifacts are to lie."""
        run = self.ask("runs/create", experiment_id=self.experiment(location), start_time=1)["run"]["info"]
        self.ask("runs/update", run_id=run["run_id"], status="FINISHED", end_time=2)
        return run["run_id"], run["artifact_uri"]

    def logged_model(self) -> tuple[str, str]:
        """The ID of what MLflow 3 calls a logged model, and where its artifacts are to lie."""
        model = self.ask("logged-models", experiment_id=self.experiment(), name="birds")["model"]["info"]
        return model["model_id"], model["artifact_uri"]

    def put(self, place: str, content: bytes) -> None:
        """An artifact, where `run` said."""
        sent(
            "PUT",
            f"{self.address}/api/2.0/mlflow-artifacts/artifacts{place.removeprefix('mlflow-artifacts:')}",
            content,
        )

    def register(self, name: str, source: str, **of: str) -> str:
        """The number of a new version of the model `name`, of a run (`run_id`) or of a logged model (`model_id`)."""
        answer = self.ask("model-versions/create", name=name, source=source, **of)
        return str(answer["model_version"]["version"])


@contextmanager
def mlflow(folder: Path) -> Iterator[MLflow]:
    port = free_port()
    options = ["--backend-store-uri", "sqlite:///x.db", "--artifacts-destination", "./artifacts", "--workers", "1"]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), *options]
    with running(command, folder, port, "/health") as address:
        yield MLflow(address)
