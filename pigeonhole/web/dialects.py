"""Other systems' addresses and answers, on top of the same classifier: their clients need no change.

`/upload` and `/classify-url` are those of Simon Willison's Cougar or Not (and of the snakes API made after it),
`/api/v1/model/predict` that of the MLflow template, and `/image-recognition` that of the FastAPI and Grad-CAM course.
Errors are ours.
"""

from __future__ import annotations

import base64
from typing import Annotated, Literal

from pydantic import Field, WithJsonSchema

from pigeonhole.errors import BadBase64, NotAvailable
from pigeonhole.web.answers import Labels, png
from pigeonhole.web.api import API, OF_URLS
from pigeonhole.web.bodies import JSON, Encoding, Form, Submission
from pigeonhole.web.classifier import Classifier
from pigeonhole.web.examples import ADDRESS, PICTURE
from pigeonhole.web.prediction_request import Base64, InQuery
from pigeonhole.web.schemas import ResponseModel

TAG = "Clients of other systems"


PAIR = {"type": "array", "items": {"type": ["string", "number"]}, "minItems": 2, "maxItems": 2}
Pair = Annotated[tuple[str, float], WithJsonSchema(PAIR)]


class Pairs(ResponseModel):
    """Every label with its probability, best first."""

    example = {"predictions": [["sparrow", 0.98], ["finch", 0.02]]}

    predictions: list[Pair]


class Named(ResponseModel):
    """A file's name, made harmless, and its label."""

    example = {"image_filename": "photo.jpg", "prediction": "sparrow"}

    image_filename: str
    prediction: str | list[str]


class Data(ResponseModel):
    """One entry for each file, in order."""

    example = {"data": [Named.example]}

    data: list[Named]


class Recognize(Encoding):
    """A picture as text."""

    holds = "img"

    img: Annotated[Base64, Field(description="a picture as base64 text or as a data URI of base64")]


class Recognized(ResponseModel):
    """The label, and where the model looked."""

    example = {"success": True, "gradcam": PICTURE, "label": "sparrow"}

    success: Literal[True]
    gradcam: str
    label: Labels


def install(api: API, classifier: Classifier) -> None:
    """Add these systems' routes."""

    @api.post("/upload", tag=TAG, bodies=(Form(("file",), several=False),), takes_pictures=True)
    def upload(body: Submission) -> Pairs:
        """Cougar or Not: every label of one picture, best first."""
        (prediction,) = classifier.classify(body.pictures)
        return Pairs(predictions=prediction.ranked(classifier.labels))

    @api.get("/classify-url", tag=TAG, query=InQuery, takes_pictures=True, refuses=OF_URLS, example=ADDRESS)
    def classify_url(query: InQuery) -> Pairs:
        """Cougar or Not: every label of a picture on the web, best first."""
        (prediction,) = classifier.classify([classifier.fetched(query.url)])
        return Pairs(predictions=prediction.ranked(classifier.labels))

    @api.post("/api/v1/model/predict", tag=TAG, bodies=(Form(("image_file",)),), takes_pictures=True)
    def predict_files(body: Submission) -> Data:
        """The MLflow template: the label of each file, with the file's name."""
        answers = zip(body.pictures, classifier.classify(body.pictures), strict=True)
        return Data(data=[Named(image_filename=sent.harmless_name, prediction=said.success) for sent, said in answers])

    @api.post(
        "/image-recognition",
        tag=TAG,
        bodies=(JSON(Recognize, {"img": BadBase64}),),
        takes_pictures=True,
        refuses=(NotAvailable,),
        example={"img": PICTURE},
    )
    def recognize(body: Submission) -> Recognized:
        """The FastAPI and Grad-CAM course: a label, and the heatmap over the picture as base64 of a PNG."""
        ((prediction, explanation),) = classifier.explain(body.pictures)
        gradcam = base64.b64encode(png(explanation.overlay())).decode()
        return Recognized(success=True, gradcam=gradcam, label=prediction.success)
