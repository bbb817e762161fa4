"""What this process may use of the machine: the cores and the memory that its affinity and its control group leave."""

from __future__ import annotations

import ctypes
import math
import os
import re
from contextlib import suppress
from functools import cache
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")
PROC = Path("/proc")
OWN_MOUNTS = Path("/proc/self/mountinfo")
IN_MEMORY = ("tmpfs", "ramfs")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_PERTURB = -1, -3, -6  # of malloc.h
KEPT = 8 << 20  # bytes; of a photo of 0.5 megapixels 4 MB are used at once
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


def anonymous_memory(process: int, proc: Path = PROC) -> int:
    """What a process holds that the kernel cannot read again from a file, in bytes; 0 where the system does not say.

    What it shares with others since a fork counts for each of them in part, so that sums are right; without the right
    to know that, it counts in full.
    """
    for file, field in (("smaps_rollup", "Pss_Anon:"), ("status", "RssAnon:")):
        for line in _read(proc / str(process) / file).splitlines():
            if line.startswith(field):
                return int(line.split()[1]) * 1024
    return 0


def children(process: int, proc: Path = PROC) -> list[int]:
    """The processes that it started and that are there; none where the system does not say."""
    tasks = proc.glob(f"{process}/task/*/children")
    return [int(child) for task in tasks for child in _read(task).split()]


def descendants(process: int) -> list[int]:
    """Its children, and theirs."""
    return [one for child in children(process) for one in (child, *descendants(child))]


def is_in_memory(folder: Path, mounts: Path = OWN_MOUNTS) -> bool:
    """Whether files in `folder` take memory, as in a container's tmpfs, which counts against its limit."""
    at, kind = Path("/"), ""
    for line in _read(mounts).splitlines():  # Linux, Documentation/filesystems/proc.rst, 3.5
        before, _, after = line.partition(" - ")
        point = Path(re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), before.split()[4]))
        if folder.resolve().is_relative_to(point) and point.is_relative_to(at):  # a later mount hides an earlier one
            at, kind = point, after.split()[0]
    return kind in IN_MEMORY


def killed_for_memory(cgroups: Path = CGROUPS, own: Path = OWN_GROUPS) -> int:
    """How many processes of this control group the kernel has ended for want of memory so far; 0 without a group."""
    folder = _groups("memory", cgroups, own)[0]
    for line in (_read(folder / "memory.events") or _read(folder / "memory.oom_control")).splitlines():
        if line.startswith("oom_kill "):
            return int(line.split()[1])
    return 0


def give_memory_back() -> None:
    """Let glibc hand back at once what a picture took; by itself it keeps up to 32 MiB for each thread.

    ResNet-34, eight clients with photos of 12 megapixels: 355 MB instead of 452. torch, which allocates what OpenVINO
    keeps, gets a third slower by it. Other C libraries lack the call.
    """
    _set_malloc(mapped_from=LARGE, kept=0, overwrites=False)


def reuse_memory(overwrites: bool) -> None:
    """Let glibc keep `KEPT` bytes for the next picture; what is freed while it `overwrites` holds nothing any more.

    For processes that decode one small photo after another: pages new from the kernel take a third of their time. What
    is allocated is overwritten, too, so that a large buffer of which little is used would be in memory as a whole.
    """
    _set_malloc(mapped_from=KEPT // 4, kept=KEPT, overwrites=overwrites)


def _set_malloc(mapped_from: int, kept: int, overwrites: bool) -> None:
    with suppress(AttributeError, OSError):
        set_option = _libc().mallopt
        set_option(M_MMAP_THRESHOLD, mapped_from)
        set_option(M_TRIM_THRESHOLD, kept)
        set_option(M_PERTURB, int(overwrites))


def trim_memory() -> None:
    """Have glibc hand back now what was freed before, 8 MB of what loading a model took."""
    with suppress(AttributeError, OSError):
        _libc().malloc_trim(0)


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


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
