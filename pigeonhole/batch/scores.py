"""How right a model is on photos whose classes are known: accuracy, who is taken for whom, calibration."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from pigeonhole.batch.rows import without_controls

BINS = 10
Z_95 = 1.959964  # standard normal, 95 % two-sided


@dataclass(frozen=True, slots=True)
class Judged:
    """A photo, what it is, and what the model said, how surely."""

    file: str
    true: str
    said: str
    probability: float

    @property
    def is_right(self) -> bool:
        return self.true == self.said


@dataclass(frozen=True)
class OneClass:
    """Of a class: photos of it, photos said to be of it, and those that are both."""

    label: str
    right: int
    photos: int
    said: int
    is_known: bool

    @property
    def recall(self) -> float | None:
        return self.right / self.photos if self.photos else None

    @property
    def precision(self) -> float | None:
        return self.right / self.said if self.said else None


@dataclass(frozen=True)
class Bin:
    """Photos whose probability is over `low` and at most `high`, with its mean, and the share that is right."""

    low: float
    high: float
    photos: int
    confidence: float
    accuracy: float


class Scores:
    """Of at least one photo; `labels` are the model's."""

    def __init__(self, judged: Sequence[Judged], labels: Sequence[str]) -> None:
        self.judged = judged
        self.photos = len(judged)
        self.right = sum(one.is_right for one in judged)
        self.confusion = Counter((one.true, one.said) for one in judged)
        self.classes = self._classes(labels)

    def _classes(self, labels: Sequence[str]) -> list[OneClass]:
        """Those that are there or were said, as the model orders them, then those that it does not know."""
        photos, said = Counter(one.true for one in self.judged), Counter(one.said for one in self.judged)
        known = [label for label in dict.fromkeys(labels) if label in photos or label in said]
        unknown = sorted(photos.keys() - set(labels))
        return [
            OneClass(label, self.confusion[label, label], photos[label], said[label], label in known)
            for label in (*known, *unknown)
        ]

    @property
    def unknown(self) -> list[OneClass]:
        return [one for one in self.classes if not one.is_known]

    @property
    def accuracy(self) -> float:
        return self.right / self.photos

    @property
    def confidence(self) -> float:
        """The mean probability of what was said."""
        return math.fsum(one.probability for one in self.judged) / self.photos

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.right, self.photos)

    @property
    def bins(self) -> list[Bin]:
        return bins_of([(one.probability, one.is_right) for one in self.judged])

    @property
    def calibration_error(self) -> float:
        return expected_calibration_error(self.bins)

    def mistakes(self, most: int) -> list[Judged]:
        """The most confident ones first."""
        return sorted((one for one in self.judged if not one.is_right), key=lambda one: -one.probability)[:most]


def wilson(right: int, photos: int) -> tuple[float, float]:
    """The 95 % score interval of a share (Wilson 1927, "Probable Inference", Journal of the ASA 22).

    >>> [round(end, 3) for end in wilson(291, 341)]
    [0.812, 0.887]
    """
    share, square = right / photos, Z_95**2 / photos
    middle = share + square / 2
    reach = Z_95 * math.sqrt(share * (1 - share) / photos + square / (4 * photos))
    return max(0.0, (middle - reach) / (1 + square)), min(1.0, (middle + reach) / (1 + square))


def bins_of(answers: Sequence[tuple[float, bool]]) -> list[Bin]:
    """Ten bins of equal width over the probabilities of what was said; a bin without photos has zeros."""
    held: list[list[tuple[float, bool]]] = [[] for _ in range(BINS)]
    for probability, is_right in answers:
        held[max(0, math.ceil(probability * BINS) - 1)].append((probability, is_right))
    return [
        Bin(
            place / BINS,
            (place + 1) / BINS,
            len(inside),
            math.fsum(probability for probability, _ in inside) / max(1, len(inside)),
            sum(is_right for _, is_right in inside) / max(1, len(inside)),
        )
        for place, inside in enumerate(held)
    ]


def expected_calibration_error(bins: Sequence[Bin]) -> float:
    """How far, on average over photos, a probability is from the share that is right.

    Guo et al. 2017, "On Calibration of Modern Neural Networks", section 2, equation 3: the sum over bins of
    |B_m| / n · |acc(B_m) - conf(B_m)|.
    """
    photos = sum(one.photos for one in bins)
    return math.fsum(one.photos * abs(one.accuracy - one.confidence) for one in bins) / photos


def as_table(scores: Scores) -> str:
    """Accuracy per class, and of all, for a terminal."""
    named = [
        (without_controls(one.label) + ("" if one.is_known else " (unknown to the model)"), one)
        for one in scores.classes
    ]
    rows = [(name, one.right, one.photos) for name, one in named if one.photos]
    rows.append(("all", scores.right, scores.photos))
    width = max(len("class"), *(len(name) for name, _, _ in rows))
    lines = [f"{'class':<{width}}  right  photos  accuracy"]
    lines += [f"{name:<{width}}  {right:>5}  {photos:>6}  {right / photos:>6.1%}" for name, right, photos in rows]
    low, high = scores.interval
    return "\n".join([*lines, f"with 95 % confidence it is right on {low:.1%} to {high:.1%} of such photos."])
