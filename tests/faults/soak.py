"""Clients that ask good and hostile things for a long time: what grows, and does the canary still sing the same?"""

from __future__ import annotations

import asyncio
import random
from collections import Counter

from tests.faults.clients import Client, ask
from tests.faults.figures import Figures, named, times
from tests.faults.hostile import HOSTILE, good_requests
from tests.faults.service import Service, answered
from tests.faults.watch import Bounds, Leak, Sample, check

SETTLING = 3  # seconds of load before the first look: threads and buffers come with the first requests
GOOD = 0.7  # of all requests


async def soak(
    service: Service,
    seconds: float = 1800,
    clients: int = 8,
    bounds: Bounds = Bounds(),  # noqa: B008  it is frozen
) -> Figures:
    """Mixed good and hostile requests; memory, descriptors and threads at the start, in the middle and at the end."""
    return await _Soak(service, clients, bounds).run(seconds)


class _Soak:
    """Clients that ask good and hostile things in turn, while a canary sings each second."""

    def __init__(self, service: Service, clients: int, bounds: Bounds) -> None:
        self.service, self.port, self.bounds = service, service.port, bounds
        self.clients = clients
        self.counts = Counter[str]()
        self.wrong: list[str] = []
        self.latencies: list[float] = []
        self.canaries = Counter[bool]()
        self.may_ask, self.busy = asyncio.Event(), 0
        self.ends = False

    async def run(self, seconds: float) -> Figures:
        self.good = [(name, request, await answered(self.port, request)) for name, request in good_requests()]
        tasks = [asyncio.create_task(self._client(number)) for number in range(self.clients)]
        tasks.append(asyncio.create_task(self._canary()))
        samples = [await self._sample_after(each) for each in (SETTLING, seconds / 2, seconds / 2)]
        self.ends = True
        self.may_ask.set()
        await asyncio.gather(*tasks)
        start, middle, end = samples
        problems = self.wrong[:10]
        for before, bounds in ((start, Bounds(memory=float("inf"))), (middle, self.bounds)):
            try:
                check(before, end, bounds)
            except Leak as leak:
                problems.append(f"leaks: {leak}")
        return {
            "seconds": seconds,
            "clients": self.clients,
            "requests": sum(self.counts.values()),
            "canaries_identical": f"{self.canaries[True]} of {self.canaries.total()}",
            "seconds_of_good_requests": times(self.latencies),
            "start": start.as_dict(),
            "middle": middle.as_dict(),
            "end": end.as_dict(),
            "answers": dict(sorted(self.counts.items())),
            "problems": problems,
        }

    async def _sample_after(self, seconds: float) -> Sample:
        """Let the clients ask for a while; then look while nobody asks."""
        self.may_ask.set()
        await asyncio.sleep(seconds)
        self.may_ask.clear()
        while self.busy:
            await asyncio.sleep(0.05)
        return await asyncio.to_thread(self.service.watch.quiet)

    async def _client(self, number: int) -> None:
        rng = random.Random(number)
        while True:
            await self.may_ask.wait()
            if self.ends:
                return
            self.busy += 1
            try:
                await (self._good(rng) if rng.random() < GOOD else self._hostile(rng))
            finally:
                self.busy -= 1

    async def _good(self, rng: random.Random) -> None:
        client = Client(self.port)
        for _ in range(rng.choice((1, 1, 5))):  # on one connection
            name, request, expected = rng.choice(self.good)
            reply = await client.ask(request)
            self._note(name, reply.status, reply.body == expected.body)
            self.latencies.append(reply.seconds)
        await client.close()

    async def _hostile(self, rng: random.Random) -> None:
        name, attack, allowed = rng.choice(HOSTILE)
        status = await attack(self.port)
        self._note(name, status, status in allowed)

    async def _canary(self) -> None:
        name, request, expected = self.good[0]
        while True:
            await self.may_ask.wait()
            if self.ends:
                return
            self.busy += 1
            reply = await ask(self.port, request)
            self.busy -= 1
            self.canaries[reply.body == expected.body] += 1
            self._note("canary " + name, reply.status, reply.body == expected.body)
            await asyncio.sleep(1)

    def _note(self, name: str, status: int, is_right: bool) -> None:
        self.counts[f"{name} {named(status)}"] += 1
        if not is_right:
            self.wrong.append(f"{name}: {named(status)}")
