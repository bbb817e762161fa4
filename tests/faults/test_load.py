"""Load, leaks and restarts; each watch is shown a build with the fault that it watches for, and has to see it.

CASES.md    here                            what the fast suite holds already
G3          test_restarts[kill]             tests/test_serving.py: replaced, nothing left
G4          test_restarts                   tests/test_serving.py: exit status and words
G10, G11    test_limits.py                  tests/server/test_worker.py: descriptors, crowds, slow readers
G12         test_ten_times_too_much         tests/server/test_worker.py: more than can wait
G13         test_soak, test_sees_leaks
H6          test_swaps                      tests/test_serving.py: 400 uploads of one name
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.clients import ask, get
from tests.faults.rate import rate
from tests.faults.restarts import FAULTS, restarts
from tests.faults.service import Service, serving
from tests.faults.soak import soak
from tests.faults.swaps import swaps
from tests.faults.watch import Bounds, memory

LEAKY = "tests.faults.leaky:app"
BOUNDS = Bounds(memory=30)  # MB; CASES.md allows 100, in half an hour


@pytest.fixture(autouse=True, scope="module")
def real_photos(clothing: Path) -> None:
    """Without them nothing here runs."""


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with serving() as service:
        yield service


def test_swaps(service: Service) -> None:
    """A thousand distinct photos by 50 clients: each gets the answer that it gets alone, to the last digit."""
    figures = asyncio.run(swaps(service, count=1000, clients=50))
    assert (figures["problems"], figures["not_equal_to_the_last_digit"]) == ([], 0)
    assert figures["distinct_answers"] > 950  # a swap would be seen


def test_soak(service: Service) -> None:
    """90 s of good and hostile requests by 8 clients: nothing grows, and the canary sings the same all the time."""
    assert asyncio.run(soak(service, seconds=90, clients=8, bounds=BOUNDS))["problems"] == []


def test_ten_times_too_much(service: Service) -> None:
    """Of ten times what is held, the rest is refused with Retry-After, and afterwards all is as it was in 5 s."""
    figures = asyncio.run(rate(service, overload_seconds=15, step=4))
    assert figures["problems"] == []
    assert {"200", "503"} == set(figures["overload"]["statuses"])
    assert figures["overload"]["seconds_to_503"]["median"] < 1  # of a client that shares its two cores with the service


@pytest.mark.parametrize("fault", FAULTS)
def test_restarts(fault: str) -> None:
    """Stopped, reloaded or recycled under load, it loses no request it took; killed, those in one worker's hands."""
    with serving("app:app", *FAULTS[fault].arguments, **FAULTS[fault].environment) as service:
        figures = asyncio.run(restarts(service, fault))
    assert (figures["problems"], figures["lost"]) == ([], 0)
    assert figures["answered"] > 50


def test_the_only_worker_killed() -> None:
    """Another has loaded the model within 5 s, and answers who came meanwhile."""
    with serving() as service:
        os.kill(service.watch.workers[0], signal.SIGKILL)
        reply = asyncio.run(ask(service.port, get("/ping")))
    assert (reply.status, reply.seconds < 5) == (200, True)


def test_the_master_killed() -> None:
    """Workers whose master is gone end by themselves, and so nobody holds the port."""
    with serving() as service:
        (worker,) = service.watch.workers
        service.server.process.kill()
        deadline = time.monotonic() + 10
        while memory(worker) and time.monotonic() < deadline:
            time.sleep(0.1)
    assert memory(worker) == 0


@pytest.mark.parametrize("leak", ["memory", "descriptors", "threads", "files"])
def test_sees_leaks(leak: str) -> None:
    """A build that keeps what it should let go does not pass the same soak."""
    with serving(LEAKY, LEAK=leak) as service:
        problems = asyncio.run(soak(service, seconds=12, clients=8, bounds=BOUNDS))["problems"]
    assert [problem for problem in problems if problem.startswith("leaks:") and leak in problem]


def test_sees_swaps() -> None:
    """A build that swaps answers now and then does not pass."""
    with serving(LEAKY, LEAK="swaps") as service:
        assert asyncio.run(swaps(service, count=60, clients=10))["problems"] != []


def test_sees_losses() -> None:
    """A build that loses a request that it took does not pass."""
    with serving(LEAKY, LEAK="losses") as service:
        assert asyncio.run(restarts(service, "term"))["lost"] > 0
