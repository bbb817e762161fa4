"""A bar on the terminal, and sentences that do not tear it."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any


class Progress:
    """Counts photos, from `done` to `total`; the bar is there only where a person sees it."""

    def __init__(self, total: int, done: int, visible: bool) -> None:
        self._bar = _bar(total, done) if visible else None

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def step(self) -> None:
        if self._bar is not None:
            self._bar.update()

    def say(self, sentence: str) -> None:
        if self._bar is None:
            print(sentence, file=sys.stderr, flush=True)
        else:
            self._bar.write(sentence, file=sys.stderr)


def is_seen(rows_go_to_stdout: bool) -> bool:
    """Rows that run over the same terminal show the progress themselves."""
    return sys.stderr.isatty() and not (rows_go_to_stdout and sys.stdout.isatty())


def _bar(total: int, done: int) -> Any:
    from tqdm import tqdm  # type: ignore[import-untyped]

    class Bar(tqdm):  # type: ignore[misc]
        monitor_interval = 0  # no thread that watches it

    return Bar(total=total, initial=done, unit="photo", dynamic_ncols=True, file=sys.stderr)
