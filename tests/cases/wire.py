"""A connection of our own: sends bytes as they are, and reads answers with h11, which forgives nothing."""

from __future__ import annotations

import json
import select
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import h11

PATIENCE = 8  # seconds from the beginning of a connection to wait for its answers
QUIET = 0.15  # seconds without a further answer on a connection that stays open
PIECE = 1 << 16


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]  # by lower-case names
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str | None:
        """Of an error of ours."""
        with suppress(ValueError, TypeError, KeyError):
            return str(self.json["code"])
        return None

    @property
    def is_interim(self) -> bool:
        return self.status < 200


class Line:
    """One connection: `with Line(port) as line: line.send(...); line.listen()`."""

    def __init__(self, port: int, patience: float = PATIENCE) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        self._patience = patience
        self._began = time.monotonic()
        self._data = b""
        self._method = "GET"
        self.answers: list[Answer] = []
        self.closed = False
        self.took = 0.0  # seconds until its end

    def send(self, data: bytes) -> None:
        """All of it, if the server lets us."""
        self._method = "HEAD" if data.startswith(b"HEAD ") else "GET"
        with suppress(OSError):  # it may close on us; `listen` tells
            self._socket.settimeout(PATIENCE)
            self._socket.sendall(data)

    def drip(self, pieces: list[bytes], every: float) -> None:
        """One after the other, until the server says something or closes, or patience is over."""
        for piece in pieces:
            self.send(piece)
            if select.select([self._socket], [], [], every)[0] or self.seconds > self._patience:
                return

    def hang_up(self) -> None:
        """Nothing more is sent, but we listen still."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def listen(self, wanted: int = 1) -> None:
        """Add to `answers` until there are `wanted` and no more come, or the server closes."""
        while not self.closed:
            self._data = self._data or self._received(self._wait_for(wanted))
            if not self._data:
                return
            self.answers.append(self._answer())

    @property
    def seconds(self) -> float:
        """Since the connection was made."""
        return time.monotonic() - self._began

    def _wait_for(self, wanted: int) -> float:
        said_to_close = bool(self.answers) and self.answers[-1].headers.get("connection") == "close"
        enough = len(self.answers) >= wanted and not said_to_close
        return QUIET if enough else max(QUIET, self._patience - self.seconds)

    def _received(self, patience: float) -> bytes:
        """Nothing where it stays quiet, or closes."""
        self._socket.settimeout(patience)
        try:
            data = self._socket.recv(PIECE)
        except TimeoutError:
            return b""
        except ConnectionError:
            data = b""
        self.closed = not data
        return data

    def _answer(self) -> Answer:
        """The answer that `_data` begins with; what is behind it stays there."""
        reader = h11.Connection(h11.CLIENT)
        reader.send(h11.Request(method=self._method, target="/", headers=[("Host", "x")]))
        reader.send(h11.EndOfMessage())
        reader.receive_data(self._data)
        head: h11.Response | h11.InformationalResponse | None = None
        body = b""
        while True:
            event = reader.next_event()
            if event is h11.NEED_DATA:
                reader.receive_data(self._received(PATIENCE))
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.Response):
                head = event
            elif isinstance(event, h11.InformationalResponse):
                head = event
                break
            else:
                break
        assert head is not None, event
        self._data = reader.trailing_data[0]
        headers = {name.decode().lower(): value.decode() for name, value in head.headers}
        return Answer(head.status_code, headers, body)

    def __enter__(self) -> Line:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.took = self.seconds
        self._socket.close()


Talk = Callable[[Line], None]
