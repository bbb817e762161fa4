"""The service on one page. `make serve` runs it under gunicorn, and so does `python app.py`."""

from __future__ import annotations

import os
import sys

from flask import Flask

from pigeonhole.errors import BadBase64, BadURL, NotAvailable
from pigeonhole.intake.pictures import open_probe
from pigeonhole.model.choosing import open_engine
from pigeonhole.model.predictor import Predictor
from pigeonhole.settings import Settings
from pigeonhole.web import access, dialects, observe, open_inference, openapi, page, replies
from pigeonhole.web.answers import Answer, Explained, Pong, explained, likely
from pigeonhole.web.api import ABOUT, API, OF_URLS
from pigeonhole.web.bodies import JSON, Form, Raw, Submission
from pigeonhole.web.classifier import Classifier, Fetches
from pigeonhole.web.examples import ADDRESS, PICTURE, WAYS_IN
from pigeonhole.web.keys import keys_of
from pigeonhole.web.metrics import Metrics
from pigeonhole.web.picture_request import PictureRequest, SentPicture
from pigeonhole.web.prediction_request import IMAGE_FIELDS, Encoded, GetQuery, Options, PredictionRequest, combined
from pigeonhole.web.tracing import traces_to
from pigeonhole.wiring import model_of


def create_app(
    settings: Settings | None = None, predictor: Predictor | None = None, fetcher: Fetches | None = None
) -> Flask:
    """The Flask app, by default with the environment's settings and the model they name, loaded when first needed.

    Raises:
        SettingsError, FolderError, PackagesMissing: a setting does not fit.
    """
    settings = settings or Settings.load()
    traces = traces_to(settings.traces_endpoint)
    metrics = Metrics(traces.span)
    predictor = predictor or Predictor(lambda: open_engine(model_of(settings), open_probe, metrics.went))
    classifier = Classifier(predictor, settings, fetcher, metrics.phase)
    app = Flask("pigeonhole", static_folder=None)
    app.debug = False  # whatever FLASK_DEBUG says: no debugger, no tracebacks
    app.extensions.update(predictor=predictor, measured=classifier.measured)
    PictureRequest.install(app, settings)
    keys = keys_of(settings)
    api = API(app, has_keys=keys is not None, has_rates=settings.rate_limit is not None)

    @api.post(
        "/predict",
        tag="Classify",
        query=Options,
        bodies=(Form(IMAGE_FIELDS, Options), Raw(), JSON(Encoded, {"image": BadBase64, "url": BadURL})),
        takes_pictures=True,
        refuses=(*OF_URLS, NotAvailable),
        example={"image": PICTURE, "top": 3},
        description=WAYS_IN.read_text("utf-8"),
    )
    def predict(query: Options, body: Submission | SentPicture) -> Answer:
        """The label of a picture, or of several."""
        return answer_to(combined(query, body))

    @api.get(
        "/predict",
        tag="Classify",
        query=GetQuery,
        takes_pictures=True,
        refuses=(*OF_URLS, NotAvailable),
        example=ADDRESS,
    )
    def predict_url(query: GetQuery) -> Answer:
        """The label of a picture on the web."""
        return answer_to(combined(query, None))

    def answer_to(wanted: PredictionRequest) -> Answer:
        if wanted.explain:
            predictor.check_explainable(wanted.explain_label)  # before anything is fetched
        pictures = [classifier.fetched(wanted.url)] if wanted.url is not None else wanted.pictures
        shown: list[Explained] | None = None
        if wanted.explain:
            explanations = classifier.explain(pictures, wanted.explain_label)
            said = [prediction for prediction, _ in explanations]
            shown = [explained(explanation, wanted.explain) for _, explanation in explanations]
        else:
            said = classifier.classify(pictures)
        labels = [one.success for one in said]
        ranked = [likely(one, classifier.labels, wanted.top) for one in said] if wanted.top else None
        if wanted.several:
            return Answer(success=labels, predictions=ranked, explanation=shown)
        return Answer(success=labels[0], predictions=ranked and ranked[0], explanation=shown and shown[0])

    @api.get("/ping", tag=ABOUT)
    def ping() -> Pong:
        """Alive; touches nothing."""
        return Pong()

    observe.install(api, classifier, predictor, metrics)
    dialects.install(api, classifier)
    open_inference.install(api, classifier, predictor, settings.model_name)
    openapi.install(api)
    page.install(app, settings, classifier, predictor, keys)
    replies.install(app, metrics, traces)  # after these, to see each answer before them: Flask asks in reverse order
    access.install(api, settings, keys)  # last: its refusals need what that one gives to a request
    return app


if __name__ == "__main__":
    os.execv(sys.executable, [sys.executable, "-m", "gunicorn", "-c", "python:pigeonhole.gunicorn_conf", "app:app"])
else:
    app = create_app()
