"""The app with something wrong in it, named by LEAK: what watches has to see each, or it would see nothing."""

from __future__ import annotations

import itertools
import os
import tempfile
import threading
from collections.abc import Callable, Iterable
from typing import Any

from app import create_app

EVERY = 7  # requests, of which one goes wrong
WSGI = Callable[[dict[str, Any], Any], Iterable[bytes]]

app = create_app()
honest: WSGI = app.wsgi_app
kept: list[Any] = []
count = itertools.count(1)


def keeps_memory(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
    kept.append(b"x" * 1_000_000)
    return honest(environ, start)


def keeps_descriptors(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
    if next(count) % EVERY == 0:
        kept.append(os.open(os.devnull, os.O_RDONLY))
    return honest(environ, start)


def keeps_threads(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
    if next(count) % EVERY == 0:
        threading.Thread(target=threading.Event().wait, daemon=True).start()
    return honest(environ, start)


def keeps_files(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
    if next(count) % EVERY == 0:
        tempfile.mkdtemp(dir=app.config["SETTINGS"].uploads)
    return honest(environ, start)


def swaps_answers(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
    """Now and then the answer to somebody else's picture."""
    begun: list[Any] = []
    body = list(honest(environ, lambda *status_and_headers: begun.extend(status_and_headers)))
    if environ["REQUEST_METHOD"] == "POST":
        kept.append((begun, body))
        if next(count) % EVERY == 0:
            begun, body = kept.pop(0)
    start(*begun)
    return body


def loses_requests(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
    """The worker is gone in the middle of the answer."""
    if environ["REQUEST_METHOD"] == "POST" and next(count) % 50 == 0:
        os._exit(1)
    return honest(environ, start)


app.wsgi_app = {  # type: ignore[method-assign]
    "memory": keeps_memory,
    "descriptors": keeps_descriptors,
    "threads": keeps_threads,
    "files": keeps_files,
    "swaps": swaps_answers,
    "losses": loses_requests,
}[os.environ["LEAK"]]
