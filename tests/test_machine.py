"""What may be used is what affinity, quotas and limits leave."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pigeonhole.machine import (
    anonymous_memory,
    children,
    is_in_memory,
    killed_for_memory,
    usable_cores,
    usable_memory,
)

V1, QUOTA, PERIOD = "cpu,cpuacct", "cfs_quota_us", "cfs_period_us"


def groups(folder: Path, own: str, **files: str) -> tuple[Path, Path]:
    (folder / "own").write_text(own)
    for name, content in files.items():
        path = (
            folder
            / "cgroup"
            / name.replace("__", "/")
            .replace("_max", ".max")
            .replace("cfs", "cpu.cfs")
            .replace("limit_", "memory.limit_", 1)
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return folder / "cgroup", folder / "own"


FREED = """
import ctypes
from pigeonhole.machine import reuse_memory
reuse_memory(overwrites=True)
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
photo, behind = libc.malloc(1 << 20), libc.malloc(1 << 10)
ctypes.memset(photo, ord("A"), 1 << 20)
libc.free(photo)
print(ctypes.string_at(photo, 1 << 20).count(b"A"))  # the kernel would end us if these pages were gone
"""


def test_memory_that_is_used_again_holds_nothing() -> None:
    """What is freed is kept for the next picture, and overwritten."""
    done = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))


@pytest.mark.parametrize(
    ("own", "files", "cores"),
    [
        ("0::/\n", {}, 8),
        ("0::/\n", {"cpu_max": "max 100000\n"}, 8),
        ("0::/\n", {"cpu_max": "200000 100000\n"}, 2),
        ("0::/\n", {"cpu_max": "150000 100000\n"}, 2),
        ("0::/\n", {"cpu_max": "20000 100000\n"}, 1),
        ("0::/\n", {"cpu_max": "9000000 100000\n"}, 8),
        ("0::/a/b\n", {"a__cpu_max": "300000 100000\n", "a__b__cpu_max": "max 100000\n"}, 3),
        ("0::/a/b\n", {"a__cpu_max": "300000 100000\n", "a__b__cpu_max": "100000 100000\n"}, 1),
        ("4:cpu,cpuacct:/x\n1:memory:/y\n", {f"{V1}__x__{QUOTA}": "400000", f"{V1}__x__{PERIOD}": "100000"}, 4),
        ("4:cpu,cpuacct:/\n", {f"{V1}__{QUOTA}": "-1", f"{V1}__{PERIOD}": "100000"}, 8),
    ],
    ids=["none", "max", "two", "one-and-a-half", "a-fifth", "more", "above", "both", "version-1", "version-1-none"],
)
def test_quotas(tmp_path: Path, own: str, files: dict[str, str], cores: int) -> None:
    """The smallest quota on the way up counts, rounded up."""
    assert usable_cores(*groups(tmp_path, own, **files)) == cores


def test_no_groups(tmp_path: Path) -> None:
    """Where there are no control groups, affinity counts."""
    assert usable_cores(tmp_path / "no", tmp_path / "neither") == 8


MIB = 1024 * 1024


@pytest.mark.parametrize(
    ("own", "files", "memory"),
    [
        ("0::/\n", {}, None),
        ("0::/\n", {"memory_max": "max\n"}, None),
        ("0::/\n", {"memory_max": f"{512 * MIB}\n"}, 512 * MIB),
        ("0::/a/b\n", {"a__memory_max": f"{300 * MIB}\n", "a__b__memory_max": f"{500 * MIB}\n"}, 300 * MIB),
        ("9:memory:/x\n", {"memory__x__limit_in_bytes": f"{256 * MIB}\n"}, 256 * MIB),
        ("9:memory:/\n", {"memory__limit_in_bytes": "9223372036854771712\n"}, None),
    ],
    ids=["none", "max", "512-MB", "above", "version-1", "version-1-none"],
)
def test_memory_limits(tmp_path: Path, own: str, files: dict[str, str], memory: int | None) -> None:
    """The smallest limit on the way up counts, else all that the machine has."""
    machine = usable_memory(tmp_path / "no", tmp_path / "neither")
    assert machine > 64 * MIB
    assert usable_memory(*groups(tmp_path, own, **files)) == (memory or machine)


def test_anonymous_memory(tmp_path: Path) -> None:
    """What this process holds now; nothing where the system does not say."""
    before, held = anonymous_memory(os.getpid()), bytearray(64 * MIB)
    assert len(held) * 0.9 < anonymous_memory(os.getpid()) - before < len(held) * 1.5
    assert anonymous_memory(os.getpid(), tmp_path) == 0


def test_anonymous_memory_of_others(tmp_path: Path) -> None:
    """Of a process that may not be looked into, what its status says."""
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "status").write_text("Name:\tx\nVmRSS:\t  900 kB\nRssAnon:\t  300 kB\n")
    assert anonymous_memory(7, tmp_path) == 300 * 1024


def test_children() -> None:
    """Processes that were started by any thread."""
    with subprocess.Popen(["sleep", "60"]) as child:
        assert child.pid in children(os.getpid())
        child.kill()


MOUNTS = """\
22 27 0:21 / / rw - ext4 /dev/vda rw
23 22 0:30 / /app/tmp rw shared:1 - tmpfs tmpfs rw
24 22 0:31 / /app/tmp/disk rw - ext4 /dev/vdb rw
25 22 0:32 / /with\\040blank rw master:2 shared:1 - ramfs none rw
26 22 0:33 / /hidden rw - tmpfs tmpfs rw
27 22 0:34 / /hidden rw - overlay overlay rw
"""


@pytest.mark.parametrize(
    ("folder", "takes"),
    [
        ("/app", False),
        ("/app/tmp", True),
        ("/app/tmp/below", True),
        ("/app/tmpfoo", False),
        ("/app/tmp/disk", False),
        ("/with blank", True),
        ("/hidden", False),
    ],
)
def test_in_memory(folder: str, takes: bool, tmp_path: Path) -> None:
    """A folder is in memory where the mount that it is seen through is."""
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS)
    assert is_in_memory(Path(folder), mounts) is takes


def test_in_memory_here(tmp_path: Path) -> None:
    """Shared memory is memory; a system that does not say has none."""
    assert is_in_memory(Path("/dev/shm"))
    assert not is_in_memory(Path("/dev/shm"), tmp_path / "none")


@pytest.mark.parametrize(
    ("own", "files", "killed"),
    [
        ("0::/a\n", {"a__memory.events": "low 0\noom 3\noom_kill 2\n"}, 2),
        ("4:memory:/b\n", {"memory__b__memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 5\n"}, 5),
        ("0::/\n", {}, 0),
    ],
    ids=["version-2", "version-1", "none"],
)
def test_killed_for_memory(tmp_path: Path, own: str, files: dict[str, str], killed: int) -> None:
    """What the kernel counts in this process's own group."""
    assert killed_for_memory(*groups(tmp_path, own, **files)) == killed
