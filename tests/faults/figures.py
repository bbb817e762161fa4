"""What a run under load came to, in numbers that can be printed as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from tests.faults.clients import BROKEN, REFUSED, Reply

Figures = dict[str, Any]  # `problems` says what did not hold


def times(values: Sequence[float]) -> Figures:
    """Median, p99 and largest, in seconds."""
    ordered = sorted(values) or [0.0]
    p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    return {"median": round(ordered[len(ordered) // 2], 4), "p99": round(p99, 4), "largest": round(ordered[-1], 4)}


def statuses(replies: Iterable[Reply]) -> Figures:
    """How many replies had which status."""
    return dict(sorted(Counter(named(reply.status) for reply in replies).items()))


def named(status: int) -> str:
    return {REFUSED: "refused", BROKEN: "closed"}.get(status, str(status))


def said(sentences: dict[str, Any]) -> list[str]:
    """Those of the sentences that are true."""
    return [sentence for sentence, is_so in sentences.items() if is_so]
