"""One shape for every answer: JSON, with a request id, for our errors, HTTP's, and those nobody foresaw."""

from __future__ import annotations

import logging
import time
import uuid
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
    app.register_error_handler(RequestError, _answer_error)
    app.register_error_handler(ServiceError, _answer_error)
    app.register_error_handler(HTTPException, _answer_http)
    app.register_error_handler(Exception, _answer_unforeseen)
    app.before_request(_begin)
    app.after_request(_finish)


def start_logging(level: str) -> None:
    """Log to standard error what the service has to say from `level` on, a name in any case."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    # ours only: what Pillow says at debug level holds the photo's metadata
    logging.getLogger("pigeonhole").setLevel(level.upper())


def error_reply(status: int, code: str, sentence: str) -> Response:
    """The body that every error has: `{"error": sentence, "code": code, "request_id": id}`."""
    response = as_json(Problem(error=sentence, code=code, request_id=g.request_id))
    response.status_code = status
    return response


def _answer_error(error: RequestError | ServiceError) -> Response:
    response = error_reply(error.status, error.code, str(error))
    if isinstance(error, ServiceError):
        response.headers["Retry-After"] = str(error.retry_after)
        log.error("%s %s", g.request_id, error.code, exc_info=error if error.__cause__ else None)
    return response


def _answer_http(error: HTTPException) -> Response:
    status = error.code or 400
    allowed = ", ".join(sorted(getattr(error, "valid_methods", None) or ()))
    sentence = HTTP_SENTENCES.get(status, "{name}.").format(allowed=allowed, name=error.name)
    response = error_reply(status, HTTP_CODES.get(status, "bad_request"), sentence)
    if allowed:
        response.headers["Allow"] = allowed
    return response


def _answer_unforeseen(error: Exception) -> Response:
    log.error("%s unforeseen", g.request_id, exc_info=error)
    response = error_reply(503, "service_error", "something went wrong here, not with your request; please try again.")
    response.headers["Retry-After"] = str(ServiceError.retry_after)
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
