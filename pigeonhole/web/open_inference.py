"""The Open Inference Protocol, version 2, as the clients of KServe and of Triton speak it.

A BYTES tensor of pictures goes in; a BYTES tensor of labels and an FP32 tensor of probabilities come out. Of a
multi-label model, a label is the list of them as JSON.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

from flask import Response

from pigeonhole import __version__
from pigeonhole.errors import NoSpace
from pigeonhole.model.predictor import Predictor
from pigeonhole.web.api import API
from pigeonhole.web.bodies import FILE
from pigeonhole.web.classifier import Classifier
from pigeonhole.web.examples import PICTURE
from pigeonhole.web.schemas import ResponseModel
from pigeonhole.web.tensors import (
    HEADER_LENGTH,
    INPUT,
    LABEL,
    PROBABILITIES,
    VERSION,
    Inference,
    InferResponse,
    Tensors,
    answered,
)

TAG = "Open Inference Protocol"
LENGTH = {"description": "bytes of JSON before the binary tensors", "schema": {"type": "integer", "minimum": 0}}
BINARY = {  # what the binary tensor data extension adds to the description
    "parameters": [{"name": HEADER_LENGTH, "in": "header", "required": False, **LENGTH}],
    "responses": {
        "200": {
            "content": {"application/octet-stream": {"schema": FILE}},
            "headers": {HEADER_LENGTH: {"required": False, **LENGTH}},
        }
    },
}


class Live(ResponseModel):
    """The server is alive."""

    example = {"live": True}

    live: Literal[True] = True


class ServerReady(ResponseModel):
    """The model is loaded and has passed its test."""

    example = {"ready": True}

    ready: Literal[True] = True


class ModelReady(ServerReady):
    """The same, of the model by its name."""

    example = {"name": "pigeonhole", "ready": True}

    name: str


class Server(ResponseModel):
    """What speaks here, and which extensions of the protocol it knows."""

    example = {"name": "pigeonhole", "version": __version__, "extensions": ["binary_tensor_data", "classification"]}

    name: Literal["pigeonhole"] = "pigeonhole"
    version: str = __version__
    extensions: list[str] = ["binary_tensor_data", "classification"]


class TensorMetadata(ResponseModel):
    """A tensor's name, type and shape; -1 stands for the number of pictures."""

    example = {"name": "image", "datatype": "BYTES", "shape": [-1]}

    name: str
    datatype: Literal["BYTES", "FP32"]
    shape: list[int]


class ModelMetadata(ResponseModel):
    """What the model takes and gives; `labels` names the columns of `probabilities`."""

    example = {
        "name": "pigeonhole",
        "versions": ["1"],
        "platform": "pigeonhole",
        "inputs": [TensorMetadata.example],
        "outputs": [
            {"name": "label", "datatype": "BYTES", "shape": [-1]},
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, 2]},
        ],
        "labels": ["finch", "sparrow"],
    }

    name: str
    versions: list[str] = [VERSION]
    platform: str = "pigeonhole"
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]
    labels: list[str]


def install(api: API, classifier: Classifier, predictor: Predictor, model_name: str) -> None:
    """Add the protocol's routes, for the model called `model_name`."""
    _add_server(api, classifier)
    _add_model(api, classifier, predictor, model_name)


def _add_server(api: API, classifier: Classifier) -> None:
    @api.get("/v2", tag=TAG)
    def server() -> Server:
        """What speaks here."""
        return Server()

    @api.get("/v2/health/live", tag=TAG)
    def live() -> Live:
        """Alive; touches nothing."""
        return Live()

    @api.get("/v2/health/ready", tag=TAG, needs_model=True, refuses=(NoSpace,))
    def ready() -> ServerReady:
        """200 when a picture would be answered; as /ready."""
        classifier.ready()
        return ServerReady()


def _add_model(api: API, classifier: Classifier, predictor: Predictor, model_name: str) -> None:
    def model_ready() -> ModelReady:
        """200 when a picture would be answered by this model; as /ready."""
        classifier.ready()
        return ModelReady(name=model_name)

    def metadata() -> ModelMetadata:
        """What the model takes and gives."""
        labels = list(predictor.labels)
        return ModelMetadata(
            name=model_name,
            inputs=[TensorMetadata(name=INPUT, datatype="BYTES", shape=[-1])],
            outputs=[
                TensorMetadata(name=LABEL, datatype="BYTES", shape=[-1]),
                TensorMetadata(name=PROBABILITIES, datatype="FP32", shape=[-1, len(labels)]),
            ],
            labels=labels,
        )

    def infer(body: Inference) -> InferResponse | Response:
        """Classify the pictures of a tensor.

        As JSON, an element of the tensor is base64 text. As octets, JSON comes first, Inference-Header-Content-Length
        says how long it is, and each element is its bytes behind their number, 32 bits, little-endian.
        """
        body.check(classifier.labels)
        said = classifier.classify(body.pictures)
        return answered(InferResponse(model_name=model_name, id=body.id), body.wanted, said, classifier.labels)

    example = {"inputs": [{"name": INPUT, "shape": [1], "datatype": "BYTES", "data": [PICTURE]}]}
    for path in ("/v2/models/<name>", "/v2/models/<name>/versions/<version>"):
        places = {"name": model_name, "version": VERSION} if "<version>" in path else {"name": model_name}
        about = partial(api.get, tag=TAG, places=places, needs_model=True)
        about(path)(metadata)
        about(f"{path}/ready", refuses=(NoSpace,))(model_ready)
        api.post(
            f"{path}/infer",
            tag=TAG,
            places=places,
            bodies=(Tensors(),),
            takes_pictures=True,
            example=example,
            also=BINARY,
        )(infer)
