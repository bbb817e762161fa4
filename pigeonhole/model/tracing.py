"""Trace what is behind a learner's recipe, batch transforms, network and activation, and write it as an ONNX model.

uint8 N×H×W×C in, probabilities N×labels out, N free. Where the network has convolutional features, further outputs show
where it looked; what does not ask for them does not compute them.
"""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING, Any

from pigeonhole.errors import NotCompiled
from pigeonhole.model.card import FEATURES, HEATMAP, LABEL_WEIGHTS, PICTURES, PROBABILITIES, SEEN
from pigeonhole.model.gradcam import Place, holding, traced_head
from pigeonhole.model.pipeline import Pipeline, Resample

if TYPE_CHECKING:
    from torch import Tensor, nn

OPSET = 20  # of ONNX
TERMINAL_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def trace(pipeline: Pipeline, labels: int, place: Place | None = None) -> bytes:
    """The ONNX model, serialized; with a `place` of convolutional features, it shows where it looked as well.

    Raises:
        NotCompiled: the network does something that torch.export or ONNX cannot express.
    """
    import torch

    example = example_of(pipeline)
    try:
        graph = answering(pipeline)
        with torch.no_grad():
            shape = tuple(graph(example).shape)
        if shape != (2, labels):
            raise NotCompiled(f"for two pictures the network answers in the shape {shape}, not (2, {labels}).")
        if place is None:
            return _exported(graph, (example,), [PICTURES], [PROBABILITIES])
        return _exported(
            explaining(pipeline, place),
            (example, torch.zeros(labels)),
            [PICTURES, LABEL_WEIGHTS],
            [PROBABILITIES, FEATURES, HEATMAP, *([SEEN] if _resamples(pipeline) else [])],
        )
    except NotCompiled:
        raise
    except Exception as error:  # of the network, of torch.export, of ONNX, which knows no file over 2 GB
        cause = _first_cause(error)
        raise NotCompiled(f"the network cannot be traced ({type(cause).__name__}: {first_line(cause)}).") from error


def example_of(pipeline: Pipeline) -> Tensor:
    """Two black pictures as the graph takes them."""
    import torch

    assert pipeline.recipe.size is not None
    width, height = pipeline.recipe.size
    return torch.zeros(2, height, width, pipeline.recipe.channels, dtype=torch.uint8)


def answering(pipeline: Pipeline) -> Any:
    """A module: from uint8 N×H×W×C to probabilities."""
    import torch

    class Answering(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = pipeline.network.eval()

        def forward(self, pictures: Tensor) -> Tensor:
            return _activated(pipeline, self.network(batch_of(pipeline, pictures)))

    return Answering().eval()


def explaining(pipeline: Pipeline, place: Place) -> Any:
    """A module: from uint8 N×H×W×C and a weight for each label to probabilities, features N×c×h×w and heatmap N×h×w.

    Where batch transforms resample, the pictures that the network saw come last, uint8.
    """
    import torch

    class Explaining(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = pipeline.network.eval()
            self.head = traced_head(pipeline.network, place, batch_of(pipeline, example_of(pipeline)))

        def forward(self, pictures: Tensor, label_weights: Tensor) -> tuple[Tensor, ...]:
            with holding(place) as held:
                outputs = self.network(batch_of(pipeline, pictures))
            (features,) = held
            shown = (_activated(pipeline, outputs), features, self.head(features.contiguous(), label_weights))
            return (*shown, _seen(pipeline, pictures)) if _resamples(pipeline) else shown

    return Explaining().eval()


def batch_of(pipeline: Pipeline, pictures: Tensor) -> Tensor:
    """What the network gets of `pictures`."""
    batch = pictures.permute(0, 3, 1, 2)
    for step in pipeline.batch:
        batch = step(batch)
    return batch


def _first_cause(error: BaseException) -> BaseException:
    """What the exporter's sentences about itself are wrapped around."""
    while error.__cause__:
        error = error.__cause__
    return error


def first_line(error: BaseException) -> str:
    return TERMINAL_COLOURS.sub("", next(iter(str(error).strip().splitlines()), ""))


def _activated(pipeline: Pipeline, outputs: Tensor) -> Tensor:
    import torch

    return torch.softmax(outputs, -1) if pipeline.activation == "softmax" else torch.sigmoid(outputs)


def _resamples(pipeline: Pipeline) -> bool:
    return any(isinstance(step, Resample) for step in pipeline.batch)


def _seen(pipeline: Pipeline, pictures: Tensor) -> Tensor:
    """The pictures after what resamples them, uint8; what else is done to the batch changes values, not places."""
    import torch

    batch = pictures.permute(0, 3, 1, 2).float()
    for step in pipeline.batch:
        batch = step(batch) if isinstance(step, Resample) else batch
    return batch.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def _exported(graph: nn.Module, examples: tuple[Tensor, ...], inputs: Sequence[str], outputs: Sequence[str]) -> bytes:
    import torch

    with torch.no_grad(), _silence():
        program = torch.onnx.export(
            graph,
            examples,
            dynamo=True,
            opset_version=OPSET,
            input_names=inputs,
            output_names=outputs,
            dynamic_shapes=({0: torch.export.Dim("N", min=1)}, *[None] * (len(examples) - 1)),
            verbose=False,
        )
    assert program is not None
    return _tidied(program.model_proto)


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
