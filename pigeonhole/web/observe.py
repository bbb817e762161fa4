"""What the service tells about itself: whether it is ready, and what it counted. Nothing of any picture is in it."""

from __future__ import annotations

from collections.abc import Callable

from flask import Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, generate_latest

from pigeonhole.model.engine import WAYS
from pigeonhole.model.predictor import Predictor
from pigeonhole.web.answers import Ready
from pigeonhole.web.api import ABOUT, API


def install(api: API, predictor: Predictor, registry: CollectorRegistry) -> None:
    """Add `GET /ready` and `GET /metrics`."""

    @api.get("/ready", tag=ABOUT, needs_model=True)
    def ready() -> Ready:
        """Which model answers and how; 503 `not_ready` if it cannot be opened, or does not pass its test."""
        return Ready.model_validate(predictor.load_or_refuse().about)

    @api.get("/metrics", tag=ABOUT, media_type="text/plain")
    def metrics() -> Response:
        """In the Prometheus text format, of this worker process."""
        return Response(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)


def counter_of_ways(registry: CollectorRegistry) -> Callable[[str], None]:
    """What to call with the way that a picture went; a rerun is one that the guard sent on."""
    answers = Counter(
        "pigeonhole_answers",
        "Pictures answered by the compiled model: the fast way, the exact way, or exactly after the guard refused.",
        ["way"],
        registry=registry,
    )
    for way in WAYS:
        answers.labels(way)  # so that it is there, as 0, before the first picture
    return lambda way: answers.labels(way).inc()
