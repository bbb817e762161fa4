"""What the service tells about itself: whether it is ready, and what it counted. Nothing of any picture is in it."""

from __future__ import annotations

from flask import Flask, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from pigeonhole.errors import NotReady, StartError
from pigeonhole.model.predictor import Predictor


def install(app: Flask, predictor: Predictor, registry: CollectorRegistry) -> None:
    """Add `GET /ready` and `GET /metrics`."""

    @app.get("/ready")
    def ready() -> dict[str, object]:
        """Says which model answers and how; 503 `not_ready` unless it has been opened and has passed its test."""
        try:
            return {"success": "ready", **predictor.load().about}
        except StartError as error:
            raise NotReady("the model is not loaded.") from error

    @app.get("/metrics")
    def metrics() -> Response:
        """In the Prometheus text format, of this worker process."""
        return Response(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)
