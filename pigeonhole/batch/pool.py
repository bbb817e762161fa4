"""Work on many things in a few threads, in order, with few in hand however many there are."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

AHEAD = 4  # times as many as threads are begun or wait for one that came before them


def in_order(work: Callable[[T], R], things: Iterable[T], threads: int) -> Generator[tuple[T, R], None, None]:
    """Each of `things` with what `work` makes of it, in their order.

    `things` is asked for the next one only when there is room. An exception of `work` comes out in its turn; what was
    not begun by then is not begun.
    """
    waiting: deque[tuple[T, Future[R]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for thing in things:
                waiting.append((thing, pool.submit(work, thing)))
                if len(waiting) >= AHEAD * threads:
                    yield _first(waiting)
            while waiting:
                yield _first(waiting)
        finally:
            for _, future in waiting:
                future.cancel()


def _first(waiting: deque[tuple[T, Future[R]]]) -> tuple[T, R]:
    thing, future = waiting.popleft()
    return thing, future.result()
