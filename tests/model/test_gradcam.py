"""Grad-CAM with torch: the right features of many networks, the paper's arithmetic, and heads as graphs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pigeonhole.model.gradcam import gradcam, last_features, passing, traced_head
from pigeonhole.model.torch_ready import import_torch

torch = import_torch()
nn = torch.nn
LABELS = 5


class Point(nn.Module):  # type: ignore[misc]
    """Squeeze and excitation (Hu et al. 2018): its convolutions see one point."""

    def __init__(self) -> None:
        super().__init__()
        self.weigh = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(6, 6, 1), nn.Sigmoid())

    def forward(self, batch: Any) -> Any:
        return batch * self.weigh(batch)


class Residual(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.activation = nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(inplace=True)

    def forward(self, batch: Any) -> Any:
        return self.activation(batch + self.convolution(batch))


class ChannelsLast(nn.Module):  # type: ignore[misc]
    """As Swin computes: a linear layer over N×h×w×channels."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 40)

    def forward(self, batch: Any) -> Any:
        return self.linear(batch.permute(0, 2, 3, 1)).mean((1, 2))


def body(*more: Any) -> list[Any]:
    return [nn.Conv2d(3, 6, 3, stride=4, padding=1), nn.ReLU(), *more]


def pooled(*more: Any) -> list[Any]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), *more]


def network(*layers: Any) -> Any:
    torch.manual_seed(1)
    made = nn.Sequential(*(copy.deepcopy(layer) for layer in layers)).eval()
    for module in made.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.normal_(module.weight, std=0.5)
    return made


PLACES = {
    "an activation follows": ([*body(), *pooled(nn.Linear(6, LABELS))], 1),
    "a residual block": ([*body(Residual()), *pooled(nn.Linear(6, LABELS))], 2),
    "squeeze and excitation": ([*body(Point()), *pooled(nn.Linear(6, LABELS))], 2),
    "a smaller pooling behind": ([*body(nn.MaxPool2d(2)), nn.Flatten(), nn.Linear(96, LABELS)], 1),
    "maps of the labels": ([*body(nn.Conv2d(6, LABELS, 1)), *pooled()], 2),
    "tokens behind": ([*body(), nn.Flatten(2), nn.Linear(64, 3), nn.Flatten(), nn.Linear(18, LABELS)], None),
    "channels last behind": ([*body(ChannelsLast()), nn.Linear(40, LABELS)], None),
    "no convolution": ([nn.Flatten(), nn.Linear(3 * 32 * 32, LABELS)], None),
    "one point all along": ([nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, LABELS, 1), nn.Flatten()], None),
}
BATCH = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", PLACES)
def test_the_last_features(kind: str) -> None:
    """They are the last that are as large as what the last real convolution gives; behind tokens there are none."""
    layers, expected = PLACES[kind]
    net = network(*layers)
    place = last_features(net, lambda: net(BATCH))
    assert (place and place.module) is (None if expected is None else net[expected])


def test_arithmetic() -> None:
    """Behind a mean and a linear layer the heatmap is that of class activation mapping (Zhou et al. 2016)."""
    net = network(*body(), *pooled(nn.Linear(6, LABELS)))
    features = net[:2](BATCH).detach()
    expected = torch.einsum("nkij,k->nij", features, net[4].weight[3].detach()) / (8 * 8)
    place = last_features(net, lambda: net(BATCH))
    assert np.abs(gradcam(net, place, BATCH, 3) - expected.numpy()).max() < 1e-7


def test_a_module_called_twice() -> None:
    """Of an activation that the network shares, the last call counts."""
    shared = nn.ReLU()
    net = nn.Sequential(nn.Conv2d(3, 6, 3), shared, nn.Conv2d(6, 6, 3), shared, *pooled(nn.Linear(6, LABELS))).eval()
    place = last_features(net, lambda: net(BATCH))
    assert (place.module, place.call) == (shared, 2)
    assert gradcam(net, place, BATCH, 0).shape == (2, 28, 28)


def test_nothing_is_left() -> None:
    """No hook and no gradient stays on the network, whatever happens in between."""
    net = network(*body(), *pooled(nn.Linear(6, LABELS)))
    place = last_features(net, lambda: net(BATCH))
    gradcam(net, place, BATCH, 0)
    with pytest.raises(IndexError):
        gradcam(net, place, BATCH, LABELS)
    with pytest.raises(ZeroDivisionError), passing(place, lambda features: features / (1 // 0)):
        net(BATCH)
    assert [module for module in net.modules() if module._forward_hooks or module._forward_pre_hooks] == []
    assert [name for name, parameter in net.named_parameters() if parameter.grad is not None] == []


def fastais_head() -> list[Any]:
    from fastai.vision.learner import create_head

    return [create_head(6, LABELS, lin_ftrs=[7])]


HEADS: dict[str, Callable[[], list[Any]]] = {
    "a linear layer": lambda: pooled(nn.Linear(6, LABELS)),
    "fastai's": fastais_head,
    "works in place": lambda: [nn.ReLU(inplace=True), *pooled(nn.Linear(6, LABELS), nn.ReLU(inplace=True))],
    "max-pooled": lambda: [nn.MaxPool2d(2), nn.Flatten(), nn.Linear(96, LABELS)],
    "overlapping maxima": lambda: [nn.MaxPool2d(3, 2, 1), nn.Flatten(), nn.Linear(96, LABELS)],
    "pooled to two by two": lambda: [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, LABELS)],
    "pooled to shares of three": lambda: [nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(54, LABELS)],
    "not pooled": lambda: [nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Linear(384, LABELS)],
    "convolutions of a point": lambda: [
        nn.AdaptiveAvgPool2d(1),
        nn.Conv2d(6, 9, 1),
        nn.Hardswish(),
        nn.Flatten(),
        nn.Linear(9, LABELS),
    ],
    "normalized": lambda: pooled(nn.LayerNorm(6), nn.BatchNorm1d(6), nn.GELU(), nn.Linear(6, LABELS)),
}


@pytest.mark.parametrize("head", HEADS)
def test_traced_heads(head: str) -> None:
    """A head as a graph gives what torch's gradient gives, of other pictures and of one, and holds nothing else."""
    net = network(*body(), *HEADS[head]())
    place = last_features(net, lambda: net(BATCH))
    graph = traced_head(net, place, torch.zeros(2, 3, 32, 32))
    features = net[:2](BATCH).detach()
    weights = torch.eye(LABELS)[2]
    expected = gradcam(net, place, BATCH, 2)
    assert np.abs(expected).max() > 0
    for count in (1, 2):
        found = graph(features[:count], weights).detach().numpy()
        assert np.abs(found - expected[:count]).max() <= 1e-5 * np.abs(expected).max()
    parameters = {parameter.data_ptr() for parameter in graph.parameters()}
    assert parameters <= {parameter.data_ptr() for parameter in net[2:].parameters()}


def test_as_many_labels_as_pictures() -> None:
    """Two labels and two pictures in the example are not taken for the same number."""
    net = network(*body(), *pooled(nn.Linear(6, 2)))
    place = last_features(net, lambda: net(BATCH))
    graph = traced_head(net, place, BATCH)
    assert graph(torch.rand(1, 6, 8, 8), torch.eye(2)[0]).shape == (1, 8, 8)
