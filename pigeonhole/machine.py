"""What this process may use of the machine: the cores and the memory that its affinity and its control group leave."""

from __future__ import annotations

import ctypes
import math
import os
from contextlib import suppress
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")
OWN_MEMORY = Path("/proc/self/statm")
M_MMAP_THRESHOLD = -3  # malloc.h's number: from how many bytes on an allocation is a mapping of its own
LARGE = 1 << 20


def usable_cores(cgroups: Path = CGROUPS, own: Path = OWN_GROUPS) -> int:
    """At least 1; a quota of one and a half cores counts as two.

    A container's quota (`docker run --cpus`) is no affinity, so `os.cpu_count` does not see it. Quotas hold for a
    group and all below it (Linux, Documentation/admin-guide/cgroup-v2.rst, cpu.max; cgroup-v1/cpu.rst).
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota for folder in _groups("cpu", cgroups, own) if (quota := _quota(folder)) is not None]
    return max(1, min(affinity, *(math.ceil(quota) for quota in quotas))) if quotas else affinity


def usable_memory(cgroups: Path = CGROUPS, own: Path = OWN_GROUPS) -> int:
    """In bytes; what is used of it already counts as well.

    Limits hold for a group and all below it (cgroup-v2.rst, memory.max; cgroup-v1/memory.rst).
    """
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = [limit for folder in _groups("memory", cgroups, own) if (limit := _limit(folder)) is not None]
    return min(machine, *limits) if limits else machine


def memory_in_use(own: Path = OWN_MEMORY) -> int:
    """By this process, in bytes; 0 where the system does not say."""
    resident = _read(own).split()[1:2]
    return int(resident[0]) * os.sysconf("SC_PAGE_SIZE") if resident else 0


def give_memory_back() -> None:
    """Let glibc hand back at once what a picture took; by itself it keeps up to 32 MiB for each thread.

    ResNet-34, eight clients with photos of 12 megapixels: 355 MB instead of 452. torch, which allocates what OpenVINO
    keeps, gets a third slower by it. Other C libraries lack the call.
    """
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE)


def _groups(controller: str, cgroups: Path, own: Path) -> list[Path]:
    """The folders of this process's control group, in both versions, and of those above it."""
    folders = []
    for line in _read(own).splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers or controller in controllers.split(","):
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


def _limit(folder: Path) -> int | None:
    """In bytes; None if there is no limit, which version 1 writes as a number larger than any machine."""
    limit = (_read(folder / "memory.max") or _read(folder / "memory.limit_in_bytes")).strip()
    return int(limit) if limit.isdigit() else None


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
