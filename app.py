"""The service on one page. `make serve` runs it under gunicorn, `python app.py` on its own."""

from __future__ import annotations

from typing import cast

from flask import Flask, request

from pigeonhole.intake.pictures import Limits, read_picture
from pigeonhole.model.learner import open_learner
from pigeonhole.model.predictor import Predictor
from pigeonhole.settings import Settings
from pigeonhole.web import replies
from pigeonhole.web.forms import FormRequest, blamed_on


def create_app(settings: Settings | None = None, predictor: Predictor | None = None) -> Flask:
    """The Flask app, by default with the environment's settings and the model they name, loaded when first needed.

    Raises:
        SettingsError: a setting does not fit.
    """
    settings = settings or Settings.load()
    predictor = predictor or Predictor(lambda: open_learner(settings.model))
    limits = Limits(settings.max_pixels, settings.max_side)
    app = Flask("pigeonhole", static_folder=None)
    app.extensions["predictor"] = predictor
    FormRequest.install(app, settings)
    replies.install(app)

    @app.get("/ping")
    def ping() -> dict[str, str]:
        return {"success": "pong"}

    @app.post("/predict")
    def predict() -> dict[str, object]:
        images = cast(FormRequest, request).images()
        answers = []
        for image in images:
            with blamed_on(image, among=images):
                picture = read_picture(image.stream, limits, settings.orientation)
                answers.append(predictor.predict(picture).success)
        return {"success": answers[0] if len(answers) == 1 else answers}

    return app


if __name__ == "__main__":
    from pigeonhole.cli import run_locally

    run_locally(create_app)
else:
    app = create_app()
