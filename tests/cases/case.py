"""What a case is: an id, what is sent in words and in bytes, and the outcomes that are right, in words too."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pytest

from tests.cases.wire import PATIENCE, Answer, Line, Talk


@dataclass(frozen=True)
class Case:
    """Each of `sends` goes over a connection of its own, and all have to come out as `expected`.

    `expected` holds alternatives, by " or "; each is the answers of the connection in order, by commas: a status, and a
    code where one is meant, or what a good picture is answered: "200 label". "closed" at its end asks that the server
    closes the connection afterwards; by itself, that it closes without an answer.
    """

    id: str
    words: str
    sends: Sequence[bytes | Talk]
    expected: str
    cpu: float | None = None  # seconds of computing at most
    patience: float = PATIENCE  # seconds to wait for the answers

    @property
    def name(self) -> str:
        return f"{self.id} {self.words}"

    @property
    def fewest_answers(self) -> int:
        return min(len(_answers(one)) for one in self.expected.split(" or "))

    def accepts(self, outcome: str) -> bool:
        return any(_fits(outcome.split(", "), one.split(", ")) for one in self.expected.split(" or "))


def case(id: str, words: str, send: bytes | Talk, expected: str, cpu: float | None = None) -> Case:
    """A case of one connection."""
    return Case(id, words, [send], expected, cpu)


def as_params(cases: Iterable[Case]) -> list[object]:
    """For `pytest.mark.parametrize`."""
    return [pytest.param(case, id=case.name) for case in cases]


def outcome_of(line: Line, label: str) -> str:
    """What came of a connection, as `Case.expected` puts it; `label` is the canary's."""
    words = [_in_words(answer, label) for answer in line.answers]
    if line.closed:
        words.append("closed")
    return ", ".join(words) or "silence"


def _in_words(answer: Answer, label: str) -> str:
    if answer.status != 200 or not answer.headers.get("content-type", "").startswith("application/json"):
        return f"{answer.status} {answer.code or ''}".strip()
    said = answer.json.get("success") if answer.body else None
    return "200 label" if said == label else f"200 {said}" if isinstance(said, str) else "200"


def _fits(seen: Sequence[str], wanted: Sequence[str]) -> bool:
    """A status alone stands for any code; whether it closed matters only where it is asked for."""
    if "closed" in wanted and "closed" not in seen:
        return False
    pairs = list(zip(_answers(seen), _answers(wanted), strict=False))
    return len(_answers(seen)) == len(_answers(wanted)) and all(f"{see} ".startswith(f"{want} ") for see, want in pairs)


def _answers(words: str | Sequence[str]) -> list[str]:
    return [word for word in (words.split(", ") if isinstance(words, str) else words) if word != "closed"]
