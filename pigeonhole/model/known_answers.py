"""The known-answer test: before it says it is ready, an engine answers the probes of its file, on this machine.

**The exact way** has to give each probability within 1e-4 of `learner.predict`'s, under the same label, and decode to
the same answer. What is wrong between the file and the processor shows here: weights, labels, the order of channels, a
filter, a normalization, a precision that was not asked for.

**The fast way**, where the guard admits it, has to give the same label and probabilities within 0.05. Its deviations
set the guard's bound, which is on log-odds: rounding to bfloat16 and shrinking while decoding move the network's
outputs, and the log-odds of two labels are the difference of two outputs. (In probabilities the same error is 25
times smaller at 99 % than at 50 %.) Only labels near the best one count, since errors are relative and grow with the
outputs.

A few pictures in a hundred are moved ten times as far as the others, so eight pictures alone may miss them. Therefore
the probes are those of 33 that bfloat16 moves most, a hundredth of the answer's own range is assumed at least, and
the margin has to be `engine.SAFETY` times all that. Measured in bfloat16 on an AMD EPYC (AVX-512), with 341
validation photos of ten kinds of clothing and 12 learners (ResNet-34, SE-xResNet-34, small networks of fastai and
timm): of labels within 1 of the best, which alone can overtake it, none was moved by more than half the margin that
the guard asks for; with 114 photos enlarged to 12 and 24 megapixels (two learners), by more than a quarter. No answer
that passed the guard had another label than the exact one.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import IO, Any, TypeVar

import numpy as np

from pigeonhole.errors import CompiledFileError
from pigeonhole.model.card import Card, Probe
from pigeonhole.model.engine import CompiledEngine, Explains, Guard, Network, answer, log_odds
from pigeonhole.model.predictor import Photo, Prediction

T = TypeVar("T")
OpenPhoto = Callable[[IO[bytes]], Photo]

EXACT = 1e-4  # largest difference of a probability from learner.predict's, in float32
EXACT_GRID = 1e-3  # largest difference of a grid, whose largest value is 1, from the learner's
FAST = 0.05  # the same of an answer of the fast way that the guard admits; probes are the worst pictures found
LOG_ODDS = 0.01  # the same as EXACT for certain answers, whose probabilities hardly move; and a thousandth of log p
SMALLEST = 0.01  # log-odds; a deviation that is assumed even where the probes show less
NEAR = 2.0  # log-odds; a label 7 times less probable than the best, or than the threshold
ENOUGH = 3  # probes that have a label so near; fewer tell nothing about the doubtful pictures of other people
LARGEST = 0.5  # log-odds; a way that is further off would have nearly every picture computed again


def _each(ask: Callable[[Probe], T], probes: Sequence[Probe], at_once: int) -> list[T]:
    """What `ask` says of each, of `at_once` at a time: decoding one takes one core, and memory."""
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(ask, probes))


def check_exact(engine: CompiledEngine, open_photo: OpenPhoto, at_once: int = 1) -> list[Prediction]:
    """Ask the exact way about each probe, of `at_once` at a time, and return what it says.

    Raises:
        CompiledFileError: an answer is not the one in the file.
    """

    def asked(probe: Probe) -> Prediction:
        prediction = engine.exactly(open_photo(io.BytesIO(probe.picture)))
        expected = [probability for _, probability in probe.probabilities]
        off = difference(prediction, engine.card, probe)
        if (
            prediction.success != probe.success
            or not agree(prediction.probabilities, expected, engine.card.threshold)
            or off > EXACT
        ):
            raise CompiledFileError(
                f"on this machine the compiled model does not give the answers that it was proven with: "
                f"{prediction.success} instead of {probe.success} for a probe, probabilities off by {off:.2g}; "
                f"compile the export again, here."
            )
        return prediction

    return _each(asked, engine.card.probes, at_once)


def looks_as_proven(engine: CompiledEngine, explainer: Explains, open_photo: OpenPhoto) -> bool:
    """Ask where it looks in the probe of which most speaks for its label, and compare with the file."""
    probe = max(engine.card.probes, key=lambda probe: np.count_nonzero(probe.grid or 0))
    pixels = engine.pixels(open_photo(io.BytesIO(probe.picture)))
    return grid_difference(explainer.explain(engine.card, pixels)[1].grid, probe.grid) <= EXACT_GRID


def grid_difference(grid: np.ndarray, expected: Any) -> float:
    """The largest difference of two grids; infinite if their shapes differ, NaN if one holds no number."""
    return float(np.abs(grid - expected).max()) if grid.shape == np.shape(expected) else math.inf


def guard_of(
    engine: CompiledEngine,
    exact: Sequence[Prediction],
    open_photo: OpenPhoto,
    *networks: Network,
    at_once: int = 1,
) -> Guard | None:
    """Ask the fast way too, and derive the guard's bounds from how far it is from what was said `exact`ly.

    The bounds are those of all `networks` that it may be computed by. None if one is too far off for any guard, if the
    guard would let a wrong answer pass, or if too few probes are doubtful. Where no doubtful probe can be shrunk, no
    photo may be.
    """
    card = engine.card

    def asked(probe: Probe) -> list[tuple[Probe, int, np.ndarray]]:
        photo = open_photo(io.BytesIO(probe.picture))
        reductions = sorted({1, photo.reduction(card.recipe.allows_shrinking)})
        pixels = [(reduction, engine.pixels(photo, reduction)) for reduction in reductions]
        return [(probe, reduction, network(seen)) for reduction, seen in pixels for network in networks]

    deviations: dict[bool, list[float]] = {False: [], True: []}  # of pictures that were shrunk, and were not
    answers = _each(asked, card.probes, at_once)
    for of_probe, prediction in zip(answers, exact, strict=True):
        for _, reduction, fast in of_probe:
            deviations[reduction > 1] += deviation(np.array(prediction.probabilities), fast, card.threshold)
    whole, shrunk = deviations[False], deviations[True]
    doubtful = len(whole) // len(networks)
    if not all(value <= LARGEST for value in (*whole, *shrunk)) or (doubtful < ENOUGH and len(card.labels) > 1):
        return None
    largest = max((SMALLEST, *whole))
    guard = Guard(largest, max(largest, *shrunk) if shrunk else math.inf, card.threshold)
    for probe, reduction, fast in chain(*answers):
        said = answer(card, fast)
        if guard.admits(fast, reduction) and (said.success != probe.success or difference(said, card, probe) > FAST):
            return None
    return guard


def deviation(exact: np.ndarray, fast: np.ndarray, threshold: float | None) -> list[float]:
    """How far the fast way moved what decides the answer, in log-odds: one number, or none if the answer is certain.

    Labels that exclude each other count against the best one, and only where they are `NEAR` it (or the threshold):
    rounding errors are relative, so what a certain answer was moved by says nothing about a doubtful one.
    """
    before, after = log_odds(exact, threshold), log_odds(fast, threshold)
    if threshold is None:
        best = int(before.argmax())
        before, after = np.delete(before - before[best], best), np.delete(after - after[best], best)
    near = np.abs(before) < NEAR
    return [float(np.abs(before - after)[near].max())] if near.any() else []


def agree(probabilities: Sequence[float], expected: Sequence[float], threshold: float | None) -> bool:
    """Is what decides the answer, too, what was expected? Of certain answers probabilities alone hardly tell."""
    found, wanted = (log_odds(np.array(values), threshold) for values in (probabilities, expected))
    return bool((np.abs(found - wanted) <= LOG_ODDS + np.abs(wanted) / 1000).all())


def difference(prediction: Prediction, card: Card, probe: Probe) -> float:
    """The largest difference of a probability, label by label; infinite if the labels are others."""
    if card.labels != tuple(label for label, _ in probe.probabilities):
        return math.inf
    return furthest(prediction.probabilities, [probability for _, probability in probe.probabilities])


def furthest(probabilities: Sequence[float], expected: Sequence[float]) -> float:
    """The largest difference of two that belong together; NaN if one of them is no number."""
    return float(np.abs(np.subtract(probabilities, expected)).max())
