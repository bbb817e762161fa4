"""The service on one page. `make serve` runs it under gunicorn, and so does `python app.py`."""

from __future__ import annotations

import os
import sys
from threading import BoundedSemaphore
from typing import IO, cast

from flask import Flask, request
from prometheus_client import CollectorRegistry

from pigeonhole.intake.pictures import Limits, open_photo, open_probe
from pigeonhole.model.choosing import open_engine
from pigeonhole.model.predictor import Predictor
from pigeonhole.settings import Settings
from pigeonhole.web import observe, replies
from pigeonhole.web.forms import FormRequest, blamed_on
from pigeonhole.wiring import model_of


def create_app(settings: Settings | None = None, predictor: Predictor | None = None) -> Flask:
    """The Flask app, by default with the environment's settings and the model they name, loaded when first needed.

    Raises:
        SettingsError: a setting does not fit.
    """
    settings = settings or Settings.load()
    registry = CollectorRegistry()
    count = observe.counter_of_ways(registry)
    predictor = predictor or Predictor(lambda: open_engine(model_of(settings), open_probe, count))
    limits = Limits(settings.max_pixels, settings.max_side)
    in_hand = BoundedSemaphore(settings.max_decoded)  # guards memory: decoding takes up to 16 bytes a pixel
    app = Flask("pigeonhole", static_folder=None)
    app.debug = False  # whatever FLASK_DEBUG says: no debugger, no tracebacks
    app.extensions["predictor"] = predictor
    FormRequest.install(app, settings)
    observe.install(app, predictor, registry)
    replies.install(app)  # last, so that it sees each answer first: Flask asks in reverse order

    @app.get("/ping")
    def ping() -> dict[str, str]:
        return {"success": "pong"}

    @app.post("/predict")
    def predict() -> dict[str, object]:
        images = cast(FormRequest, request).images()
        answers = []
        for image in images:
            with blamed_on(image, among=images), in_hand:
                answers.append(label_of(image.stream))
        return {"success": answers[0] if len(answers) == 1 else answers}

    def label_of(file: IO[bytes]) -> str | list[str]:
        return predictor.predict(open_photo(file, limits, settings.orientation)).success

    return app


if __name__ == "__main__":
    os.execv(sys.executable, [sys.executable, "-m", "gunicorn", "-c", "python:pigeonhole.gunicorn_conf", "app:app"])
else:
    app = create_app()
