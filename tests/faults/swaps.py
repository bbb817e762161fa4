"""Distinct photos by many clients at once: does each get the answer that it gets alone?"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Sequence

from tests.faults.clients import Client, Reply, post
from tests.faults.figures import Figures, statuses
from tests.faults.service import Service, answered, photos

CLOSE_ENOUGH = 0.02  # of a probability: what the fast way may be off


async def swaps(service: Service, count: int = 10_000, clients: int = 50) -> Figures:
    """`count` photos; how many answers are not those that the photos get alone."""
    requests = [post(photo, "/predict?top=all") for photo in photos(count)]
    alone = [await answered(service.port, request) for request in requests]
    began = time.monotonic()
    together, refusals = await _asked_at_once(service.port, requests, clients)
    seconds = time.monotonic() - began
    pairs = list(zip(alone, together, strict=True))
    swapped = sum(not same(one, other) for one, other in pairs)
    return {
        "requests": count,
        "clients": clients,
        "seconds": round(seconds, 1),
        "per_second": round(count / seconds, 1),
        "statuses": statuses(together),
        "refused_and_tried_again": refusals,
        "swapped": swapped,
        "not_equal_to_the_last_digit": sum(one.body != other.body for one, other in pairs),
        "distinct_answers": len({reply.body for reply in alone}),
        "swaps_that_would_be_seen": _told_apart(alone),
        "problems": [f"{swapped} answers are not what the photo gets alone"] if swapped else [],
    }


async def _asked_at_once(port: int, requests: Sequence[bytes], clients: int) -> tuple[list[Reply], int]:
    """The replies, and how often a client was told to come again, and did."""
    numbers = iter(random.Random(0).sample(range(len(requests)), len(requests)))
    replies: dict[int, Reply] = {}
    refusals = 0

    async def client() -> None:
        nonlocal refusals
        connection = Client(port)
        for number in numbers:
            while (reply := await connection.ask(requests[number])).status == 503:
                refusals += 1
                await asyncio.sleep(0.1)
            replies[number] = reply
        await connection.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    return [replies[number] for number in range(len(requests))], refusals


def _told_apart(replies: Sequence[Reply]) -> str:
    """Of pairs that are drawn, how many have answers too far apart to be taken for one another."""
    pairs = [random.Random(n).sample(replies, 2) for n in range(1000)]
    return f"{sum(not same(one, other) for one, other in pairs)} of {len(pairs)}"


def same(one: Reply, other: Reply) -> bool:
    """Both are answers, of one label and of probabilities that are near."""
    if one.status != 200 or other.status != 200:
        return False
    mine, yours = json.loads(one.body), json.loads(other.body)
    probabilities = {each["label"]: each["probability"] for each in yours["predictions"]}
    return mine["success"] == yours["success"] and all(
        abs(each["probability"] - probabilities[each["label"]]) <= CLOSE_ENOUGH for each in mine["predictions"]
    )
