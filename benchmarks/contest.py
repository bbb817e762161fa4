"""The contest: every server in turn, round after round.

In each round every server is started, asked, watched and stopped, so none competes with another for the cores. Odd
rounds go through the servers backwards: a machine that slows down or speeds up meets all of them alike.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.environments import ROOT
from benchmarks.figures import percentile
from benchmarks.load import Job, multipart
from benchmarks.machine import load, now
from benchmarks.photos import Kind
from benchmarks.servers import NotStarted, Peer, Server, free_ports, running, wait_for_answer

CLIENTS = (1, 2, 4, 8, 16, 32, 64)
FEW_CLIENTS = (1, 8, 64)
CLOSELY = ("pigeonhole", "flask-learner", "fastapi-torch", "fastapi-openvino")  # ours, the obvious app, a good one
USUAL = 0.5, "jpeg"  # megapixels and kind, of what clients are counted with
CLIENTS_OF_KINDS = {"jpeg": (1, 8), "png": (1,)}  # eight who send PNGs of 24 megapixels would take most of the time
LARGE = 12.0, "jpeg"  # what memory is looked at with
SAMPLE_SECONDS = 0.3  # between two looks at the memory
WAY = re.compile(r'^pigeonhole_answers_total\{way="(\w+)"\} (\S+)$', re.M)
CORES = 2
STARTING = 10.0  # seconds, to start and to stop a server, in the mean
PERCENTILES = {"p50": 0.50, "p95": 0.95, "p99": 0.99}


@dataclass(frozen=True)
class Plan:
    """How much is measured. A cell is one number of clients with photos of one size and kind."""

    rounds: int = 5
    seconds: float = 2.0  # of a cell
    seconds_of_sizes: float = 1.0  # of a cell that is not of the usual size
    warm_up: float = 1.0  # before the first cell, not counted
    clients: tuple[int, ...] = CLIENTS
    few_clients: tuple[int, ...] = FEW_CLIENTS  # of those who are not looked at closely
    closely: tuple[str, ...] | None = CLOSELY  # None is everybody
    megapixels: tuple[float, ...] = (0.25, 0.5, 2.0, 12.0, 24.0)
    kinds: tuple[Kind, ...] = ("jpeg", "png")
    photos: int = 40  # that are sent in turns; of others than the usual size fewer, see `preparing.photos_of`
    answers: int | None = None  # photos whose answers are compared with learner.predict; None is all there are

    def looks_closely_at(self, key: str) -> bool:
        return self.closely is None or key in self.closely

    def hours(self, servers: Sequence[str]) -> float:
        """About how long it takes: more where answers are slower than a cell."""
        sizes = sum(len(self.megapixels) * len(CLIENTS_OF_KINDS[kind]) * self.seconds_of_sizes for kind in self.kinds)
        closely = len(self.clients) * self.seconds + sizes
        seconds = [closely if self.looks_closely_at(key) else len(self.few_clients) * self.seconds for key in servers]
        return self.rounds * (sum(seconds) + len(servers) * (STARTING + self.warm_up)) / 3600

    @classmethod
    def quick(cls) -> Plan:
        """Whether everything works; its figures mean little."""
        both = (1, 8)
        return cls(1, 1.5, 1.0, 0.5, both, both, None, (0.5, 12.0), ("jpeg",), photos=4, answers=20)

    @classmethod
    def full(cls) -> Plan:
        """Everybody closely, for a night."""
        return cls(seconds=8.0, seconds_of_sizes=4.0, warm_up=3.0, closely=None)


@dataclass(frozen=True)
class Photos:
    """`by_size[megapixels, kind]` are files; `labels` says what `learner.predict` calls each."""

    by_size: dict[tuple[float, str], list[Path]]
    answers: list[Path]
    labels: dict[Path, str]


Cell = dict[str, Any]


def cores_of() -> tuple[list[int], list[int]]:
    """Those of the servers, and those of what asks them; the same ones where there are no others."""
    here = sorted(os.sched_getaffinity(0))
    return here[:CORES], here[CORES:] or here


def contest(
    plan: Plan,
    peers: Sequence[Peer],
    export: Path,
    photos: Photos,
    tell: Callable[[str], None],
    keep: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """Rounds of all `peers`; `keep` gets what is known after each server, so that nothing is lost if it is stopped."""
    rounds: dict[str, list[dict[str, Any]]] = {peer.key: [] for peer in peers}
    for number in range(plan.rounds):
        for peer in peers if number % 2 == 0 else reversed(peers):
            tell(f"round {number + 1} of {plan.rounds}: {peer.title}")
            try:
                measured = measure(plan, peer, export, photos, answers=number == 0)
            except NotStarted as error:
                tell(str(error))
                measured = {"not_started": str(error)}
            rounds[peer.key].append({"round": number, **measured})
            keep(rounds)
    return rounds


def measure(
    plan: Plan, peer: Peer, export: Path, photos: Photos, answers: bool, cores: Sequence[int] = ()
) -> dict[str, Any]:
    """One server, from its start to its end; on `cores`, or on all that are the servers'.

    Raises:
        NotStarted: as `running`.
    """
    usual = photos.by_size[USUAL]
    servers, askers = cores_of()
    servers = list(cores) or servers
    began, before = now(), load()
    with running(peer, export, usual[0].read_bytes(), servers) as server, _requests(peer, photos) as files:

        def cell(which: Sequence[Path], clients: int, seconds: float, **bounds: Any) -> Cell:
            job = Job(
                server.port, [files[path] for path in which], [photos.labels[path] for path in which], clients, seconds,
                **bounds,
            )  # fmt: skip
            return asked(job, askers, server)

        idle, closely = server.memory_mb(), plan.looks_closely_at(peer.key)
        cell(usual, min(8, max(plan.clients)), plan.warm_up)
        cells = {
            _name(*USUAL, clients): cell(usual, clients, plan.seconds)
            for clients in (plan.clients if closely else plan.few_clients)
        }
        for size, which in photos.by_size.items() if closely else ():
            for clients in CLIENTS_OF_KINDS[size[1]]:
                if _name(*size, clients) not in cells:
                    bounds = {"at_least": 2 * clients}  # of a slow server, some all the same
                    cells[_name(*size, clients)] = cell(which, clients, plan.seconds_of_sizes, **bounds)
        measured = {
            "began": began,
            "load": before,
            "first_answer_s": server.first_answer,
            "memory_idle_mb": idle,
            "cells": cells,
            "memory_load_mb": _watched(server, lambda: cell(usual, 8, plan.seconds_of_sizes)),
        }
        if closely and LARGE in photos.by_size:
            measured["memory_large_mb"] = _watched(
                server, lambda: cell(photos.by_size[LARGE], 8, plan.seconds_of_sizes, at_least=16)
            )
        if answers:
            everything = {"at_least": len(photos.answers), "at_most": len(photos.answers)}
            measured["answers"] = cell(photos.answers, 4, 0, **everything)
        if peer.is_ours:
            measured["ways"] = _ways(server.port)
        return measured


def _ways(port: int) -> dict[str, float]:
    """How many photos went which way through our engine: a rerun is computed twice."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as response:
        return {way: float(count) for way, count in WAY.findall(response.read().decode())}


def asked(job: Job, cores: Sequence[int], server: Server | None = None) -> Cell:
    """What came of one job, in a process of its own; without the single times."""
    cpu = server.cpu_seconds() if server else 0.0
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.load"],
        input=json.dumps(asdict(job)),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),  # noqa: PLW1509  threads only look at the memory meanwhile
    )
    result = json.loads(done.stdout)
    times = result.pop("milliseconds")
    return {
        "answers": len(times),
        "per_second": len(times) / result["seconds"],
        **{name: percentile(times, share) for name, share in PERCENTILES.items()},
        "mean": sum(times) / len(times) if times else math.nan,
        "slowest": max(times, default=math.nan),
        "server_cpu_seconds": (server.cpu_seconds() - cpu) if server else math.nan,
        **result,
    }


def ceiling(photos: Sequence[Path]) -> Cell:
    """What the load generator gets of a server that does nothing, with 8 clients: more than that it cannot measure."""
    servers, askers = cores_of()
    with empty_server(servers) as port, tempfile.TemporaryDirectory(prefix="bench-requests-") as folder:
        files = [Path(folder) / path.name for path in photos]
        for file, path in zip(files, photos, strict=True):
            file.write_bytes(multipart(path.read_bytes()))
        return asked(Job(port, list(map(str, files)), ["pong"] * len(files), 8, 2.0), askers)


@contextmanager
def empty_server(cores: Sequence[int]) -> Iterator[int]:
    """The port of `benchmarks.empty`."""
    with free_ports(1) as (port,):
        command = ["taskset", "-c", ",".join(map(str, cores)), sys.executable, "-m", "benchmarks.empty", str(port)]
        process = subprocess.Popen(command, cwd=ROOT)
        try:
            wait_for_answer(process, port, multipart(b""))
            yield port
        finally:
            process.terminate()
            process.wait()


def _name(megapixels: float, kind: str, clients: int) -> str:
    return f"{megapixels:g} {kind} {clients}"


def _watched(server: Server, during: Callable[[], object]) -> float:
    """The most memory that was seen meanwhile, in MB. Looking costs time, so nothing else is measured then."""
    seen, over = [server.memory_mb()], threading.Event()

    def watch() -> None:
        while not over.wait(SAMPLE_SECONDS):
            seen.append(server.memory_mb())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        during()
    finally:
        over.set()
        watcher.join()
    return max(seen)


@contextmanager
def _requests(peer: Peer, photos: Photos) -> Iterator[dict[Path, str]]:
    """Each photo as a file with the request that this server takes."""
    with tempfile.TemporaryDirectory(prefix="bench-requests-") as folder:
        files = {}
        for number, path in enumerate({*photos.answers, *(path for some in photos.by_size.values() for path in some)}):
            target = Path(folder) / str(number)
            target.write_bytes(peer.as_request(path.read_bytes()))
            files[path] = str(target)
        yield files
