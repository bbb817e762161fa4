"""One shape for every answer of the API: JSON, with a request id, for our errors, HTTP's, and those nobody foresaw."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import quote

from flask import Flask, Response, g, request
from werkzeug.exceptions import HTTPException

from pigeonhole.errors import RequestError, ServiceError
from pigeonhole.web.answers import Problem
from pigeonhole.web.api import as_json

log = logging.getLogger(__name__)

HTTP_CODES = {404: "not_found", 405: "bad_method"}
HTTP_SENTENCES = {
    404: "there is nothing here; POST a photo to /predict.",
    405: "this address takes {allowed} only.",
}


def install(app: Flask) -> None:
    """Give `app` its error handlers, a request id and a log line for each request, and the headers of every answer."""
    app.register_error_handler(Exception, _answer)  # Flask's own among them
    app.before_request(_begin)
    app.after_request(_finish)


def start_logging(level: str) -> None:
    """Log to standard error what the service has to say from `level` on, a name in any case."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    # ours only: what Pillow says at debug level holds the photo's metadata
    logging.getLogger("pigeonhole").setLevel(level.upper())


@dataclass(frozen=True)
class Refusal:
    """An error as it is answered, be it as JSON or on a page."""

    status: int
    code: str
    sentence: str
    headers: Mapping[str, str] = field(default_factory=dict)


def refusal_of(error: Exception) -> Refusal:
    """What is told of `error`; what is our own trouble goes to the log as well."""
    if isinstance(error, RequestError | ServiceError):
        return _foreseen(error)
    if isinstance(error, HTTPException):
        return _of_http(error)
    log.error("%s unforeseen", g.request_id, exc_info=error)
    sentence = "something went wrong here, not with your request; please try again."
    return Refusal(503, "service_error", sentence, _again_after(ServiceError.retry_after))


def _foreseen(error: RequestError | ServiceError) -> Refusal:
    headers: Mapping[str, str] = {}
    if isinstance(error, ServiceError):
        headers = _again_after(error.retry_after)
        log.error("%s %s", g.request_id, error.code, exc_info=error if error.__cause__ else None)
    return Refusal(error.status, error.code, str(error), headers)


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


def _begin() -> None:
    g.request_id = uuid.uuid4().hex
    g.began = time.monotonic()


def _finish(response: Response) -> Response:
    response.headers["X-Request-ID"] = g.request_id
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers.setdefault("Cache-Control", "no-store")  # files that are the same for all may say otherwise
    milliseconds = (time.monotonic() - g.began) * 1000
    path = quote(request.path)[:200]  # one printable word, whatever was asked for
    method = request.method[:10]
    log.info("%s %s %s %d %.0f ms", g.request_id, method, path, response.status_code, milliseconds)
    return response
