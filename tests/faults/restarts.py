"""What becomes of requests when the service is stopped, reloaded or recycled, or loses a worker, under load."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tests.faults.clients import BROKEN, REFUSED, Client, Reply, post
from tests.faults.figures import Figures, said, statuses, times
from tests.faults.service import Service, answered, photos
from tests.faults.swaps import same

AT_THE_KILL = 1.0  # seconds after it, in which what the worker had in hand is found to be lost
LOOK = 0.05  # seconds between two looks
PATIENCE = 30  # seconds


def _signalled(*signals: signal.Signals) -> Callable[[Service], None]:
    def send(service: Service) -> None:
        for number, each in enumerate(signals):
            time.sleep(LOOK * bool(number))
            service.server.process.send_signal(each)

    return send


def _kill_a_worker(service: Service) -> None:
    os.kill(service.watch.workers[0], signal.SIGKILL)


@dataclass(frozen=True)
class Fault:
    """What is done to the service; `ends` says that it is over then, else its workers are others afterwards."""

    do: Callable[[Service], None]
    ends: bool = False
    arguments: Sequence[str] = ()

    @property
    def environment(self) -> dict[str, str]:
        return {} if self.ends else {"WORKERS": "2"}


FAULTS = {
    "term": Fault(_signalled(signal.SIGTERM), ends=True),
    "term-twice": Fault(_signalled(signal.SIGTERM, signal.SIGTERM), ends=True),
    "int": Fault(_signalled(signal.SIGINT), ends=True),
    "reload": Fault(_signalled(signal.SIGHUP)),
    "kill": Fault(_kill_a_worker),
    "recycling": Fault(lambda service: None, arguments=("--max-requests", "60", "--max-requests-jitter", "20")),
}


@dataclass
class _Seen:
    """Replies, with when they came; and photos that got the answer of another."""

    replies: list[tuple[float, Reply]] = field(default_factory=list)
    wrong: int = 0
    at_the_fault: float = 0.0
    exit_status: int | None = None
    is_replaced: bool = True

    def lost(self, with_the_worker: bool) -> int:
        """Accepted, and never answered: those in the hands of a worker that was just killed, or the others."""
        after = [at - self.at_the_fault for at, reply in self.replies if reply.is_lost]
        return sum((0 <= each < AT_THE_KILL) == with_the_worker for each in after)

    def count(self, is_one: Callable[[Reply], bool]) -> int:
        return sum(is_one(reply) for _, reply in self.replies)


async def restarts(service: Service, fault: str = "term", seconds: float = 6, clients: int = 16) -> Figures:
    """Let `clients` ask for some time before and after the fault, and count what was accepted, answered and lost."""
    seen = await _watched(service, FAULTS[fault], seconds, clients)
    in_hand = seen.lost(with_the_worker=True) if fault == "kill" else 0
    lost = seen.count(lambda reply: reply.is_lost) - in_hand
    refused = 0 if FAULTS[fault].ends else seen.count(lambda reply: reply.status == REFUSED)
    bad = seen.count(lambda reply: reply.status not in (200, REFUSED, BROKEN))
    return {
        "fault": fault,
        "clients": clients,
        "accepted": seen.count(lambda reply: reply.was_sent),
        "answered": seen.count(lambda reply: reply.status > 0),
        "lost": lost,
        "lost_with_the_killed_worker": in_hand,
        "wrong": seen.wrong,
        "statuses": statuses(reply for _, reply in seen.replies),
        "seconds_to_200": times([reply.seconds for _, reply in seen.replies if reply.status == 200]),
        "exit_status": seen.exit_status,
        "problems": said(
            {
                f"{lost} accepted requests were lost": lost,
                f"{in_hand} requests were in the hands of one worker": in_hand > clients,
                f"{seen.wrong} wrong answers": seen.wrong,
                f"{bad} refusals": bad,
                f"{refused} connections were refused": refused,
                f"it ended with {seen.exit_status}": seen.exit_status,
                "the workers are the same": not seen.is_replaced,
            }
        ),
    }


async def _watched(service: Service, fault: Fault, seconds: float, clients: int) -> _Seen:
    requests = [post(photo, "/predict?top=all") for photo in photos(20)]
    alone = [await answered(service.port, request) for request in requests]
    seen, ends, began = _Seen(), asyncio.Event(), time.monotonic()

    async def client(number: int) -> None:
        connection, rng = Client(service.port), random.Random(number)
        while not ends.is_set():
            which = rng.randrange(len(requests))
            reply = await connection.ask(requests[which])
            seen.replies.append((time.monotonic() - began, reply))
            seen.wrong += reply.status == 200 and not same(reply, alone[which])
            if reply.status == REFUSED:
                await asyncio.sleep(0.02)
            elif number % 2:  # half of them keep their connection
                await connection.close()
        await connection.close()

    tasks = [asyncio.create_task(client(number)) for number in range(clients)]
    await asyncio.sleep(seconds / 3)
    workers, seen.at_the_fault = service.watch.workers, time.monotonic() - began
    fault.do(service)
    if fault.ends:
        seen.exit_status = await _ended(service)
    else:
        await asyncio.sleep(seconds)
        seen.is_replaced = await _replaced(service, workers)
    ends.set()
    await asyncio.gather(*tasks)
    return seen


async def _ended(service: Service) -> int | None:
    """The exit status; -1 if it does not end."""
    deadline = time.monotonic() + PATIENCE
    while service.server.process.poll() is None and time.monotonic() < deadline:
        await asyncio.sleep(LOOK)
    return service.server.process.returncode if service.server.process.poll() is not None else -1


async def _replaced(service: Service, before: Sequence[int]) -> bool:
    """There are as many workers as before, and others."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        now = service.watch.workers
        if len(now) == len(before) and set(now) != set(before):
            return True
        await asyncio.sleep(LOOK)
    return False
