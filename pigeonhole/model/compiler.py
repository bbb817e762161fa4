"""Compile a learner: its export.pkl becomes export.onnx, proven against `learner.predict` before it is written.

The item transforms become a recipe, everything behind them one ONNX graph. The same export compiled by the same
packages on the same machine gives the same bytes.
"""

from __future__ import annotations

import importlib.metadata
import io
import os
import platform
from collections.abc import Callable, Collection, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pigeonhole import __version__
from pigeonhole.errors import CompiledFileError, FolderError, NotCompiled, PackagesMissing, RequestError
from pigeonhole.model.card import FEATURES, Card, Probe, Proof, is_ours, sha256_of_file, write_compiled
from pigeonhole.model.doctor import notebook_beside
from pigeonhole.model.engine import OpenVINONetwork, answer, margin, openvino_core
from pigeonhole.model.explainer import Explainer
from pigeonhole.model.export.container import check_file
from pigeonhole.model.known_answers import EXACT, EXACT_GRID, OpenPhoto, agree, deviation, furthest, grid_difference
from pigeonhole.model.learner import LearnerEngine, open_learner
from pigeonhole.model.pipeline import Pipeline, understand
from pigeonhole.model.predictor import Photo, Prediction
from pigeonhole.model.probes import Judged, blends, candidates, most_telling
from pigeonhole.model.recipe import Recipe
from pigeonhole.model.tracing import answering, first_line, trace

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGES = ("fastai", "timm", "torch", "torchvision", "onnx", "onnxscript", "openvino", "numpy", "pillow")
NOT_BY_COMPILED = "where this network looked cannot be shown by the compiled model, only with ENGINE=learner."
NAMED = 5  # pictures whose answer differs that a refusal names

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
    graph, unexplained = _traced(pipeline, engine, tell)
    tell("proving")
    card = _unproven(engine, pipeline, notebook_sha256, unexplained)
    card = replace(card, proof=Proof(len(asked), len(photos), prove(graph, card, asked, open_photo)))
    if unexplained is None:
        tell("proving where it looks")
        with _nothing_random():
            built_in = [_with_grid(picture, engine, open_photo) for picture in built_in]
        graph, card = _with_proven_grids(graph, card, built_in, pipeline, open_photo, tell)
    judged = [_judged(picture, engine, pipeline, open_photo) for picture in built_in]
    card = replace(card, probes=most_telling(judged))
    write_compiled(output, graph, card)
    return card


@dataclass(frozen=True)
class Asked:
    """A picture, by a name to complain of it under, and what learner.predict said of it.

    `grid` is where it looked for the most probable label, if that was asked and can be told.
    """

    name: str
    read: Callable[[], bytes]
    said: Prediction
    grid: np.ndarray | None = None


def as_table(card: Card, output: Path) -> str:
    """The proof, for people."""
    proof = card.proof
    rows = [
        ("pictures", f"{proof.pictures}, of which {proof.photos} yours"),
        ("same label as learner.predict", f"{proof.pictures} of {proof.pictures}"),
        ("largest difference of a probability", f"{proof.largest_difference:.1e} (allowed: {EXACT:g})"),
        ("where it looks", _grids_in_words(card)),
        ("compiled from SHA-256", card.source),
        ("written", f"{output}, {output.stat().st_size / 1e6:.1f} MB"),
    ]
    return "\n".join(f"{name:<37}{value}" for name, value in rows)


def _grids_in_words(card: Card) -> str:
    largest = card.proof.largest_grid_difference
    return card.unexplained or f"heatmaps differ by {largest:.1e} (allowed: {EXACT_GRID:g})"


def prove(graph: bytes, card: Card, asked: Sequence[Asked], open_photo: OpenPhoto) -> float:
    """Compare the graph in float32 with what the learner said, and return the largest difference of a probability.

    Raises:
        NotCompiled: one label differs, or a probability by more than `EXACT`, or OpenVINO cannot run the graph.
    """
    try:
        network = OpenVINONetwork(openvino_core().read_model(graph), "float32", cores=1)
        answers = [_answered(network, card, open_photo(io.BytesIO(picture.read()))) for picture in asked]
    except RuntimeError as error:
        raise NotCompiled(f"OpenVINO cannot run the network ({first_line(error)}).") from error
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


def prove_explanations(graph: bytes, card: Card, asked: Sequence[Asked], open_photo: OpenPhoto) -> float:
    """Compare where the graph looks with where the learner did, and return the largest difference of a grid.

    Raises:
        NotCompiled: one differs by more than `EXACT_GRID`, or OpenVINO cannot run that part of the graph.
    """
    try:
        model = openvino_core().read_model(graph)
        explainer = Explainer(model, OpenVINONetwork(model, "float32", cores=1, also=(FEATURES,)), cores=1)
        grids = [
            explainer.explain(card, card.recipe.apply(open_photo(io.BytesIO(picture.read())).decoded()))[1].grid
            for picture in asked
        ]
    except RuntimeError as error:
        raise NotCompiled(f"OpenVINO cannot run what shows it ({first_line(error)}).") from error
    largest = max(grid_difference(grid, picture.grid) for grid, picture in zip(grids, asked, strict=True))
    if not largest <= EXACT_GRID:
        raise NotCompiled(f"its heatmaps differ from the learner's by up to {largest:.2g}; {EXACT_GRID:g} is allowed.")
    return largest


def _traced(pipeline: Pipeline, engine: LearnerEngine, tell: Progress) -> tuple[bytes, str | None]:
    """The graph, and why it does not show where it looked; None if it does."""
    labels = len(engine.labels)
    if engine.features is None:
        return trace(pipeline, labels), engine.why_unexplained
    try:
        return trace(pipeline, labels, engine.features), None
    except NotCompiled as error:
        graph = trace(pipeline, labels)  # raises again where heatmaps are not to blame
        tell(f"compiling it without heatmaps: {error}")
        return graph, NOT_BY_COMPILED


def _with_proven_grids(
    graph: bytes, card: Card, asked: Sequence[Asked], pipeline: Pipeline, open_photo: OpenPhoto, tell: Progress
) -> tuple[bytes, Card]:
    """Both with the proof of where the graph looks; if it does not hold, without anything that shows it."""
    try:
        largest = prove_explanations(graph, card, asked, open_photo)
    except NotCompiled as error:
        tell(f"compiling it without heatmaps: {error}")
        return trace(pipeline, len(card.labels)), replace(card, unexplained=NOT_BY_COMPILED)
    return graph, replace(card, proof=replace(card.proof, largest_grid_difference=largest))


def _unproven(engine: LearnerEngine, pipeline: Pipeline, notebook: str | None, unexplained: str | None) -> Card:
    return Card(
        labels=engine.labels,
        recipe=pipeline.recipe,
        threshold=pipeline.threshold,
        source=engine.about["model_sha256"],  # of the bytes that were opened
        notebook=notebook,
        proof=Proof(0, 0, 0.0),
        probes=(),
        unexplained=unexplained,
        versions=_versions(),
    )


def _answered(network: OpenVINONetwork, card: Card, photo: Photo) -> Prediction:
    return answer(card, network(card.recipe.apply(photo.decoded())))


def _asked(engine: LearnerEngine, open_photo: OpenPhoto, name: str, read: Callable[[], bytes]) -> Asked:
    try:
        return Asked(name, read, engine.predict(open_photo(io.BytesIO(read()))))
    except (RequestError, OSError) as error:
        raise FolderError(f"{name} cannot be used: {error}") from error


def _with_grid(asked: Asked, engine: LearnerEngine, open_photo: OpenPhoto) -> Asked:
    _, explanation = engine.explain(open_photo(io.BytesIO(asked.read())))
    return replace(asked, grid=explanation.grid)


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
        fast = answering(pipeline)(pixels)[0].float().numpy()
    exact = np.array(asked.said.probabilities)
    return Judged(
        probe=Probe(
            picture=asked.read(),
            success=asked.said.success,
            probabilities=tuple(zip(engine.labels, asked.said.probabilities, strict=True)),
            grid=None
            if asked.grid is None
            else tuple(tuple(round(float(heat), 5) for heat in row) for row in asked.grid),
        ),
        is_large=photo.reduction(pipeline.recipe.allows_shrinking) > 1,
        margin=margin(exact, pipeline.threshold),
        deviation=max(deviation(exact, fast, pipeline.threshold), default=0.0),
    )


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
