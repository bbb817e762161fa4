"""Ctrl-C and SIGTERM: finish what is in hand; asked twice, end at once.

At once is as if it were killed, which the files can take: Python's own end would wait for threads, and they for photos.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

T = TypeVar("T")

SIGNALS = (signal.SIGINT, signal.SIGTERM)
KILLED = 128  # what shells add to a signal's number


class Stop:
    """Whether somebody asked to stop. Until `gently` was entered, that ends the work at once."""

    def __init__(self) -> None:
        self.asked: int | None = None
        self._is_gentle = False

    @property
    def status(self) -> int:
        """The exit status: 130 of Ctrl-C, 143 of SIGTERM."""
        return KILLED + (self.asked or signal.SIGINT)

    def until_asked(self, things: Iterable[T]) -> Iterator[T]:
        for thing in things:
            if self.asked is not None:
                return
            yield thing

    @contextmanager
    def gently(self) -> Iterator[None]:
        self._is_gentle = True
        try:
            yield
        finally:
            self._is_gentle = False

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self._is_gentle and self.asked is not None:
            os._exit(KILLED + number)
        self.asked = number
        if not self._is_gentle:
            raise KeyboardInterrupt

    @classmethod
    @contextmanager
    def listening(cls) -> Iterator[Stop]:
        stop = cls()
        before = [(number, signal.signal(number, stop._hear)) for number in SIGNALS]
        try:
            yield stop
        finally:
            for number, handler in before:
                signal.signal(number, handler)
