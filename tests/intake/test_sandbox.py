"""What a picture does to its decoder, it does to a confined process, and to no other request."""

from __future__ import annotations

import io
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from flask.testing import FlaskClient
from PIL import Image

from app import create_app
from pigeonhole.errors import BrokenImage, EmptyImage, NotAnImage, Overloaded, RequestError, TooManyPixels
from pigeonhole.intake.confinement import is_possible
from pigeonhole.intake.pictures import EXIF_ORIENTATION, open_photo
from pigeonhole.intake.sandbox import Sandbox
from pigeonhole.intake.uploads import Uploads
from pigeonhole.machine import anonymous_memory
from pigeonhole.model.predictor import Predictor
from pigeonhole.model.recipe import Recipe, Resize
from pigeonhole.settings import MIB, Settings
from pigeonhole.web import classifier
from tests.conftest import GUNICORN, LIMITS, Colours, StartServer, encoded, form, picture, png_of_size
from tests.faults.watch import descendants
from tests.intake import faults
from tests.test_serving import post

pytestmark = pytest.mark.skipif(not is_possible(), reason="processes are confined on Linux, on x86-64 and ARM")
SECONDS = 2
HEIC = Path(__file__).parent / "heic"
RECIPE = Recipe(steps=(Resize((224, 224)),))


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    one = Sandbox(["pigeonhole.model.recipe", "tests.intake.faults"], seconds=SECONDS)
    yield one
    one.close()


def made(sandbox: Sandbox, uploads: Path, content: bytes, recipe: object = RECIPE) -> np.ndarray:
    with Uploads(uploads) as files:
        file = files.new()
        file.write(content)
        with sandbox.opened(file, LIMITS, "upright") as photo:
            return photo.through(recipe)


def processes(sandbox: Sandbox) -> list[int]:
    """Process ids of its nursery and of its cells."""
    nursery = sandbox._nursery._process.pid if sandbox._nursery else None
    return [nursery, *descendants(nursery)] if nursery else []


def test_the_same_bytes(sandbox: Sandbox, uploads: Path, clothing: Path, orientations: list[Path]) -> None:
    """Every real photo, and one in all orientations, comes out of a cell as it does without."""
    for path in [*sorted((clothing / "validation").glob("*/*.jpg")), *orientations]:
        content = path.read_bytes()
        there = made(sandbox, uploads, content)
        assert np.array_equal(there, open_photo(io.BytesIO(content), LIMITS).through(RECIPE)), path


def test_whole_pictures(sandbox: Sandbox, orientations: list[Path]) -> None:
    """A cell gives whole pictures too, shrunk or not, upright, with their size."""
    for path in orientations:
        with path.open("rb") as file, sandbox.opened(file, LIMITS, "upright") as there:
            here = open_photo(io.BytesIO(path.read_bytes()), LIMITS)
            assert there.size == here.size
            for reduction in (1, 2):
                assert there.decoded(reduction).tobytes() == here.decoded(reduction).tobytes()


@pytest.mark.parametrize(
    ("content", "refusal"),
    [
        (b"", EmptyImage),
        (b"hello", NotAnImage),
        (picture()[:60], BrokenImage),
        (png_of_size(9_000, 9_000), TooManyPixels),
    ],
    ids=["empty", "not-an-image", "truncated", "too-many-pixels"],
)
def test_refusals(sandbox: Sandbox, uploads: Path, content: bytes, refusal: type[RequestError]) -> None:
    """A cell refuses with the sentence that is said without one, and is not lost by it."""
    with pytest.raises(refusal) as here:
        open_photo(io.BytesIO(content), LIMITS).decoded()
    with pytest.raises(refusal) as there:
        made(sandbox, uploads, content)
    assert str(there.value) == str(here.value)


@pytest.mark.parametrize(
    ("does", "sentence"),
    [
        (faults.crash, "makes its decoder fail"),
        (faults.loop, "takes too long"),
        (faults.take_a_gigabyte, "takes more memory"),
    ],
    ids=["crash", "loop", "memory"],
)
def test_a_fault_is_one_pictures(sandbox: Sandbox, uploads: Path, does: Callable[[], object], sentence: str) -> None:
    """A picture that crashes its decoder, keeps it for ever or takes a gigabyte is refused; the next one is not."""
    began = time.monotonic()
    with pytest.raises(BrokenImage, match=sentence):
        made(sandbox, uploads, picture(), faults.Fault(does))
    assert time.monotonic() - began < 2 * SECONDS
    assert made(sandbox, uploads, picture()).shape == (224, 224, 3)
    assert len(processes(sandbox)) == 2  # the nursery, and the cell that gave the last one


@pytest.mark.parametrize("formats", [("png",), ("png", "heic")], ids=["alone", "with threads"])
@pytest.mark.parametrize(
    "does",
    [faults.read_a_file, faults.write_a_file, faults.connect, faults.run, faults.fork, faults.kill],
    ids=lambda does: does.__name__,
)
def test_a_cell_can_only_compute(uploads: Path, does: Callable[[], object], formats: tuple[str, ...]) -> None:
    """Code that a picture smuggled in reads no file, writes none, does not connect, run, fork or kill."""
    with closing(Sandbox(["pigeonhole.model.recipe", "tests.intake.faults"], formats, SECONDS)) as one:
        assert made(one, uploads, picture(), faults.Fault(does)).max() == 255


def test_a_neighbour_goes_on(sandbox: Sandbox, uploads: Path) -> None:
    """While one cell crashes, the photo in another one is decoded."""
    with Uploads(uploads) as files:
        file = files.new()
        file.write(picture())
        with sandbox.opened(file, LIMITS, "upright") as photo:
            with pytest.raises(BrokenImage):
                made(sandbox, uploads, picture(), faults.Fault(faults.crash))
            assert photo.decoded().size == (32, 32)


def test_no_more_cells(sandbox: Sandbox, uploads: Path) -> None:
    """Where the system has no descriptors for another cell, that request is told so, and no other is hurt."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with Uploads(uploads) as files:
        first, second = files.new(), files.new()
        for file in (first, second):
            file.write(picture())
        with sandbox.opened(first, LIMITS, "upright") as photo:
            next_one = os.dup(0)  # the lowest number that is free, which need not be how many are open
            os.close(next_one)
            resource.setrlimit(resource.RLIMIT_NOFILE, (next_one, limits[1]))
            try:
                with pytest.raises(Overloaded), sandbox.opened(second, LIMITS, "upright"):
                    pass
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            assert photo.through(RECIPE).shape == (224, 224, 3)


def test_nobody_waits_for_another_to_look(sandbox: Sandbox, uploads: Path) -> None:
    """While a cell takes its time to tell a picture's turn, another picture's is told at once."""
    with Uploads(uploads) as files:
        first, second = files.new(), files.new()
        for file in (first, second):
            file.write(encoded(Image.new("RGB", (9, 9)), "PNG"))
        slow, quick = (sandbox.opened(file, LIMITS, "upright") for file in (first, second))
        with slow as stalled, quick as other, ThreadPoolExecutor(1) as pool:
            signal.pidfd_send_signal(stalled._cell._handle, signal.SIGSTOP)
            waiting = pool.submit(getattr, stalled, "size")
            time.sleep(0.1)
            began = time.monotonic()
            assert other.size == (9, 9)
            assert time.monotonic() - began < SECONDS / 2
            with pytest.raises(BrokenImage):
                waiting.result()


def test_a_jpeg_is_asked_once_which_way_is_up(sandbox: Sandbox, uploads: Path) -> None:
    """Its header tells, so that opening it is enough."""
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    with Uploads(uploads) as files:
        file = files.new()
        file.write(encoded(Image.new("RGB", (9, 5)), "JPEG", exif=exif))
        with sandbox.opened(file, LIMITS, "upright") as photo:
            signal.pidfd_send_signal(photo._cell._handle, signal.SIGSTOP)
            assert photo.size == (5, 9)


@pytest.mark.parametrize("keeps", [True, False])
def test_memory_between_two_pictures(sandbox: Sandbox, uploads: Path, keeps: bool) -> None:
    """A cell keeps what a small picture took for the next one, or hands it back, as it is told."""
    held = []
    for size in ((8, 8), (800, 600)):
        with Uploads(uploads) as files:
            file = files.new()
            file.write(encoded(Image.new("RGB", size), "JPEG"))
            with sandbox.opened(file, LIMITS, "upright", keeps) as photo:
                photo.decoded()
        time.sleep(0.1)  # for the cell, to let go
        held.append(max(map(anonymous_memory, processes(sandbox))))
    assert (held[1] - held[0] > MIB) is keeps


def test_killed_while_idle(sandbox: Sandbox, uploads: Path) -> None:
    """Of cells and a nursery that somebody killed, the next picture notices nothing."""
    for _ in range(2):
        assert made(sandbox, uploads, picture()).any()
        for process in processes(sandbox):
            os.kill(process, signal.SIGKILL)
        time.sleep(0.1)
    assert made(sandbox, uploads, picture()).any()


def test_told_to_stop_with_all_others(sandbox: Sandbox, uploads: Path) -> None:
    """SIGTERM and SIGINT, which a platform or a terminal sends to every process, leave the decoding to the server."""
    assert made(sandbox, uploads, picture()).any()
    before = processes(sandbox)
    for process in before:
        os.kill(process, signal.SIGTERM)
        os.kill(process, signal.SIGINT)
    assert made(sandbox, uploads, picture()).any()
    assert processes(sandbox) == before


def test_nothing_piles_up(sandbox: Sandbox, uploads: Path) -> None:
    """After many pictures, some of which crash, there are as many descriptors and processes as before."""
    counts = []
    for _ in range(2):
        for number in range(20):
            if number % 2:
                with pytest.raises(BrokenImage):
                    made(sandbox, uploads, picture(), faults.Fault(faults.crash))
            assert made(sandbox, uploads, picture()).any()
        counts.append((len(list(Path("/proc/self/fd").iterdir())), len(processes(sandbox))))
    assert counts[0] == counts[1]


def test_over_http(client: FlaskClient, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash of the decoder is answered with 422 broken_image, and the next request with 200."""
    monkeypatch.setattr(classifier, "sandbox", lambda formats: sandbox)
    with monkeypatch.context() as patched:
        patched.setattr("pigeonhole.intake.sandbox.Whole", lambda reduction: faults.Fault(faults.crash))
        answer = client.post("/predict", data=form((picture(), "x.png")))
        assert (answer.status_code, answer.json["code"]) == (422, "broken_image")
    assert client.post("/predict", data=form((picture(), "x.png"))).json == {"success": "red"}


@pytest.fixture
def no_cells(monkeypatch: pytest.MonkeyPatch, sandbox: Sandbox) -> Sandbox:
    """A sandbox on a system that cannot have one."""
    monkeypatch.setattr("pigeonhole.intake.sandbox.NURSERY", "print")
    monkeypatch.setattr(classifier, "sandbox", lambda formats: sandbox)
    return sandbox


@pytest.mark.parametrize(("wanted", "status"), [("auto", 200), ("off", 200), ("on", 503)])
def test_where_there_are_no_cells(
    no_cells: Sandbox, uploads: Path, wanted: Literal["auto", "on", "off"], status: int
) -> None:
    """Where no process can be confined, pictures are decoded without, but for SANDBOX=on."""
    app = create_app(Settings(uploads=uploads, sandbox=wanted), Predictor(Colours))
    assert app.test_client().post("/predict", data=form((picture(), "x.png"))).status_code == status
    assert not no_cells.works


def test_on_does_not_start_without(start_server: StartServer, uploads: Path) -> None:
    """Where no process can be confined, SANDBOX=on does not start, and says so."""
    code = "import pigeonhole.intake.sandbox as s; s.NURSERY = 'print'; from gunicorn.app.wsgiapp import run; run()"
    command = (sys.executable, "-c", code, *GUNICORN[3:])
    server = start_server(command=command, wait=False, UPLOADS=str(uploads), SANDBOX="on")
    assert server.process.wait(60) == 3
    assert "SANDBOX=on is not possible" in server.log.read_text()


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGKILL], ids=lambda by: by.name)
def test_the_servers_cells_end_with_it(start_server: StartServer, uploads: Path, by: signal.Signals) -> None:
    """Whether a worker is told to end or killed, its nursery and its cells end too."""
    server = start_server(UPLOADS=str(uploads))
    assert post(server, picture())[0] == 200
    worker, *others = descendants(server.process.pid)
    assert len(others) == 2
    os.kill(worker, by)
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{process}").exists() for process in others) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{process}").exists() for process in others)
    server.stop()


@pytest.mark.parametrize("kind", ["AVIF", "TIFF", "HEIC"])
def test_types_on_demand(uploads: Path, kind: str) -> None:
    """What IMAGE_FORMATS admits is decoded in cells as well, though they can have no threads."""
    limits, one = replace(LIMITS, formats=(kind.lower(),)), Sandbox([], (kind.lower(),))
    noise = Image.effect_noise((640, 480), 60).convert("RGB")
    content = (HEIC / "upright.heic").read_bytes() if kind == "HEIC" else encoded(noise, kind)
    with closing(one), Uploads(uploads) as files:
        file = files.new()
        file.write(content)
        with one.opened(file, limits, "upright") as photo:
            assert photo.decoded().tobytes() == open_photo(io.BytesIO(content), limits).decoded().tobytes()
