"""deploy/nginx.conf in front of the real service, with Debian's nginx."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from pigeonhole.settings import MIB, Settings
from pigeonhole.web.headers import EVERY_ANSWER
from tests.conftest import ROOT, Server, StartServer, free_port, wait_until_up
from tests.test_serving import CLIENTS, END, HEAD, PART, ask, connected, post

NGINX = shutil.which("nginx")
CONF = ROOT / "deploy" / "nginx.conf"
PHOTO = HEAD + b"Content-Length: %d\r\n" % len(PART + END)


@contextmanager
def nginx_before(folder: Path, *services: Server) -> Iterator[Server]:
    """nginx on a free port of this machine, its files in `folder`."""
    if NGINX is None:
        pytest.skip("nginx is not here")
    port = free_port()
    replicas = "; ".join(f"server {service.url.removeprefix('http://')}" for service in services)
    adapted = CONF.read_text()
    for here, there in {
        "listen 8080": f"listen 127.0.0.1:{port}",
        "server replica:5000": replicas,
        "/tmp/": f"{folder}/",
        "/dev/stdout": f"{folder}/access",
        "/dev/stderr": f"{folder}/error",
    }.items():
        assert here in adapted
        adapted = adapted.replace(here, there)
    (folder / "nginx.conf").write_text(adapted)
    user = "user root;" if Path.home() == Path("/root") else ""  # its workers have to get into pytest's folder
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [NGINX, "-p", folder, "-e", folder / "error", "-c", folder / "nginx.conf", "-g", f"daemon off; {user}"],
            stdout=log,
            stderr=log,
        )
    server = Server(f"http://127.0.0.1:{port}", process, folder / "log")
    try:
        wait_until_up(server)
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def behind(start_server: StartServer, tmp_path_factory: pytest.TempPathFactory) -> Server:
    """The service as deploy/compose.yaml sets it behind nginx, but that more may wait."""
    folder = tmp_path_factory.mktemp("behind-nginx")
    return start_server(UPLOADS=str(folder), TRUSTED_PROXIES="1", MAX_WAITING="100")


@pytest.fixture(scope="module")
def nginx(behind: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with nginx_before(tmp_path_factory.mktemp("nginx"), behind) as server:
        yield server


def refused(answer: bytes) -> tuple[int, str, bool]:
    """Status, code and whether it is what the service would say: our JSON, an id, every header, Retry-After at 503."""
    head, _, body = answer.partition(b"\r\n\r\n")
    status, problem = int(head[9:12]), json.loads(body)
    headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:])
    is_ours = (
        set(problem) == {"error", "code", "request_id"}
        and re.fullmatch("[0-9a-f]{32}", problem["request_id"])
        and headers["X-Request-ID"] == problem["request_id"]
        and headers["Content-Type"] == "application/json"
        and EVERY_ANSWER.items() <= headers.items()
        and ("Retry-After" in headers) == (status == 503)
    )
    return status, problem["code"], bool(is_ours)


def test_a_photo_of_each_class(nginx: Server, behind: Server, one_of_each: dict[str, Path]) -> None:
    """Through nginx each photo gets the answer that it gets without."""
    for path in one_of_each.values():
        answer = post(nginx, path.read_bytes())
        assert answer == post(behind, path.read_bytes())
        assert answer[0] == 200


def test_many_at_once(nginx: Server, behind: Server, one_of_each: dict[str, Path]) -> None:
    """Of 100 requests at the same time each gets the label of its own photo."""
    photos = [path.read_bytes() for path in one_of_each.values()] * 10
    expected = [post(behind, photo) for photo in photos[:10]] * 10
    with ThreadPoolExecutor(len(photos)) as pool:
        assert list(pool.map(lambda photo: post(nginx, photo), photos)) == expected
    assert len({str(answer) for answer in expected}) > 1  # the photos do differ


def test_clients_that_drip(nginx: Server, behind: Server, one_of_each: dict[str, Path]) -> None:
    """50 clients that stop in the middle of a photo hinder nobody, and the service does not hear of them."""
    photo = one_of_each["hat"].read_bytes()
    began = time.monotonic()
    alone = post(nginx, photo)
    alone_seconds = time.monotonic() - began
    before = open_files(behind)
    slow = [connected(nginx) for _ in range(50)]
    for connection in slow:
        connection.sendall(PHOTO + b"\r\n" + PART[:100])
    began = time.monotonic()
    assert [post(nginx, photo) for _ in range(4)] == [alone] * 4
    assert time.monotonic() - began < 4 * (alone_seconds + 0.5)
    assert open_files(behind) < before + 10
    for connection in slow:
        connection.sendall((PART + END)[100:])
        assert connection.recv(65_536).startswith(b"HTTP/1.1 200")
        connection.close()


def test_a_forged_address_is_not_believed(start_server: StartServer, tmp_path: Path, uploads: Path) -> None:
    """However a client calls itself in X-Forwarded-For, it is counted as the address that nginx sees."""
    service = start_server(UPLOADS=str(uploads), TRUSTED_PROXIES="1", RATE_LIMIT="2/hour")
    with nginx_before(tmp_path, service) as nginx:
        forged = [PHOTO + b"X-Forwarded-For: 192.0.2.%d\r\n\r\n" % number + PART + END for number in range(3)]
        assert [ask(nginx, request)[9:12] for request in forged] == [b"200", b"200", b"429"]
        assert [ask(service, request)[9:12] for request in forged] == [b"200"] * 3  # why nobody may get past nginx
    assert service.stop() == 0


REFUSED = {
    "too large": (HEAD + b"Content-Length: 10485761\r\n\r\n", 413, "too_large"),
    "too large, in chunks": (HEAD + b"Transfer-Encoding: chunked\r\n\r\na00001\r\nx", 413, "too_large"),
    "no HTTP": (b"NONSENSE\r\n\r\n", 400, "bad_request"),
    "two Hosts": (b"GET /ping HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, "bad_request"),
    "unknown coding": (HEAD + b"Transfer-Encoding: bzip2\r\n\r\n", 400, "bad_request"),
    "TRACE": (b"TRACE /ping HTTP/1.1\r\nHost: a\r\n\r\n", 405, "bad_method"),
    "long address": (b"GET /%b HTTP/1.1\r\nHost: a\r\n\r\n" % (b"x" * 9000), 414, "url_too_long"),
    "large head": (b"GET /ping HTTP/1.1\r\nHost: a\r\nX: %b\r\n\r\n" % (b"x" * 9000), 431, "head_too_large"),
    "metrics": (b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n", 404, "not_found"),
    "the service's own": (b"POST /nothing HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", 404, "not_found"),
}


@pytest.mark.parametrize(("request_", "status", "code"), REFUSED.values(), ids=REFUSED.keys())
def test_refusals(nginx: Server, request_: bytes, status: int, code: str) -> None:
    """What nginx refuses by itself looks as if the service had refused it."""
    assert refused(ask(nginx, request_)) == (status, code, True)


def test_the_limit_is_the_services() -> None:
    """nginx and the service admit bodies of the same size."""
    (size,) = re.findall(r"client_max_body_size (\d+)m;", CONF.read_text())
    assert int(size) * MIB == Settings.model_fields["max_body_bytes"].default


def test_replicas_that_die(start_server: StartServer, tmp_path: Path, one_of_each: dict[str, Path]) -> None:
    """A killed replica loses no request, as nginx asks the other; without any, it says 503, and logs no query."""
    services = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        services.append(start_server(UPLOADS=str(tmp_path / name), TRUSTED_PROXIES="1"))
    photos = [path.read_bytes() for path in one_of_each.values()] * 12
    with nginx_before(tmp_path, *services) as nginx:
        with ThreadPoolExecutor(CLIENTS) as pool:
            answers = [pool.submit(post, nginx, photo) for photo in photos]
            answers[30].result()
            kill(services[0])
            assert [answer.result()[0] for answer in answers] == [200] * len(photos)
        assert services[1].stop() == 0
        assert refused(ask(nginx, b"GET /predict?url=secret HTTP/1.1\r\nHost: a\r\n\r\n")) == (
            503,
            "service_error",
            True,
        )
    (line,) = [json.loads(line) for line in (tmp_path / "access").read_text().splitlines()]
    assert (line["status"], line["method"], line["path"]) == (503, "GET", "/predict")
    assert "secret" not in (tmp_path / "error").read_text()


def workers(service: Server) -> list[int]:
    pid = service.process.pid
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def open_files(service: Server) -> int:
    return sum(len(list(Path(f"/proc/{worker}/fd").iterdir())) for worker in workers(service))


def kill(service: Server) -> None:
    """The master first, so that it brings no new worker."""
    for process in (service.process.pid, *workers(service)):
        os.kill(process, signal.SIGKILL)
    service.process.wait(10)
