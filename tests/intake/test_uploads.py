"""A photo is on disk while it is answered, and not a moment longer."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pigeonhole.errors import FolderError, NoSpace
from pigeonhole.intake.uploads import PREFIX, Upload, Uploads, prepare


def test_written_and_read_back(uploads: Path) -> None:
    """What was written is read back, from a file on the folder's disk that only we may read."""
    with Uploads(uploads) as files:
        file = files.new()
        file.write(b"photo")
        file.seek(0)
        assert file.read() == b"photo"
        assert stat.S_IMODE(os.fstat(file.fileno()).st_mode) == 0o600
        assert os.fstat(file.fileno()).st_dev == uploads.stat().st_dev


def test_no_name(uploads: Path) -> None:
    """No file has a name, so no two can be the same, and none can be asked for."""
    with Uploads(uploads) as files:
        for content in (b"one", b"two"):
            files.new().write(content)
        assert list(uploads.iterdir()) == []


def test_closed_whatever_happens(uploads: Path) -> None:
    """An error on the way closes the files all the same."""
    files = Uploads(uploads)
    file = files.new()
    with pytest.raises(RuntimeError), files:
        raise RuntimeError
    assert file.closed


def test_nothing_left_by_a_killed_process(uploads: Path) -> None:
    """The kernel removes the upload of a process that was killed."""
    code = f"""
import os, signal
from pathlib import Path
from pigeonhole.intake.uploads import Uploads
Uploads(Path({str(uploads)!r})).new().write(b"photo" * 9999)
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    assert list(uploads.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is Linux's")
def test_a_full_disk(uploads: Path) -> None:
    """A disk that takes no more is our trouble, not the client's, and the file is closed."""
    with Uploads(uploads) as files:
        file = files.new()
        full = os.open("/dev/full", os.O_RDWR)
        os.dup2(full, file.fileno())
        os.close(full)
        with pytest.raises(NoSpace):
            file.write(b"photo" * 99_999)
    assert file.closed


READS: dict[str, Callable[[Upload], object]] = {
    "read": lambda file: file.read(10),
    "readinto": lambda file: file.readinto(bytearray(10)),
    "tell": lambda file: file.tell(),
    "seek": lambda file: file.seek(0),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS.keys())
def test_a_disk_that_gives_nothing_back(uploads: Path, read: Callable[[Upload], object]) -> None:
    """A disk that does not give back what it took is our trouble, too: no photo is called damaged for it."""
    with Uploads(uploads) as files:
        file = files.new()
        os.close(file.fileno())
        with pytest.raises(NoSpace):
            read(file)


def test_prepare_sweeps(uploads: Path) -> None:
    """What a process left between creating and unlinking is removed at the start; what is not ours stays."""
    (uploads / f"{PREFIX}x").write_bytes(b"photo")
    (uploads / "theirs").touch()
    prepare(uploads)
    assert [path.name for path in uploads.iterdir()] == ["theirs"]
    (uploads / "theirs").unlink()


def test_prepare_refuses(uploads: Path, tmp_path: Path) -> None:
    """A folder that is missing, a file, or a link is refused with a sentence that names it."""
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(uploads)
    for name in ("missing", "file", "link"):
        with pytest.raises(FolderError, match=name):
            prepare(tmp_path / name)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs a folder nobody can write to")
def test_prepare_refuses_what_cannot_be_written() -> None:
    """A folder that takes no files is refused before anything is served."""
    with pytest.raises(FolderError, match="cannot be written"):
        prepare(Path("/proc/self/task"))
