"""`python -m pigeonhole plan` measures the service and says with which settings it fits a box."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from pigeonhole import planning
from pigeonhole.cli import main
from pigeonhole.errors import NotMeasured, SettingsError
from pigeonhole.machine import children
from pigeonhole.measuring import on_cores, photos, serving
from pigeonhole.planning import Measured, Plan, plan
from pigeonhole.settings import MIB, Settings
from pigeonhole.sizing import Box, divide
from tests.conftest import ROOT, StartServer
from tests.test_serving import JPEG, post
from tests.test_sizing import DEFAULTS, DEMO, box

MEASURED = Measured(small=0.02, large=0.1, small_per_second=60, large_per_second=9, memory=230 * MIB)


@pytest.fixture(scope="module")
def planned() -> Plan:
    """Afterwards this process may use the cores that it could use before."""
    cores = os.sched_getaffinity(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "SECONDS", 1.0)
        patch.setattr(planning, "ALONE", 3)
        planned = plan(Box(512 * MIB, 1), Settings())
    assert os.sched_getaffinity(0) == cores
    return planned


def plan_of(memory: int, measured: Measured = MEASURED, most_pixels: int = 25_000_000) -> Plan:
    return Plan(box(memory), DEFAULTS, divide(box(memory), DEMO, DEFAULTS), measured, most_pixels)


def test_measured(planned: Plan) -> None:
    """What it says of the demo in 512 MB on one core was measured: both kinds of photo, and memory."""
    assert planned.settings["WORKERS"] == 1
    assert planned.settings["THREADS"] == 4
    assert planned.settings["MAX_PIXELS"] == 25_000_000
    assert planned.measured.small_per_second > 2 * (planned.measured.large_per_second or 0) > 0
    assert planned.measured.small < (planned.measured.large or 0)
    assert 150 * MIB < planned.measured.memory < planned.room.held


def test_a_service_starts_with_it(planned: Plan, start_server: StartServer) -> None:
    """The settings that it says are those of a service that starts and answers."""
    with on_cores(planned.box.cores):
        server = start_server(**{name: str(value) for name, value in planned.settings.items()})
    assert post(server, JPEG)[0] == 200
    held = re.search(r"memory: (\d+) MB are held in all", server.log.read_text())
    assert held
    assert int(held[1]) == pytest.approx(planned.room.held / MIB, rel=0.1)


def test_text() -> None:
    """It is a file of environment variables: settings, and comments that say why."""
    lines = str(replace(plan_of(512), passed_over=("WORKERS=2 would not.",))).splitlines()
    assert lines[:5] == ["WORKERS=1", "THREADS=8", "MAX_DECODED=4", "MAX_WAITING=300", "MAX_PIXELS=25000000"]
    assert all(line.startswith("# ") for line in lines[5:])
    assert lines[-1] == "# WORKERS=2 would not."
    assert "With 8 clients: 60 photos of 800x600 a second, 9 of 4000x3000; 230 MB of memory then." in lines[-3]


@pytest.mark.parametrize(("rate", "waiting"), [(60, 300), (1, 8), (9999, 1000)], ids=["five seconds", "least", "most"])
def test_waiting(rate: float, waiting: int) -> None:
    """As many wait as are answered in five seconds."""
    assert plan_of(512, replace(MEASURED, small_per_second=rate)).settings["MAX_WAITING"] == waiting


def test_pixels() -> None:
    """A JPEG of so many pixels has room, and as many are the settings' to let in."""
    small = plan_of(260, replace(MEASURED, large=None, large_per_second=None))
    assert small.settings["MAX_PIXELS"] * 4 < small.room.pictures
    assert "With one client: 20 ms." in str(small)
    assert plan_of(512, most_pixels=1_000_000).settings["MAX_PIXELS"] == 1_000_000


def test_more_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """More workers are taken where they answer a tenth more, and left where they do not fit or hardly help."""
    rates = {1: 50.0, 2: 60.0, 4: 61.0}

    def measured(workers: int, of: Box, settings: Settings) -> Plan:
        shape = replace(DEFAULTS, workers=workers)
        return Plan(of, shape, divide(of, DEMO, shape), replace(MEASURED, small_per_second=rates[workers]), 1_000_000)

    monkeypatch.setattr(planning, "_with_workers", measured)
    monkeypatch.setattr(planning, "usable_cores", lambda: 4)
    assert plan(box(1024, cores=4), Settings()).settings["WORKERS"] == 2
    assert "WORKERS=4 would answer 61 photos a second" in plan(box(2048, cores=4), Settings()).passed_over[0]
    assert "WORKERS=2 does not fit" in plan(box(300, cores=4), Settings()).passed_over[0]


def test_none_fits(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing fits, it says why, with exit status 1."""
    assert main(["plan", "--memory", "180m", "--cores", "1"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "there are 180 MB of memory here, and to serve this model takes 2" in captured.err


@pytest.mark.parametrize("size", ["", "512x", "-1", "0", "1.5g", "9" * 20, "٥١٢m"])
def test_no_size(size: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What is no size is refused, with two that are."""
    with pytest.raises(SystemExit, match="2"):
        main(["plan", f"--memory={size}"])
    assert f"{size!r} is no size like 512m or 1g" in capsys.readouterr().err


def test_more_cores_than_here() -> None:
    """On cores that are not here nothing can be measured."""
    with pytest.raises(SettingsError, match="can be used here, so --cores=1000 cannot be measured"):
        plan(Box(512 * MIB, 1000), Settings())


def test_no_service(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """A service that does not start says why, and leaves no process."""
    before = children(os.getpid())
    with pytest.raises(NotMeasured, match="the reason stands above"), serving(MODEL="none.pkl"):
        pass
    assert "MODEL=none.pkl" in capfd.readouterr().err
    assert children(os.getpid()) == before


def test_photos() -> None:
    """The photos that are sent are JPEGs of that size, and different ones."""
    made = photos((1000, 700))
    assert len(set(made)) == len(made) == 8
    assert all(photo.startswith(b"\xff\xd8") for photo in made)


def test_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker holds more than the master; keys of the environment keep nobody from measuring."""
    monkeypatch.setenv("API_KEYS", "alice:" + "x" * 20)
    with serving(WORKERS="1") as service:
        held = service.held()
        assert service.seconds([JPEG], 1) > 0
        assert 10 * MIB < held.master < held.worker < service.memory()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_stopped(number: signal.Signals, tmp_path: Path) -> None:
    """However it is stopped, the service that it measures ends with it, and nothing is left."""
    command = [sys.executable, "-m", "pigeonhole", "plan", "--memory", "512m", "--cores", "1"]
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary)}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 60
        while not (started := children(process.pid)):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(number)
        assert process.wait(60) == 128 + number
    assert not any(Path(f"/proc/{one}").exists() for one in started)
    assert list(temporary.iterdir()) == []
