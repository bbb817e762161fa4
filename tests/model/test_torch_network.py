"""On a GPU the learner's own network answers in PyTorch, in batches; here on the processor, which computes the same."""

from __future__ import annotations

import gc
import logging
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pigeonhole.errors import CompiledFileError, ModelFileError, PackagesMissing, SettingsError
from pigeonhole.intake.pictures import open_probe
from pigeonhole.model import choosing
from pigeonhole.model.choosing import Model, check_model, open_engine
from pigeonhole.model.known_answers import EXACT, EXACT_GRID
from pigeonhole.model.learner import open_learner
from pigeonhole.model.loading import load_compiled
from pigeonhole.model.pipeline import Divide, Pipeline, understand
from pigeonhole.model.predictor import Shown
from pigeonhole.model.probes import made_up
from pigeonhole.model.recipe import Recipe, Resize
from pigeonhole.model.torch_network import SIZES, TorchNetwork, module_of, networks
from tests.conftest import ROOT, StartServer
from tests.model.test_exports_compiled import FOLDER

KINDS = ("plain", "presizing", "multi-label", "timm", "timm-transformer", "random-resized-crop")
RECIPE = Recipe("RGB", (Resize((4, 4)),))


class Brightness(torch.nn.Module):
    """A network that tells dark from bright, and notes the sizes of batches. It waits for `go`, and can be broken."""

    def __init__(self, most: int = SIZES[-1]) -> None:
        super().__init__()
        self.sizes: list[int] = []
        self.most, self.go, self.entered = most, threading.Event(), threading.Event()
        self.go.set()

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(batch))
        self.entered.set()
        assert self.go.wait(20)
        if len(batch) > self.most:
            raise torch.OutOfMemoryError
        if bool((batch > 0.99).any()):
            raise ArithmeticError("too bright")
        brightness = batch.mean((1, 2, 3))
        return torch.stack([1 - brightness, brightness], 1).log()


def picture(level: int) -> np.ndarray:
    return np.full((4, 4, 3), level, np.uint8)


def expected(level: int) -> list[float]:
    return [pytest.approx(1 - level / 255, abs=1e-5), pytest.approx(level / 255, abs=1e-5)]


@contextmanager
def open_network(pipeline: Pipeline, precision: Any = "float32") -> Iterator[TorchNetwork]:
    network = TorchNetwork(pipeline, "cpu", precision)
    try:
        yield network
    finally:
        network.close()


@contextmanager
def of(module: Brightness) -> Iterator[TorchNetwork]:
    """The network with `module`, warm."""
    with open_network(Pipeline(RECIPE, (Divide(255.0),), module, "softmax", None)) as network:
        module.sizes.clear()
        yield network
        module.go.set()


def all_at_once(module: Brightness, network: TorchNetwork, levels: Sequence[int]) -> list[Future[np.ndarray]]:
    """Ask about the first picture, and about all others while that one is computed."""
    module.go.clear()
    module.entered.clear()
    with ThreadPoolExecutor(len(levels)) as pool:
        answers = [pool.submit(network, picture(levels[0]))]
        assert module.entered.wait(20)
        answers += [pool.submit(network, picture(level)) for level in levels[1:]]
        while network._waiting.qsize() < len(levels) - 1:
            time.sleep(0.001)
        module.go.set()
    return answers


@pytest.mark.parametrize("kind", KINDS)
def test_as_learner_predict(kind: str) -> None:
    """In float32 each probability is that of `learner.predict`; in bfloat16 it is near."""
    engine = open_learner(FOLDER / f"{kind}.pkl")
    pipeline = understand(engine.learner, engine.mode)
    noise = np.random.default_rng(1).integers(0, 256, (5, 70, 90, 3), np.uint8)
    photos = [Image.fromarray(pixels).resize((300, 200)) for pixels in noise]
    said = [engine.predict(Shown(photo)).probabilities for photo in photos]
    for precision, allowed in (("float32", EXACT), ("bfloat16", 0.05)):
        with open_network(pipeline, precision) as network:
            answers = [network(pipeline.recipe.apply(photo)) for photo in photos]
        assert {answer.dtype for answer in answers} == {np.dtype(np.float32)}
        assert np.abs(np.subtract(answers, said)).max() <= allowed


@pytest.mark.parametrize("kind", KINDS)
def test_all_of_it_moves(kind: str) -> None:
    """On another device nothing is computed with what stayed behind; torch's device without memory would refuse."""
    engine = open_learner(FOLDER / f"{kind}.pkl")
    pipeline = understand(engine.learner, engine.mode)
    width, height = pipeline.recipe.size or (0, 0)
    module = module_of(pipeline, "meta", "float32")  # type: ignore[arg-type]
    probabilities = module(torch.zeros(2, height, width, 3, dtype=torch.uint8, device="meta"))
    assert (probabilities.device.type, tuple(probabilities.shape)) == ("meta", (2, len(engine.labels)))


def test_batches_form() -> None:
    """Pictures that come while others are computed go through together, 64 at most, and each gets its own answer."""
    levels = [*range(100), 7]
    module = Brightness()
    with of(module) as network:
        answers = all_at_once(module, network, levels)
        assert [list(answer.result()) for answer in answers] == [expected(level) for level in levels]
    assert module.sizes == [1, 64, 64]  # 1, 64 and 36, which is filled up


def test_a_failure_is_its_batches() -> None:
    """What fails in a batch reaches all who are in it, each as an error of its own, and nobody before or after."""
    module = Brightness()
    with of(module) as network:
        first, *others = all_at_once(module, network, [10, 20, 255, 30])
        assert list(first.result()) == expected(10)
        failures = [other.exception() for other in others]
        assert [str(failure) for failure in failures] == ["the batch with this picture failed"] * 3
        assert {type(failure.__cause__) for failure in failures if failure} == {ArithmeticError}
        assert len(set(map(id, failures))) == 3
        assert list(network(picture(40))) == expected(40)


@pytest.mark.parametrize("pixels", [np.zeros((4, 5, 3), np.uint8), np.zeros((4, 4, 3), np.float32)])
def test_what_is_no_such_picture_joins_no_batch(pixels: np.ndarray) -> None:
    """Pixels of another shape or type are refused before they could fail a batch."""
    module = Brightness()
    with of(module) as network, pytest.raises(ValueError, match=r"instead of uint8 \(4, 4, 3\)"):
        network(pixels)
    assert module.sizes == []


@dataclass(frozen=True)
class Keeping(Divide):
    """A step that keeps what it got: the pixels on the device."""

    got: list[torch.Tensor]

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        self.got.append(batch)
        return super().__call__(batch)


@pytest.fixture
def no_collection() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("level", [200, 255], ids=["answered", "failed"])
def test_nothing_of_a_picture_stays(no_collection: None, level: int) -> None:
    """When it is answered, or its batch failed, neither the pixels nor a copy of them is held, without a collection."""
    divide = Keeping(255.0, [])
    with open_network(Pipeline(RECIPE, (divide,), Brightness(), "softmax", None)) as network:
        pixels = picture(level)
        held = weakref.ref(pixels)
        with suppress(RuntimeError):
            network(pixels)
        assert not network._held.any()
        assert not divide.got[-1].any()
        del pixels
        time.sleep(0.1)  # for the other thread, which may be on the last of its steps
        assert held() is None


def test_batches_that_fit() -> None:
    """Where the device has memory for eight pictures, no more go through together, and all are answered."""
    module = Brightness(most=8)
    with of(module) as network:
        answers = all_at_once(module, network, list(range(30)))
        assert [list(answer.result()) for answer in answers] == [expected(level) for level in range(30)]
    assert module.sizes == [1, 8, 8, 8, 8]


def test_no_room_at_all() -> None:
    """Where it has memory for none, that is said when the network is made."""
    pipeline = Pipeline(RECIPE, (Divide(255.0),), Brightness(most=0), "softmax", None)
    with pytest.raises(ModelFileError, match=r"^DEVICE=cpu does not compute this network in float32 \(OutOfMemory"):
        networks(pipeline, "cpu")("float32")


class Busy(Brightness):
    """Is in torch for a while, without Python's lock, when it is told to."""

    is_busy = 0.0  # seconds

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        answer = super().forward(batch)
        ending = time.monotonic() + self.is_busy
        while time.monotonic() < ending:
            torch.rand(50_000).sort()
        return answer


def end_while_it_computes() -> None:
    """What the next test runs in a process of its own."""
    module = Busy()
    network = TorchNetwork(Pipeline(RECIPE, (Divide(255.0),), module, "softmax", None), "cpu", "float32")
    module.is_busy = 0.8
    module.entered.clear()
    threading.Thread(target=network, args=(picture(51),), daemon=True).start()
    assert module.entered.wait(20)
    time.sleep(0.1)


def test_it_ends_with_the_process() -> None:
    """A process ends like any other, also while such a network computes; Python would abort it."""
    code = "from tests.model.test_torch_network import end_while_it_computes; end_while_it_computes()"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def described(kind: str) -> Pipeline:
    engine = open_learner(FOLDER / f"{kind}.pkl")
    return understand(engine.learner, engine.mode)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[TorchNetwork]]:
    """What DEVICE=cuda makes, on the processor."""
    made: list[TorchNetwork] = []

    def networks_here(pipeline: Pipeline, device: str) -> Callable[[Any], TorchNetwork]:
        def network(precision: Any) -> TorchNetwork:
            made.append(TorchNetwork(pipeline, "cpu", precision))
            return made[-1]

        return network

    monkeypatch.setattr(choosing, "networks", networks_here)
    monkeypatch.setattr(choosing, "check_device", lambda device: None)
    yield made
    for network in made:
        network.close()


@pytest.mark.parametrize("precision", ["auto", "exact"])
def test_it_serves(folder: Path, made: list[TorchNetwork], precision: Any, caplog: pytest.LogCaptureFixture) -> None:
    """With DEVICE, such networks answer, once the file's probes were asked of them; heatmaps stay OpenVINO's."""
    model = Model(folder / "export.pkl", precision=precision, device="cuda")
    with caplog.at_level(logging.INFO, "pigeonhole"):
        engine = open_engine(model, open_probe)
    assert [network.precision for network in made] == ["float32", "bfloat16"][: 2 if precision == "auto" else 1]
    assert ", on cuda; proven on " in caplog.messages[-1]
    assert engine.about["precision"] == made[-1].precision
    photo, on_cpu = (
        Shown(made_up((300, 200), 4)),
        open_engine(Model(folder / "export.pkl", precision="exact"), open_probe),
    )
    prediction, wanted = engine.predict(photo), on_cpu.predict(photo)
    assert prediction.success == wanted.success
    assert np.abs(np.subtract(prediction.probabilities, wanted.probabilities)).max() <= 0.02
    assert np.abs(engine.explain(photo)[1].grid - on_cpu.explain(photo)[1].grid).max() <= EXACT_GRID


def test_less_than_float32_is_refused(folder: Path) -> None:
    """A GPU that rounds where float32 was asked for is refused by the probes, as OpenVINO would be."""
    with (
        open_network(described("plain"), "bfloat16") as network,
        pytest.raises(CompiledFileError, match="does not give the answers that it was proven with"),
    ):
        load_compiled(folder / "export.onnx", open_probe, networks=lambda precision: network)


@pytest.mark.parametrize("engine", ["auto", "learner"])
def test_no_such_device(folder: Path, engine: Any) -> None:
    """DEVICE=cuda where PyTorch finds no GPU is refused with a sentence."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(SettingsError, match=r"^DEVICE=cuda is not possible here: PyTorch .* finds no such device"):
        open_engine(Model(folder / "export.pkl", engine=engine, device="cuda"), open_probe)


@pytest.mark.parametrize("ask", [check_model, lambda model: open_engine(model, open_probe)], ids=["master", "worker"])
def test_what_is_missing(folder: Path, monkeypatch: pytest.MonkeyPatch, ask: Callable[[Model], object]) -> None:
    """Without the export, or without PyTorch, nothing is served on a GPU; that is known before anything is loaded."""
    monkeypatch.setattr(choosing, "check_device", lambda device: pytest.fail("torch is loaded"))
    with pytest.raises(ModelFileError, match="^DEVICE=mps computes with the network of the export that .*export.onnx"):
        ask(Model(folder / "export.onnx", device="mps"))
    monkeypatch.setattr(choosing.importlib.util, "find_spec", lambda package: None)
    with pytest.raises(PackagesMissing, match="^DEVICE=cuda computes with fastai, which is not installed here"):
        ask(Model(folder / "export.pkl", device="cuda"))


def test_the_service_does_not_start(start_server: StartServer, folder: Path) -> None:
    """The service without its GPU ends with that sentence, once."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    server = start_server(MODEL=str(folder / "export.pkl"), DEVICE="cuda", UPLOADS=str(folder), wait=False)
    assert server.process.wait(60) == 3
    assert server.log.read_text().count("DEVICE=cuda is not possible here") == 1
