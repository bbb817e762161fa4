"""The service through its front door, with an engine that knows colours instead of a model."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from flask.testing import FlaskClient
from PIL import Image

from app import create_app
from pigeonhole.errors import ModelFault, ModelFileError
from pigeonhole.model.predictor import Photo, Prediction, Predictor
from pigeonhole.settings import MIB, Settings
from tests.conftest import Colours, encoded, form, picture

NOISE = encoded(Image.effect_noise((700, 700), 90))  # 460 kB of every byte there is


def test_ping(client: FlaskClient) -> None:
    """/ping answers without touching the model."""
    assert client.get("/ping").json == {"success": "pong"}


def test_one_picture(client: FlaskClient) -> None:
    """One picture, one label, and nothing else in the answer."""
    response = client.post("/predict", data=form((picture("blue"), "x.png")))
    assert (response.status_code, response.json) == (200, {"success": "blue"})


def test_several_pictures_in_order(client: FlaskClient) -> None:
    """Several files of one name are answered in the order they were sent."""
    files = [(picture(colour), "x.png") for colour in ("green", "red", "blue", "red")]
    assert client.post("/predict", data=form(*files)).json == {"success": ["green", "red", "blue", "red"]}


def test_order_across_fields(client: FlaskClient) -> None:
    """Files under different accepted names are answered in the order they were sent."""
    part = '--b\r\nContent-Disposition: form-data; name="{}"; filename="x.png"\r\n\r\n'
    sent = [("image_file", "blue"), ("file", "red"), ("image", "green"), ("file", "blue")]
    body = b"".join(part.format(field).encode() + picture(colour) + b"\r\n" for field, colour in sent) + b"--b--\r\n"
    response = client.post("/predict", data=body, content_type="multipart/form-data; boundary=b")
    assert response.json == {"success": ["blue", "red", "green", "blue"]}


def test_ten_files_and_a_button(client: FlaskClient) -> None:
    """As many files as are allowed may come with other fields."""
    response = client.post("/predict", data=form(*[(picture(), "x.png")] * 10, submit="Go"))
    assert response.json == {"success": ["red"] * 10}


@pytest.mark.parametrize("field", ["image", "file", "image_file"])
def test_field_names(client: FlaskClient, field: str) -> None:
    """The field may be called what clients of older systems call it."""
    assert client.post("/predict", data=form((picture(), "x.png"), field=field)).json == {"success": "red"}


def test_extra_fields_are_ignored(client: FlaskClient) -> None:
    """Fields that mean nothing to us do not matter."""
    assert client.post("/predict", data=form((picture(), "x.png"), submit="Go")).json == {"success": "red"}


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "C:\\x.png", "a" * 5000 + ".png", "\u202e\u0000.png", "CON", "-", "x.txt"]
)
def test_file_names_do_not_matter(client: FlaskClient, name: str) -> None:
    """A client's file name is neither a path nor a type."""
    assert client.post("/predict", data=form((picture(), name))).json == {"success": "red"}


def test_a_photo_larger_than_the_parsers_buffer(client: FlaskClient) -> None:
    """A file is not held to the limit for text, whatever bytes it is made of."""
    assert client.post("/predict", data=form((NOISE, "x.png"))).status_code == 200


PNG = picture()
REFUSALS = {
    "nothing": ({}, 400, "no_image"),
    "no file chosen": (form((b"", "")), 400, "no_image"),
    "wrong field": (form((PNG, "x.png"), field="photo"), 400, "no_image"),
    "sent as text": ({"image": "x.png"}, 400, "no_image"),
    "empty": (form((b"", "x.png")), 400, "empty_image"),
    "text": (form((b"hello", "x.jpg")), 415, "not_an_image"),
    "pdf": (form((b"%PDF-1.7", "x.jpg")), 415, "unsupported_type"),
    "truncated": (form((PNG[:-30], "x.png")), 422, "broken_image"),
    "one of two is bad": (form((PNG, "x.png"), (b"hello", "y.png")), 415, "not_an_image"),
    "too many files": (form(*[(PNG, "x.png")] * 11), 413, "too_many_files"),
    "too many fields": ({f"field{number}": "x" for number in range(21)}, 413, "too_large"),
    "too much text": (form((PNG, "x.png"), note="x" * (64 * 1024 + 1)), 413, "too_large"),
}


@pytest.mark.parametrize(("data", "status", "code"), REFUSALS.values(), ids=REFUSALS.keys())
def test_refusals(client: FlaskClient, data: dict[str, object], status: int, code: str) -> None:
    """What cannot be answered is refused with its status, a stable code and a sentence."""
    response = client.post("/predict", data=data, content_type="multipart/form-data")
    assert (response.status_code, response.json["code"]) == (status, code)
    assert set(response.json) == {"error", "code", "request_id"}
    assert response.json["error"].endswith(".")


def test_the_bad_one_of_several_is_named(client: FlaskClient) -> None:
    """The refusal of one file among several says which, with its name made harmless."""
    response = client.post("/predict", data=form((PNG, "x.png"), (b"hello", "../my cat.png")))
    assert response.json["error"].startswith("picture 2 (my_cat.png): the file is not a picture")


BOUNDARY = "multipart/form-data; boundary=b"
PART = b'--b\r\nContent-Disposition: form-data; name="image"; filename="x.png"\r\n\r\n' + PNG + b"\r\n--b--\r\n"
BROKEN_FORMS = {
    "no boundary": ("multipart/form-data", PART),
    "empty boundary": ("multipart/form-data; boundary=", PART),
    "wrong boundary": ("multipart/form-data; boundary=c", PART),
    "no closing boundary": (BOUNDARY, PART[:-9]),
    "cut inside the picture": (BOUNDARY, PART[:-60]),
    "name is not UTF-8": (BOUNDARY, PART.replace(b"x.png", b"\xff.png")),
    "no disposition": (BOUNDARY, PART.replace(b"Content-Disposition", b"X")),
}


@pytest.mark.parametrize(("content_type", "body"), BROKEN_FORMS.values(), ids=BROKEN_FORMS.keys())
def test_broken_forms(client: FlaskClient, content_type: str, body: bytes) -> None:
    """A form that cannot be read is not taken for an empty one."""
    response = client.post("/predict", data=body, content_type=content_type)
    assert (response.status_code, response.json["code"]) == (400, "bad_multipart")


def test_whole_form_of_the_broken_ones(client: FlaskClient) -> None:
    """The form that the broken ones are made from is answered."""
    assert client.post("/predict", data=PART, content_type=BOUNDARY).json == {"success": "red"}


def test_a_client_that_goes_away(client: FlaskClient) -> None:
    """A body shorter than announced is never answered as if it were whole."""
    longer = {"CONTENT_LENGTH": str(len(PART) + 9)}
    response = client.post("/predict", data=PART, content_type=BOUNDARY, environ_overrides=longer)
    assert (response.status_code, response.json["code"]) == (400, "bad_multipart")


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-www-form-urlencoded", "video/mp4", "?"])
def test_a_body_of_another_type(client: FlaskClient, content_type: str | None) -> None:
    """A body that is announced as something else is not looked at, and the answer says how to send a picture."""
    response = client.post("/predict", data=PNG, content_type=content_type)
    assert (response.status_code, response.json["code"]) == (415, "bad_content_type")
    assert "curl -F image=@photo.jpg" in response.json["error"]


@pytest.mark.parametrize("size", [10 * MIB, 10 * MIB + 1])
def test_body_limit_is_exact(client: FlaskClient, size: int) -> None:
    """A body of exactly the limit is read, a byte more is not."""
    body = PART[:-9].ljust(size - 9, b"\0") + PART[-9:]
    response = client.post("/predict", data=body, content_type=BOUNDARY)
    assert response.status_code == (200 if size == 10 * MIB else 413)


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("PUT", "/predict", 405, "bad_method"),
        ("DELETE", "/predict", 405, "bad_method"),
        ("GET", "/docs//docs.js", 404, "not_found"),
        ("POST", "/v2//models/pigeonhole/infer", 404, "not_found"),
        ("POST", "/ping", 405, "bad_method"),
    ],
)
def test_http_errors_are_json(client: FlaskClient, method: str, path: str, status: int, code: str) -> None:
    """Errors that Flask raises have our shape too."""
    response = client.open(path, method=method)
    assert (response.status_code, response.json["code"]) == (status, code)
    assert ("Allow" in response.headers) == (status == 405)


def test_headers_of_every_answer(client: FlaskClient) -> None:
    """Answers are not kept, not guessed at, and carry the request id of their body."""
    response = client.post("/predict")
    assert response.status_code == 400
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["X-Request-ID"] == response.json["request_id"]


class Failing(Colours):
    def predict(self, picture: Image.Image) -> Prediction:
        raise RuntimeError("/secret/path: CUDA error")


def test_a_failing_model(settings: Settings) -> None:
    """A failure of the model is a 503 that says when to come back, and not why."""
    client = create_app(settings, Predictor(Failing)).test_client()
    response = client.post("/predict", data=form((PNG, "x.png")))
    assert (response.status_code, response.json["code"]) == (503, ModelFault.code)
    assert response.headers["Retry-After"] == str(ModelFault.retry_after)
    assert "secret" not in response.text


class NotANumber(Colours):
    def predict(self, picture: Image.Image) -> Prediction:
        return Prediction("red", (float("nan"), 0.0, 0.0, 0.0))


def test_a_model_that_answers_nan(settings: Settings) -> None:
    """A label with a probability that is no number is not given out."""
    client = create_app(settings, Predictor(NotANumber)).test_client()
    assert client.post("/predict", data=form((PNG, "x.png"))).json["code"] == "model_fault"


def test_a_missing_model(settings: Settings) -> None:
    """Under a server that does not load the model first, requests are told that it is not there; no path is given."""
    client = create_app(settings.model_copy(update={"model": str(settings.uploads / "gone.pkl")})).test_client()
    response = client.post("/predict", data=form((PNG, "x.png")))
    assert (response.status_code, response.json["code"]) == (503, "not_ready")
    assert "gone" not in response.text


def test_no_room_for_uploads(settings: Settings) -> None:
    """When the upload folder is gone, the answer is 503, and all is well when it is back."""
    client = create_app(settings, Predictor(Colours)).test_client()
    settings.uploads.rmdir()
    response = client.post("/predict", data=form((PNG, "x.png")))
    assert (response.status_code, response.json["code"]) == (503, "no_space")
    settings.uploads.mkdir()
    assert client.post("/predict", data=form((PNG, "x.png"))).status_code == 200


def test_something_unforeseen(settings: Settings) -> None:
    """An error nobody thought of is a 503 without a traceback."""
    app = create_app(settings, Predictor(Colours))
    app.add_url_rule("/bug", view_func=lambda: 1 / 0)
    response = app.test_client().get("/bug")
    assert (response.status_code, response.json["code"]) == (503, "service_error")
    assert "division" not in response.text


class Counting(Colours):
    """Notes how many pictures it was given at the same time."""

    at_once, most = 0, 0
    count = threading.Lock()

    def predict(self, picture: Image.Image) -> Prediction:
        with self.count:
            Counting.at_once += 1
            Counting.most = max(Counting.most, Counting.at_once)
        time.sleep(0.02)
        with self.count:
            Counting.at_once -= 1
        return super().predict(picture)


def test_pictures_in_hand_are_bounded(settings: Settings) -> None:
    """Of many requests at once, as many pictures are decoded at a time as MAX_DECODED says, and no more."""
    app = create_app(settings.model_copy(update={"max_decoded": 3}), Predictor(Counting))
    with ThreadPoolExecutor(12) as pool:
        asked = [pool.submit(app.test_client().post, "/predict", data=form((PNG, "x.png"))) for _ in range(36)]
        assert [request.result().status_code for request in asked] == [200] * 36
    assert Counting.most == 3


class Slow(Colours):
    """Takes its time."""

    def predict(self, photo: Photo) -> Prediction:
        time.sleep(0.1)
        return super().predict(photo)


def test_turns_are_fair(settings: Settings) -> None:
    """A request of many pictures does not keep the only place while others wait: they take turns."""
    app = create_app(settings.model_copy(update={"max_decoded": 1}), Predictor(Slow))
    ended = []

    def ask(pictures: int) -> None:
        app.test_client().post("/predict", data=form(*[(PNG, "x.png")] * pictures))
        ended.append(pictures)

    with ThreadPoolExecutor(2) as pool:
        pool.submit(ask, 8)
        time.sleep(0.15)
        pool.submit(ask, 1)
    assert ended == [1, 8]


def test_sixteen_threads_get_their_own_answers(settings: Settings) -> None:
    """Requests at the same time, all of one file name, never meet."""
    app = create_app(settings, Predictor(Colours))

    def ask(number: int) -> bool:
        colour = ("red", "green", "blue")[number % 3]
        response = app.test_client().post("/predict", data=form((picture(colour), "x.png")))
        return response.json == {"success": colour}

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(ask, range(300)))


def test_ready(settings: Settings, client: FlaskClient) -> None:
    """Ready is who has a model; it says which engine answers."""
    assert client.get("/ready").json == {"success": "ready", "engine": "colours"}

    def refuse() -> Colours:
        raise ModelFileError("MODEL=/secret/export.pkl is not there")

    response = create_app(settings, Predictor(refuse)).test_client().get("/ready")
    assert (response.status_code, response.json["code"]) == (503, "not_ready")
    assert "secret" not in response.text


def test_metrics(client: FlaskClient) -> None:
    """Counts come in Prometheus' text format."""
    response = client.get("/metrics")
    assert (response.status_code, response.mimetype) == (200, "text/plain")
