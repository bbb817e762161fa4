"""Traces for OpenTelemetry, where a collector is named: a span for each request, and one for each of its phases.

They hold what the log holds, and nothing of a photo. Without a collector nothing here is imported, and nobody is told.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol

from pigeonhole import __version__
from pigeonhole.errors import PackagesMissing

if TYPE_CHECKING:
    from opentelemetry.context import Context

CLOSING = 2.0  # seconds that the last spans may take, when the service stops
WSGI = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
PACKAGES = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")


class Traces(Protocol):
    """Where the spans of requests go."""

    def around(self, app: WSGI) -> WSGI:
        """`app`, in a span for each request."""

    def span(self, name: str) -> AbstractContextManager[object]:
        """A span within the one that this thread is in."""

    def passed(self, name: str, began: float, ended: float) -> None:
        """Tell a span that is over; times are of `time.monotonic()`."""

    def answered(self, method: str, route: str, status: int, request_id: str) -> str | None:
        """Complete the span of the request at hand; the id of its trace."""

    def close(self) -> None:
        """Send what is left, soon or not at all."""


class NoTraces:
    """Nobody wants any."""

    def around(self, app: WSGI) -> WSGI:
        return app

    def span(self, name: str) -> AbstractContextManager[object]:
        return nullcontext()

    def passed(self, name: str, began: float, ended: float) -> None:
        pass

    def answered(self, method: str, route: str, status: int, request_id: str) -> str | None:
        return None

    def close(self) -> None:
        pass


class OpenTelemetry:
    """Spans that are sent to a collector by a thread of their own, in batches; what it does not take is dropped."""

    def __init__(self, endpoint: str) -> None:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        ours = Resource({"service.name": "pigeonhole", "service.version": __version__})
        self._provider = TracerProvider(
            resource=ours.merge(OTELResourceDetector().detect()),  # OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint)))
        self._tracer = self._provider.get_tracer("pigeonhole", __version__)
        self._trace, self._propagator = trace, TraceContextTextMapPropagator()

    def around(self, app: WSGI) -> WSGI:
        def traced(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            began = environ.get("pigeonhole.began", time.monotonic())
            with self._tracer.start_as_current_span(
                "request",
                self._parent(environ),
                self._trace.SpanKind.SERVER,
                start_time=_nanoseconds(began),
                record_exception=False,  # its words may quote what was sent
                set_status_on_exception=False,
            ):
                return app(environ, start_response)

        return traced

    def span(self, name: str) -> AbstractContextManager[object]:
        return self._tracer.start_as_current_span(name, record_exception=False, set_status_on_exception=False)

    def passed(self, name: str, began: float, ended: float) -> None:
        self._tracer.start_span(name, start_time=_nanoseconds(began)).end(_nanoseconds(ended))

    def answered(self, method: str, route: str, status: int, request_id: str) -> str | None:
        span = self._trace.get_current_span()
        span.update_name(f"{method} {route}")
        span.set_attributes(
            {
                "http.request.method": method,
                "http.route": route,
                "http.response.status_code": status,
                "pigeonhole.request_id": request_id,
            }
        )
        if status >= 500:
            span.set_status(self._trace.StatusCode.ERROR)
        return self._trace.format_trace_id(span.get_span_context().trace_id)

    def close(self) -> None:
        last = threading.Thread(target=self._provider.shutdown, daemon=True)
        last.start()
        last.join(CLOSING)  # a collector that does not answer is left to itself

    def _parent(self, environ: dict[str, Any]) -> Context:
        names = {"traceparent": "HTTP_TRACEPARENT", "tracestate": "HTTP_TRACESTATE"}
        return self._propagator.extract({name: environ[key] for name, key in names.items() if key in environ})


def traces_to(endpoint: str) -> Traces:
    """What sends spans to `endpoint`, the address of a collector for traces; it is called after the fork.

    Raises:
        PackagesMissing: as `check`.
    """
    check(endpoint)
    return OpenTelemetry(endpoint) if endpoint else NoTraces()


def check(endpoint: str) -> None:
    """Raises PackagesMissing if traces are wanted, and what sends them is not installed."""
    try:
        missing = endpoint and not all(map(find_spec, PACKAGES))
    except ModuleNotFoundError:  # the package that it is in lacks as well
        missing = True
    if missing:
        raise PackagesMissing(
            "OTEL_EXPORTER_OTLP_ENDPOINT wants traces, and the packages that send them are not installed; "
            "`tools/environment.sh .venv telemetry` does it."
        )


def _nanoseconds(at: float) -> int:
    """A time of `time.monotonic()` as OpenTelemetry counts: since 1970."""
    return time.time_ns() - int((time.monotonic() - at) * 1e9)
