"""What is counted and timed, for Prometheus: numbers only, under names of ours, whatever clients send."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector, generate_latest

from pigeonhole import __version__
from pigeonhole.model.engine import WAYS
from pigeonhole.web.log_lines import Lines
from pigeonhole.web.tracing import WSGI

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"})
PHASES = {
    "receive": "from the first byte of a request to its last",
    "wait": "until a thread begins with it",
    "read": "taking the pictures out of a form, JSON or tensor",
    "fetch": "getting a picture from the web",
    "turn": "until there is a core for decoding, and then until there is memory",
    "decode": "from a picture's bytes to its pixels",
    "infer": "what the model says of a picture",
    "explain": "the same, and where it looked",
}
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20)  # seconds
NOWHERE = "none"  # the route of what no route is for
OTHER = "other"  # a method that is none
Span = Callable[[str], AbstractContextManager[object]]


class Metrics:
    """The counts of one worker. `span` is entered around each phase, with its name."""

    def __init__(self, span: Span = lambda name: nullcontext()) -> None:
        self._span = span
        self._inside = threading.local()  # seconds of the phases within the one that this thread is in
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        build = Info("pigeonhole_build", "What runs here, and as which process.", registry=registry)
        build.info({"version": __version__, "pid": str(os.getpid())})
        self._model = Info("pigeonhole_model", "The model that answers.", registry=registry)
        self._requests = Counter(
            "pigeonhole_requests", "Requests answered.", ["route", "method", "status"], registry=registry
        )
        self._request_seconds = Histogram(
            "pigeonhole_request_seconds", "From a request to its answer.", ["route"], buckets=BUCKETS, registry=registry
        )
        seconds = Histogram(
            "pigeonhole_phase_seconds",
            "What the time went to; a phase within another counts for itself only.",
            ["phase"],
            buckets=BUCKETS,
            registry=registry,
        )
        self._phases = {name: seconds.labels(name) for name in PHASES}
        self.waiting = Gauge("pigeonhole_waiting", "Requests received that wait for a thread.", registry=registry)
        self.in_progress = Gauge("pigeonhole_in_progress", "Requests that a thread answers.", registry=registry)
        lost = Gauge("pigeonhole_log_lines_lost", "Lines of the log that nobody took.", registry=registry)
        lost.set_function(lambda: Lines.lost)
        answers = Counter(
            "pigeonhole_answers",
            "Pictures answered by the compiled model: the fast way, the exact way, or exactly after the guard refused.",
            ["way"],
            registry=registry,
        )
        self._answers = {way: answers.labels(way) for way in WAYS}  # there as 0 before the first picture

    def request(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count a request that was answered; `route` is the rule that it matched or NOWHERE, not what was asked for."""
        self._requests.labels(route, known(method), status).inc()
        self._request_seconds.labels(route).observe(seconds)

    def around(self, app: WSGI) -> WSGI:
        """`app`, whose requests are in progress while it answers."""

        def counted(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            with self.in_progress.track_inprogress():
                return app(environ, start_response)

        return counted

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time what is done inside."""
        before, self._inside.seconds = getattr(self._inside, "seconds", 0.0), 0.0
        began = time.perf_counter()
        try:
            with self._span(name):
                yield
        finally:
            seconds = time.perf_counter() - began
            self.passed(name, seconds - self._inside.seconds)
            self._inside.seconds = before + seconds

    def passed(self, phase: str, seconds: float) -> None:
        """Count a phase that is over."""
        self._phases[phase].observe(max(0.0, seconds))

    def went(self, way: str) -> None:
        """Count the way that a picture went; a rerun is one that the guard sent on."""
        self._answers[way].inc()

    def text(self, about: Mapping[str, str]) -> bytes:
        """All of it in the text format; `about` is what the engine says of itself, if there is one."""
        if about:
            self._model.info(
                {
                    "sha256": about.get("model_sha256", ""),
                    "engine": about["engine"],
                    "precision": about.get("precision", ""),
                }
            )
        return generate_latest(self.registry)


def known(method: str) -> str:
    """A method that HTTP has, or OTHER."""
    return method if method in METHODS else OTHER
