"""A client's connection, as the event loop sees it."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from enum import Enum, auto
from math import inf
from typing import Any

from pigeonhole.server.incoming import Incoming


class State(Enum):
    """What a connection waits for."""

    RECEIVING = auto()  # the client
    ANSWERING = auto()  # one of our threads
    SENDING = auto()  # the client, to read the answer
    LINGERING = auto()  # the client, to stop sending what nobody wants


@dataclass(eq=False)
class Connection:
    """`deadline`, by `time.monotonic`, is when the client has to be done with what it does now."""

    socket: socket.socket
    client: Any
    server: Any
    incoming: Incoming
    deadline: float
    state: State = State.RECEIVING
    number: int = 1  # of its requests
    unsent: memoryview = memoryview(b"")
    stays: bool = False  # when all is sent
    patience: int = 0  # bytes that are still heard out
    events: int = 0  # that are waited for

    def await_thread(self) -> None:
        self.state, self.deadline = State.ANSWERING, inf

    @property
    def is_idle(self) -> bool:
        return self.state is State.RECEIVING and not self.incoming.has_begun

    @property
    def is_served(self) -> bool:
        """It was answered, and asks nothing at the moment."""
        return self.state is State.LINGERING or (self.is_idle and self.number > 1)

    @property
    def has_hung_up(self) -> bool:
        """It is closed at the other end, or half of it."""
        try:
            return self.socket.recv(1, socket.MSG_PEEK) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True


class Outbox:
    """Takes a socket's place while an app answers: no thread of ours waits for a slow reader."""

    def __init__(self) -> None:
        self.content = bytearray()

    def sendall(self, data: bytes) -> None:
        self.content += data

    def send(self, data: bytes) -> int:
        self.content += data
        return len(data)
