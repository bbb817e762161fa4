"""The service under Ray Serve, on this machine: the same answers, from two replicas."""

from __future__ import annotations

import http.client
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from flask.testing import FlaskClient

from app import create_app
from pigeonhole.settings import Settings
from tests.cluster.load import load
from tests.cluster.running import EVENLY, IN_FRONT, Running, nodes
from tests.conftest import ROOT

WITHOUT_RAY = "import sys; sys.modules['ray'] = None; from pigeonhole.cli import main; sys.exit(main())"
REQUESTS: dict[str, tuple[str, bytes]] = {
    "no picture": ("/predict", b"words"),
    "nothing": ("/predict", b""),
    "too large": ("/predict", bytes(11_000_000)),
    "bad parameter": ("/predict?top=x", b"words"),
    "not there": ("/nothing", b""),
    "Unicode": ("/predict?top=%C3%A9&x=%FF", b"words"),
}


@pytest.fixture(scope="module")
def cluster(compiled_demo: Path) -> Iterator[Running]:
    with nodes(1, {**EVENLY, **IN_FRONT, "MODEL": str(compiled_demo)}, num_replicas=2) as running:
        yield running


@pytest.fixture(scope="module")
def plain(compiled_demo: Path, tmp_path_factory: pytest.TempPathFactory) -> FlaskClient:
    """The app with the same model, without Ray."""
    return create_app(Settings(model=str(compiled_demo), uploads=tmp_path_factory.mktemp("plain"))).test_client()


def both(cluster: Running, plain: FlaskClient, path: str, body: bytes) -> list[tuple[int, bytes]]:
    """Status and body of the cluster's answer and of the app's, without what is each request's own."""
    here = plain.post(path, data=body, content_type="image/jpeg")
    connection = http.client.HTTPConnection(cluster.url.removeprefix("http://"), timeout=30)
    connection.request("POST", path, body, {"Content-Type": "image/jpeg"})
    answer = connection.getresponse()
    answers = [(answer.status, answer.read()), (here.status_code, here.data)]
    connection.close()
    return [
        (status, re.sub(rb'"request_id":"[^"]+"|the body|the request|; at most.*accepted', b"", data))
        for status, data in answers
    ]


def test_photos(cluster: Running, plain: FlaskClient, one_of_each: dict[str, Path]) -> None:
    """A photo of each class has the answer, to the last digit, that it has without Ray."""
    for photo in one_of_each.values():
        there, here = both(cluster, plain, "/predict?top=all", photo.read_bytes())
        assert there == here


@pytest.mark.parametrize(("path", "body"), REQUESTS.values(), ids=REQUESTS)
def test_refusals(cluster: Running, plain: FlaskClient, path: str, body: bytes) -> None:
    """What is refused has the same status, code and JSON."""
    there, here = both(cluster, plain, path, body)
    assert there == here
    assert there[0] >= 400


def test_two_replicas(cluster: Running, one_of_each: dict[str, Path]) -> None:
    """Both answer, and Ray knows that both run."""
    assert load(cluster.url, [one_of_each["hat"].read_bytes()], 1)["right"] > 4
    metrics = [urllib.request.urlopen(cluster.url + "/metrics").read().decode() for _ in range(20)]
    assert len({re.search(r'pid="(\d+)"', text)[1] for text in metrics}) == 2  # type: ignore[index]
    assert cluster.ask("replicas")[0] == "2"


def test_one_request_id(cluster: Running) -> None:
    """An answer has one request id, ours, whatever the client and Ray call the request."""
    request = urllib.request.Request(cluster.url + "/ready", headers={"X-Request-ID": "mine"})
    with urllib.request.urlopen(request) as answer:
        (request_id,) = answer.headers.get_all("X-Request-ID")
    assert re.fullmatch("[0-9a-f]{32}", request_id)


def test_folders(compiled_demo: Path, one_of_each: dict[str, Path], tmp_path: Path) -> None:
    """`predict --ray` writes the bytes that `predict` writes, says what cannot be read, and exits alike."""
    (tmp_path / "photos").mkdir()
    for label, photo in one_of_each.items():
        (tmp_path / "photos" / f"{label}-\udcff.jpg").write_bytes(photo.read_bytes())
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"words")
    command = [sys.executable, "-m", "pigeonhole", "predict", "photos", "--top", "3", "-o"]
    environment = {"PYTHONPATH": str(ROOT), "MODEL": str(compiled_demo), "HOME": str(tmp_path), "PATH": ""}
    told = [
        subprocess.run(
            [*command, *rest], cwd=tmp_path, env=environment, capture_output=True, text=True, errors="replace"
        )
        for rest in (["here.csv"], ["there.csv", "--ray"])
    ]
    assert [one.returncode for one in told] == [1, 1], told
    assert (tmp_path / "there.csv").read_bytes() == (tmp_path / "here.csv").read_bytes()
    assert all("broken.jpg: the file is not a picture" in one.stderr for one in told)
    assert (tmp_path / "there.csv").read_bytes().count(b"\r\n") == 11


def test_without_ray(tmp_path: Path) -> None:
    """Where Ray is not installed, one sentence says how to install it."""
    told = subprocess.run(
        [sys.executable, "-c", WITHOUT_RAY, "predict", "--ray", "."], cwd=ROOT, capture_output=True, text=True
    )
    assert told.returncode == 1
    assert (
        told.stderr == "--ray needs ray, which is not installed here; `tools/environment.sh .venv ray` installs it.\n"
    )
