"""Send photos from several clients at once, and check every answer against the photo it is for.

    python -m benchmarks.load < job.json > result.json

One process and one thread, which only hands prepared bytes to sockets: what it computes is a small share of what any of
the servers does, and is measured and reported. (wrk computes less, but cannot tell which photo an answer is for.) Each
client has a connection that is kept, and sends its next photo when it has the answer to the last one. Times are from
the first byte sent to the last byte received.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

BOUNDARY = "a-boundary-that-no-photo-holds"
ASK_SECONDS = 300  # for one answer


@dataclass(frozen=True)
class Job:
    """`requests` are files that each hold a whole HTTP request; `labels` is what has to be in their answers, quoted.

    The clients go on for `seconds`, and until at least `at_least` answers are there; the last ones are waited for.
    """

    port: int
    requests: Sequence[str]
    labels: Sequence[str]
    clients: int
    seconds: float
    at_least: int = 0
    at_most: int | None = None


@dataclass
class Result:
    milliseconds: list[float] = field(default_factory=list)  # of each request that was answered with 200
    wrong: int = 0  # answers with another label than learner.predict gives
    errors: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0  # from the first request to the last answer
    cpu_seconds: float = 0.0  # of this process, meanwhile

    def failed(self, why: str) -> None:
        self.errors[why] = self.errors.get(why, 0) + 1


class Client(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self) -> None:
        self.lost = False
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._received = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """The status and the body of the answer."""
        self._received.clear()
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await asyncio.wait_for(self._answer, ASK_SECONDS)

    def data_received(self, data: bytes) -> None:
        self._received += data
        answer = parsed(bytes(self._received))
        if answer and self._answer and not self._answer.done():
            self._answer.set_result(answer)

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True
        if self._answer and not self._answer.done():
            self._answer.set_exception(ConnectionError("connection lost"))

    def close(self) -> None:
        self._transport.close()


def parsed(received: bytes) -> tuple[int, bytes] | None:
    """The status and the body of an HTTP answer, or None while some of it has still to come."""
    head, end, body = received.partition(b"\r\n\r\n")
    if not end:
        return None
    status, lines = int(head[9:12]), head.lower().split(b"\r\n")
    if b"transfer-encoding: chunked" in lines:
        return (status, body) if body.endswith(b"0\r\n\r\n") else None
    length = next((int(line[15:]) for line in lines if line.startswith(b"content-length:")), 0)
    return (status, body) if len(body) >= length else None


def multipart(photo: bytes, path: str = "/predict") -> bytes:
    """A whole request: the photo as a form's file `image`."""
    before = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="photo"\r\n'
    kind = "png" if photo.startswith(b"\x89PNG") else "jpeg"
    content = f"{before}Content-Type: image/{kind}\r\n\r\n".encode() + photo + f"\r\n--{BOUNDARY}--\r\n".encode()
    return request(path, f"multipart/form-data; boundary={BOUNDARY}", content)


def request(path: str, kind: str, content: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {len(content)}\r\n\r\n"
    return head.encode() + content


async def run(job: Job) -> Result:
    requests = [Path(path).read_bytes() for path in job.requests]
    quoted = [f'"{label}"'.encode() for label in job.labels]
    result, asked = Result(), 0
    cpu = _cpu_seconds()
    began = time.perf_counter()

    def goes_on() -> bool:
        if job.at_most is not None and asked >= job.at_most:
            return False
        return time.perf_counter() - began < job.seconds or asked < job.at_least

    async def client() -> None:
        nonlocal asked
        connection = None
        while goes_on():
            turn, asked = asked % len(requests), asked + 1
            try:
                if connection is None or connection.lost:
                    _, connection = await asyncio.get_running_loop().create_connection(Client, "127.0.0.1", job.port)
                sent = time.perf_counter()
                status, body = await connection.ask(requests[turn])
                taken = (time.perf_counter() - sent) * 1000
            except (OSError, TimeoutError) as error:
                result.failed(type(error).__name__)
                if connection is not None:
                    connection.close()
                connection = None
                await asyncio.sleep(0.05)
                continue
            if status != 200:
                result.failed(str(status))
                continue
            result.milliseconds.append(round(taken, 3))
            result.wrong += quoted[turn] not in body
        if connection is not None:
            connection.close()

    await asyncio.gather(*(client() for _ in range(job.clients)))
    result.seconds, result.cpu_seconds = time.perf_counter() - began, _cpu_seconds() - cpu
    return result


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    print(json.dumps(asdict(asyncio.run(run(Job(**json.load(sys.stdin)))))))
