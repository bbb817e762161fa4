"""A compiled model looks where the learner looked."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pigeonhole.errors import NotAvailable
from pigeonhole.intake.pictures import open_probe
from pigeonhole.model import tracing
from pigeonhole.model.card import FEATURES
from pigeonhole.model.compiler import NOT_BY_COMPILED, as_table, compile_export
from pigeonhole.model.engine import CompiledEngine, OpenVINONetwork, openvino_core
from pigeonhole.model.explain import normalized
from pigeonhole.model.explainer import Explainer
from pigeonhole.model.gradcam import NO_FEATURES, gradcam, last_features
from pigeonhole.model.known_answers import EXACT, EXACT_GRID, furthest
from pigeonhole.model.learner import LearnerEngine, open_learner
from pigeonhole.model.pipeline import understand
from pigeonhole.model.predictor import Predictor, Shown
from tests.conftest import EXPORT
from tests.model.compiled import graph_of, load, rewritten
from tests.model.learners import export_learner
from tests.model.test_card import CARD
from tests.model.test_exports_compiled import FOLDER

EXPLAINED = ("plain", "presizing", "multi-label", "timm")


def validation(clothing: Path, count: int) -> list[Path]:
    photos = sorted((clothing / "validation").glob("*/*.jpg"))
    return photos[:: len(photos) // count][:count]


def compare(compiled: CompiledEngine, learner: LearnerEngine, photos: Sequence[Path]) -> float:
    """The largest difference of a grid, for the label that is said and for another one."""
    largest = 0.0
    for number, path in enumerate(photos):
        with path.open("rb") as file:
            photo = open_probe(file)
            for label in (None, learner.labels[number % len(learner.labels)]):
                wanted, theirs = learner.explain(photo, label)
                said, ours = compiled.explain(photo, label)
                assert (said.success, ours.label) == (wanted.success, theirs.label)
                assert furthest(said.probabilities, wanted.probabilities) <= EXACT
                seen = np.abs(np.subtract(ours.seen, theirs.seen, dtype=int))
                assert ours.seen.size == theirs.seen.size
                assert seen.max() <= 1
                assert np.count_nonzero(seen) < seen.size / 1000
                largest = max(largest, float(np.abs(ours.grid - theirs.grid).max()))
    return largest


def test_the_demo(compiled_demo: Path, clothing: Path) -> None:
    """An xresnet, on 50 validation photos."""
    assert compare(load(compiled_demo), open_learner(EXPORT), validation(clothing, 50)) <= EXACT_GRID


@pytest.mark.parametrize("kind", EXPLAINED)
def test_each_kind(kind: str, compiled: Callable[[str], Path], clothing: Path) -> None:
    """A network of one's own, presizing, several labels, timm's DenseNet."""
    learner = open_learner(FOLDER / f"{kind}.pkl")
    assert compare(load(compiled(kind)), learner, validation(clothing, 50)) <= EXACT_GRID


def test_what_is_said_stays_the_same(compiled_demo: Path, one_of_each: dict[str, Path]) -> None:
    """Whether it is explained or not, from many threads at once, the label is the same, and so is the heatmap."""
    engine = load(compiled_demo)

    def explained(path: Path) -> tuple[Any, Any, bytes]:
        with path.open("rb") as file:
            photo = open_probe(file)
            said, explanation = engine.explain(photo)
            return engine.predict(photo).success, said.success, explanation.grid.tobytes()

    paths = [*one_of_each.values()]
    alone = [explained(path) for path in paths]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(explained, paths * 3)) == alone * 3
    assert [plain for plain, _, _ in alone] == [said for _, said, _ in alone]


def test_deletion(compiled_demo: Path, clothing: Path) -> None:
    """Without the fifth of its pixels that are hottest a photo's label loses more than without a fifth at random."""
    engine, random = load(compiled_demo, "exact"), np.random.default_rng(1)
    hottest, anywhere, coldest = [], [], []
    for path in validation(clothing, 100):
        with path.open("rb") as file:
            photo = open_probe(file)
            prediction, explanation = engine.explain(photo)
            pixels = engine.pixels(photo)
        place = prediction.index_of(None, engine.labels)
        heat = explanation.heat().ravel()

        def lost(order: np.ndarray, pixels: np.ndarray = pixels, place: int = place) -> float:
            left = pixels.reshape(-1, 3).copy()
            left[order[: len(left) // 5]] = left.mean(0)
            with_all, without = engine.network(pixels), engine.network(left.reshape(pixels.shape))
            return float(with_all[place] - without[place])

        hottest.append(lost(np.argsort(-heat, kind="stable")))
        anywhere.append(lost(random.permutation(heat.size)))
        coldest.append(lost(np.argsort(heat, kind="stable")))
    assert np.mean(hottest) > 1.2 * np.mean(anywhere)
    assert np.mean(hottest) > 3 * np.mean(coldest)


def test_a_transformer(compiled: Callable[[str], Path]) -> None:
    """A vision transformer is compiled, and both engines say in the same words why it is not explained."""
    engine = load(compiled("timm-transformer"))
    assert engine.why_unexplained == open_learner(FOLDER / "timm-transformer.pkl").why_unexplained == NO_FEATURES
    assert NO_FEATURES in as_table(engine.card, compiled("timm-transformer"))
    with pytest.raises(NotAvailable, match="vision transformer"):
        Predictor(lambda: engine).explain(Shown(Image.new("RGB", (64, 64))))


def test_the_learner_is_left_as_it_was() -> None:
    """Explaining leaves no hook, no gradient and no picture in a learner."""
    engine = open_learner(FOLDER / "plain.pkl")
    before = {name: id(value) for name, value in vars(engine.learner).items()}
    engine.explain(Shown(Image.new("RGB", (70, 50), "red")))
    assert {name: id(value) for name, value in vars(engine.learner).items()} == before
    modules = list(engine.learner.model.modules())
    assert [module for module in modules if module._forward_hooks or module._forward_pre_hooks] == []
    assert [one for one in engine.learner.model.parameters() if one.grad is not None] == []


def test_grey(tmp_path: Path) -> None:
    """A learner of grey pictures shows grey, whichever engine answers."""
    export = export_learner(tmp_path, "grey")
    compile_export(export, tmp_path / "export.onnx", open_probe)
    photo = Shown(Image.effect_noise((60, 44), 90).convert("RGB"))
    wanted, found = open_learner(export).explain(photo)[1], load(tmp_path / "export.onnx").explain(photo)[1]
    assert np.array_equal(wanted.seen, found.seen)
    assert found.seen.mode == "RGB"
    assert np.abs(wanted.grid - found.grid).max() <= EXACT_GRID


def test_other_heatmaps_here(compiled_demo: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Where the heatmaps are not those that were proven, answers still come, and why none is shown is said."""

    def other(card: Any) -> Any:
        probes = [replace(probe, grid=tuple(tuple(reversed(row)) for row in probe.grid)) for probe in card.probes]
        return replace(card, probes=tuple(probes))

    path = rewritten(compiled_demo, tmp_path / "x.onnx", other)
    with caplog.at_level(logging.WARNING):
        engine = load(path)
    assert "heatmaps differ from those that were proven" in caplog.text
    assert engine.why_unexplained
    assert engine.predict(Shown(Image.new("RGB", (200, 200), "red"))).success in engine.labels


def test_a_wrong_backward(compiled_demo: Path, tmp_path: Path) -> None:
    """A number changed in what only heatmaps need takes them away, and nothing else."""
    import onnx

    model = onnx.load_from_string(graph_of(compiled_demo))
    multiplied = {name for node in model.graph.node if node.op_type == "MatMul" for name in node.input}
    (weights,) = [tensor for tensor in model.graph.initializer if tensor.name in multiplied]  # forward it is Gemm
    weights.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weights)[::-1].copy(), weights.name))
    engine = load(rewritten(compiled_demo, tmp_path / "x.onnx", graph=model.SerializeToString()))
    assert engine.why_unexplained


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [("untraceable", "the network cannot be traced"), ("other", "its heatmaps differ from the learner's by up to")],
)
def test_compiled_without(fault: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A head that ONNX cannot express, or whose heatmaps differ, is compiled without them, and it is told why."""

    def head(network: Any, place: Any, batch: Any) -> Any:
        import torch

        class Head(torch.nn.Module):
            def forward(self, features: Any, weights: Any) -> Any:
                if fault == "untraceable":
                    return torch.linalg.eigvals(features).real
                return features.amin(1) * weights.sum()

        return Head()

    monkeypatch.setattr(tracing, "traced_head", head)
    told: list[str] = []
    compile_export(FOLDER / "plain.pkl", tmp_path / "x.onnx", open_probe, tell=told.append)
    assert [line for line in told if "without heatmaps" in line and sentence in line]
    engine = load(tmp_path / "x.onnx")
    assert engine.why_unexplained == NOT_BY_COMPILED  # clients get it, so nothing of torch's is in it
    assert "label_weights" not in str(openvino_core().read_model(tmp_path / "x.onnx").inputs)


def test_resnets(clothing: Path) -> None:
    """torchvision's ResNet under fastai's head, with random weights: 50 photos, for each of ten labels in its turn."""
    import torch
    from fastai.vision.learner import create_vision_model
    from torchvision.models import resnet18

    engine = open_learner(FOLDER / "plain.pkl")
    torch.manual_seed(2)
    network = create_vision_model(resnet18, len(engine.labels), pretrained=False).eval()
    pipeline = replace(understand(engine.learner, engine.mode), network=network)
    place = last_features(network, lambda: network(tracing.batch_of(pipeline, tracing.example_of(pipeline))))
    model = openvino_core().read_model(tracing.trace(pipeline, len(engine.labels), place))
    explainer = Explainer(model, OpenVINONetwork(model, "float32", cores=1, also=(FEATURES,)), cores=1)
    card = replace(CARD, labels=engine.labels, recipe=pipeline.recipe, threshold=None)
    for number, path in enumerate(validation(clothing, 50)):
        with path.open("rb") as file:
            pixels = pipeline.recipe.apply(open_probe(file).decoded())
        label = number % len(engine.labels)
        batch = tracing.batch_of(pipeline, torch.from_numpy(pixels[None].copy()))
        (wanted,) = gradcam(network, place, batch, label)
        found = explainer.explain(card, pixels, engine.labels[label])[1].grid
        assert np.abs(found - normalized(wanted)).max() <= EXACT_GRID
