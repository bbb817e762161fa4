"""So much of something at a time, such as memory for pictures; whoever came first is served first."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from threading import TIMEOUT_MAX, Condition

from pigeonhole.errors import Overloaded, TooManyPixels


class Budget:
    """As much as `total` tells when it is first asked."""

    def __init__(self, total: Callable[[], int]) -> None:
        self._changed = Condition()  # guards all that follows
        self._ask_total = total
        self._in_use = 0
        self._queue: deque[object] = deque()

    @contextmanager
    def taken(self, amount: int, until: float) -> Iterator[None]:
        """Wait for `amount`, until `until` by `time.monotonic`; where that is over, not even what is free is given.

        Raises:
            TooManyPixels: there will never be so much.
            Overloaded: the turn did not come in time.
        """
        self._wait(amount, until)
        try:
            yield
        finally:
            self._give_back(amount)

    def _wait(self, amount: int, until: float) -> None:
        ticket = object()
        with self._changed:
            if amount > self._total:
                raise TooManyPixels("the picture takes more memory than there is here; send a smaller one.")
            self._queue.append(ticket)
            try:
                seconds = min(TIMEOUT_MAX, until - time.monotonic())
                if seconds < 0 or not self._changed.wait_for(lambda: self._is_next(ticket, amount), seconds):
                    raise Overloaded("the picture waited for too long; please try again.")
                self._in_use += amount
            finally:
                self._queue.remove(ticket)
                self._changed.notify_all()  # the next one may fit as well

    def _is_next(self, ticket: object, amount: int) -> bool:
        return self._queue[0] is ticket and self._in_use + amount <= self._total

    def _give_back(self, amount: int) -> None:
        with self._changed:
            self._in_use -= amount
            self._changed.notify_all()

    @cached_property
    def _total(self) -> int:
        return self._ask_total()
