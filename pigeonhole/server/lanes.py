"""Threads with a bounded number of requests that wait for one of them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Barrier, Lock
from typing import Any


class Lane:
    """A pool, whose threads are started at once, and its waiting room."""

    def __init__(self, pool: ThreadPoolExecutor, threads: int, waiting: int) -> None:
        self._pool, self._threads, self._most = pool, threads, threads + waiting
        self._lock = Lock()  # guards how many places are taken
        self._taken = 0
        together = Barrier(threads + 1)  # a thread that could not be started when it is needed would lose a request
        for _ in range(threads):
            pool.submit(together.wait)
        together.wait()

    @property
    def has_room(self) -> bool:
        return self._taken < self._most

    @property
    def waiting(self) -> int:
        return max(0, self._taken - self._threads)

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Have `work` done by a thread; its place is free again when somebody says `done`."""
        with self._lock:
            self._taken += 1
        return self._pool.submit(work, *arguments)

    def done(self) -> None:
        with self._lock:
            self._taken -= 1

    def close(self) -> None:
        """Whoever still waits is not served; whoever is being served is."""
        self._pool.shutdown(wait=False, cancel_futures=True)
