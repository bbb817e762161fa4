"""The cores that may be used are those that affinity and quotas leave."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pigeonhole.model.cores import usable_cores

V1, QUOTA, PERIOD = "cpu,cpuacct", "cfs_quota_us", "cfs_period_us"


def groups(folder: Path, own: str, **files: str) -> tuple[Path, Path]:
    (folder / "own").write_text(own)
    for name, content in files.items():
        path = folder / "cgroup" / name.replace("__", "/").replace("_max", ".max").replace("cfs", "cpu.cfs")
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
