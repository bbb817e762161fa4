"""What the server answers by itself, before Flask has seen anything: the same JSON, with the same headers."""

from __future__ import annotations

from collections.abc import Mapping
from email.utils import formatdate
from http import HTTPStatus
from typing import Any

from pigeonhole.errors import RequestError, ServiceError
from pigeonhole.web.access import READABLE
from pigeonhole.web.answers import Problem
from pigeonhole.web.headers import EVERY_ANSWER

TOO_MUCH = "too much is being received at the moment; please try again."


def refusal(
    error: RequestError | ServiceError, request_id: str, more: Mapping[str, str], head_only: bool = False
) -> bytes:
    """The whole answer as it goes over the wire, with `more` headers; of one to HEAD only its head."""
    body, own = body_and_headers(error, request_id)
    headers = {"Date": formatdate(usegmt=True), "Connection": "close", **own, **more}
    lines = [f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}", *map(": ".join, headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + (b"" if head_only else body)


def body_and_headers(error: RequestError | ServiceError, request_id: str) -> tuple[bytes, dict[str, str]]:
    """The JSON that tells an error, and the headers that go with it."""
    body = Problem(error=str(error), code=error.code, request_id=request_id).model_dump_json().encode() + b"\n"
    headers = {
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        "X-Request-ID": request_id,
        **EVERY_ANSWER,
    }
    if isinstance(error, ServiceError):
        headers["Retry-After"] = str(error.retry_after)
    return body, headers


def shared_with(origins: frozenset[str], request: Any) -> Mapping[str, str]:
    """What lets the page that sent gunicorn's `request` read the refusal, if it is of one of `origins`."""
    sent = [value for name, value in request.headers if name == "ORIGIN"] if request else []
    allowed = "*" if "*" in origins else sent[0] if sent and sent[0] in origins else None
    if not sent or not allowed:
        return {}
    return {
        "Access-Control-Allow-Origin": allowed,
        "Access-Control-Expose-Headers": ", ".join(READABLE),
        "Vary": "Origin",
    }
