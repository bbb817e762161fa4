"""How many processor cores this process may use: what its affinity and its control group leave of the machine's."""

from __future__ import annotations

import math
import os
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def usable_cores(cgroups: Path = CGROUPS, own: Path = Path("/proc/self/cgroup")) -> int:
    """At least 1; a quota of one and a half cores counts as two.

    A container's quota (`docker run --cpus`) is no affinity, so `os.cpu_count` does not see it. Quotas hold for a
    group and all below it (Linux, Documentation/admin-guide/cgroup-v2.rst, cpu.max; cgroup-v1/cpu.rst).
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota for folder in _groups(cgroups, own) if (quota := _quota(folder)) is not None]
    return max(1, min(affinity, *(math.ceil(quota) for quota in quotas))) if quotas else affinity


def _groups(cgroups: Path, own: Path) -> list[Path]:
    """The folders of this process's control group, in both versions, and of those above it."""
    folders = []
    for line in _read(own).splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers or "cpu" in controllers.split(","):
            root = cgroups / controllers if controllers else cgroups
            below = Path(path.lstrip("/"))
            folders += [root / parent for parent in (below, *below.parents)]
    return folders or [cgroups]


def _quota(folder: Path) -> float | None:
    """In cores; None if there is no limit."""
    quota, _, period = (_read(folder / "cpu.max") or _read_version_1(folder)).strip().partition(" ")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(period) else None


def _read_version_1(folder: Path) -> str:
    return f"{_read(folder / 'cpu.cfs_quota_us').strip()} {_read(folder / 'cpu.cfs_period_us').strip()}"


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
