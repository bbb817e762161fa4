"""Compile a learner: its export.pkl becomes export.onnx, proven against `learner.predict` before it is written.

The item transforms become a recipe, everything behind them one ONNX graph: uint8 N×H×W×C in, probabilities N×labels
out, N free. The same export compiled by the same packages on the same machine gives the same bytes.
"""

from __future__ import annotations

import importlib.metadata
import io
import logging
import os
import platform
import warnings
from collections.abc import Callable, Collection, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pigeonhole import __version__
from pigeonhole.errors import CompiledFileError, NotCompiled, PackagesMissing
from pigeonhole.model.card import Card, Probe, Proof, sha256_of, write_compiled
from pigeonhole.model.doctor import notebook_beside
from pigeonhole.model.engine import OpenVINONetwork, answer
from pigeonhole.model.known_answers import EXACT, OpenPhoto, difference
from pigeonhole.model.learner import LearnerEngine, open_learner
from pigeonhole.model.pipeline import Pipeline, understand
from pigeonhole.model.predictor import Prediction
from pigeonhole.model.probes import candidates, most_telling

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

OPSET = 20  # of ONNX
INPUT, OUTPUT = "pictures", "probabilities"
PACKAGES = ("fastai", "timm", "torch", "torchvision", "onnx", "onnxscript", "openvino", "numpy", "pillow")
NAMED = 20  # pictures whose answer differs that a refusal names

Progress = Callable[[str], None]


def compile_export(
    export: Path,
    output: Path,
    open_photo: OpenPhoto,
    photos: Sequence[Path] = (),
    sha256: str | None = None,
    allowed: Collection[str] = (),
    tell: Progress = lambda step: None,
) -> Card:
    """Compile the learner in `export` to `output`, which is replaced only when the proof holds.

    `photos` are the user's, for the proof only; the file holds none of them. `sha256` and `allowed` are those of
    `open_learner`.

    Raises:
        NotCompiled: the learner holds what is not understood, or the compiled model does not answer as it does.
        ModelFileError, PackagesMissing: the learner cannot be opened.
        CompiledFileError: `output` cannot be written.
    """
    _check_packages()
    _check_place(output, export)
    tell(f"opening {export}")
    engine = open_learner(export, sha256, allowed)
    pipeline = understand(engine.learner, engine.mode)
    tell(f"understood: {pipeline.recipe}; {', '.join(map(str, pipeline.batch))}; {pipeline.activation}")
    pictures = [*candidates(pipeline.recipe), *(photo.read_bytes() for photo in photos)]
    tell(f"asking learner.predict about {len(pictures)} pictures")
    with _nothing_random():
        probes = [_asked(engine, open_photo, picture) for picture in pictures]
    tell("tracing the network")
    graph = trace(pipeline, len(engine.labels))
    card = Card(
        labels=engine.labels,
        recipe=pipeline.recipe,
        threshold=pipeline.threshold,
        source=_sha256(export),
        notebook=_sha256(notebook_beside(export)),
        proof=Proof(0, 0, 0, 0.0),
        probes=(),
        versions=_versions(),
    )
    tell("proving")
    names = [*(f"built-in {number}" for number in range(len(pictures) - len(photos))), *map(str, photos)]
    proof = replace(prove(graph, card, probes, names, open_photo), photos=len(photos))
    built_in = probes[: len(probes) - len(photos)]
    card = replace(card, proof=proof, probes=most_telling(built_in))
    write_compiled(output, graph, card)
    return card


def as_table(card: Card, output: Path) -> str:
    """The proof, for people."""
    proof = card.proof
    rows = [
        ("pictures", f"{proof.pictures}, of which {proof.photos} yours"),
        ("same label as learner.predict", f"{proof.same_labels} of {proof.pictures}"),
        ("largest difference of a probability", f"{proof.largest_difference:.1e} (allowed: {EXACT:g})"),
        ("compiled from SHA-256", card.source),
        ("written", f"{output}, {output.stat().st_size / 1e6:.1f} MB"),
    ]
    return "\n".join(f"{name:<37}{value}" for name, value in rows)


def prove(graph: bytes, card: Card, probes: Sequence[Probe], names: Sequence[str], open_photo: OpenPhoto) -> Proof:
    """Compare the graph in float32 with what the learner said of the probes.

    Raises:
        NotCompiled: one label differs, or a probability by more than `EXACT`.
    """
    import openvino

    network = OpenVINONetwork(openvino.Core().read_model(graph), "float32", cores=1)
    answers = [_answered(network, card, open_photo, probe) for probe in probes]
    largest = max(difference(answer, card, probe) for answer, probe in zip(answers, probes, strict=True))
    wrong = [
        name for name, answer, probe in zip(names, answers, probes, strict=True) if answer.success != probe.success
    ]
    if wrong:
        raise NotCompiled(
            f"the compiled model gives another label for {len(wrong)} of {len(probes)} pictures "
            f"({', '.join(wrong[:NAMED])}); probabilities differ by up to {largest:.2g}."
        )
    if not largest <= EXACT:
        raise NotCompiled(f"the compiled model's probabilities differ by up to {largest:.2g}; {EXACT:g} is allowed.")
    return Proof(len(probes), 0, len(probes) - len(wrong), largest)


def _answered(network: OpenVINONetwork, card: Card, open_photo: OpenPhoto, probe: Probe) -> Prediction:
    picture = open_photo(io.BytesIO(probe.picture)).decoded()
    return answer(card, network(card.recipe.apply(picture)))


def _asked(engine: LearnerEngine, open_photo: OpenPhoto, picture: bytes) -> Probe:
    prediction = engine.predict(open_photo(io.BytesIO(picture)))
    return Probe(picture, prediction.success, tuple(zip(engine.labels, prediction.probabilities, strict=True)))


def trace(pipeline: Pipeline, labels: int) -> bytes:
    """The graph behind the recipe as an ONNX model, serialized.

    Raises:
        NotCompiled: the network does something that torch.export or ONNX cannot express.
    """
    import torch

    assert pipeline.recipe.size is not None
    width, height = pipeline.recipe.size
    example = torch.zeros(2, height, width, pipeline.recipe.channels, dtype=torch.uint8)
    graph = _graph_of(pipeline)
    with torch.no_grad():
        shape = tuple(graph(example).shape)
    if shape != (2, labels):
        raise NotCompiled(f"for two pictures the network answers in the shape {shape}, not (2, {labels}).")
    try:
        with _silence():
            program = torch.onnx.export(
                graph,
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes={"pictures": {0: torch.export.Dim("N", min=1)}},
                verbose=False,
            )
    except Exception as error:
        first_line = next(iter(str(error).strip().splitlines()), "")
        raise NotCompiled(f"the network cannot be traced ({type(error).__name__}: {first_line}).") from error
    assert program is not None
    return _tidied(program.model_proto)


def _graph_of(pipeline: Pipeline) -> Any:
    import torch

    class Graph(torch.nn.Module):
        """From uint8 N×H×W×C to probabilities."""

        def __init__(self) -> None:
            super().__init__()
            self.network = pipeline.network.eval()

        def forward(self, pictures: Tensor) -> Tensor:
            batch = pictures.permute(0, 3, 1, 2)
            for step in pipeline.batch:
                batch = step(batch)
            outputs = self.network(batch)
            return torch.softmax(outputs, -1) if pipeline.activation == "softmax" else torch.sigmoid(outputs)

    return Graph().eval()


def _tidied(model: Any) -> bytes:
    """Without what tells of this machine (source files, stack traces), and what nobody needs (shapes in between)."""
    for holder in (model, model.graph, *model.graph.node, *model.graph.initializer, *model.functions):
        holder.doc_string = ""
        del holder.metadata_props[:]
    del model.graph.value_info[:]
    return bytes(model.SerializeToString(deterministic=True))


@contextmanager
def _silence() -> Iterator[None]:
    """The exporter prints and warns of its own inner life."""
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.getLogger().setLevel(level)


@contextmanager
def _nothing_random() -> Iterator[None]:
    """Let fastai's augmentations draw the middle: `RatioResize` draws where it crops even when it predicts."""
    from types import SimpleNamespace

    import fastai.vision.augment as augment

    before = augment.random
    augment.random = SimpleNamespace(random=lambda: 0.5)
    try:
        yield
    finally:
        augment.random = before


def _check_place(output: Path, export: Path) -> None:
    """Before minutes are spent, look whether the file can go there."""
    if output.is_dir():
        raise CompiledFileError(f"{output} is a folder; name a file in it.")
    if output.exists() and output.samefile(export):
        raise CompiledFileError(f"{output} is the export itself; name another file.")
    if not os.access(output.parent, os.W_OK):
        raise CompiledFileError(f"{output} cannot be written: its folder is not there, or not writable.")


def _check_packages() -> None:
    for package in ("onnx", "onnxscript", "openvino"):
        try:
            __import__(package)
        except ImportError as error:
            raise PackagesMissing(f"{package} is not installed here; `make serve` installs it.") from error


def _versions() -> dict[str, str]:
    versions = {"pigeonhole": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _sha256(path: Path | None) -> Any:
    if path is None:
        return None
    with path.open("rb") as file:
        return sha256_of(file)
