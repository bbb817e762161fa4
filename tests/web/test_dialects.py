"""The requests that other systems' documents show, and the answers that their clients read."""

from __future__ import annotations

import base64
import io

import pytest
from flask.testing import FlaskClient
from PIL import Image

from app import create_app
from pigeonhole.model.predictor import Photo, Prediction, Predictor
from pigeonhole.settings import Settings
from tests.conftest import Colours, form, picture
from tests.web.test_ways_in import URL
from tests.web.web import Web

BLUE, RED = picture("blue"), picture("red")
PAIRS = {"predictions": [["blue", 1.0], ["red", 0.0], ["green", 0.0], ["grey", 0.0]]}


def test_cougar_or_not(client: FlaskClient) -> None:
    """`POST /upload` with a `file`: pairs of label and probability, best first."""
    assert client.post("/upload", data=form((BLUE, "cougar.jpg"), field="file")).json == PAIRS


def test_cougar_or_not_by_url(settings: Settings) -> None:
    """`GET /classify-url?url=`: the same of a picture on the web."""
    on = settings.model_copy(update={"fetch_urls": True})
    client = create_app(on, Predictor(Colours), Web({URL: BLUE})).test_client()
    assert client.get("/classify-url", query_string={"url": URL}).json == PAIRS


def test_cougar_or_not_where_nothing_is_fetched(settings: Settings) -> None:
    """Without FETCH_URLS it is 403."""
    client = create_app(settings, Predictor(Colours), Web({URL: BLUE})).test_client()
    response = client.get("/classify-url", query_string={"url": URL})
    assert (response.status_code, response.json["code"]) == (403, "url_off")


@pytest.mark.parametrize("path", ["/upload", "/image-recognition", "/v2/models/pigeonhole/infer"])
def test_sentences_fit_the_route(client: FlaskClient, path: str) -> None:
    """Nobody is told to send what the route does not take."""
    for sent in (
        {},
        {"data": form((BLUE, "x.png"), field="photo")},
        {"data": b"[]", "content_type": "application/json"},
    ):
        assert "image=" not in client.post(path, **sent).json["error"]


def test_mlflow_template(client: FlaskClient) -> None:
    """`POST /api/v1/model/predict` with `image_file`s: the name and the label of each, the name made harmless."""
    files = form((BLUE, "x.png"), (RED, "../../my cat.png"), field="image_file")
    assert client.post("/api/v1/model/predict", data=files).json == {
        "data": [
            {"image_filename": "x.png", "prediction": "blue"},
            {"image_filename": "my_cat.png", "prediction": "red"},
        ]
    }


def test_grad_cam_course(client: FlaskClient) -> None:
    """`POST /image-recognition` with `img`: the label, and a PNG of the heatmap over the picture as base64."""
    answer = client.post("/image-recognition", json={"img": base64.b64encode(BLUE).decode()}).json
    assert (answer["success"], answer["label"], sorted(answer)) == (True, "blue", ["gradcam", "label", "success"])
    overlay = Image.open(io.BytesIO(base64.b64decode(answer["gradcam"], validate=True)))
    assert (overlay.format, overlay.size) == ("PNG", (24, 24))
    assert client.post("/image-recognition", json={"img": "@"}).json["code"] == "bad_base64"
    assert client.post("/image-recognition", json={"img": "aGVsbG8="}).json["code"] == "not_an_image"


@pytest.mark.parametrize(
    ("path", "data", "status", "code"),
    [
        ("/upload", {}, 400, "no_image"),
        ("/upload", form((BLUE, "x.png")), 400, "no_image"),
        ("/upload", form((BLUE, "x.png"), (RED, "y.png"), field="file"), 413, "too_many_files"),
        ("/upload", form((b"hello", "x.png"), field="file"), 415, "not_an_image"),
        ("/api/v1/model/predict", form((BLUE, "x.png"), field="file"), 400, "no_image"),
        ("/api/v1/model/predict", form((BLUE[:70], "x.png"), field="image_file"), 422, "broken_image"),
    ],
)
def test_refusals(client: FlaskClient, path: str, data: dict[str, object], status: int, code: str) -> None:
    """What their clients send wrong is refused as everywhere."""
    response = client.post(path, data=data, content_type="multipart/form-data")
    assert (response.status_code, response.json["code"]) == (status, code)


@pytest.mark.parametrize("path", ["/upload", "/api/v1/model/predict", "/image-recognition"])
def test_nothing_sent(client: FlaskClient, path: str) -> None:
    """A request without a body is told what it lacks."""
    assert client.post(path).json["code"] == "no_image"


class Both(Colours):
    """A multi-label model."""

    def predict(self, photo: Photo) -> Prediction:
        return Prediction(["red", "blue"], (0.9, 0.1, 0.8, 0.2))


def test_several_labels(settings: Settings) -> None:
    """Of a multi-label model, a prediction is a list."""
    client = create_app(settings, Predictor(Both)).test_client()
    answer = client.post("/api/v1/model/predict", data=form((BLUE, "x.png"), field="image_file")).json
    assert answer == {"data": [{"image_filename": "x.png", "prediction": ["red", "blue"]}]}
    assert client.post("/predict?top=1", data=form((BLUE, "x.png"))).json == {
        "success": ["red", "blue"],
        "predictions": [{"label": "red", "probability": 0.9}],
    }
