"""Memory for pictures."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from math import inf

import pytest

from pigeonhole.errors import Overloaded, TooManyPixels
from pigeonhole.intake.budget import Budget

NOW = inf  # what is free is there at once


def budget(memory: int = 100) -> Budget:
    return Budget(lambda: memory)


def test_memory() -> None:
    """What does not fit any more waits, and does not wait for ever; what was given back can be had again."""
    full = budget(memory=100)
    for _ in range(2):
        soon = time.monotonic() + 0.05
        with full.taken(60, NOW), full.taken(30, NOW), pytest.raises(Overloaded), full.taken(20, soon):
            pass


def test_too_late() -> None:
    """Once the time is over nothing is given, even where all is free."""
    with pytest.raises(Overloaded), budget().taken(1, time.monotonic() - 1):
        pass


def test_what_never_fits() -> None:
    """A picture that needs more than there is altogether is refused at once, and is in nobody's way."""
    small = budget(memory=100)
    with pytest.raises(TooManyPixels), small.taken(101, inf):
        pass
    with small.taken(100, NOW):
        pass


def test_an_error_inside_gives_back() -> None:
    """Whatever happens to a picture, its memory is free afterwards."""
    one = budget()
    with pytest.raises(ZeroDivisionError), one.taken(100, NOW):
        raise ZeroDivisionError
    with one.taken(100, NOW):
        pass


def test_first_come_first_served() -> None:
    """A large picture is not overtaken by small ones that would fit beside what is there."""
    served, place = [], budget(memory=100)

    def take(amount: int) -> None:
        with place.taken(amount, time.monotonic() + 5):
            served.append(amount)

    with ThreadPoolExecutor(3) as pool, place.taken(50, NOW):
        for amount in (90, 10, 20):
            pool.submit(take, amount)
            time.sleep(0.05)
        assert served == []
    assert served[0] == 90


def test_never_more_than_there_is() -> None:
    """Of two hundred pictures at once the sum never exceeds the memory, and all have their turn."""
    lock, most, now, place = threading.Lock(), [0], [0], budget(memory=100)

    def take(amount: int) -> None:
        with place.taken(amount, time.monotonic() + 20):
            with lock:
                now[0] += amount
                most[0] = max(most[0], now[0])
            time.sleep(0.0005)
            with lock:
                now[0] -= amount

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(take, [(number * 37) % 70 for number in range(200)]))
    assert (now[0], 60 < most[0] <= 100) == (0, True)
