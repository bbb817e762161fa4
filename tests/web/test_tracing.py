"""Traces reach an OpenTelemetry collector where one is named, hold nothing of a photo, and are in nobody's way."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from app import create_app
from pigeonhole.model.predictor import Predictor
from pigeonhole.settings import Settings
from tests.conftest import GUNICORN, ROOT, Colours, StartServer, free_port
from tests.test_serving import END, HEAD, JPEG, PART, ask, post, told

trace_service = pytest.importorskip(
    "opentelemetry.proto.collector.trace.v1.trace_service_pb2", reason="the category `telemetry` is not installed"
)

from opentelemetry.proto.trace.v1.trace_pb2 import Span  # noqa: E402

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"  # those of the W3C's example


class Collector(HTTPServer):
    """Takes OTLP over HTTP, and keeps what it got."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Taking)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.bodies: list[bytes] = []
        self.paths: set[str] = set()

    @property
    def spans(self) -> list[Span]:
        batches = (trace_service.ExportTraceServiceRequest.FromString(body) for body in self.bodies)
        scopes = (scope for batch in batches for resource in batch.resource_spans for scope in resource.scope_spans)
        return [span for scope in scopes for span in scope.spans]


class Taking(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:  # noqa: N802
        self.server.paths.add(self.path)
        self.server.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def attributes(span: Span) -> dict[str, str | int]:
    return {one.key: one.value.string_value or one.value.int_value for one in span.attributes}


def test_a_trace(start_server: StartServer, uploads: Path, collector: Collector) -> None:
    """A request is a span of the caller's trace, with its phases within; the log names the trace."""
    server = start_server(UPLOADS=str(uploads), OTEL_EXPORTER_OTLP_ENDPOINT=collector.address)
    head = HEAD.replace(b"/predict", b"/predict?explain=1") + f"traceparent: 00-{TRACE}-{PARENT}-01\r\n".encode()
    assert ask(server, head + b"Content-Length: %d\r\n\r\n" % len(PART + END) + PART + END).startswith(b"HTTP/1.1 200")
    assert server.stop() == 0
    spans = {span.name: span for span in collector.spans if span.trace_id.hex() == TRACE}
    assert set(spans) == {"POST /predict", "receive", "wait", "read", "turn", "explain", "decode"}
    request, line = spans["POST /predict"], told(server)[-1]
    assert (request.parent_span_id.hex(), request.kind, line["trace_id"]) == (PARENT, Span.SPAN_KIND_SERVER, TRACE)
    assert attributes(request) == {
        "http.request.method": "POST",
        "http.route": "/predict",
        "http.response.status_code": 200,
        "pigeonhole.request_id": line["request_id"],
    }
    assert spans["read"].parent_span_id == spans["explain"].parent_span_id == request.span_id
    assert spans["decode"].parent_span_id == spans["explain"].span_id


def test_what_came_before_is_traced(settings: Settings, collector: Collector) -> None:
    """Where the server says when a request began and was there, its span begins then, and has these phases too."""
    app = create_app(settings.model_copy(update={"otel_exporter_otlp_endpoint": collector.address}), Predictor(Colours))
    now = time.monotonic()
    app.test_client().get("/ping", environ_overrides={"pigeonhole.began": now - 3, "pigeonhole.received": now - 1})
    app.extensions["traces"].close()
    spans = {span.name: span for span in collector.spans}
    assert set(spans) == {"GET /ping", "receive", "wait"}
    seconds = {name: (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9 for name, span in spans.items()}
    assert seconds == pytest.approx({"GET /ping": 3, "receive": 2, "wait": 1}, abs=0.5)


def test_nothing_private_is_traced(start_server: StartServer, uploads: Path, collector: Collector) -> None:
    """No query, name, header or path that has no route reaches the collector, also where a request is refused."""
    server = start_server(UPLOADS=str(uploads), OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=collector.address + "/here")
    head = b"\r\nHost: canary.example\r\nCookie: canary\r\nUser-Agent: canary\r\nbaggage: a=canary\r\n\r\n"
    assert ask(server, b"GET /canary?canary=1 HTTP/1.1" + head).startswith(b"HTTP/1.1 404")
    assert post(server, b"canary", name="canary.jpg")[0] == 415
    assert post(server, JPEG, field="canary")[0] == 400  # and the sentence says what was seen
    assert post(server, JPEG, name="canary.jpg")[0] == 200
    assert server.stop() == 0
    assert collector.paths == {"/here"}
    assert {"GET none", "POST /predict", "read", "turn", "infer", "decode"} <= {span.name for span in collector.spans}
    assert not [body for body in collector.bodies if b"canary" in body]


@pytest.mark.parametrize("there", [True, False])
def test_a_dead_collector(start_server: StartServer, uploads: Path, there: bool) -> None:
    """A collector that never answers, or is not there, slows no picture, and the end by seconds at most."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1] if there else free_port()}"
        server = start_server(UPLOADS=str(uploads), OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, OTEL_BSP_SCHEDULE_DELAY="100")
        began = time.monotonic()
        assert [post(server, JPEG)[0] for _ in range(20)] == [200] * 20
        answered = time.monotonic()
        assert server.stop() == 0
    assert answered - began < 5
    assert time.monotonic() - answered < 8
    lines = [line for line in server.log.read_text().splitlines() if line.startswith("{")]
    assert there or "WARNING" in {json.loads(line)["level"] for line in lines}


WITHOUT = """
import sys
sys.modules["opentelemetry"] = None
sys.argv = sys.argv[1:]
from gunicorn.app.wsgiapp import run
run()
"""
ALONE = (sys.executable, "-c", WITHOUT, *GUNICORN[2:])


def test_wanted_without_the_packages(start_server: StartServer, uploads: Path) -> None:
    """Who wants traces, and lacks the packages for it, is told at the start how to get them."""
    endpoint = "http://127.0.0.1:9"
    server = start_server(command=ALONE, wait=False, UPLOADS=str(uploads), OTEL_EXPORTER_OTLP_ENDPOINT=endpoint)
    assert server.process.wait(60) == 1
    assert "`tools/environment.sh .venv telemetry`" in server.log.read_text()
    assert "Traceback" not in server.log.read_text()


def test_unwanted_without_the_packages(start_server: StartServer, uploads: Path) -> None:
    """Who wants no traces needs none of their packages."""
    server = start_server(command=ALONE, UPLOADS=str(uploads))
    assert post(server, JPEG)[0] == 200
    assert server.stop() == 0


def test_nothing_is_loaded_unasked() -> None:
    """Without a collector's address, nothing that could send traces is loaded."""
    code = "from app import app; import sys; print([name for name in sys.modules if name.startswith('opentelemetry')])"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout.strip() == "[]"
