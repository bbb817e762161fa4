"""Who may call: pages of other origins, where `CORS_ORIGINS` names them."""

from __future__ import annotations

from flask import Flask
from flask_cors import CORS

from pigeonhole.web.tensors import HEADER_LENGTH

METHODS = ["GET", "HEAD", "POST"]
READABLE = ["Retry-After", "X-Request-ID", HEADER_LENGTH]  # beside those that pages may always read
DAY = 86_400  # seconds that a browser may remember the answer to its question


def install(app: Flask, origins: frozenset[str]) -> None:
    """Let pages of `origins` read the answers; `*` is all of them, and nothing is no one."""
    if origins:
        allowed = "*" if "*" in origins else sorted(origins)
        CORS(
            app,
            origins=allowed,
            send_wildcard=True,
            always_send=False,
            methods=METHODS,
            expose_headers=READABLE,
            max_age=DAY,
        )
