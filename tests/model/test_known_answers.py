"""Before it is ready, an engine answers the probes in its file; what is wrong anywhere on the way shows there."""

from __future__ import annotations

import io
import itertools
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pigeonhole.errors import CompiledFileError
from pigeonhole.intake.pictures import open_probe
from pigeonhole.machine import anonymous_memory
from pigeonhole.model import loading
from pigeonhole.model.card import Card, read_card
from pigeonhole.model.engine import ByDemand, CompiledEngine, OpenVINONetwork, openvino_core
from pigeonhole.model.known_answers import SMALLEST, agree, check_exact, deviation, guard_of
from pigeonhole.model.learner import open_learner
from pigeonhole.model.loading import load_compiled
from pigeonhole.model.pipeline import Normalize, understand
from pigeonhole.model.recipe import RandomResizedCrop, Recipe, Resize, Step
from pigeonhole.model.tracing import trace
from tests.conftest import EXPORT
from tests.model.compiled import load, rewritten, swapped, with_flipped_bit
from tests.model.test_engine import Says
from tests.model.test_exports_compiled import FIXTURES

REFUSED = "does not give the answers that it was proven with"


def exact_engine(path: Path, change: Callable[[np.ndarray], np.ndarray] = lambda pixels: pixels) -> CompiledEngine:
    """The engine as it is before its test, with something done to what its network gets."""
    network = OpenVINONetwork(openvino_core().read_model(path), "float32", 1)

    class Changed:
        precision = "float32"

        def __call__(self, pixels: np.ndarray) -> np.ndarray:
            return network(np.ascontiguousarray(change(pixels)))

    return CompiledEngine(read_card(path), Changed(), None)


def has_bfloat16() -> bool:
    return "BF16" in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def test_nothing_wrong(compiled_demo: Path) -> None:
    """The file as it was compiled passes, in both precisions."""
    assert load(compiled_demo, "exact").about["precision"] == "float32"
    assert load(compiled_demo).way.startswith("in bfloat16" if has_bfloat16() else "in float32")
    check_exact(exact_engine(compiled_demo), open_probe)


@pytest.mark.parametrize("place", [0, 1, 17, -2, -1])
def test_a_flipped_weight(compiled_demo: Path, tmp_path: Path, place: int) -> None:
    """A flipped exponent bit of a layer's largest weight (first, in the middle, last), under a seal that fits."""
    with pytest.raises(CompiledFileError, match=REFUSED):
        load(with_flipped_bit(compiled_demo, tmp_path / "x.onnx", place))


def test_swapped_labels(compiled_demo: Path, tmp_path: Path) -> None:
    """Any two labels swapped, whether a probe shows them or not."""
    engine = exact_engine(compiled_demo)
    for first, second in itertools.combinations(range(len(engine.labels)), 2):
        wrong = CompiledEngine(swapped(engine.card, first, second), engine.network, None)
        with pytest.raises(CompiledFileError, match=REFUSED):
            check_exact(wrong, open_probe)
    with pytest.raises(CompiledFileError, match=REFUSED):
        load(rewritten(compiled_demo, tmp_path / "x.onnx", lambda card: swapped(card, 3, 4)))


def with_filter(card: Card, resample: int) -> Card:
    steps: list[Step] = [
        replace(step, resample=resample) if isinstance(step, (Resize, RandomResizedCrop)) else step
        for step in card.recipe.steps
    ]
    return replace(card, recipe=Recipe(card.recipe.mode, tuple(steps)))


@pytest.mark.parametrize("resample", [filter_ for filter_ in Image.Resampling if filter_ != Image.Resampling.BILINEAR])
def test_a_wrong_filter(compiled_demo: Path, tmp_path: Path, resample: int) -> None:
    """Any other of Pillow's filters."""
    with pytest.raises(CompiledFileError, match=REFUSED):
        load(rewritten(compiled_demo, tmp_path / "x.onnx", lambda card: with_filter(card, resample)))


@pytest.mark.parametrize(
    "change",
    [lambda pixels: pixels[..., ::-1], lambda pixels: pixels[:, ::-1], lambda pixels: np.roll(pixels, 1, axis=0)],
    ids=["bgr", "mirrored", "one-row-off"],
)
def test_wrong_pixels(compiled_demo: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """BGR for RGB, a mirrored picture, one that is a row off."""
    with pytest.raises(CompiledFileError, match=REFUSED):
        check_exact(exact_engine(compiled_demo, change), open_probe)


def test_no_normalize(compiled_demo: Path, tmp_path: Path) -> None:
    """A graph without Normalize."""
    learner = open_learner(EXPORT)
    pipeline = understand(learner.learner, learner.mode)
    without = replace(pipeline, batch=tuple(step for step in pipeline.batch if not isinstance(step, Normalize)))
    assert len(without.batch) == len(pipeline.batch) - 1
    graph = trace(without, len(learner.labels), learner.features)
    with pytest.raises(CompiledFileError, match=REFUSED):
        load(rewritten(compiled_demo, tmp_path / "x.onnx", graph=graph))


@pytest.mark.parametrize("fixture", ["demo", *FIXTURES])
def test_bfloat16_for_float32(fixture: str, compiled_demo: Path, compiled: Callable[[str], Path]) -> None:
    """Computing in bfloat16 where float32 was asked for, of whatever network."""

    if not has_bfloat16():
        pytest.skip("this processor has no bfloat16")
    path = compiled_demo if fixture == "demo" else compiled(fixture)
    network = OpenVINONetwork(openvino_core().read_model(path), "bfloat16", 1)
    with pytest.raises(CompiledFileError, match=REFUSED):
        check_exact(CompiledEngine(read_card(path), network, None), open_probe)


class Off:
    """A network that is off by so much in its first output's log-odds."""

    precision = "bfloat16"

    def __init__(self, engine: CompiledEngine, by: float) -> None:
        self.network, self.by = engine.network, by

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        probabilities = self.network(pixels).astype(np.float64)
        probabilities[0] *= np.exp(self.by)
        return (probabilities / probabilities.sum()).astype(np.float32)


@pytest.mark.parametrize("off", [0.0, 0.005, 0.02, 0.04])
def test_the_bounds_follow_the_deviations(compiled_demo: Path, off: float) -> None:
    """The bounds are multiples of the largest deviation of the fast way on the probes, and never below a least one."""
    engine = exact_engine(compiled_demo)
    exact = check_exact(engine, open_probe)
    float32 = guard_of(engine, exact, open_probe, engine.network)
    guard = guard_of(engine, exact, open_probe, Off(engine, off))
    assert float32 is not None
    assert guard is not None
    assert float32.whole == SMALLEST < float32.shrunk  # what is decoded whole is exact there
    assert guard.whole == pytest.approx(max(off, SMALLEST), rel=1e-3)
    assert abs(guard.shrunk - float32.shrunk) <= off + 1e-6
    assert guard.shrunk >= guard.whole


@pytest.mark.parametrize("off", [0.6, np.nan], ids=str)
def test_a_fast_way_that_is_too_far_off(compiled_demo: Path, off: float) -> None:
    """No guard makes good for a fast way that moves answers far, or whose probabilities are no numbers."""
    engine = exact_engine(compiled_demo)
    exact = check_exact(engine, open_probe)
    assert guard_of(engine, exact, open_probe, Off(engine, off)) is None  # type: ignore[arg-type]


def test_a_fast_way_that_is_certain_and_wrong(compiled_demo: Path) -> None:
    """A fast way that is sure of a wrong answer to one of the probes would get past the guard; there is none then."""
    engine = exact_engine(compiled_demo)
    exact = check_exact(engine, open_probe)
    answers = itertools.count()

    class Wrong(Off):
        def __call__(self, pixels: np.ndarray) -> np.ndarray:
            honest = super().__call__(pixels)
            return honest if next(answers) != 5 else np.roll(np.eye(10, dtype=np.float32)[honest.argmax()], 1)

    assert guard_of(engine, exact, open_probe, Off(engine, 0)) is not None  # type: ignore[arg-type]
    assert guard_of(engine, exact, open_probe, Wrong(engine, 0)) is None  # type: ignore[arg-type]


def test_of_two_copies_the_worse_one_counts(compiled_demo: Path) -> None:
    """The bounds hold for whichever copy of a network answers; one that is certain and wrong ends the fast way."""
    engine = exact_engine(compiled_demo)
    exact = check_exact(engine, open_probe)
    guard = guard_of(engine, exact, open_probe, Off(engine, 0), Off(engine, 0.04))  # type: ignore[arg-type]
    assert guard is not None
    assert guard.whole == pytest.approx(0.04, rel=1e-3)
    assert guard_of(engine, exact, open_probe, Off(engine, 0), Off(engine, 9)) is None  # type: ignore[arg-type]


@pytest.mark.parametrize(("left", "copies"), [(1 << 20, False), (1 << 40, True)])
def test_copies_where_there_is_room(
    compiled_demo: Path, monkeypatch: pytest.MonkeyPatch, left: int, copies: bool
) -> None:
    """Weights are kept twice only where that takes little of the memory that is left; the answers are the same."""
    monkeypatch.setattr(loading, "usable_cores", lambda: 2)
    engine = load_compiled(compiled_demo, open_probe, memory=left + anonymous_memory(os.getpid()))
    assert isinstance(engine._fast.network, ByDemand) is copies  # type: ignore[union-attr]
    check_exact(engine, open_probe)


def test_no_probe_that_can_be_shrunk(compiled_demo: Path) -> None:
    """Where none of the probes shows what shrinking does, no photo is shrunk."""
    engine = exact_engine(compiled_demo)
    small = replace(engine.card, probes=tuple(probe for probe in engine.card.probes if len(probe.picture) < 60_000))
    assert 0 < len(small.probes) < len(engine.card.probes)
    engine = CompiledEngine(small, engine.network, None)
    guard = guard_of(engine, check_exact(engine, open_probe), open_probe, engine.network)
    assert guard is not None
    assert guard.shrunk == np.inf


def test_too_few_probes_that_are_doubtful(compiled_demo: Path) -> None:
    """Probes of which the model is certain say nothing about the fast way; then there is none."""
    engine = exact_engine(compiled_demo)
    certain = CompiledEngine(engine.card, Says([1 - 9e-6, *[1e-6] * 9]), None)  # type: ignore[arg-type]
    exact = [certain.exactly(open_probe(io.BytesIO(probe.picture))) for probe in engine.card.probes]
    said = tuple(zip(engine.labels, exact[0].probabilities, strict=True))
    card = replace(engine.card, probes=tuple(replace(probe, probabilities=said) for probe in engine.card.probes))
    certain = CompiledEngine(card, certain.network, None)
    assert guard_of(certain, exact, open_probe, certain.network) is None


def test_certain_answers_count_too() -> None:
    """Of an answer that is certain, log-odds tell what probabilities hide: 1e-9 is not 1e-7."""
    assert agree((1.0, 1.001e-9), (1.0, 1e-9), None)
    assert not agree((1.0, 1e-7), (1.0, 1e-9), None)
    assert not agree((1.0, float("nan")), (1.0, 1e-9), None)
    assert not agree((0.999, 1e-7), (0.999, 1e-9), 0.5)


def test_deviation() -> None:
    """How far what decides was moved, in log-odds: against the best label or the threshold, where that is near."""
    exact, fast = np.array([0.5, 0.4, 0.1]), np.array([0.48, 0.42, 0.1])
    assert deviation(exact, fast, None) == [pytest.approx(np.log(0.5 / 0.4) - np.log(0.48 / 0.42))]
    far, moved = np.array([0.6, 0.3, 1e-6]), np.array([0.6, 0.3, 1e-5])
    assert deviation(far, moved, None) == [0]  # the third label is too far away to matter
    assert deviation(np.array([0.999, 9e-4, 1e-4]), np.array([0.998, 1.9e-3, 1e-4]), None) == []
    assert deviation(np.array([0.5, 0.2]), np.array([0.6, 0.2]), 0.3) == [pytest.approx(np.log(0.6 / 0.4))]
    assert deviation(np.array([1.0]), np.array([1.0]), None) == []
