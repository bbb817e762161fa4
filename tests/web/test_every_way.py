"""One real photo, every way in and every dialect, the running service: one label."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests

from pigeonhole.intake.pictures import open_probe
from pigeonhole.model.learner import open_learner
from tests.conftest import EXPORT, Server

ASK: dict[str, Callable[[str, bytes], Any]] = {
    "form": lambda url, photo: post(url, "/predict", files={"image": photo})["success"],
    "form, file": lambda url, photo: post(url, "/predict", files={"file": photo})["success"],
    "several": lambda url, photo: one(post(url, "/predict", files=[("image", photo)] * 2)["success"]),
    "body": lambda url, photo: post(url, "/predict", data=photo, headers={"Content-Type": "image/jpeg"})["success"],
    "base64": lambda url, photo: post(url, "/predict", json={"image": text(photo)})["success"],
    "data URI": lambda url, photo: post(url, "/predict", json={"image": f"data:;base64,{text(photo)}"})["success"],
    "list": lambda url, photo: one(post(url, "/predict", json={"image": [text(photo)] * 2})["success"]),
    "top": lambda url, photo: post(url, "/predict?top=all", files={"image": photo})["predictions"][0]["label"],
    "/upload": lambda url, photo: post(url, "/upload", files={"file": photo})["predictions"][0][0],
    "/api/v1/model/predict": lambda url, photo: post(url, "/api/v1/model/predict", files={"image_file": photo})["data"][
        0
    ]["prediction"],
    "/v2": lambda url, photo: post(
        url,
        "/v2/models/pigeonhole/infer",
        json={"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": [text(photo)]}]},
    )["outputs"][0]["data"][0],
}


def post(url: str, path: str, **sent: Any) -> Any:
    answer = requests.post(url + path, timeout=30, **sent)
    assert answer.status_code == 200, answer.text
    return answer.json()


def text(photo: bytes) -> str:
    return base64.b64encode(photo).decode()


def one(labels: list[str]) -> str:
    """The label that all have."""
    (label,) = set(labels)
    return label


@pytest.mark.parametrize("ask", ASK.values(), ids=ASK.keys())
def test_the_same_label(
    server: Server, one_of_each: dict[str, Path], ask: Callable[[str, bytes], Any], directly: list[str]
) -> None:
    """Ten photos have the labels that the model was asked for directly."""
    assert [ask(server.url, path.read_bytes()) for path in one_of_each.values()] == directly


@pytest.fixture(scope="module")
def directly(one_of_each: dict[str, Path]) -> list[str | list[str]]:
    """What learner.predict says."""
    engine = open_learner(EXPORT)
    return [engine.predict(open_probe(io.BytesIO(path.read_bytes()))).success for path in one_of_each.values()]
