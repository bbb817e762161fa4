"""Compiled models for tests: of the demo, of the small exports, and with something wrong in them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pigeonhole.intake.pictures import open_probe
from pigeonhole.model.card import Card, read_card, write_compiled
from pigeonhole.model.engine import CompiledEngine
from pigeonhole.model.loading import load_compiled


class Ways(Counter[str]):
    """Counts which ways pictures went."""

    def __call__(self, way: str) -> None:
        self[way] += 1


def load(path: Path, precision: Any = "auto", count: Callable[[str], object] = lambda way: None) -> CompiledEngine:
    return load_compiled(path, open_probe, precision, count=count)


def graph_of(path: Path) -> bytes:
    """The ONNX model in `path` without card and seal."""
    import onnx

    model = onnx.load(path)
    del model.metadata_props[:]
    return bytes(model.SerializeToString(deterministic=True))


def rewritten(path: Path, output: Path, card: Callable[[Card], Card] = lambda card: card, graph: Any = None) -> Path:
    """The compiled file in `path` with another card or graph, sealed anew as if nothing were wrong."""
    write_compiled(output, graph or graph_of(path), card(read_card(path)))
    return output


def with_flipped_bit(path: Path, output: Path, place: int) -> Path:
    """The largest weight of kernel number `place` with the highest bit of its exponent flipped."""
    import onnx

    model = onnx.load_from_string(graph_of(path))
    weighing = {node.input[1] for node in model.graph.node if node.op_type in ("Conv", "Gemm")}
    kernels = [tensor for tensor in model.graph.initializer if tensor.name in weighing]
    weights = onnx.numpy_helper.to_array(kernels[place]).copy()
    bits = weights.reshape(-1).view(np.uint32)
    bits[np.abs(weights).argmax()] ^= 1 << 30
    kernels[place].CopyFrom(onnx.numpy_helper.from_array(weights, kernels[place].name))
    return rewritten(path, output, graph=model.SerializeToString())


def swapped(card: Card, first: int, second: int) -> Card:
    labels = list(card.labels)
    labels[first], labels[second] = labels[second], labels[first]
    return replace(card, labels=tuple(labels))
