"""What the tests share: pictures, an engine that knows colours, a server, and a watch for what is left behind."""

from __future__ import annotations

import gc
import io
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from flask.testing import FlaskClient
from PIL import Image
from tqdm import tqdm

from app import create_app
from pigeonhole.intake.pictures import Limits, open_probe
from pigeonhole.model.compiler import compile_export
from pigeonhole.model.explain import Explanation
from pigeonhole.model.predictor import Photo, Prediction, Predictor
from pigeonhole.settings import Settings
from tests.cases.table import pytest_addoption, pytest_configure  # noqa: F401  pytest looks for them here

tqdm.monitor_interval = 0  # what compiles shows its progress with it, and its watching thread is no leak of ours

ROOT = Path(__file__).resolve().parent.parent
EXPORT = ROOT / "export.pkl"
DATA = ROOT.parent / "shared" / "data"
LIMITS = Limits(pixels=25_000_000, side=10_000)  # the service's own by default
GRACE = 2  # seconds for a thread that has been told to end
GUNICORN = (sys.executable, "-m", "gunicorn", "-c", "python:pigeonhole.gunicorn_conf", "app:app")


@dataclass(frozen=True)
class Colours:
    """An engine for tests: names the strongest colour of the middle pixel."""

    labels: tuple[str, ...] = ("red", "green", "blue", "grey")
    about = {"engine": "colours"}  # noqa: RUF012
    why_unexplained: str | None = None
    useful_side: int | None = 96

    def predict(self, photo: Photo) -> Prediction:
        picture = photo.decoded()
        assert picture.mode == "RGB"
        levels = picture.getpixel((picture.width // 2, picture.height // 2))
        strongest = levels.index(max(levels)) if max(levels) - min(levels) > 40 else 3
        return Prediction(self.labels[strongest], tuple(float(i == strongest) for i in range(4)))

    def explain(self, photo: Photo, label: str | None = None) -> tuple[Prediction, Explanation]:
        """It looks at the middle of a grid of three by three, or, for a label it does not say, at a corner."""
        prediction = self.predict(photo)
        place = prediction.index_of(label, self.labels)
        grid = np.zeros((3, 3), np.float32)
        grid[(1, 1) if prediction.success == self.labels[place] else (0, 0)] = 1
        return prediction, Explanation(self.labels[place], photo.decoded().resize((24, 24)), grid)


@pytest.fixture(autouse=True, scope="module")
def settled() -> None:
    """What is loaded by now stays; not looking through it after each test saves minutes."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def leaks(uploads: Path) -> Iterator[None]:
    """Whatever a test does, no upload, no thread and no open file of an upload is left."""
    threads = set(threading.enumerate())
    yield
    assert list(uploads.iterdir()) == []
    assert [path for path in _open_files() if str(uploads) in path] == []
    for thread in set(threading.enumerate()) - threads:
        thread.join(GRACE)
    assert set(threading.enumerate()) - threads == set()


@pytest.fixture
def uploads(tmp_path: Path) -> Path:
    folder = tmp_path / "uploads"
    folder.mkdir()
    return folder


@pytest.fixture
def settings(uploads: Path) -> Settings:
    return Settings(uploads=uploads)


@pytest.fixture
def client(settings: Settings) -> FlaskClient:
    """The whole service but for the model, which is `Colours`."""
    return create_app(settings, Predictor(Colours)).test_client()


@pytest.fixture(scope="session")
def clothing() -> Path:
    """The real photos: ten classes, in folders, under train/ and validation/."""
    return _data("clothing")


@pytest.fixture(scope="session")
def orientations() -> list[Path]:
    """One photo under each EXIF orientation, 0 to 8."""
    return sorted(_data("exif").glob("Landscape_*.jpg"))


@pytest.fixture(scope="session")
def one_of_each(clothing: Path) -> dict[str, Path]:
    """A validation photo of each class, by its label."""
    return {folder.name: sorted(folder.iterdir())[0] for folder in sorted((clothing / "validation").iterdir())}


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def picture(colour: str = "red", size: tuple[int, int] = (32, 32)) -> bytes:
    return encoded(Image.new("RGB", size, colour))


def raw_png(width: int, height: int, bits: int, rows: bytes, colour_type: int = 2, transparent: bytes = b"") -> bytes:
    """A PNG of `rows` as they stand, filter bytes and all, whatever the header says of their size."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    chunks = [
        b"IHDR" + header,
        *([b"tRNS" + transparent] if transparent else []),
        b"IDAT" + zlib.compress(rows),
        b"IEND",
    ]
    sealed = (struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(sealed)


def png_of_size(width: int, height: int) -> bytes:
    """A PNG whose header announces a size, with hardly anything behind it."""
    return raw_png(width, height, bits=8, rows=b"\0")


def form(*files: tuple[bytes, str], field: str = "image", **fields: str) -> dict[str, object]:
    """What the test client posts as a multipart form."""
    return {field: [(io.BytesIO(content), name) for content, name in files], **fields}


@dataclass(frozen=True)
class Server:
    """`make serve`'s gunicorn, running."""

    url: str
    process: subprocess.Popen[str]
    log: Path

    def stop(self, by: signal.Signals = signal.SIGTERM) -> int:
        """Ask it to stop and return its exit status."""
        self.process.send_signal(by)
        return self.process.wait(30)


StartServer = Callable[..., Server]


@pytest.fixture(scope="session")
def start_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartServer]:
    """Start servers on free ports of this machine; those still running at the end are stopped."""
    servers: list[Server] = []

    def start(*, command: Sequence[str] = GUNICORN, wait: bool = True, **environment: str) -> Server:
        log = tmp_path_factory.mktemp("server") / "log"
        port = free_port()
        with log.open("w") as output:
            process = subprocess.Popen(
                command, cwd=ROOT, env={**os.environ, "PORT": str(port), **environment}, stdout=output, stderr=output
            )
        servers.append(Server(f"http://127.0.0.1:{port}", process, log))
        if wait:
            wait_until_up(servers[-1])
        return servers[-1]

    yield start
    for server in servers:
        if server.process.poll() is None:
            server.stop()


@pytest.fixture(scope="session")
def server_uploads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("server-uploads")


@pytest.fixture(scope="session")
def server(start_server: StartServer, server_uploads: Path) -> Server:
    """One server with the demo model, for all tests that only ask it things."""
    return start_server(UPLOADS=str(server_uploads))


def wait_until_up(server: Server, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert server.process.poll() is None, server.log.read_text()
        try:
            urllib.request.urlopen(server.url + "/ping", timeout=5).close()
            return
        except OSError:
            time.sleep(0.05)
    raise AssertionError(server.log.read_text())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _data(name: str) -> Path:
    folder = DATA / name
    if not folder.is_dir():
        pytest.skip(f"the real photos are not here: {Path('..') / 'shared' / 'data' / name}")
    return folder


def _open_files() -> list[str]:
    gc.collect()
    folder = Path("/proc/self/fd")
    links = (path for path in folder.iterdir()) if folder.is_dir() else ()
    found = []
    for link in links:
        try:
            found.append(str(link.readlink()))
        except OSError:  # the descriptor that listed the folder
            continue
    return found


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Compile one of the small exports of today's fastai, once."""
    from tests.model.test_exports_compiled import FOLDER

    folder = tmp_path_factory.mktemp("compiled")

    @lru_cache
    def compiled(kind: str) -> Path:
        compile_export(FOLDER / f"{kind}.pkl", folder / f"{kind}.onnx", open_probe)
        return folder / f"{kind}.onnx"

    return compiled


@pytest.fixture(scope="session")
def compiled_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("compiled-demo") / "export.onnx"
    compile_export(EXPORT, path, open_probe)
    return path
