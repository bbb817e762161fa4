"""Clients that cost little: requests as bytes over sockets of asyncio, in closed loops or at a constant rate."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace

LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
CLOSES = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)
REFUSED, BROKEN = 0, -1  # in the place of a status


@dataclass(frozen=True)
class Reply:
    """`status` is REFUSED where nobody listened, and BROKEN where the connection ended without an answer.

    `was_sent` says whether all of the request had left, and `seconds` how long it took from when it was due; `late` of
    them the client itself took to begin.
    """

    status: int
    head: bytes = b""
    body: bytes = b""
    was_sent: bool = False
    seconds: float = 0.0
    late: float = 0.0

    @property
    def is_lost(self) -> bool:
        """It was taken, and nobody answered."""
        return self.status == BROKEN and self.was_sent


def post(content: bytes, path: str = "/predict", kind: str = "image/jpeg", close: bool = False) -> bytes:
    """A request with `content` as its body."""
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: {len(content)}\r\n"
    return head.encode() + (b"Connection: close\r\n" if close else b"") + b"\r\n" + content


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


class Client:
    """One client, which keeps its connection as long as the server lets it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def ask(self, request: bytes, patience: float = 60) -> Reply:
        """Send `request` and wait for its answer, `patience` seconds at most."""
        began, sent = time.monotonic(), False
        try:
            async with asyncio.timeout(patience):
                reader, writer = await self._connected()
                writer.write(request)
                await writer.drain()
                sent = True
                status, head, body = await _answer(reader)
        except ConnectionRefusedError:
            return Reply(REFUSED)
        except (OSError, asyncio.IncompleteReadError):  # a timeout is an OSError, too
            await self.close()
            return Reply(BROKEN, was_sent=sent, seconds=time.monotonic() - began)
        if CLOSES.search(head):
            await self.close()
        return Reply(status, head, body, sent, time.monotonic() - began)

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._reader is None or self._writer is None:
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
            self._writer.transport.set_write_buffer_limits(0)  # so that drain waits until all has left
        return self._reader, self._writer

    async def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            with suppress(OSError):
                await self._writer.wait_closed()
        self._reader = self._writer = None


async def ask(port: int, request: bytes, patience: float = 60) -> Reply:
    """Over a connection of its own."""
    client = Client(port)
    try:
        return await client.ask(request, patience)
    finally:
        await client.close()


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bytes, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    length = LENGTH.search(head)
    body = await (reader.readexactly(int(length[1])) if length else reader.read())
    return int(head.split(None, 2)[1]), head, body


async def at_rate(rate: float, seconds: float, send: Callable[[int], Awaitable[Reply]]) -> list[tuple[float, Reply]]:
    """Open loop: request number n is due at n / rate seconds, however slow the answers to others are.

    Returns when each was due, in seconds since the start, and its reply, whose `seconds` count from then; a client
    that waited for its answers would leave out those that would have waited longest.
    """
    began = time.monotonic()
    tasks = []

    async def one(number: int) -> tuple[float, Reply]:
        due = number / rate
        late = time.monotonic() - began - due
        reply = await send(number)
        return due, replace(reply, seconds=time.monotonic() - began - due, late=late)

    async for number in _numbers_at(rate, seconds, began):
        tasks.append(asyncio.create_task(one(number)))
    return await asyncio.gather(*tasks)


async def _numbers_at(rate: float, seconds: float, began: float) -> AsyncIterator[int]:
    for number in range(int(rate * seconds)):
        ahead = began + number / rate - time.monotonic()
        if ahead > 0:
            await asyncio.sleep(ahead)
        elif number % 16 == 0:
            await asyncio.sleep(0)
        yield number
