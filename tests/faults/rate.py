"""The highest rate of requests that is held, what happens at ten times that, and how soon it is over."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from tests.faults.clients import Reply, ask, at_rate, get, post
from tests.faults.figures import Figures, said, statuses, times
from tests.faults.service import Service, photos

IN_TIME = 1.0  # seconds within which 99 of 100 answers have to come
FIRST, MOST = 16.0, 2000.0  # a second
NARROW = 1.1  # between a rate that is held and one that is not
RECOVERY_SECONDS = 5

Send = Callable[[int], Awaitable[Reply]]
Replies = Sequence[tuple[float, Reply]]  # and when they were due


async def rate(service: Service, overload_seconds: float = 20, step: float = 8, times_held: int = 10) -> Figures:
    """Each rate is tried for `step` seconds; a rate is held if all is answered with 200, 99 of 100 in a second."""
    requests = [post(photo, close=True) for photo in photos(50)]

    async def send(number: int) -> Reply:
        return await ask(service.port, requests[number % len(requests)])

    await at_rate(5, 2, send)
    held, steps = await _highest(step, send)
    normal = max(held / 2, 1)
    before = await at_rate(normal, step, send)
    flood = asyncio.create_task(at_rate(max(held, 1) * times_held, overload_seconds, send))
    pings = await at_rate(1, overload_seconds, lambda number: ask(service.port, get("/ping")))
    flooded = await flood
    recovery = _recovered_after(await at_rate(normal, 2 * RECOVERY_SECONDS, send))
    return {
        "held_per_second": round(held, 1),
        "steps": steps,
        "normal": {"per_second": round(normal, 1), **_summary(before)},
        "overload": {
            "per_second": round(held * times_held, 1),
            "seconds": overload_seconds,
            **_summary(flooded),
            "answered_per_second": round(sum(reply.status == 200 for _, reply in flooded) / overload_seconds, 1),
            "seconds_to_503": times([reply.seconds for _, reply in flooded if reply.status == 503]),
            "seconds_to_ping": times([reply.seconds for _, reply in pings]),
            "seconds_that_the_client_was_late": times([reply.late for _, reply in flooded]),
        },
        "recovered_after_seconds": recovery,
        "problems": said(
            {
                "no rate is held": not held,
                f"after the load it took {recovery} s": recovery > RECOVERY_SECONDS,
                "some got neither 200 nor 503": any(reply.status not in (200, 503) for _, reply in flooded),
                "some were not told when to come again": any(not _is_polite(reply) for _, reply in flooded),
                "some pings were not answered": any(reply.status != 200 for _, reply in pings),
            }
        ),
    }


async def _highest(step: float, send: Send) -> tuple[float, list[Figures]]:
    """By doubling, then by halving what lies between."""
    steps: list[Figures] = []

    async def holds(per_second: float) -> bool:
        replies = await at_rate(per_second, step, send)
        steps.append({"per_second": round(per_second, 1), **_summary(replies)})
        await asyncio.sleep(1)
        return _is_held([reply for _, reply in replies])

    held, failed = 0.0, FIRST
    while failed < MOST and await holds(failed):
        held, failed = failed, failed * 2
    while held and failed / held > NARROW:
        middle = (held + failed) / 2
        held, failed = (middle, failed) if await holds(middle) else (held, middle)
    return held, steps


def _is_held(replies: Sequence[Reply]) -> bool:
    seconds = [reply.seconds for reply in replies]
    return all(reply.status == 200 for reply in replies) and times(seconds)["p99"] < IN_TIME


def _is_polite(reply: Reply) -> bool:
    return reply.status != 503 or b"\r\nretry-after: " in reply.head.lower()


def _recovered_after(replies: Replies) -> int:
    """The first second since which, in each, the rate is held."""
    seconds = range(int(max(due for due, _ in replies)) + 1)
    bad = [second for second in seconds if not _is_held([reply for due, reply in replies if int(due) == second])]
    return max(bad, default=-1) + 1


def _summary(replies: Replies) -> Figures:
    answered = [reply.seconds for _, reply in replies if reply.status == 200]
    return {"statuses": statuses(reply for _, reply in replies), "seconds_to_200": times(answered)}
