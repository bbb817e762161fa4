"""The real server with the demo model: gunicorn, threads, sockets and signals."""

from __future__ import annotations

import io
import json
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pigeonhole.intake.pictures import read_picture
from pigeonhole.model.learner import open_learner
from tests.conftest import EXPORT, ROOT, Server, StartServer, encoded, free_port, png_of_size, wait_until_up

CLIENTS = 8
REQUESTS = 400
PHOTOS = 20

# torch.jit.script is deprecated, says torch of its own use of it
pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning")


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
    return lambda content: engine.predict(read_picture(io.BytesIO(content))).success


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
        (bytes(11 * 1024 * 1024), "image", 413, "too_large"),
    ],
    ids=["not-an-image", "empty", "wrong-field", "truncated", "50000x50000", "11-MB"],
)
def test_refusals(server: Server, content: bytes, field: str, status: int, code: str) -> None:
    """Over a real socket, too, a bad upload gets its status and code."""
    answer = post(server, content, field=field)
    assert (answer[0], answer[1]["code"]) == (status, code)


def test_half_an_upload(server: Server, server_uploads: Path) -> None:
    """A client that stops in the middle is told so if it still listens, and nothing of its photo stays."""
    head = (
        b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 99999\r\n"
        b"Content-Type: multipart/form-data; boundary=b\r\n\r\n"
        b'--b\r\nContent-Disposition: form-data; name="image"; filename="x.jpg"\r\n\r\n'
    )
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=30) as connection:
        connection.sendall(head + JPEG)
        connection.shutdown(socket.SHUT_WR)
        answer = connection.recv(65_536)
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"bad_multipart" in answer
    assert list(server_uploads.iterdir()) == []


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_stops_cleanly(start_server: StartServer, tmp_path: Path, by: signal.Signals) -> None:
    """Ctrl-C and SIGTERM end the server with status 0 and no traceback; it had said where to try it."""
    uploads = tmp_path / "served"
    uploads.mkdir()
    server = start_server(UPLOADS=str(uploads))
    assert post(server, JPEG)[0] == 200
    assert server.stop(by) == 0
    log = server.log.read_text()
    assert "curl -F image=@photo.jpg http://localhost:" in log
    assert "Traceback" not in log
    uploads.rmdir()


STARTS = {
    "no model": ({"MODEL": "gone.pkl"}, "MODEL=gone.pkl is not there"),
    "git lfs pointer": ({"MODEL": "pointer.pkl"}, "git lfs pull"),
    "damaged model": ({"MODEL": "damaged.pkl"}, "MODEL=damaged.pkl cannot be opened"),
    "no folder": ({"UPLOADS": "gone"}, "UPLOADS=gone is not there"),
    "settings": ({"THREADS": "many"}, "THREADS=many is not possible"),
}


@pytest.mark.parametrize("way", ["gunicorn", "app.py"])
@pytest.mark.parametrize(("environment", "words"), STARTS.values(), ids=STARTS.keys())
def test_refuses_to_start(tmp_path: Path, environment: dict[str, str], words: str, way: str) -> None:
    """What cannot work is said in a sentence at the start, with an exit status and no traceback."""
    (tmp_path / "pointer.pkl").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    (tmp_path / "damaged.pkl").write_bytes(EXPORT.read_bytes()[:100_000])
    command = [sys.executable, str(ROOT / "app.py")]
    if way == "gunicorn":
        command = [sys.executable, "-m", "gunicorn", "-c", "python:pigeonhole.gunicorn_conf", "app:app"]
    defaults = {"PORT": str(free_port()), "UPLOADS": str(tmp_path), "PATH": "", "PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, cwd=tmp_path, env=defaults | environment, capture_output=True, text=True, timeout=60)
    assert run.returncode != 0
    assert words in run.stderr
    assert "Traceback" not in run.stderr


def test_app_py(tmp_path: Path) -> None:
    """`python app.py` serves, too."""
    port = free_port()
    environment = {"PORT": str(port), "UPLOADS": str(tmp_path), "PATH": ""}
    with (tmp_path.parent / "log").open("w+") as log:
        process = subprocess.Popen([sys.executable, "app.py"], cwd=ROOT, env=environment, stdout=log, stderr=log)
        server = Server(f"http://127.0.0.1:{port}", process, tmp_path.parent / "log")
        try:
            wait_until_up(server)
            assert post(server, JPEG)[0] == 200
        finally:
            process.terminate()
            process.wait(30)
