"""Threads with a bounded number of requests that wait for one of them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class Lane:
    """A pool and its waiting room; only the event loop asks it, so nothing is locked."""

    def __init__(self, pool: ThreadPoolExecutor, threads: int, waiting: int) -> None:
        self._pool, self._threads, self._most = pool, threads, threads + waiting
        self._taken = 0

    @property
    def has_room(self) -> bool:
        return self._taken < self._most

    @property
    def waiting(self) -> int:
        return max(0, self._taken - self._threads)

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Have `work` done by a thread; say `done` afterwards."""
        self._taken += 1
        return self._pool.submit(work, *arguments)

    def done(self) -> None:
        self._taken -= 1

    def close(self) -> None:
        """Whoever still waits is not served; whoever is being served is."""
        self._pool.shutdown(wait=False, cancel_futures=True)
