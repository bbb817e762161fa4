"""What the service tells about itself: whether it is ready, and what it counted. Nothing of any picture is in it."""

from __future__ import annotations

from flask import Response
from prometheus_client import CONTENT_TYPE_LATEST

from pigeonhole.errors import NoSpace
from pigeonhole.model.predictor import Predictor
from pigeonhole.web.answers import Ready
from pigeonhole.web.api import ABOUT, API
from pigeonhole.web.classifier import Classifier
from pigeonhole.web.metrics import Metrics


def install(api: API, classifier: Classifier, predictor: Predictor, metrics: Metrics) -> None:
    """Add `GET /ready` and `GET /metrics`."""

    @api.get("/ready", tag=ABOUT, needs_model=True, refuses=(NoSpace,))
    def ready() -> Ready:
        """Which model answers and how; 503 if no picture can be answered now.

        `not_ready`: the model cannot be opened or does not pass its test, or the service is stopping. `no_space`: there
        is no room to receive a picture.
        """
        return Ready.model_validate(classifier.ready().about)

    @api.get("/metrics", tag=ABOUT, media_type="text/plain", for_operators=True)
    def told() -> Response:
        """In the Prometheus text format, of this worker process."""
        return Response(metrics.text(predictor.about), content_type=CONTENT_TYPE_LATEST)
