"""Tensors of the Open Inference Protocol, version 2: pictures in, labels and probabilities out, as JSON or as bytes.

A picture is an element of a BYTES tensor: base64 text in JSON, or its bytes with Triton's binary tensor data extension,
where they lie behind the JSON. Triton's classification extension makes texts of probabilities.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from flask import Response
from pydantic import Field, SkipValidation, WithJsonSchema

from pigeonhole.errors import BadBase64, BadJSON, BadParameter, TooManyFiles
from pigeonhole.intake import strict_json
from pigeonhole.model.predictor import Prediction
from pigeonhole.web.api import as_json
from pigeonhole.web.bodies import FILE, Schema, validated
from pigeonhole.web.picture_request import PictureRequest, SentPicture
from pigeonhole.web.schemas import BASE64, LeftOut, RequestModel, ResponseModel

HEADER_LENGTH = "Inference-Header-Content-Length"  # bytes of JSON before the binary tensors
VERSION = "1"  # of the model; there is no other
INPUT, LABEL, PROBABILITIES = "image", "label", "probabilities"


BASE64_ELEMENTS = {"type": "array", "minItems": 1, "items": {"oneOf": [BASE64, {"type": "array", "items": BASE64}]}}


class InputParameters(RequestModel):
    """Where the elements are, if not in `data`."""

    binary_data_size: Annotated[int, Field(ge=0)] | None = None


class InputTensor(RequestModel):
    """The pictures."""

    name: Literal["image"]
    shape: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1, max_length=2)]
    datatype: Literal["BYTES"]
    parameters: InputParameters | None = None
    data: Annotated[list[Any], WithJsonSchema(BASE64_ELEMENTS)] | None = None


class OutputParameters(RequestModel):
    """`classification` is how many classes are wanted as texts, best first; 0 for numbers."""

    binary_data: bool | None = None
    classification: Annotated[int, Field(ge=0)] = 0


class WantedOutput(RequestModel):
    """An output, and how it is wanted."""

    name: Literal["label", "probabilities"]
    parameters: OutputParameters | None = None


class RequestParameters(RequestModel):
    """`binary_data_output` is for the outputs that say nothing else."""

    binary_data_output: bool = False


class InferRequest(RequestModel):
    """Pictures as a tensor."""

    id: Annotated[
        Annotated[str, Field(max_length=200)] | None,
        Field(description="an id of at most 200 characters, sent back"),
    ] = None
    inputs: Annotated[
        list[InputTensor],
        Field(min_length=1, max_length=1, description="one BYTES tensor named `image`, of shape [n] or [n, 1]"),
    ]
    outputs: Annotated[
        Annotated[list[WantedOutput], Field(max_length=10)] | None,
        Field(description="which outputs are wanted, of `label` and `probabilities`, and how; both by default"),
    ] = None
    parameters: Annotated[
        RequestParameters | None, Field(description="an object; binary_data_output asks for binary outputs")
    ] = None


BOTH = (WantedOutput(name="label"), WantedOutput(name="probabilities"))


class OutputTensor(ResponseModel):
    """A tensor's elements in row-major order, in `data` or behind the JSON."""

    example = {"name": "label", "shape": [1], "datatype": "BYTES", "data": ["sparrow"]}

    name: str
    shape: list[int]
    datatype: Literal["BYTES", "FP32"]
    parameters: dict[str, int] | LeftOut = None
    data: SkipValidation[list[Any]] | LeftOut = None


class InferResponse(ResponseModel):
    """The outputs that were wanted."""

    example = {
        "model_name": "pigeonhole",
        "model_version": "1",
        "outputs": [
            OutputTensor.example,
            {"name": "probabilities", "shape": [1, 2], "datatype": "FP32", "data": [0.02, 0.98]},
        ],
    }

    model_name: str
    model_version: Literal["1"] = "1"
    id: str | LeftOut = None
    outputs: list[OutputTensor] = []


@dataclass(frozen=True)
class Wanted:
    """An output as it is wanted: its name, how many classes as texts (0 for none), and whether behind the JSON."""

    name: str
    classes: int
    binary: bool


@dataclass(frozen=True)
class Inference:
    """An inference request with its pictures read."""

    id: str | None
    pictures: Sequence[SentPicture]
    wanted: Sequence[Wanted]

    def check(self, labels: Sequence[str]) -> None:
        """Refuse what cannot be answered for these labels, before it costs anything.

        Raises:
            BadParameter: more classes are wanted than there are, or classes of labels.
        """
        for wanted in self.wanted:
            most = len(labels) if wanted.name == PROBABILITIES else 0
            if wanted.classes > most:
                raise BadParameter(f"`outputs` does not fit: of `{wanted.name}`, classification is 0 to {most}.")


@dataclass(frozen=True)
class Tensors:
    """A body of this protocol: JSON, and behind it binary tensors if a header says where they begin."""

    refuses = (BadJSON, BadParameter, BadBase64, TooManyFiles)
    needs_content_type = False  # Triton's client sends none
    hint = ""

    @property
    def schemas(self) -> Mapping[str, Schema]:
        return {"application/json": InferRequest, "application/octet-stream": FILE}

    def read(self, request: PictureRequest) -> Inference:
        """Raises what `refuses` says."""
        file = request.body()
        with request.memory:
            data = file.read()
            length = _header_length(request.headers.get(HEADER_LENGTH, str(len(data))), len(data))
            values = strict_json.loads(data[:length], most_values=request.most_values)
            asked = validated(InferRequest, values)
            pictures = _pictures(asked.inputs[0], data[length:], request)
        return Inference(asked.id, pictures, _wanted(asked))


def _header_length(text: str, most: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 12 and int(text) <= most):
        raise BadParameter(f"{HEADER_LENGTH} is not a number of bytes within the body.")
    return int(text)


def _wanted(asked: InferRequest) -> list[Wanted]:
    default = asked.parameters.binary_data_output if asked.parameters else False
    wanted = []
    for output in asked.outputs or BOTH:
        parameters = output.parameters or OutputParameters()
        binary = default if parameters.binary_data is None else parameters.binary_data
        wanted.append(Wanted(output.name, parameters.classification, binary))
    return wanted


def _pictures(tensor: InputTensor, behind: bytes, request: PictureRequest) -> Sequence[SentPicture]:
    """The pictures of the JSON, or of what lies behind it."""
    size = tensor.parameters.binary_data_size if tensor.parameters else None
    if (size is None) == (tensor.data is None):
        raise BadParameter("`inputs` does not fit: its tensor has either data, or binary_data_size in its parameters.")
    if (size or 0) != len(behind):
        raise BadParameter("`inputs` does not fit: binary_data_size is not what lies behind the JSON.")
    if tensor.data is None:
        pictures = request.kept(_unpacked(behind, request.settings.max_files))
    else:
        pictures = request.decoded(_flat(tensor.data))
    if tensor.shape not in ([len(pictures)], [len(pictures), 1]):
        raise BadParameter(f"`inputs` does not fit: the shape is not that of {len(pictures)} pictures, [n] or [n, 1].")
    return pictures


def _flat(data: Sequence[Any]) -> list[str]:
    """A tensor's elements, which may be nested as its shape is."""
    flat = [element for row in data for element in (row if isinstance(row, list) else [row])]
    if not all(isinstance(element, str) for element in flat):
        raise BadBase64("an element of `data` is not base64 text.")
    return flat


def _unpacked(behind: bytes, most: int) -> list[bytes]:
    """BYTES elements, each behind its length as a little-endian 32-bit number; one more than `most` at most."""
    elements: list[bytes] = []
    at = 0
    while at < len(behind) and len(elements) <= most:
        (length,) = struct.unpack_from("<I", behind, at) if at + 4 <= len(behind) else (len(behind),)
        at += 4 + length
        elements.append(behind[at - length : at])
    if at > len(behind):
        raise BadParameter("`inputs` does not fit: a binary element is longer than what was sent.")
    return elements


def answered(
    response: InferResponse, wanted: Sequence[Wanted], said: Sequence[Prediction], labels: Sequence[str]
) -> InferResponse | Response:
    """`response` with the outputs that are wanted, binary ones behind it."""
    behind = []
    for one in wanted:
        values = _values(one, said, labels)
        datatype: Literal["FP32", "BYTES"] = "FP32" if isinstance(values, np.ndarray) else "BYTES"
        tensor = OutputTensor(name=one.name, shape=list(np.shape(values)), datatype=datatype)
        if one.binary:
            behind.append(_packed(values))
            tensor.parameters = {"binary_data_size": len(behind[-1])}
        else:
            tensor.data = np.ravel(values).tolist()
        response.outputs.append(tensor)
    if not behind:
        return response
    head = as_json(response).get_data()
    binary = Response(head + b"".join(behind), mimetype="application/octet-stream")
    binary.headers[HEADER_LENGTH] = str(len(head))
    return binary


def _values(
    wanted: Wanted, said: Sequence[Prediction], labels: Sequence[str]
) -> np.ndarray | list[str] | list[list[str]]:
    if wanted.name == LABEL:
        return [one.success if isinstance(one.success, str) else json.dumps(one.success) for one in said]
    if not wanted.classes:
        return np.array([one.probabilities for one in said], "<f4")
    places = {label: place for place, label in enumerate(labels)}
    return [
        [f"{value:f}:{places[label]}:{label}" for label, value in one.ranked(labels)[: wanted.classes]] for one in said
    ]


def _packed(values: np.ndarray | list[str] | list[list[str]]) -> bytes:
    if isinstance(values, np.ndarray):
        return values.tobytes()
    encoded = [text.encode() for text in np.ravel(values).tolist()]
    return b"".join(struct.pack("<I", len(text)) + text for text in encoded)
