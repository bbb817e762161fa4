"""What may be used is what affinity, quotas and limits leave."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pigeonhole.machine import memory_in_use, usable_cores, usable_memory

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


def test_memory_in_use(tmp_path: Path) -> None:
    """What this process holds now; nothing where the system does not say."""
    before, held = memory_in_use(), b"x" * (64 * MIB)
    assert len(held) * 0.9 < memory_in_use() - before < len(held) * 1.5
    assert memory_in_use(tmp_path / "none") == 0
