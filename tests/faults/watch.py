"""Watch the processes of a server from outside, through /proc: what grows while it serves is a leak."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

PROC = Path("/proc")
MB = 1_000_000
T = TypeVar("T")


class Leak(Exception):
    """Something grew that has no reason to."""


@dataclass(frozen=True)
class Sample:
    """What all processes of a server take together; `memory` in MB, shared pages counted once."""

    memory: float
    descriptors: int
    threads: int
    processes: int
    files: int  # that lie in the upload folder, named or open

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True)
class Bounds:
    """How much may be there in the end that was not there before."""

    memory: float = 100  # MB: what CASES.md allows from the middle of an hour's load to its end
    descriptors: int = 0
    threads: int = 2  # of a pool that makes its threads when they are first needed
    processes: int = 0
    files: int = 0


class Watch:
    """Of the server whose master is `pid` and whose pictures lie in `folder`."""

    def __init__(self, pid: int, folder: Path) -> None:
        self.pid, self.folder = pid, folder

    @property
    def workers(self) -> list[int]:
        return children(self.pid)

    def sample(self) -> Sample:
        pids = [self.pid, *descendants(self.pid)]
        links = [link for pid in pids for link in _links(pid)]
        return Sample(
            memory=round(sum(map(memory, pids)), 1),
            descriptors=len(links),
            threads=sum(_read(pid, _threads) or 0 for pid in pids),
            processes=len(pids),
            files=len(list(self.folder.iterdir())) + sum(link.startswith(f"{self.folder}/") for link in links),
        )

    def quiet(self) -> Sample:
        """A sample, once what is on its way out has gone: connections linger for a moment."""
        seen = self.sample()
        for _ in range(20):
            time.sleep(0.3)
            last, seen = seen, self.sample()
            if (last.descriptors, last.files) == (seen.descriptors, seen.files):
                break
        return seen

    def check(self, before: Sample, bounds: Bounds = Bounds(), patience: float = 8) -> None:  # noqa: B008
        """As `check` below, once what is on its way out has had time to go."""
        deadline = time.monotonic() + patience
        while True:
            try:
                return check(before, self.sample(), bounds)
            except Leak:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)


def check(before: Sample, after: Sample, bounds: Bounds = Bounds()) -> None:  # noqa: B008  it is frozen
    """Raise Leak where `after` has more than `before`, beyond the bounds; take both while nobody asks anything."""
    allowed, then = asdict(bounds), before.as_dict()
    grown = [
        f"{name} from {then[name]} to {value}"
        for name, value in after.as_dict().items()
        if value - then[name] > allowed[name]
    ]
    if grown:
        raise Leak(", ".join(grown))


def children(pid: int) -> list[int]:
    return _read(pid, lambda at: list(map(int, (at / f"task/{pid}/children").read_text().split()))) or []


def descendants(pid: int) -> list[int]:
    """Its children and theirs: workers, and the processes that decode for them."""
    own = _read(pid, _children) or []
    return own + [one for child in own for one in descendants(child)]


def memory(pid: int) -> float:
    """Its proportional set size, in MB."""
    return (_read(pid, _pss) or 0) * 1024 / MB


def processor_seconds(pid: int) -> float:
    """What it has computed so far."""
    fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def _children(at: Path) -> list[int]:
    return [int(child) for task in (at / "task").iterdir() for child in (task / "children").read_text().split()]


def _pss(at: Path) -> int:
    lines = (at / "smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def _threads(at: Path) -> int:
    return len(list((at / "task").iterdir()))


def _links(pid: int) -> list[str]:
    links = []
    for path in _read(pid, lambda at: list((at / "fd").iterdir())) or []:
        with suppress(OSError):  # closed meanwhile
            links.append(str(path.readlink()))
    return links


def _read(pid: int, what: Callable[[Path], T]) -> T | None:
    """None of a process that has gone."""
    try:
        return what(PROC / str(pid))
    except (FileNotFoundError, ProcessLookupError):
        return None
