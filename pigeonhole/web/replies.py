"""One shape for every answer of the API: JSON, with a request id, for our errors, HTTP's, and those nobody foresaw.

Each answer is also counted, and told in a line of the log.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flask import Flask, Response, current_app, g, request, request_started
from werkzeug.exceptions import HTTPException

from pigeonhole.errors import OUR_FAULT, RequestError, ServiceError
from pigeonhole.web.answers import Problem
from pigeonhole.web.api import as_json
from pigeonhole.web.headers import EVERY_ANSWER
from pigeonhole.web.log_lines import tell_request
from pigeonhole.web.metrics import NOWHERE, Metrics, known
from pigeonhole.web.tracing import Traces

HTTP_CODES = {404: "not_found", 405: "bad_method"}
HTTP_SENTENCES = {
    404: "there is nothing here; POST a photo to /predict.",
    405: "this address takes {allowed} only.",
}


def install(app: Flask, metrics: Metrics, traces: Traces) -> None:
    """Give `app` its error handlers, a request id and a log line for each request, and the headers of every answer."""
    app.extensions.update(metrics=metrics, traces=traces)
    app.register_error_handler(Exception, _answer)  # Flask's own among them
    request_started.connect(_begin, app)  # before anything that may refuse the request
    app.after_request(_finish)
    app.wsgi_app = traces.around(metrics.around(app.wsgi_app))  # type: ignore[assignment,method-assign]


@dataclass(frozen=True)
class Refusal:
    """An error as it is answered, be it as JSON or on a page."""

    status: int
    code: str
    sentence: str
    headers: Mapping[str, str] = field(default_factory=dict)


def refusal_of(error: Exception) -> Refusal:
    """What is told of `error`; its code, and what is our own trouble, go into the log's line as well."""
    refusal = _told(error)
    g.code = refusal.code
    if isinstance(error, ServiceError) and error.__cause__ or refusal.code == ServiceError.code:
        g.trouble = error
    return refusal


def _told(error: Exception) -> Refusal:
    if isinstance(error, RequestError):
        return Refusal(error.status, error.code, str(error), error.headers)
    if isinstance(error, ServiceError):
        return Refusal(error.status, error.code, str(error), _again_after(error.retry_after))
    if isinstance(error, HTTPException):
        return _of_http(error)
    return Refusal(503, ServiceError.code, OUR_FAULT, _again_after(ServiceError.retry_after))


def _of_http(error: HTTPException) -> Refusal:
    status = error.code or 400
    allowed = ", ".join(sorted(getattr(error, "valid_methods", None) or ()))
    sentence = HTTP_SENTENCES.get(status, "{name}.").format(allowed=allowed, name=error.name)
    return Refusal(status, HTTP_CODES.get(status, "bad_request"), sentence, {"Allow": allowed} if allowed else {})


def _again_after(seconds: int) -> Mapping[str, str]:
    return {"Retry-After": str(seconds)}


def _answer(error: Exception) -> Response:
    """The body that every error has: `{"error": sentence, "code": code, "request_id": id}`."""
    refusal = refusal_of(error)
    response = as_json(Problem(error=refusal.sentence, code=refusal.code, request_id=g.request_id))
    response.status_code = refusal.status
    response.headers.update(refusal.headers)
    return response


def _begin(app: Flask, **_: Any) -> None:
    g.request_id = uuid.uuid4().hex  # ours alone: a client's X-Request-ID is not looked at
    now = time.monotonic()
    g.began, received = (request.environ.get(f"pigeonhole.{mark}", now) for mark in ("began", "received"))
    if "pigeonhole.received" in request.environ:  # our own server says so, others do not
        for phase, start, end in (("receive", g.began, received), ("wait", received, now)):
            app.extensions["metrics"].passed(phase, end - start)
            app.extensions["traces"].passed(phase, start, end)


def _finish(response: Response) -> Response:
    response.headers["X-Request-ID"] = g.request_id
    for name, value in EVERY_ANSWER.items():
        response.headers.setdefault(name, value)  # the page and the files that are the same for all may say otherwise
    _tell(response.status_code, time.monotonic() - g.began)
    return response


def _tell(status: int, seconds: float) -> None:
    """Count the request at hand, and tell of it in the log and in its trace."""
    route = request.url_rule.rule if request.url_rule else NOWHERE
    extensions = current_app.extensions
    extensions["metrics"].request(route, request.method, status, seconds)
    tell_request(
        g.request_id,
        request.method,
        request.path,
        status,
        seconds,
        code=g.get("code"),
        trouble=g.get("trouble"),
        bytes=request.content_length,
        pictures=g.get("pictures"),
        trace_id=extensions["traces"].answered(known(request.method), route, status, g.request_id),
    )
