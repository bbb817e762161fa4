"""The real server with the demo model: gunicorn, threads, sockets and signals."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pigeonhole.intake.pictures import open_photo
from pigeonhole.model.learner import open_learner
from pigeonhole.settings import MIB
from pigeonhole.web.headers import EVERY_ANSWER
from tests.conftest import (
    EXPORT,
    GUNICORN,
    LIMITS,
    ROOT,
    Server,
    StartServer,
    encoded,
    free_port,
    png_of_size,
    wait_until_up,
)

CLIENTS = 8
REQUESTS = 400
PHOTOS = 20


def post(server: Server, content: bytes, name: str = "x.jpg", field: str = "image") -> tuple[int, Any]:
    """Upload `content`; the status and the body of the answer."""
    boundary = uuid.uuid4().hex
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n\r\n'
    body = head.encode() + content + f"\r\n--{boundary}--\r\n".encode()
    request = urllib.request.Request(server.url + "/predict", body)
    request.add_header("Content-Type", f"multipart/form-data; boundary={boundary}")
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


@pytest.fixture(scope="session")
def ask_learner() -> Callable[[bytes], str | list[str]]:
    """What learner.predict says of a photo."""
    engine = open_learner(EXPORT)
    return lambda content: engine.predict(open_photo(io.BytesIO(content), LIMITS)).success


def test_a_photo_of_each_class(
    server: Server, one_of_each: dict[str, Path], ask_learner: Callable[[bytes], str | list[str]]
) -> None:
    """For a real photo of each class the server says what learner.predict says."""
    for path in one_of_each.values():
        assert post(server, path.read_bytes()) == (200, {"success": ask_learner(path.read_bytes())})


def test_many_clients_one_name(
    server: Server, server_uploads: Path, clothing: Path, ask_learner: Callable[[bytes], str | list[str]]
) -> None:
    """8 clients, 400 uploads all called x.jpg: every answer belongs to its own photo, and nothing is left."""
    photos = [
        path.read_bytes() for path in sorted((clothing / "validation").glob("*/*.jpg"))[:: 341 // PHOTOS][:PHOTOS]
    ]
    expected = [(200, {"success": ask_learner(photo)}) for photo in photos]
    with ThreadPoolExecutor(CLIENTS) as pool:
        answers = list(pool.map(lambda number: post(server, photos[number % PHOTOS]), range(REQUESTS)))
    wrong = [number for number, answer in enumerate(answers) if answer != expected[number % PHOTOS]]
    assert wrong == []
    assert len({str(answer) for answer in expected}) > 1  # the photos do differ
    assert list(server_uploads.iterdir()) == []


def test_one_label_in_all_orientations(server: Server, orientations: list[Path]) -> None:
    """One photo, stored in nine ways, is one thing."""
    answers = {str(post(server, path.read_bytes())) for path in orientations}
    assert len(answers) == 1
    assert answers.pop().startswith("(200,")


JPEG = encoded(Image.effect_noise((300, 200), 60), "JPEG")


@pytest.mark.parametrize(
    ("content", "field", "status", "code"),
    [
        (b"hello", "image", 415, "not_an_image"),
        (b"", "image", 400, "empty_image"),
        (JPEG, "photo", 400, "no_image"),
        (JPEG[:-2000], "image", 422, "broken_image"),
        (png_of_size(50_000, 50_000), "image", 422, "too_many_pixels"),
        (bytes(11 * MIB), "image", 413, "too_large"),
    ],
    ids=["not-an-image", "empty", "wrong-field", "truncated", "50000x50000", "11-MB"],
)
def test_refusals(server: Server, content: bytes, field: str, status: int, code: str) -> None:
    """Over a real socket, too, a bad upload gets its status and code."""
    answer = post(server, content, field=field)
    assert (answer[0], answer[1]["code"]) == (status, code)


def connected(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=30)


HEAD = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
PART = b'--b\r\nContent-Disposition: form-data; name="image"; filename="x.jpg"\r\n\r\n' + JPEG
END = b"\r\n--b--\r\n"


@pytest.mark.parametrize("whole_form", [False, True])
def test_half_an_upload(server: Server, server_uploads: Path, whole_form: bool) -> None:
    """A client that stops early is told so if it still listens, and nothing of its photo stays."""
    with connected(server) as connection:
        connection.sendall(HEAD + b"Content-Length: 99999\r\n\r\n" + PART + (END if whole_form else b""))
        connection.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: connection.recv(65_536), b""))  # until it hangs up, too
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"incomplete_body" in answer
    assert list(server_uploads.iterdir()) == []


def ask(server: Server, *pieces: bytes, pause: float = 0) -> bytes:
    """Send `pieces` with a pause before each but the first; the beginning of the answer."""
    with connected(server) as connection:
        connection.sendall(pieces[0])
        for piece in pieces[1:]:
            time.sleep(pause)
            try:
                connection.sendall(piece)
            except OSError:  # it has closed on us
                break
        return connection.recv(65_536)


CHUNKS = {
    "size that is no number": (b"xyz\r\n", 400),
    "terminator that is none": (b"1\r\naXX", 400),
    "a byte each": (b"1\r\na\r\n" * 20_000, 400),
}


@pytest.mark.parametrize(("chunk", "status"), CHUNKS.values(), ids=CHUNKS.keys())
def test_bad_chunks(server: Server, chunk: bytes, status: int) -> None:
    """A chunked body that is malformed is the client's fault, not ours."""
    assert ask(server, HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunk).startswith(b"HTTP/1.1 %d" % status)


def test_a_good_chunked_upload(server: Server) -> None:
    """A chunked body that is well formed is answered."""
    body = PART + END
    chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    assert ask(server, HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunks).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("chunked", [False, True])
def test_body_limit_is_exact(server: Server, chunked: bool) -> None:
    """Over a socket, too, a body of exactly the limit is read and a byte more is not."""
    for surplus, status in ((0, 200), (1, 413)):
        body = PART.ljust(10 * MIB + surplus - len(END), b"\0") + END
        framed = b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
        if chunked:
            framed = b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        assert ask(server, HEAD + framed).startswith(b"HTTP/1.1 %d" % status)


def test_no_client_moves_the_service(server: Server) -> None:
    """A header that tells a service its own path is not believed."""
    assert ask(server, b"GET /ping HTTP/1.1\r\nHost: x\r\nSCRIPT_NAME: /ping\r\n\r\n").startswith(b"HTTP/1.1 200")


def told(server: Server) -> list[dict[str, Any]]:
    """The lines of the log that are of requests."""
    lines = [json.loads(line) for line in server.log.read_text().splitlines() if line.startswith("{")]
    return [line for line in lines if "request_id" in line]


HEADS = {
    "no Host": (b"GET /ping HTTP/1.1\r\n\r\n", 400),
    "two Hosts": (b"GET /ping HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
    "a Host that is none": (b"GET /ping HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
    "HTTP/1.0 without": (b"GET /ping HTTP/1.0\r\n\r\n", 200),
    "two schemes": (b"GET /ping HTTP/1.1\r\nHost: a\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Ssl: off\r\n\r\n", 200),
    "an address with underscores": (b"GET /ping HTTP/1.1\r\nHost: a\r\nX_Forwarded_For: 1.2.3.4\r\n\r\n", 200),
    "an absolute address": (b"GET http://b/ping HTTP/1.1\r\nHost: a\r\n\r\n", 200),
    "options of all": (b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", 404),
}


@pytest.mark.parametrize(("head", "status"), HEADS.values(), ids=HEADS.keys())
def test_who_says_what_of_itself(server: Server, head: bytes, status: int) -> None:
    """A request has one Host, and what it says of a proxy counts for nothing; each answer has the headers of all."""
    answer = ask(server, head)
    assert answer[9:12] == b"%d" % status
    assert [name for name, value in EVERY_ANSWER.items() if f"{name}: {value}\r\n".encode() not in answer] == []


def test_who_may_call(start_server: StartServer, uploads: Path) -> None:
    """Keys, limits, proxies and names from the environment work over sockets, and no key is in the log."""
    server = start_server(
        UPLOADS=str(uploads),
        API_KEYS="alice:alice-0123456789",
        RATE_LIMIT="2/hour",
        TRUSTED_PROXIES="1",
        LOG_LEVEL="debug",
    )
    key = b"Authorization: Bearer alice-0123456789\r\nX-Forwarded-Proto: https\r\n"
    framed = b"Content-Length: %d\r\n" % len(PART + END)
    answers = [ask(server, HEAD + framed + more + b"\r\n" + PART + END) for more in (b"", key, key, key)]
    assert [answer[9:12] for answer in answers] == [b"401", b"200", b"200", b"429"]
    assert [b"Strict-Transport-Security" in answer for answer in answers] == [False, True, True, True]
    assert server.stop() == 0
    assert "alice-0123456789" not in server.log.read_text()


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads the worker's limits in /proc")
def test_no_core(server: Server) -> None:
    """A worker that crashes leaves no dump, which would hold photos."""
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    limits = Path(f"/proc/{children[0]}/limits").read_text()
    assert re.search(r"^Max core file size +0 +0 ", limits, re.M)


def test_no_debugger(start_server: StartServer, uploads: Path) -> None:
    """FLASK_DEBUG does not open Werkzeug's console, and a request line cannot forge a log line."""
    server = start_server(UPLOADS=str(uploads), FLASK_DEBUG="1", PAGE="0")
    for path in (b"/console", b"/?__debugger__=yes&cmd=resource&f=debugger.js", b"/a%20200%203%20ms%0aINFO"):
        assert ask(server, b"GET " + path + b" HTTP/1.1\r\nHost: x\r\n\r\n").startswith(b"HTTP/1.1 404")
    assert server.stop() == 0
    assert [line["path"] for line in told(server)][-3:] == ["/console", "/", "/a%20200%203%20ms%0AINFO"]


def test_other_addresses(start_server: StartServer, uploads: Path) -> None:
    """An IPv6 address is listened on, too."""
    port = free_port()
    server = start_server(HOST="::1", PORT=str(port), UPLOADS=str(uploads), wait=False)
    wait_until_up(Server(f"http://[::1]:{port}", server.process, server.log))
    assert server.stop() == 0


def test_nothing_of_the_photo_is_logged(start_server: StartServer, uploads: Path) -> None:
    """The log has one line a request at its most talkative, and nothing of the photo, its metadata or its name."""
    exif = Image.Exif()
    exif[0x013B] = "Jane Doe"  # the artist
    server = start_server(UPLOADS=str(uploads), LOG_LEVEL="debug")
    assert post(server, encoded(Image.new("RGB", (9, 9)), "JPEG", exif=exif), name="secret name.jpg")[0] == 200
    assert server.stop() == 0
    log = server.log.read_text()
    assert "Jane" not in log
    assert "secret" not in log
    assert [line["status"] for line in told(server) if line["path"] == "/predict"] == [200]


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the worker in /proc")
def test_a_killed_worker_is_replaced(start_server: StartServer, uploads: Path) -> None:
    """When a worker dies, another takes its place, and nothing of its uploads is left."""
    server = start_server(UPLOADS=str(uploads))
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
    os.kill(int(children.read_text()), signal.SIGKILL)
    wait_until_up(server)
    assert post(server, JPEG)[0] == 200
    assert list(uploads.iterdir()) == []
    assert server.stop() == 0


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_stops_cleanly(start_server: StartServer, uploads: Path, by: signal.Signals) -> None:
    """Ctrl-C and SIGTERM end the server with status 0 and no traceback; it had said where to try it."""
    server = start_server(UPLOADS=str(uploads))
    assert post(server, JPEG)[0] == 200
    assert server.stop(by) == 0
    log = server.log.read_text()
    assert "curl -F image=@photo.jpg http://localhost:" in log
    assert "Traceback" not in log


STARTS = {
    "no model": ({"MODEL": "gone.pkl"}, "MODEL=gone.pkl is not there"),
    "git lfs pointer": ({"MODEL": "pointer.pkl"}, "git lfs pull"),
    "damaged model": (
        {"MODEL": "damaged.pkl"},
        "MODEL=damaged.pkl cannot be served: it is a damaged or incomplete zip",
    ),
    "no folder": ({"UPLOADS": "gone"}, "UPLOADS=gone is not there"),
    "settings": ({"THREADS": "many"}, "THREADS=many is not possible"),
}


@pytest.mark.parametrize(("environment", "words"), STARTS.values(), ids=STARTS.keys())
def test_refuses_to_start(tmp_path: Path, environment: dict[str, str], words: str) -> None:
    """What cannot work is said in a sentence at the start, with an exit status and no traceback."""
    (tmp_path / "pointer.pkl").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    (tmp_path / "damaged.pkl").write_bytes(EXPORT.read_bytes()[:100_000])
    defaults = {"PORT": str(free_port()), "UPLOADS": str(tmp_path), "PATH": "", "PYTHONPATH": str(ROOT)}
    run = subprocess.run(GUNICORN, cwd=tmp_path, env=defaults | environment, capture_output=True, text=True, timeout=60)
    assert run.returncode != 0
    assert words in run.stderr
    assert "Traceback" not in run.stderr


def test_app_py(start_server: StartServer, uploads: Path) -> None:
    """`python app.py` serves, too."""
    server = start_server(command=(sys.executable, "app.py"), UPLOADS=str(uploads))
    assert post(server, JPEG)[0] == 200
    assert server.stop() == 0
