"""Grad-CAM with torch: find a network's last convolutional features, weigh them, and make of that a graph for ONNX.

The method stands in `pigeonhole.model.explain`. Only what is behind the features takes part in the gradient: the head.
Its backward is traced to plain ATen operations (`make_fx`), so that a compiled model can show where it looked without
torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.fx import GraphModule

NO_FEATURES = (
    "this network has no convolutional features right before its head, as a vision transformer has none; where it "
    "looked cannot be shown."
)


@dataclass(frozen=True)
class Place:
    """The output of `module` when it is called for the `call`th time, from 1, for one batch."""

    module: nn.Module
    call: int


@dataclass(frozen=True)
class Output:
    """What a module gave: where, and in which shape."""

    place: Place
    shape: Sequence[int]

    @property
    def area(self) -> tuple[int, ...]:
        """Height and width of features, N×C×h×w; of anything else nothing."""
        return tuple(self.shape[2:]) if len(self.shape) == 4 and max(self.shape[2:]) > 1 else ()

    def has_tokens(self, area: Sequence[int]) -> bool:
        """Is it N×tokens×channels, or N×h×w×channels, where features have `area`? A pooling only makes them smaller."""
        if len(self.shape) == 3:
            return self.shape[1] > 1
        return any(side > most for side, most in zip(self.area, area, strict=False))


def last_features(network: nn.Module, ask: Callable[[], object]) -> Place | None:
    """Where the last convolutional features are, of all that `network` computes when `ask` calls it.

    They are what is last as large as the output of the last convolution that sees more than a point (those of
    squeeze-and-excitation see one): behind it come a normalization, an activation, the sum of a residual block. None if
    there is no convolution, or if tokens (N×tokens×channels) come behind: of those a place in the picture tells little.
    """
    from torch import nn

    outputs = _outputs(network, ask)
    areas = [output.area for output in outputs if isinstance(output.place.module, nn.Conv2d) and output.area]
    if not areas:
        return None
    last = max(number for number, output in enumerate(outputs) if output.area == areas[-1])
    if any(output.has_tokens(areas[-1]) for output in outputs[last:]):
        return None
    return outputs[last].place


def gradcam(network: nn.Module, place: Place, batch: Tensor, label: int) -> np.ndarray:
    """The heatmap for one label, float32, N×h×w, negative where something speaks against it."""
    import torch

    held: list[Tensor] = []

    def hold(features: Tensor) -> Tensor:
        held.append(features.detach().requires_grad_())
        return held[0].clone()  # what comes next may work in place

    with torch.enable_grad(), passing(place, hold):
        score = network(batch)[:, label].sum()
    (gradient,) = torch.autograd.grad(score, held)
    return np.asarray(_weighed(held[0].detach(), gradient).cpu())


def traced_head(network: nn.Module, place: Place, batch: Tensor) -> GraphModule:
    """From features (N×C×h×w) and the weight of each label (one number each) to N×h×w, as plain operations.

    The head is what `network` does with what it has at `place`; `batch` only shows the shape of a picture.

    Raises:
        Exception: of torch, where the head holds what cannot be traced.
    """
    import torch
    from torch.fx.experimental.proxy_tensor import make_fx

    def heatmap(features: Tensor, weights: Tensor) -> Tensor:
        def score(features: Tensor) -> Tensor:
            with passing(place, lambda _: features.clone()):
                return (network(batch) * weights).sum()

        return _weighed(features, torch.func.grad(score)(features))

    features, outputs = _features(network, place, batch[:1])
    labels = outputs.shape[1]
    # lengths that are the same are taken for one another, and how many pictures there are must stay free
    pictures = next(number for number in count(2) if number not in (*features.shape[1:], labels))
    batch = batch[:1].expand(pictures, -1, -1, -1).contiguous()
    features = features.expand(pictures, -1, -1, -1).contiguous()  # in plain order: ONNX knows no strides
    graph = make_fx(
        torch.func.functionalize(heatmap),
        tracing_mode="symbolic",
        decomposition_table=_decompositions(),
        _allow_non_fake_inputs=True,
    )(features, torch.zeros(labels))
    # the body, in front of the features, adds nothing
    graph.graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
    return torch.fx.GraphModule(graph, graph.graph)  # which takes the weights along that it needs, and no others


@contextmanager
def passing(place: Place, through: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Let what comes out at `place` pass `through`, and go on with what that gives."""
    calls = 0

    def hook(module: nn.Module, given: Any, output: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return through(output) if calls == place.call else output

    handle = place.module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def holding(place: Place) -> Iterator[list[Tensor]]:
    """Note what comes out at `place`; what is behind gets a copy, for it may work in place."""
    held: list[Tensor] = []

    def through(features: Tensor) -> Tensor:
        held.append(features)
        return features.clone()

    with passing(place, through):
        yield held


def _outputs(network: nn.Module, ask: Callable[[], object]) -> list[Output]:
    """All tensors that modules give, in the order in which they are done."""
    import torch

    outputs: list[Output] = []
    calls: dict[nn.Module, int] = {}

    def note(module: nn.Module, given: Any, output: Any) -> None:
        calls[module] = calls.get(module, 0) + 1
        if isinstance(output, torch.Tensor):
            outputs.append(Output(Place(module, calls[module]), output.shape))

    handles = [module.register_forward_hook(note) for module in network.modules()]
    try:
        ask()
    finally:
        for handle in handles:
            handle.remove()
    return outputs


def _features(network: nn.Module, place: Place, batch: Tensor) -> tuple[Tensor, Tensor]:
    """What comes out at `place`, and in the end."""
    import torch

    with torch.no_grad(), holding(place) as held:
        outputs = network(batch)
    return held[0], outputs


def _weighed(features: Tensor, gradient: Tensor) -> Tensor:
    return (gradient.mean((2, 3), keepdim=True) * features).sum(1)


def _decompositions() -> dict[Any, Callable[..., Any]]:
    """What ONNX does not know, in operations that it knows: torch's own list, and backward passes of a head.

    A mean over all places follows, so it does not matter which of several largest values a pooling passes its gradient
    to.
    """
    import torch
    from torch._decomp import core_aten_decompositions

    aten = torch.ops.aten

    def largest(features: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
        if any(length != 1 for length in size):
            return NotImplemented
        values = features.amax((-2, -1), keepdim=True)
        return values, torch.zeros_like(values, dtype=torch.int64)

    def largest_backward(gradient: Tensor, features: Tensor, indices: Tensor) -> Tensor:
        is_largest = (features == features.amax((-2, -1), keepdim=True)).to(features.dtype)
        return gradient * is_largest / is_largest.sum((-2, -1), keepdim=True)

    def max_pool_backward(gradient: Tensor, features: Tensor, *options: Any) -> Tensor:
        indices = options[-1]
        flat = torch.zeros_like(features).flatten(-2)
        return flat.scatter_add(-1, indices.flatten(-2), gradient.flatten(-2)).view(features.shape)

    def mean_backward(gradient: Tensor, features: Tensor) -> Tensor:
        rows, columns = (_shares(int(features.shape[side]), int(gradient.shape[side])) for side in (-2, -1))
        return rows.T @ gradient @ columns

    def point_convolution_backward(
        gradient: Tensor, features: Tensor, weight: Tensor, bias: Any, stride: Any, *options: Any
    ) -> tuple[Tensor | None, ...]:
        if any(length != 1 for length in (*weight.shape[2:], *stride)) or options[-1][1] or options[-1][2]:
            return NotImplemented
        padding, dilation, _, nothing, groups, _ = options
        return aten.convolution(gradient, weight, None, stride, padding, dilation, True, nothing, groups), None, None

    return {
        **core_aten_decompositions(),
        aten.adaptive_max_pool2d.default: largest,
        aten.adaptive_max_pool2d_backward.default: largest_backward,
        aten._adaptive_avg_pool2d_backward.default: mean_backward,
        aten.convolution_backward.default: point_convolution_backward,
        aten.max_pool2d_with_indices_backward.default: max_pool_backward,
    }


def _shares(before: int, after: int) -> Tensor:
    """What each of `before` rows adds to each of `after` rows, after × before, when they are pooled to means.

    Row i is the mean of those from floor(i·before/after) to ceil((i+1)·before/after), as torch.nn.AdaptiveAvgPool2d
    has it.
    """
    import torch

    parts = [(row * before // after, -(-(row + 1) * before // after)) for row in range(after)]
    return torch.tensor([[(begin <= row < end) / (end - begin) for row in range(before)] for begin, end in parts])
