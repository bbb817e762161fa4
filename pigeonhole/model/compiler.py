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
import re
import warnings
from collections.abc import Callable, Collection, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pigeonhole import __version__
from pigeonhole.errors import CompiledFileError, FolderError, NotCompiled, PackagesMissing, RequestError
from pigeonhole.model.card import Card, Probe, Proof, is_ours, sha256_of_file, write_compiled
from pigeonhole.model.doctor import notebook_beside
from pigeonhole.model.engine import OpenVINONetwork, answer, margin, openvino_core
from pigeonhole.model.export.container import check_file
from pigeonhole.model.known_answers import EXACT, OpenPhoto, agree, deviation, furthest
from pigeonhole.model.learner import LearnerEngine, open_learner
from pigeonhole.model.pipeline import Pipeline, understand
from pigeonhole.model.predictor import Photo, Prediction
from pigeonhole.model.probes import Judged, blends, candidates, most_telling
from pigeonhole.model.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

OPSET = 20  # of ONNX
INPUT, OUTPUT = "pictures", "probabilities"
PACKAGES = ("fastai", "timm", "torch", "torchvision", "onnx", "onnxscript", "openvino", "numpy", "pillow")
NAMED = 5  # pictures whose answer differs that a refusal names

TERMINAL_COLOURS = re.compile(r"\x1b\[[0-9;]*m")

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
        FolderError: one of the photos cannot be read.
        CompiledFileError: `output` cannot be written.
    """
    _check_packages()
    check_file(export)
    _check_place(output, export)
    tell(f"opening {export}")
    notebook = notebook_beside(export)
    notebook_sha256 = sha256_of_file(notebook) if notebook else None
    engine = open_learner(export, sha256, allowed)
    pipeline = understand(engine.learner, engine.mode)
    tell(f"understood: {pipeline.recipe}; {', '.join(map(str, pipeline.batch))}; {pipeline.activation}")
    tell("asking learner.predict about pictures of ours" + (f" and {len(photos)} of yours" if photos else ""))
    with _nothing_random():
        built_in = _ask_about_ours(engine, open_photo, pipeline.recipe)
        asked = [*built_in, *(_asked(engine, open_photo, str(photo), photo.read_bytes) for photo in photos)]
    tell("tracing the network")
    graph = trace(pipeline, len(engine.labels))
    unproven = Card(
        labels=engine.labels,
        recipe=pipeline.recipe,
        threshold=pipeline.threshold,
        source=engine.about["model_sha256"],  # of the bytes that were opened
        notebook=notebook_sha256,
        proof=Proof(0, 0, 0.0),
        probes=(),
        versions=_versions(),
    )
    tell("proving")
    largest = prove(graph, unproven, asked, open_photo)
    judged = [_judged(picture, engine, pipeline, open_photo) for picture in built_in]
    card = replace(unproven, proof=Proof(len(asked), len(photos), largest), probes=most_telling(judged))
    write_compiled(output, graph, card)
    return card


@dataclass(frozen=True)
class Asked:
    """A picture, by a name to complain of it under, and what learner.predict said of it."""

    name: str
    read: Callable[[], bytes]
    said: Prediction


def as_table(card: Card, output: Path) -> str:
    """The proof, for people."""
    proof = card.proof
    rows = [
        ("pictures", f"{proof.pictures}, of which {proof.photos} yours"),
        ("same label as learner.predict", f"{proof.pictures} of {proof.pictures}"),
        ("largest difference of a probability", f"{proof.largest_difference:.1e} (allowed: {EXACT:g})"),
        ("compiled from SHA-256", card.source),
        ("written", f"{output}, {output.stat().st_size / 1e6:.1f} MB"),
    ]
    return "\n".join(f"{name:<37}{value}" for name, value in rows)


def prove(graph: bytes, card: Card, asked: Sequence[Asked], open_photo: OpenPhoto) -> float:
    """Compare the graph in float32 with what the learner said, and return the largest difference of a probability.

    Raises:
        NotCompiled: one label differs, or a probability by more than `EXACT`, or OpenVINO cannot run the graph.
    """
    try:
        network = OpenVINONetwork(openvino_core().read_model(graph), "float32", cores=1)
        answers = [_answered(network, card, open_photo(io.BytesIO(picture.read()))) for picture in asked]
    except RuntimeError as error:
        raise NotCompiled(f"OpenVINO cannot run the network ({_first_line(error)}).") from error
    pairs = list(zip(asked, answers, strict=True))
    largest = float(np.max([furthest(answer.probabilities, picture.said.probabilities) for picture, answer in pairs]))
    wrong = [picture.name for picture, answer in pairs if answer.success != picture.said.success]
    if wrong:
        raise NotCompiled(
            f"the compiled model gives another label for {len(wrong)} of {len(asked)} pictures "
            f"({', '.join(wrong[:NAMED])}); probabilities differ by up to {largest:.2g}."
        )
    if not largest <= EXACT:
        raise NotCompiled(f"the compiled model's probabilities differ by up to {largest:.2g}; {EXACT:g} is allowed.")
    if not all(agree(answer.probabilities, picture.said.probabilities, card.threshold) for picture, answer in pairs):
        raise NotCompiled("the compiled model's small probabilities differ by more than a hundredth of themselves.")
    return largest


def _answered(network: OpenVINONetwork, card: Card, photo: Photo) -> Prediction:
    return answer(card, network(card.recipe.apply(photo.decoded())))


def _asked(engine: LearnerEngine, open_photo: OpenPhoto, name: str, read: Callable[[], bytes]) -> Asked:
    try:
        return Asked(name, read, engine.predict(open_photo(io.BytesIO(read()))))
    except (RequestError, OSError) as error:
        raise FolderError(f"{name} cannot be used: {error}") from error


def _ask_about_ours(engine: LearnerEngine, open_photo: OpenPhoto, recipe: Recipe) -> list[Asked]:
    """Built-in pictures, and blends of them that the learner finds hard to tell."""

    def ask(name: str, picture: bytes) -> Asked:
        return _asked(engine, open_photo, name, partial(bytes, picture))

    asked = [ask(f"built-in picture {number}", picture) for number, picture in enumerate(candidates(recipe))]
    blended = blends(
        [(picture.read(), picture.said.success) for picture in asked],
        ask=lambda picture: ask("a blend", picture).said.success,
    )
    return asked + [ask(f"built-in blend {number}", picture) for number, picture in enumerate(blended)]


def _judged(asked: Asked, engine: LearnerEngine, pipeline: Pipeline, open_photo: OpenPhoto) -> Judged:
    """What the picture is worth as a probe. torch has bfloat16 on any processor, if slowly."""
    import torch

    photo = open_photo(io.BytesIO(asked.read()))
    pixels = torch.from_numpy(pipeline.recipe.apply(photo.decoded())[None].copy())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        fast = _graph_of(pipeline)(pixels)[0].float().numpy()
    exact = np.array(asked.said.probabilities)
    return Judged(
        probe=Probe(asked.read(), asked.said.success, tuple(zip(engine.labels, asked.said.probabilities, strict=True))),
        is_large=photo.reduction(pipeline.recipe.allows_shrinking) > 1,
        margin=margin(exact, pipeline.threshold),
        deviation=max(deviation(exact, fast, pipeline.threshold), default=0.0),
    )


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
    try:
        with torch.no_grad():
            shape = tuple(graph(example).shape)
        if shape != (2, labels):
            raise NotCompiled(f"for two pictures the network answers in the shape {shape}, not (2, {labels}).")
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
        assert program is not None
        return _tidied(program.model_proto)
    except NotCompiled:
        raise
    except Exception as error:  # of the network, of torch.export, of ONNX, which knows no file over 2 GB
        raise NotCompiled(f"the network cannot be traced ({type(error).__name__}: {_first_line(error)}).") from error


def _first_line(error: Exception) -> str:
    return TERMINAL_COLOURS.sub("", next(iter(str(error).strip().splitlines()), ""))


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
    if output.exists() and not is_ours(output):
        raise CompiledFileError(f"{output} is there, and was not made by this command; move it away, or use -o.")
    if not os.access(output.parent, os.W_OK):
        raise CompiledFileError(f"{output} cannot be written: its folder is not there, or not writable.")


def _check_packages() -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
        import openvino  # noqa: F401
    except ImportError as error:
        raise PackagesMissing(f"{error.name} is not installed here; `make serve` installs it.") from error


def _versions() -> dict[str, str]:
    versions = {"pigeonhole": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
