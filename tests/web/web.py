"""A web for tests: what is at which address, what was asked for, and a place for an app of ours."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO

from flask import Flask
from werkzeug.serving import make_server

from pigeonhole.errors import URLFailed


@dataclass
class Web:
    """Takes the place of a `Fetcher`; whatever it does not have cannot be fetched."""

    files: Mapping[str, bytes]
    asked: list[str] = field(default_factory=list)

    def fetch(self, url: str, into: IO[bytes]) -> None:
        self.asked.append(url)
        if url not in self.files:
            raise URLFailed("nothing is there.")
        into.write(self.files[url])


@contextmanager
def listening(app: Flask) -> Iterator[str]:
    """The address of `app`, on a free port of this machine."""
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
