"""The known-answer test: before it says it is ready, an engine answers the probes of its file, on this machine.

**The exact way** has to give each probability within 1e-4 of `learner.predict`'s, under the same label, and decode to
the same answer. What is wrong between the file and the processor shows here: weights, labels, the order of channels, a
filter, a normalization, a precision that was not asked for.

**The fast way** has to stay within 0.02, and its deviations set the guard's bound. The bound is on log-odds, because
there an error does not depend on how certain the answer is: rounding to bfloat16 and shrinking while decoding move the
network's outputs, and the log-odds of two labels are the difference of two outputs. (In probabilities the same error
is 25 times smaller at 99 % than at 50 %, so the deviations of certain pictures would say little about doubtful ones.)

MEASURED_HERE
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from pathlib import Path
from typing import IO, Literal

import numpy as np
from prometheus_client import CollectorRegistry

from pigeonhole.errors import CompiledFileError, PackagesMissing
from pigeonhole.model.card import COMPILE, Card, Probe, read_card
from pigeonhole.model.cores import usable_cores
from pigeonhole.model.engine import CompiledEngine, FastWay, Guard, Network, OpenVINONetwork, answer, log_odds
from pigeonhole.model.predictor import Photo, Prediction

log = logging.getLogger(__name__)

OpenPhoto = Callable[[IO[bytes]], Photo]

EXACT = 1e-4  # largest difference of a probability from learner.predict's, in float32
FAST = 0.02  # the same on the fast way
SAFETY = 4  # times the largest deviation seen
SMALLEST = 0.01  # log-odds; a deviation that is assumed even where the probes show less
FAR = 5.0  # log-odds; a label 150 times less probable than the best does not overtake it by rounding


def load_compiled(
    path: Path, open_photo: OpenPhoto, precision: Literal["auto", "exact"], workers: int, registry: CollectorRegistry
) -> CompiledEngine:
    """The engine of the compiled file in `path`, with the fast way if `precision` allows it and its answers do.

    `workers` processes share the cores. What was answered how is counted in `registry`.

    Raises:
        CompiledFileError: the file is damaged, or its answers here are not those it was proven with.
        PackagesMissing: OpenVINO is not installed.
    """
    try:
        import openvino
    except ImportError as error:
        raise PackagesMissing("openvino is not installed here; `make serve` installs it.") from error
    card = read_card(path)
    core = openvino.Core()
    try:
        model = core.read_model(path)
        cores = max(1, usable_cores() // workers)
        exact = OpenVINONetwork(model, "float32", cores)
        engine = CompiledEngine(card, exact, None, registry)
        check_exact(engine, open_photo)
    except RuntimeError as error:
        raise CompiledFileError(f"OpenVINO cannot read {path}; {COMPILE}") from error
    if precision == "exact":
        return engine
    has_bfloat16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    network = OpenVINONetwork(model, "bfloat16", cores) if has_bfloat16 else exact
    bound = bound_of(engine, network, open_photo)
    if bound is None:
        log.warning("the fast way of %s gives other answers on this machine; it is not used", path)
        return engine
    return engine.take(FastWay(network, Guard(bound, card.threshold)))


def check_exact(engine: CompiledEngine, open_photo: OpenPhoto) -> None:
    """Ask the exact way.

    Raises:
        CompiledFileError: an answer is not the one in the file.
    """
    for probe in engine.card.probes:
        prediction = engine.exactly(open_photo(io.BytesIO(probe.picture)))
        off = difference(prediction, engine.card, probe)
        if prediction.success != probe.success or not off <= EXACT:
            raise CompiledFileError(
                f"on this machine the compiled model does not give the answers that it was proven with: "
                f"{prediction.success} instead of {probe.success} for a probe, probabilities off by {off:.2g}; "
                f"compile it here, or set ENGINE=learner."
            )


def bound_of(engine: CompiledEngine, network: Network, open_photo: OpenPhoto) -> float | None:
    """Ask both ways and derive the guard's bound from how far they are apart; None if that is too far for any guard."""
    card, deviations = engine.card, [SMALLEST]
    for probe in card.probes:
        photo = open_photo(io.BytesIO(probe.picture))
        fast = network(engine.pixels(photo, photo.reduction(card.recipe.shrinks_by)))
        if not difference(answer(card, fast), card, probe) <= FAST:
            return None
        deviations.append(deviation(np.array(engine.exactly(photo).probabilities), fast, card.threshold))
    return SAFETY * max(deviations)


def deviation(exact: np.ndarray, fast: np.ndarray, threshold: float | None) -> float:
    """How far the fast way moved what decides the answer, in log-odds.

    Labels that exclude each other count against the best; one that is further from it than `FAR` only if it is second.
    """
    before, after = log_odds(exact, threshold), log_odds(fast, threshold)
    if threshold is None:
        order = np.argsort(before)[::-1]
        before, after = before[order[0]] - before[order[1:]], after[order[0]] - after[order[1:]]
        before, after = before[: max(1, int((before < FAR).sum()))], after[: max(1, int((before < FAR).sum()))]
    return float(np.abs(before - after).max(initial=0.0))


def difference(prediction: Prediction, card: Card, probe: Probe) -> float:
    """The largest difference of a probability, label by label; infinite if the labels are others."""
    if card.labels != tuple(label for label, _ in probe.probabilities):
        return float("inf")
    expected = np.array([probability for _, probability in probe.probabilities])
    return float(np.abs(np.array(prediction.probabilities) - expected).max())
