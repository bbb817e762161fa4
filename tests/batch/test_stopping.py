"""`python -m pigeonhole predict` as a process: stopped, killed, without room, and gone on with."""

from __future__ import annotations

import os
import pty
import resource
import shutil
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from tests.batch.colours import ENDLESS
from tests.batch.conftest import COLOURS, answers, photos
from tests.conftest import ROOT, picture
from tests.model.test_exports_compiled import FOLDER

PHOTOS = 150  # of a hundredth of a second each, a few at once


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Many photos, in a folder called p."""
    folder = tmp_path_factory.mktemp("many")
    photos(folder / "p", **{f"{number % 7}__{number}": COLOURS[number % 4] for number in range(PHOTOS)})
    (folder / "p" / "3" / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    return folder


def start(folder: Path, *arguments: str, **options: object) -> subprocess.Popen[str]:
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    command = [sys.executable, "-m", "tests.batch.colours", "predict", "p", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=folder, env=environment, text=True, **options)  # type: ignore[call-overload]


def wait_for_rows(path: Path, rows: int) -> None:
    deadline = time.monotonic() + 60
    while not path.exists() or path.read_bytes().count(b"\n") <= rows:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="module")
def uninterrupted(folder: Path) -> bytes:
    process = start(folder, "-o", "whole.csv")
    process.communicate()
    assert process.returncode == 1  # of the broken one
    whole = (folder / "whole.csv").read_bytes()
    assert whole.count(b"\n") == PHOTOS + 1
    return whole


def test_killed(folder: Path, uninterrupted: bytes) -> None:
    """Killed again and again in the middle, and gone on with, it writes what it would have written at once."""
    out = folder / "killed.csv"
    for rows in (5, 40, 90):
        process = start(folder, "-o", out.name)
        wait_for_rows(out, rows)
        process.kill()
        process.communicate()
        assert rows < out.read_bytes().count(b"\n") < PHOTOS
    process = start(folder, "-o", out.name)
    _, err = process.communicate()
    assert "files are done already" in err
    assert out.read_bytes() == uninterrupted
    assert [path.name for path in folder.iterdir() if "killed" in path.name] == ["killed.csv"]


@pytest.mark.parametrize(("by", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped(folder: Path, uninterrupted: bytes, by: signal.Signals, status: int) -> None:
    """Ctrl-C and SIGTERM end it soon, with what was in hand written, and it says how to go on."""
    out = folder / f"{by.name}.csv"
    process = start(folder, "-o", out.name)
    wait_for_rows(out, 20)
    process.send_signal(by)
    _, err = process.communicate(timeout=10)
    assert process.returncode == status
    assert "run the same command again to go on" in err
    assert "Traceback" not in err
    content = out.read_bytes()
    assert uninterrupted.startswith(content)
    assert 20 < content.count(b"\n") < PHOTOS
    start(folder, "-o", out.name).communicate()
    assert out.read_bytes() == uninterrupted


def test_stopped_twice(tmp_path: Path) -> None:
    """A second Ctrl-C does not wait for what is in hand; what was written stays, and can be gone on with."""
    photos(tmp_path / "p", **{f"a{number}": "red" for number in range(9)})
    (tmp_path / "p" / "b.png").write_bytes(picture("red", ENDLESS))
    process = start(tmp_path, "-o", "twice.csv")
    try:
        wait_for_rows(tmp_path / "twice.csv", 9)
        for _ in range(2):
            process.send_signal(signal.SIGINT)
            time.sleep(0.3)
        _, err = process.communicate(timeout=10)
    finally:
        process.kill()
    assert (process.returncode, "Traceback" in err) == (130, False)
    assert len(answers(tmp_path / "twice.csv")) == 10
    (tmp_path / "p" / "b.png").write_bytes(picture("red"))
    _, err = start(tmp_path, "-o", "twice.csv").communicate()
    assert "9 of 10 files are done already" in err


@pytest.mark.parametrize("reader", ["nobody", "full"])
def test_accuracy_that_cannot_be_printed(folder: Path, reader: str) -> None:
    """Where nobody reads the accuracy, or its disk is full, the report is written first, and there is a sentence."""
    if reader == "full":
        ours, sentence = os.open("/dev/full", os.O_WRONLY), "No space left"
    else:
        (theirs, ours), sentence = os.pipe(), "Broken pipe"
        os.close(theirs)
    report, out = f"read-by-{reader}.html", f"read-by-{reader}.csv"
    _, err = start(folder, "-o", out, "--true-labels", "--report", report, stdout=ours).communicate()
    os.close(ours)
    assert f"standard output cannot be written: {sentence}" in err
    assert "Traceback" not in err
    assert (folder / report).exists()
    assert not (folder / f".{out}.pigeonhole").exists()


def test_two_at_once(folder: Path) -> None:
    """A file that is being written is not gone on with by another process."""
    first = start(folder, "-o", "both.csv")
    wait_for_rows(folder / "both.csv", 3)
    first.send_signal(signal.SIGSTOP)
    second = start(folder, "-o", "both.csv")
    _, err = second.communicate()
    first.send_signal(signal.SIGCONT)
    assert (second.returncode, err) == (1, "both.csv is being written by another process.\n")
    first.communicate()
    assert len(answers(folder / "both.csv")) == PHOTOS + 1


def test_a_full_disk(folder: Path, uninterrupted: bytes) -> None:
    """A disk that fills up is told in a sentence; the rest of a row is cut off when going on."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    process = start(folder, "-o", "full.csv", preexec_fn=limit)
    _, err = process.communicate()
    assert (process.returncode, err.splitlines()[-1]) == (1, "full.csv cannot be written: File too large.")
    assert (folder / "full.csv").stat().st_size == 1000
    start(folder, "-o", "full.csv").communicate()
    assert (folder / "full.csv").read_bytes() == uninterrupted


def test_nobody_reads_on(folder: Path) -> None:
    """`| head` ends it with a sentence and no traceback."""
    process = start(folder, "--csv")
    assert process.stdout
    assert process.stdout.readline() == "file,label,probability\n"
    process.stdout.close()
    assert process.stderr
    err = process.stderr.read()
    process.stderr.close()
    assert (process.wait(), "Broken pipe" in err, "Traceback" in err) == (1, True, False)


def test_the_bar(folder: Path) -> None:
    """On a terminal a bar counts all files, and a sentence does not tear it; elsewhere there is none."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    process = start(folder, "--json", stderr=theirs)
    out, _ = process.communicate()
    os.close(theirs)
    seen = os.read(ours, 100_000).decode()
    os.close(ours)
    assert out.count("\n") == PHOTOS
    assert f"{PHOTOS + 1}/{PHOTOS + 1}" in seen
    assert "\rp/3/broken.jpg: the picture starts as JPEG" in seen.replace("\r ", "\r").replace(" \r", "\r")
    quiet = start(folder, "--json", stdout=subprocess.DEVNULL)
    assert "%" not in quiet.communicate()[1]


def test_it_compiles_first(tmp_path: Path) -> None:
    """An export that is not compiled is compiled first, as the service does it; standard output holds rows alone."""
    shutil.copy(FOLDER / "plain.pkl", tmp_path / "model.pkl")
    photos(tmp_path / "p", a="red")
    command = [sys.executable, "-m", "pigeonhole", "predict", "p", "--csv"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MODEL": "model.pkl", "ENGINE": "auto"}
    rows = []
    for told in (True, False):
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert (done.returncode, "Compiling model.pkl" in done.stderr) == (0, told), done.stderr
        rows.append(done.stdout)
    assert rows[0] == rows[1]
    assert rows[0].startswith("file,label,probability\np/a.png,")
