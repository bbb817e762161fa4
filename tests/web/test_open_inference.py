"""The Open Inference Protocol: with Triton's own client against the running service, and its refusals."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import tritonclient.http as triton
from flask.testing import FlaskClient
from tritonclient.utils import InferenceServerException

from app import create_app
from pigeonhole.errors import ModelFileError
from pigeonhole.model.predictor import Photo, Prediction, Predictor
from pigeonhole.settings import Settings
from tests.conftest import Server, picture
from tests.web.test_dialects import Both

BLUE, RED = picture("blue"), picture("red")
TEXT = base64.b64encode(BLUE).decode()
INFER = "/v2/models/pigeonhole/infer"


@pytest.fixture
def tritons(server: Server) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.url.removeprefix("http://")) as client:
        yield client


@pytest.fixture
def photos(one_of_each: dict[str, Path]) -> list[bytes]:
    return [path.read_bytes() for path in one_of_each.values()][:4]


@pytest.fixture
def labels(server: Server, photos: list[bytes]) -> list[str]:
    """What /predict says of the photos."""
    files = [("image", ("x.jpg", photo)) for photo in photos]
    return list(requests.post(f"{server.url}/predict", files=files, timeout=30).json()["success"])


def tensor(pictures: list[bytes], binary: bool = True) -> triton.InferInput:
    elements = pictures if binary else [base64.b64encode(picture) for picture in pictures]
    made = triton.InferInput("image", [len(pictures)], "BYTES")
    made.set_data_from_numpy(np.array(elements, dtype=np.object_), binary_data=binary)
    return made


def test_health_and_metadata(tritons: triton.InferenceServerClient) -> None:
    """Triton's client finds the server live, the model ready, and reads what it takes and gives."""
    assert tritons.is_server_live()
    assert tritons.is_server_ready()
    assert tritons.is_model_ready("pigeonhole")
    assert tritons.is_model_ready("pigeonhole", "1")
    assert not tritons.is_model_ready("eagle")
    assert tritons.get_server_metadata()["extensions"] == ["binary_tensor_data", "classification"]
    metadata = tritons.get_model_metadata("pigeonhole")
    assert metadata["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1]}]
    assert metadata["outputs"][1] == {"name": "probabilities", "datatype": "FP32", "shape": [-1, 10]}
    assert len(metadata["labels"]) == 10


@pytest.mark.parametrize("binary_in", [True, False], ids=["bytes in", "JSON in"])
@pytest.mark.parametrize("binary_out", [True, False, None], ids=["bytes out", "JSON out", "default out"])
def test_infer(
    tritons: triton.InferenceServerClient,
    photos: list[bytes],
    labels: list[str],
    binary_in: bool,
    binary_out: bool | None,
) -> None:
    """Several photos in one tensor get the labels of /predict, and their probabilities, in either encoding."""
    wanted = (
        None
        if binary_out is None
        else [triton.InferRequestedOutput(name, binary_data=binary_out) for name in ("label", "probabilities")]
    )
    said = tritons.infer("pigeonhole", [tensor(photos, binary_in)], outputs=wanted, request_id="7", model_version="1")
    named = [label.decode() if isinstance(label, bytes) else label for label in said.as_numpy("label")]
    columns = tritons.get_model_metadata("pigeonhole")["labels"]
    probabilities = said.as_numpy("probabilities")
    assert named == labels
    assert probabilities.shape == (4, 10)
    assert probabilities.dtype == np.float32
    assert [columns[place] for place in probabilities.argmax(1)] == labels
    assert np.allclose(probabilities.sum(1), 1, atol=1e-5)
    assert said.get_response()["id"] == "7"


def test_classification(tritons: triton.InferenceServerClient, photos: list[bytes], labels: list[str]) -> None:
    """Triton's classification extension: value, place and label of the best few."""
    wanted = triton.InferRequestedOutput("probabilities", binary_data=True, class_count=3)
    best = tritons.infer("pigeonhole", [tensor(photos)], outputs=[wanted]).as_numpy("probabilities")
    assert best.shape == (4, 3)
    assert [row[0].decode().split(":")[2] for row in best] == labels
    assert all(float(row[0].split(b":")[0]) >= float(row[1].split(b":")[0]) for row in best)


def test_refused_by_the_server(tritons: triton.InferenceServerClient) -> None:
    """The client shows the sentence and the status of a refusal."""
    with pytest.raises(InferenceServerException, match=r"\[415\] the file is not a picture"):
        tritons.infer("pigeonhole", [tensor([b"hello"])])
    with pytest.raises(InferenceServerException, match=r"\[404\] no model of this name"):
        tritons.infer("eagle", [tensor([BLUE])])


def request_of(**changes: Any) -> dict[str, Any]:
    made = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [TEXT], **changes}
    return {"inputs": [{name: value for name, value in made.items() if value is not None}]}


def test_json_by_hand(client: FlaskClient) -> None:
    """The request of the protocol's specification, in JSON."""
    assert client.post(INFER, json={"id": "a", **request_of()}).json == {
        "model_name": "pigeonhole",
        "model_version": "1",
        "id": "a",
        "outputs": [
            {"name": "label", "shape": [1], "datatype": "BYTES", "data": ["blue"]},
            {"name": "probabilities", "shape": [1, 4], "datatype": "FP32", "data": [0.0, 0.0, 1.0, 0.0]},
        ],
    }


@pytest.mark.parametrize("shape", [[2], [2, 1]])
@pytest.mark.parametrize("nested", [True, False])
def test_shapes(client: FlaskClient, shape: list[int], nested: bool) -> None:
    """Elements may be nested as the shape is, or flat."""
    texts = [TEXT, base64.b64encode(RED).decode()]
    data = [[text] for text in texts] if nested else texts
    answer = client.post(INFER, json={**request_of(shape=shape, data=data), "outputs": [{"name": "label"}]}).json
    assert answer["outputs"] == [{"name": "label", "shape": [2], "datatype": "BYTES", "data": ["blue", "red"]}]


def packed(*elements: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


def binary(behind: bytes, size: Any = None, length: str | None = None, **changes: Any) -> dict[str, Any]:
    """A request with `behind` behind its JSON, which says that it is `size` bytes."""
    parameters = {"binary_data_size": len(behind) if size is None else size}
    head = json.dumps(request_of(data=None, parameters=parameters, **changes)).encode()
    headers = {"Inference-Header-Content-Length": str(len(head)) if length is None else length}
    return {"data": head + behind, "headers": headers, "content_type": "application/octet-stream"}


def test_binary_by_hand(client: FlaskClient) -> None:
    """The bytes of two pictures behind the JSON."""
    answer = client.post(INFER, **binary(packed(BLUE, RED), shape=[2])).json
    assert answer["outputs"][0]["data"] == ["blue", "red"]


REFUSALS: dict[str, tuple[dict[str, Any], int, str]] = {
    "nothing": ({}, 400, "no_image"),
    "no inputs": ({"json": {}}, 400, "no_image"),
    "no tensor": ({"json": {"inputs": []}}, 400, "bad_parameter"),
    "two tensors": ({"json": {"inputs": request_of()["inputs"] * 2}}, 400, "bad_parameter"),
    "another name": ({"json": request_of(name="picture")}, 400, "bad_parameter"),
    "another type": ({"json": request_of(datatype="UINT8")}, 400, "bad_parameter"),
    "shape of two": ({"json": request_of(shape=[2])}, 400, "bad_parameter"),
    "shape of zero": ({"json": request_of(shape=[0], data=[])}, 400, "bad_parameter"),
    "shape of 1e18": ({"json": request_of(shape=[10**18])}, 400, "bad_parameter"),
    "shape is a bool": ({"json": request_of(shape=[True])}, 400, "bad_parameter"),
    "no data": ({"json": request_of(data=None)}, 400, "bad_parameter"),
    "data is text": ({"json": request_of(data=TEXT)}, 400, "bad_parameter"),
    "numbers": ({"json": request_of(data=[1])}, 400, "bad_base64"),
    "not base64": ({"json": request_of(data=["https://example.org/x.png"])}, 400, "bad_base64"),
    "deeper than the shape": ({"json": request_of(data=[[[TEXT]]])}, 400, "bad_base64"),
    "11 pictures": ({"json": request_of(shape=[11], data=[TEXT] * 11)}, 413, "too_many_files"),
    "unknown output": ({"json": {**request_of(), "outputs": [{"name": "heat"}]}}, 400, "bad_parameter"),
    "classification of labels": (
        {"json": {**request_of(), "outputs": [{"name": "label", "parameters": {"classification": 2}}]}},
        400,
        "bad_parameter",
    ),
    "five classes of four": (
        {"json": {**request_of(), "outputs": [{"name": "probabilities", "parameters": {"classification": 5}}]}},
        400,
        "bad_parameter",
    ),
    "classification is true": (
        {"json": {**request_of(), "outputs": [{"name": "probabilities", "parameters": {"classification": True}}]}},
        400,
        "bad_parameter",
    ),
    "binary_data is text": (
        {"json": {**request_of(), "outputs": [{"name": "label", "parameters": {"binary_data": "x"}}]}},
        400,
        "bad_parameter",
    ),
    "binary_data_output is text": (
        {"json": {**request_of(), "parameters": {"binary_data_output": "x"}, "outputs": [{"name": "label"}]}},
        400,
        "bad_parameter",
    ),
    "id is a number": ({"json": {**request_of(), "id": 7}}, 400, "bad_parameter"),
    "not a picture": ({"json": request_of(data=["aGVsbG8="])}, 415, "not_an_image"),
    "a header that is no number": (binary(packed(BLUE), length="x"), 400, "bad_parameter"),
    "a header beyond the body": (binary(packed(BLUE), length="999999"), 400, "bad_parameter"),
    "a header below zero": (binary(packed(BLUE), length="-1"), 400, "bad_parameter"),
    "a header within the JSON": (binary(packed(BLUE), length="9"), 400, "bad_json"),
    "size that is too small": (binary(packed(BLUE), size=3), 400, "bad_parameter"),
    "size that is text": (binary(packed(BLUE), size="3"), 400, "bad_parameter"),
    "size that is true": (binary(b"\0", size=True), 400, "bad_parameter"),
    "an element that is cut off": (binary(packed(BLUE)[:-9]), 400, "bad_parameter"),
    "a length that is cut off": (binary(packed(BLUE) + b"\1", shape=[2]), 400, "bad_parameter"),
    "4 GiB announced": (binary(b"\xff\xff\xff\xff" + BLUE), 400, "bad_parameter"),
    "11 elements": (binary(packed(*[BLUE] * 11), shape=[11]), 413, "too_many_files"),
    "a million empty elements": (binary(b"\0" * 4_000_000, shape=[1_000_000]), 413, "too_many_files"),
    "data and bytes": (
        {**binary(packed(BLUE)), "data": json.dumps(request_of()).encode() + b"x" * 9,
         "headers": {"Inference-Header-Content-Length": str(len(json.dumps(request_of())))}}, 400, "bad_parameter",
    ),
    "an empty element": (binary(packed(b"")), 400, "empty_image"),
}  # fmt: skip


@pytest.mark.parametrize(("sent", "status", "code"), REFUSALS.values(), ids=REFUSALS.keys())
def test_refusals(client: FlaskClient, sent: dict[str, Any], status: int, code: str) -> None:
    """What is not such a tensor is refused with a sentence."""
    response = client.post(INFER, **sent)
    assert (response.status_code, response.json["code"]) == (status, code)


def test_nulls(client: FlaskClient) -> None:
    """What clients write out as null is as good as left out."""
    sent = {"id": None, **request_of(), "outputs": None, "parameters": None}
    assert client.post(INFER, json=sent).status_code == 200


def test_what_cannot_be_answered_costs_nothing(settings: Settings) -> None:
    """More classes than there are is refused before the model runs."""

    class Unasked(Both):
        def predict(self, photo: Photo) -> Prediction:
            raise AssertionError

    client = create_app(settings, Predictor(Unasked)).test_client()
    assert client.post(INFER, **REFUSALS["five classes of four"][0]).status_code == 400


def test_an_unknown_model_comes_before_a_bad_body(client: FlaskClient) -> None:
    """Whether there is such a model is told first."""
    assert client.post("/v2/models/eagle/infer", data=b"{", content_type="application/json").status_code == 404


@pytest.mark.parametrize("path", ["/v2/models/eagle", "/v2/models/eagle/ready", "/v2/models/pigeonhole/versions/2"])
def test_other_models(client: FlaskClient, path: str) -> None:
    """A model that is not here, or another version, is not found."""
    assert (client.get(path).status_code, client.get(path).json["code"]) == (404, "unknown_model")


def test_the_models_name(settings: Settings) -> None:
    """MODEL_NAME is what the model is called."""
    client = create_app(settings.model_copy(update={"model_name": "birds"}), Predictor(Both)).test_client()
    assert client.get("/v2/models/birds").json["name"] == "birds"
    assert client.get("/v2/models/birds/versions/1/ready").json == {"name": "birds", "ready": True}


def test_several_labels(settings: Settings) -> None:
    """Of a multi-label model, a label is the list of them as JSON."""
    client = create_app(settings, Predictor(Both)).test_client()
    assert client.post(INFER, json=request_of()).json["outputs"][0]["data"] == ['["red", "blue"]']


def test_not_ready(settings: Settings) -> None:
    """While there is no model, the server is live and not ready."""

    def missing() -> Any:
        raise ModelFileError("MODEL=x is not there.")

    client = create_app(settings, Predictor(missing)).test_client()
    assert client.get("/v2/health/live").json == {"live": True}
    for path in ("/v2/health/ready", "/v2/models/pigeonhole/ready", "/v2/models/pigeonhole"):
        assert (client.get(path).status_code, client.get(path).json["code"]) == (503, "not_ready")
