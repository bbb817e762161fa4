"""The Flask app that one would write first: what Pigeonhole is compared with. MODEL names the export.

MODEL=export.pkl gunicorn --chdir benchmarks --threads 8 obvious:app
"""

import io
import os
import threading

from flask import Flask, request

from pigeonhole.model.torch_ready import import_torch

import_torch()  # fastai does not import beside a CPU build of torch without it

import fastai.callback.progress  # noqa: E402, F401
from fastai.learner import load_learner  # noqa: E402
from fastai.vision.core import PILImage  # noqa: E402

app = Flask(__name__)
learner = load_learner(os.environ["MODEL"])
one_at_a_time = threading.Lock()  # in favour of the obvious app: without it, eight clients get answers of status 500


@app.post("/predict")
def predict() -> dict[str, str]:
    picture = PILImage.create(io.BytesIO(request.files["image"].read()))
    with one_at_a_time, learner.no_bar():
        label, _, _ = learner.predict(picture)
    return {"success": str(label)}
