"""Ctrl-C and SIGTERM: finish what is in hand, at once if asked twice."""

from __future__ import annotations

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
        at_once = self.asked is not None or not self._is_gentle
        self.asked = number
        if at_once:
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
