"""What is answered, by our own routes and to every error, as types."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Literal

from PIL import Image

from pigeonhole.model.explain import Explanation
from pigeonhole.model.predictor import Prediction
from pigeonhole.web.schemas import LeftOut, ResponseModel

Labels = str | list[str]  # of one picture; a list of a multi-label model


class Pong(ResponseModel):
    """The service is alive."""

    example = {"success": "pong"}

    success: Literal["pong"] = "pong"


class Ready(ResponseModel):
    """What answers, and how."""

    example = {
        "success": "ready",
        "engine": "compiled",
        "precision": "float32",
        "device": "cpu",
        "model_sha256": "0123456789abcdef" * 4,
    }

    success: Literal["ready"] = "ready"
    engine: str
    precision: str | LeftOut = None
    device: str | LeftOut = None
    model_sha256: str | LeftOut = None


class Likely(ResponseModel):
    """A label and how probable it is, from 0 to 1."""

    example = {"label": "sparrow", "probability": 0.98}

    label: str
    probability: float


class Explained(ResponseModel):
    """Where the model looked for a label: Grad-CAM, as an `overlay` over what the model saw, or as numbers.

    As numbers, `picture` is what the model saw, cut and resized, and `heatmap` its rows from the top, over all of it:
    from 0, which says nothing for the label, to 1. Pictures are data URIs of PNGs.
    """

    example = {"label": "sparrow", "picture": "data:image/png;base64,…", "heatmap": [[0, 0.25], [0.5, 1]]}

    label: str
    overlay: str | LeftOut = None
    picture: str | LeftOut = None
    heatmap: list[list[float]] | LeftOut = None


class Answer(ResponseModel):
    """The label, or a list in the order of the pictures; of a multi-label model, lists of labels.

    `predictions` is there where `top` asked for it, `explanation` where `explain` did.
    """

    example = {"success": "sparrow", "predictions": [Likely.example, {"label": "finch", "probability": 0.02}]}

    success: Labels | list[Labels]
    predictions: list[Likely] | list[list[Likely]] | LeftOut = None
    explanation: Explained | list[Explained] | LeftOut = None


class Problem(ResponseModel):
    """Every error: a sentence for a person, a stable code for a program, and the request's id for a report."""

    example = {"error": "what was seen, and what is allowed.", "code": "no_image", "request_id": "0123456789abcdef" * 2}

    error: str
    code: str
    request_id: str


def likely(prediction: Prediction, labels: Sequence[str], top: int | Literal["all"]) -> list[Likely]:
    """The `top` most probable labels, best first."""
    pairs = prediction.ranked(labels)
    return [Likely(label=label, probability=value) for label, value in (pairs if top == "all" else pairs[:top])]


def explained(explanation: Explanation, how: Literal[True, "raw"]) -> Explained:
    """As an overlay, or `raw`: as the picture and numbers."""
    if how == "raw":
        heatmap = [[round(float(heat), 4) for heat in row] for row in explanation.grid]
        return Explained(label=explanation.label, picture=data_uri(explanation.seen), heatmap=heatmap)
    return Explained(label=explanation.label, overlay=data_uri(explanation.overlay()))


def data_uri(picture: Image.Image) -> str:
    return "data:image/png;base64," + base64.b64encode(png(picture)).decode()


def png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)  # three times as fast as the default, and a tenth larger
    return file.getvalue()
