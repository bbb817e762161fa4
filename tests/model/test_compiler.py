"""The compiler writes a file only when it is proven, and always the same one."""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ImageStat

from pigeonhole.cli import main
from pigeonhole.errors import CompiledFileError, NotCompiled
from pigeonhole.intake.pictures import open_probe
from pigeonhole.model import compiler, tracing
from pigeonhole.model.card import read_card, sha256_of, write_compiled
from pigeonhole.model.compiler import Asked, compile_export, prove
from pigeonhole.model.engine import openvino_core
from pigeonhole.model.predictor import Prediction
from pigeonhole.model.probes import blends, candidates
from tests.model.compiled import graph_of, load
from tests.model.learners import FACTORIES, export_as_people_do, export_learner
from tests.model.test_card import CARD
from tests.model.test_exports_compiled import FOLDER


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_learner(tmp_path_factory.mktemp("learner"), "colour")


def test_the_same_bytes(export: Path, tmp_path: Path) -> None:
    """Compiled twice, the files are equal to the last byte, and name neither this machine nor its folders."""
    for name in ("a", "b"):
        compile_export(export, tmp_path / name, open_probe)
    first = (tmp_path / "a").read_bytes()
    assert first == (tmp_path / "b").read_bytes()
    assert str(export.parent).encode() not in first
    assert b"site-packages" not in first
    assert b"stack_trace" not in first


def test_the_card(export: Path, tmp_path: Path) -> None:
    """The file says of which export it is, what was compared, and by which versions."""
    (tmp_path / "notebook.py").write_text("pets = 3\n")
    (tmp_path / "x.pkl").write_bytes(export.read_bytes())
    card = compile_export(tmp_path / "x.pkl", tmp_path / "x.onnx", open_probe)
    assert read_card(tmp_path / "x.onnx") == card
    assert card.labels == ("cat", "dog", "owl")
    assert card.source == sha256_of(io.BytesIO(export.read_bytes()))
    assert card.notebook == sha256_of(io.BytesIO(b"pets = 3\n"))
    assert card.proof.pictures >= 24
    assert card.proof.largest_difference < 1e-5
    assert {"fastai", "torch", "onnx", "openvino", "pillow", "python", "pigeonhole"} <= set(card.versions)
    assert len(card.probes) == 8
    large = open_probe(io.BytesIO(card.probes[0].picture))
    assert large.reduction(card.recipe.allows_shrinking) > 1  # one of them lets the shrinking decoder be tried


def test_somebody_elses_file(export: Path, tmp_path: Path) -> None:
    """A file that this command did not make is not replaced, whatever it is called."""
    (tmp_path / "birds.onnx").write_bytes(b"a model of my own")
    with pytest.raises(CompiledFileError, match="was not made by this command"):
        compile_export(export, tmp_path / "birds.onnx", open_probe)
    assert (tmp_path / "birds.onnx").read_bytes() == b"a model of my own"


def test_an_export_that_is_replaced_meanwhile(export: Path, tmp_path: Path) -> None:
    """The file says of which bytes it was compiled, though others lie there when it is done."""
    (tmp_path / "x.pkl").write_bytes(export.read_bytes())
    mine = sha256_of(io.BytesIO(export.read_bytes()))

    def replace_it(step: str) -> None:
        if step.startswith("asking"):
            (tmp_path / "x.pkl").write_bytes(b"another")

    assert compile_export(tmp_path / "x.pkl", tmp_path / "x.onnx", open_probe, tell=replace_it).source == mine


def test_a_learner_that_is_certain(compiled_demo: Path) -> None:
    """Between two candidates lies a blend that a learner doubts, however certain it is of them."""

    def ask(picture: bytes) -> str:
        red, _, blue = ImageStat.Stat(open_probe(io.BytesIO(picture)).decoded()).mean
        return "red" if red > blue else "blue"

    pictures = candidates(read_card(compiled_demo).recipe)
    asked = [(picture, ask(picture)) for picture in pictures]
    found = blends(asked, ask)
    assert len(found) == 9

    def doubt(picture: bytes) -> float:
        red, _, blue = ImageStat.Stat(open_probe(io.BytesIO(picture)).decoded()).mean
        return abs(red - blue)

    assert max(map(doubt, found)) < 4 < max(map(doubt, pictures))
    assert blends([(picture, "red") for picture in pictures], ask) == []


def test_any_number_of_pictures(compiled_demo: Path) -> None:
    """N is free: pictures in one batch get what they get alone."""
    model = openvino_core().compile_model(compiled_demo, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    pictures = np.random.default_rng(0).integers(0, 256, (5, 128, 128, 3)).astype(np.uint8)
    together = model({0: pictures})[0]
    assert together.shape == (5, 10)
    assert np.allclose(together.sum(1), 1)
    for picture, probabilities in zip(pictures, together, strict=True):
        assert np.allclose(model({0: picture[None]})[0][0], probabilities, atol=1e-6)


def moved(said: Prediction, by: float) -> Prediction:
    return replace(said, probabilities=tuple(probability + by for probability in said.probabilities))


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (
            lambda said: Prediction("x", said.probabilities),
            r"another label for (\d+) of \1 pictures \(built-in picture 0, built-in",
        ),
        (
            lambda said: replace(said, probabilities=tuple(p + 0.001 for p in said.probabilities)),
            r"differ by up to 0\.001;",
        ),
        (lambda said: replace(said, probabilities=(float("nan"),) * 3), "differ by up to nan"),
    ],
    ids=["labels", "probabilities", "no-numbers"],
)
def test_no_proof_no_file(
    export: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wrong: Callable[[Prediction], Prediction],
    sentence: str,
) -> None:
    """Where the compiled model does not answer as learner.predict does, nothing is written, and it says how far off."""
    honest = compiler.answer
    monkeypatch.setattr(compiler, "answer", lambda *arguments: wrong(honest(*arguments)))
    write_compiled(tmp_path / "x.onnx", b"what was there", CARD)
    before = (tmp_path / "x.onnx").read_bytes()
    with pytest.raises(NotCompiled, match=sentence):
        compile_export(export, tmp_path / "x.onnx", open_probe)
    assert (tmp_path / "x.onnx").read_bytes() == before


def test_one_answer_that_is_no_number(export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One probability of the last picture that is no number spoils the proof, whatever the others are."""
    honest, count = compiler.answer, itertools.count()

    def one_wrong(*arguments: Any) -> Prediction:
        said = honest(*arguments)
        is_the_one = next(count) == 20
        return replace(said, probabilities=(*said.probabilities[:2], float("nan"))) if is_the_one else said

    monkeypatch.setattr(compiler, "answer", one_wrong)
    with pytest.raises(NotCompiled, match="differ by up to nan"):
        compile_export(export, tmp_path / "x.onnx", open_probe)


def test_the_proof_sees_another_network(compiled_demo: Path, compiled: Callable[[str], Path]) -> None:
    """The proof is of the graph: that of another learner with the same labels does not pass for the demo's."""
    card = read_card(compiled_demo)
    asked = [
        Asked("x", partial(bytes, probe.picture), Prediction(probe.success, tuple(p for _, p in probe.probabilities)))
        for probe in card.probes
    ]
    assert prove(graph_of(compiled_demo), card, asked, open_probe) < 1e-5
    assert read_card(compiled("plain")).labels == card.labels
    other = replace(card, recipe=read_card(compiled("plain")).recipe)
    with pytest.raises(NotCompiled, match="another label"):
        prove(graph_of(compiled("plain")), other, asked, open_probe)


@pytest.mark.parametrize("kind", FACTORIES)
def test_factories(kind: str, tmp_path: Path) -> None:
    """Learners as people make them, by each of fastai's factories and losses, from tables and lists too."""
    card = compile_export(export_as_people_do(tmp_path / "it", kind), tmp_path / "x.onnx", open_probe)
    assert card.proof.largest_difference < 1e-5


@pytest.mark.parametrize("kind", ["grey", "is_cat", "multi-label"])
def test_kinds(kind: str, tmp_path: Path) -> None:
    """Grey pictures, labels that are True and False, several labels with a threshold of their own."""
    card = compile_export(export_learner(tmp_path / kind, kind), tmp_path / "x.onnx", open_probe)
    assert card.recipe.mode == ("L" if kind == "grey" else "RGB")
    assert card.threshold == (0.4 if kind == "multi-label" else None)
    assert isinstance(card.probes[0].success, list) == (kind == "multi-label")
    assert load(tmp_path / "x.onnx").labels == card.labels


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    status = main(["compile", *map(str, arguments)])
    return status, *capsys.readouterr()


def test_command_line(export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command shows its progress and the proof; by default the file lies beside the export."""
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "my.pkl").write_bytes(export.read_bytes())
    status, printed, complaints = run(capsys, tmp_path / "here" / "my.pkl")
    assert (status, complaints) == (0, "")
    assert [step in printed for step in ("opening", "understood: resize", "tracing", "proving")] == [True] * 4
    assert re.search(r"same label as learner.predict        (\d+) of \1", printed)
    assert sorted(path.name for path in (tmp_path / "here").iterdir()) == ["my.onnx", "my.pkl"]


def test_complaints(
    export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What does not work ends with status 1 and one sentence, and leaves no file."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0" + bytes(40))
    (tmp_path / "twisted.pkl").write_bytes(b"\x80\x04N.")
    cases: list[tuple[list[Any], str]] = [
        ([tmp_path / "no.pkl"], "is not there"),
        ([tmp_path / "twisted.pkl", "-o", tmp_path / "x.onnx"], "not what learn.export() writes"),
        ([export, "-o", tmp_path / "x.onnx", "--probes", tmp_path / "empty"], "there is no picture in"),
        ([export, "-o", tmp_path / "no" / "x.onnx"], "cannot be written"),
        ([export, "-o", export], "was not made by this command"),
        ([tmp_path / "gone.pkl", "-o", export], "gone.pkl is not there"),
        (["."], "folder"),
        ([export, "-o", tmp_path / "x.onnx", "--probes", tmp_path / "gone"], "gone is not a folder"),
        ([export, "-o", tmp_path / "x.onnx", "--probes", tmp_path / ("x" * 300)], "cannot be read: File name too long"),
        (
            [export, "-o", tmp_path / "x.onnx", "--probes", tmp_path / "broken"],
            "broken.jpg cannot be used: the",
        ),
        ([export, "-o", tmp_path / "empty"], "is a folder"),
    ]
    for arguments, sentence in cases:
        status, _, complaint = run(capsys, *arguments)
        assert (status, sentence in complaint, complaint.count("\n")) == (1, True, 1), complaint
    monkeypatch.setenv("MODEL_SHA256", "0" * 64)
    status, _, complaint = run(capsys, export, "-o", tmp_path / "x.onnx")
    assert (status, "SHA-256" in complaint) == (1, True)
    assert not (tmp_path / "x.onnx").exists()


def test_a_network_that_cannot_be_traced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network whose way depends on what it sees is refused, with the exporter's first line."""
    from torch import nn

    from pigeonhole.model.learner import open_learner
    from pigeonhole.model.pipeline import understand

    class Fickle(nn.Module):  # type: ignore[misc]
        def forward(self, batch: Any) -> Any:
            if batch.mean().item() > 0.5:
                return batch.mean((2, 3))
            return batch.amax((2, 3))

    class Pair(nn.Module):  # type: ignore[misc]
        def forward(self, batch: Any) -> Any:
            return batch.mean((2, 3)), batch

    class Broad(nn.Module):  # type: ignore[misc]
        def forward(self, batch: Any) -> Any:
            return batch.mean(1)

    engine = open_learner(FOLDER / "plain.pkl")
    pipeline = understand(engine.learner, engine.mode)
    with pytest.raises(NotCompiled, match="the network cannot be traced"):
        tracing.trace(replace(pipeline, network=Fickle()), 3)
    with pytest.raises(NotCompiled, match="the network cannot be traced"):
        tracing.trace(replace(pipeline, network=Pair()), 3)
    with pytest.raises(NotCompiled, match=r"answers in the shape \(2, 64, 64\), not \(2, 10\)"):
        tracing.trace(replace(pipeline, network=Broad()), 10)
