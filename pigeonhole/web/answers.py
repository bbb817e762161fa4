"""What is answered, by our own routes and to every error, as types."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pigeonhole.model.predictor import Prediction
from pigeonhole.web.schemas import LeftOut, ResponseModel

Labels = str | list[str]  # of one picture; a list of a multi-label model


class Pong(ResponseModel):
    """The service is alive."""

    example = {"success": "pong"}

    success: Literal["pong"] = "pong"


class Ready(ResponseModel):
    """What answers, and how."""

    example = {"success": "ready", "engine": "compiled", "precision": "float32", "model_sha256": "0123456789abcdef" * 4}

    success: Literal["ready"] = "ready"
    engine: str
    precision: str | LeftOut = None
    model_sha256: str | LeftOut = None


class Likely(ResponseModel):
    """A label and how probable it is, from 0 to 1."""

    example = {"label": "sparrow", "probability": 0.98}

    label: str
    probability: float


class Answer(ResponseModel):
    """The label, or a list in the order of the pictures; of a multi-label model, lists of labels.

    `predictions` is there where `top` asked for it.
    """

    example = {"success": "sparrow", "predictions": [Likely.example, {"label": "finch", "probability": 0.02}]}

    success: Labels | list[Labels]
    predictions: list[Likely] | list[list[Likely]] | LeftOut = None


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
