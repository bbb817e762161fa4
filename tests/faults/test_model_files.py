"""G8: the model's file is changed under a running service, and a model whose numbers are none.

CASES.md    here                            what the fast suite holds already
G6                                          tests/test_serving.py: test_refuses_to_start; tests/model/test_choosing.py
G7                                          tests/model/test_store.py: pins; tests/model/test_known_answers.py: flipped
                                            bits; tests/model/export: pickles that would run something
G8          all of this
"""

from __future__ import annotations

import io
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from app import create_app
from pigeonhole.model.predictor import Photo, Prediction, Predictor
from pigeonhole.settings import Settings
from tests.conftest import GUNICORN, ROOT, Colours, Server, StartServer, free_port, picture
from tests.model.compiled import graph_of, rewritten
from tests.test_serving import JPEG, ask, post


@pytest.fixture(scope="module")
def served(server: Server) -> Path:
    """The compiled file of the demo; a server makes it where it is not there."""
    assert ask(server, b"GET /ready HTTP/1.1\r\nHost: x\r\n\r\n").startswith(b"HTTP/1.1 200")
    return ROOT / "export.onnx"


def replaced(path: Path) -> None:
    other = path.with_suffix(".new")
    other.write_bytes(b"no model")
    other.replace(path)


def overwritten(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(os.urandom(path.stat().st_size))


def emptied(path: Path) -> None:
    os.truncate(path, 0)


@pytest.mark.parametrize("change", [replaced, overwritten, emptied, Path.unlink])
def test_changed_while_serving(
    start_server: StartServer, served: Path, tmp_path: Path, uploads: Path, change: Callable[[Path], None]
) -> None:
    """Whatever becomes of the model's file, the running service answers with the model it was started with."""
    model = tmp_path / "export.onnx"
    model.write_bytes(served.read_bytes())
    server = start_server(MODEL=str(model), UPLOADS=str(uploads))
    before = [post(server, JPEG), post(server, JPEG, field="photo")[0]]
    change(model)
    assert [post(server, JPEG), post(server, JPEG, field="photo")[0]] == before
    assert server.stop() == 0


@pytest.mark.parametrize("number", [np.nan, np.inf], ids=str)
def test_weights_that_are_no_numbers(served: Path, tmp_path: Path, number: float) -> None:
    """A model with a weight that is no number, under a seal that fits, is not served."""
    import onnx

    model = onnx.load_from_string(graph_of(served))
    kernel = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    weights = onnx.numpy_helper.to_array(kernel).copy()
    weights.reshape(-1)[0] = number
    kernel.CopyFrom(onnx.numpy_helper.from_array(weights, kernel.name))
    bad = rewritten(served, tmp_path / "export.onnx", graph=model.SerializeToString())
    environment = {**os.environ, "MODEL": str(bad), "PORT": str(free_port()), "UPLOADS": str(tmp_path)}
    run = subprocess.run(GUNICORN, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert run.returncode != 0
    assert "does not start" in run.stderr


@dataclass(frozen=True)
class NoNumbers(Colours):
    """An engine that says of one picture, the red one, what is no probability."""

    number: float = np.nan

    def predict(self, photo: Photo) -> Prediction:
        prediction = super().predict(photo)
        return prediction if prediction.success != "red" else Prediction("red", (self.number, 0.0, 0.0, 0.0))


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("path", ["/predict", "/predict?top=all"])
def test_answers_that_are_no_numbers(settings: Settings, number: float, path: str) -> None:
    """An answer that is no number is 503 model_fault with Retry-After, and the next picture gets its own."""
    client = create_app(settings, Predictor(lambda: NoNumbers(number=number))).test_client()
    bad = client.post(path, data={"image": (io.BytesIO(picture("red")), "x.png")})
    assert (bad.status_code, bad.json["code"], "Retry-After" in bad.headers) == (503, "model_fault", True)
    assert client.post(path, data={"image": (io.BytesIO(picture("blue")), "x.png")}).json["success"] == "blue"
