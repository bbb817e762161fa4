"""Show where a compiled model looked: the further outputs of export.onnx in OpenVINO, without torch.

What answers, and the features it comes to, is one network; the head's backward, which turns features into a heatmap, is
another, a thousandth of its size. So only a request that asks where the model looked pays for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pigeonhole.model.card import FEATURES, HEATMAP, LABEL_WEIGHTS, PICTURES, SEEN, Card
from pigeonhole.model.engine import OpenVINONetwork, answer, compile_part, part
from pigeonhole.model.explain import Explanation, as_picture, normalized
from pigeonhole.model.predictor import Prediction

if TYPE_CHECKING:
    import openvino


class Explainer:
    """Answers in float32 and says where it looked; may be called from many threads at once.

    `model` is that of export.onnx, with all its outputs; `network` is its part that answers, with the features along.
    """

    def __init__(self, model: openvino.Model, network: OpenVINONetwork, cores: int) -> None:
        self._network = network
        self._heatmap = compile_part(part(model, [HEATMAP], [LABEL_WEIGHTS], begin=FEATURES), "float32", cores)
        has_seen = any(SEEN in output.get_names() for output in model.outputs)
        self._seen = compile_part(part(model, [SEEN], [PICTURES]), "float32", cores) if has_seen else None

    def explain(self, card: Card, pixels: np.ndarray, label: str | None = None) -> tuple[Prediction, Explanation]:
        """Of uint8 `pixels`, height × width × channels: the answer, and where it looked for `label`."""
        probabilities, features = self._network.outputs(pixels)
        prediction = answer(card, probabilities)
        index = prediction.index_of(label, card.labels)
        weights = np.zeros(len(card.labels), np.float32)
        weights[index] = 1
        heatmap = _infer(self._heatmap, {FEATURES: features[None], LABEL_WEIGHTS: weights})
        seen = pixels if self._seen is None else _infer(self._seen, {PICTURES: pixels[None]})
        return prediction, Explanation(card.labels[index], as_picture(seen), normalized(heatmap))


def _infer(compiled: openvino.CompiledModel, inputs: dict[str, Any]) -> np.ndarray:
    request = compiled.create_infer_request()
    request.infer(inputs)
    return np.array(request.get_output_tensor().data[0])
