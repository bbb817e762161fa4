"""The compiled engine: the fast way counts only where the guard admits it, and threads do not meet."""

from __future__ import annotations

import gc
import io
import subprocess
import sys
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pigeonhole.errors import BrokenImage, ModelFault
from pigeonhole.intake.pictures import open_photo, open_probe
from pigeonhole.model.engine import (
    SAFETY,
    ByDemand,
    CompiledEngine,
    FastWay,
    Guard,
    OpenVINONetwork,
    margin,
    openvino_core,
)
from pigeonhole.model.predictor import Prediction, Predictor, Shown
from pigeonhole.model.recipe import Recipe, Resize
from tests.conftest import LIMITS, ROOT, encoded
from tests.model.compiled import Ways, load
from tests.model.test_card import CARD

GREY = Shown(Image.new("RGB", (40, 40), "grey"))
EXCLUSIVE = replace(CARD, labels=("a", "b", "c"), threshold=None, recipe=Recipe("RGB", (Resize((8, 8)),)))


@dataclass
class Says:
    """A network that says the same of every picture, and notes what it got."""

    probabilities: Sequence[float]
    precision: str = "float32"
    got: list[np.ndarray] = field(default_factory=list)
    device: str = "cpu"

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        self.got.append(pixels)
        return np.array(self.probabilities, np.float32)


def engine(exact: Says, fast: Says | None = None, bound: float = 0.2, threshold: float | None = None) -> CompiledEngine:
    card = replace(EXCLUSIVE, threshold=threshold)
    way = FastWay(fast, Guard(bound / SAFETY, 2 * bound / SAFETY, threshold)) if fast else None  # type: ignore[arg-type]
    return CompiledEngine(card, exact, way, Ways())  # type: ignore[arg-type]


def ways(engine: CompiledEngine) -> dict[str, int]:
    assert isinstance(engine._count, Ways)
    return dict(engine._count)


def test_a_clear_answer_is_fast() -> None:
    """Where the margin is beyond the bound, the exact way is not asked."""
    exact, fast = Says([0.1, 0.8, 0.1]), Says([0.2, 0.7, 0.1], "bfloat16")
    asked = engine(exact, fast)
    assert asked.predict(GREY) == Prediction("b", (pytest.approx(0.2), pytest.approx(0.7), pytest.approx(0.1)))
    assert (len(exact.got), ways(asked)) == (0, {"fast": 1})


@pytest.mark.parametrize("fast", [[0.44, 0.46, 0.1], [0.46, 0.44, 0.1], [np.nan] * 3], ids=["close", "over", "nan"])
def test_a_doubtful_answer_is_computed_again(fast: list[float]) -> None:
    """Where it is not, or is no number, the exact way answers, and the run is counted."""
    asked = engine(Says([0.46, 0.44, 0.1]), Says(fast, "bfloat16"))
    assert asked.predict(GREY).success == "a"
    assert ways(asked) == {"rerun": 1}


@pytest.mark.parametrize(("fast", "answer"), [([0.9, 0.05, 0.3], ["a", "b"]), ([0.9, 0.05, 0.01], ["a"])])
def test_several_labels(fast: list[float], answer: list[str]) -> None:
    """With several labels, each has to be clear of the threshold."""
    asked = engine(Says([0.9, 0.8, 0.1]), Says(fast, "bfloat16"), bound=0.3, threshold=0.25)
    assert asked.predict(GREY).success == answer


def test_a_shrunk_photo_needs_a_larger_margin() -> None:
    """A margin that is enough for a photo that was decoded whole may not be for one that was shrunk."""
    said = [0.43, 0.32, 0.25]
    assert 0.2 < margin(np.array(said), None) < 0.4
    asked = engine(Says(said), Says(said, "bfloat16"), bound=0.2)
    asked.predict(GREY)
    asked.predict(open_photo(io.BytesIO(large_jpeg()), LIMITS))
    assert ways(asked) == {"fast": 1, "rerun": 1}


def test_a_wide_answer_needs_a_larger_margin() -> None:
    """Rounding errors are relative, so log-odds that spread wide need a larger margin than narrow ones."""
    admits = Guard(whole=0.01, shrunk=0.01, threshold=None).admits
    narrow, wide = np.array([0.5, 0.4, 0.1]), np.array([0.55, 0.45, 1e-5])
    assert margin(wide, None) == pytest.approx(0.2, abs=0.001)
    assert margin(narrow, None) == pytest.approx(0.22, abs=0.01)
    assert (admits(narrow, 1), admits(wide, 1)) == (True, False)


def test_margin() -> None:
    """In log-odds: of the best over the second, or of a probability over the threshold; none where nothing competes."""
    assert margin(np.array([0.2, 0.6, 0.2]), None) == pytest.approx(np.log(3))
    assert margin(np.array([0.5, 0.9]), 0.5) == 0
    assert margin(np.array([0.75, 0.9]), 0.5) == pytest.approx(np.log(3))
    assert margin(np.array([1.0]), None) == np.inf
    assert np.isfinite(margin(np.array([1.0, 0.0]), None))


def large_jpeg(side: int = 64) -> bytes:
    return encoded(Image.effect_noise((side, side), 90).convert("RGB"), "JPEG")


def test_a_large_jpeg_is_shrunk_on_the_fast_way_only() -> None:
    """The fast way gets a picture that was shrunk while decoded; the exact way all of its pixels."""
    photo = open_photo(io.BytesIO(large_jpeg()), LIMITS)
    exact, fast = Says([0.4, 0.35, 0.25]), Says([0.4, 0.35, 0.25], "bfloat16")
    engine(exact, fast).predict(photo)
    whole = Recipe("RGB", (Resize((8, 8)),)).apply(photo.decoded())
    assert np.array_equal(exact.got[0], whole)
    assert not np.array_equal(fast.got[0], whole)


def test_by_demand() -> None:
    """Who asks alone is answered by the one network, whoever comes while others are there by the other."""
    many = Says([0.1, 0.8, 0.1])

    @dataclass
    class Alone(Says):
        def __call__(self, pixels: np.ndarray) -> np.ndarray:
            if len(self.got) == 0:
                self.got.append(pixels)
                both(pixels)  # somebody else, meanwhile
            return super().__call__(pixels)

    alone = Alone([0.8, 0.1, 0.1])
    both = ByDemand(alone, many)  # type: ignore[arg-type]
    for _ in range(2):
        assert both(np.zeros((8, 8, 3), np.uint8))[0] > 0.7
    assert (len(alone.got), len(many.got)) == (3, 1)


def test_float32_only() -> None:
    """Without bfloat16 a large JPEG still goes the fast way, and what cannot be shrunk is exact at once."""
    network = Says([0.8, 0.1, 0.1])
    asked = engine(network, network)
    asked.predict(GREY)
    asked.predict(open_photo(io.BytesIO(large_jpeg()), LIMITS))
    assert ways(asked) == {"fast": 1, "exact": 1}


def test_without_a_fast_way() -> None:
    """With PRECISION=exact every picture is decoded whole and computed in float32."""
    network = Says([0.8, 0.1, 0.1])
    photo = open_photo(io.BytesIO(large_jpeg()), LIMITS)
    asked = engine(network)
    asked.predict(photo)
    assert np.array_equal(network.got[0], Recipe("RGB", (Resize((8, 8)),)).apply(photo.decoded()))
    assert ways(asked) == {"exact": 1}


def test_a_broken_photo_is_the_clients() -> None:
    """A photo that breaks off is 422, not the model's fault; a network that fails is."""
    asked = engine(Says([1, 0, 0]), Says([1, 0, 0], "bfloat16"))
    with pytest.raises(BrokenImage):
        Predictor(lambda: asked).predict(open_photo(io.BytesIO(large_jpeg()[:-700]), LIMITS))
    with pytest.raises(ModelFault):
        Predictor(lambda: engine(Says([np.nan] * 3))).predict(GREY)


def test_threads_do_not_meet(compiled_demo: Path, one_of_each: dict[str, Path]) -> None:
    """Sixteen threads at once get the answers they would get alone, to the last bit."""
    asked = load(compiled_demo)
    photos = [path.read_bytes() for path in one_of_each.values()]
    alone = [asked.predict(open_probe(io.BytesIO(photo))) for photo in photos]
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda photo: asked.predict(open_probe(io.BytesIO(photo))), photos * 12))
    assert together == alone * 12
    assert len({answer.success for answer in alone}) > 3


def test_requests_are_used_again(compiled_demo: Path) -> None:
    """As many infer requests are made as there were callers at once, not one for each call."""
    network = OpenVINONetwork(openvino_core().read_model(compiled_demo), "float32", 1)
    pixels = np.zeros((128, 128, 3), np.uint8)
    for _ in range(20):
        network(pixels)
    assert len(network._idle) == 1
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(network, [pixels] * 40))
    assert 1 <= len(network._idle) <= 4


def test_signals_are_handled_after_engines_have_gone(compiled_demo: Path) -> None:
    """Engines that come and go leave a process that Python can still handle a signal in."""
    script = """
import os, signal, sys
from pathlib import Path
from tests.model.compiled import load

first, second = load(Path(sys.argv[1])), load(Path(sys.argv[1]))
del first
del second
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
os.kill(os.getpid(), signal.SIGUSR1)
"""
    ran = subprocess.run([sys.executable, "-c", script, compiled_demo], cwd=ROOT, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (0, "handled\n"), ran.stderr


def test_nothing_is_kept(compiled_demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an answer the picture is gone, and so are its pixels, also where OpenVINO reads them."""
    asked = load(compiled_demo)
    seen: list[weakref.ref[object]] = []
    honest = Recipe.apply

    def watched(recipe: Recipe, picture: Image.Image, full: tuple[int, int] | None = None) -> np.ndarray:
        pixels = honest(recipe, picture, full)
        seen.extend((weakref.ref(picture), weakref.ref(pixels)))
        return pixels

    monkeypatch.setattr(Recipe, "apply", watched)
    photo = open_probe(io.BytesIO(encoded(Image.effect_noise((300, 200), 90).convert("RGB"), "JPEG")))
    asked.predict(photo)
    asked.exactly(photo)
    gc.collect()
    assert len(seen) >= 4
    assert [thing for thing in seen if thing() is not None] == []
    fast = asked._fast.network  # type: ignore[union-attr]
    networks = [asked.network, *([fast._alone, fast._many] if isinstance(fast, ByDemand) else [fast])]
    requests = [request for network in networks for request in network._idle]  # type: ignore[attr-defined]
    assert len(requests) >= 2  # of both ways
    for request in requests:
        assert not request.get_input_tensor().data.any()
        assert not any(tensor.data.any() for tensor in request.output_tensors)


def test_a_sigmoid_that_says_one() -> None:
    """In float32 a sigmoid says 1 well before it is; that is no larger margin than the last number below it."""
    below = np.nextafter(np.float32(1), np.float32(0))
    assert margin(np.array([1.0], np.float32), 0.5) == margin(np.array([below]), 0.5)
