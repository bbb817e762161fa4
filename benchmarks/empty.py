"""The floor of HTTP on this machine: a server that reads a request and answers, and does nothing else.

python -m benchmarks.empty PORT
"""

from __future__ import annotations

import asyncio
import re
import sys

ANSWER = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 18\r\n\r\n{"success":"pong"}'
LENGTH = re.compile(rb"content-length: *(\d+)", re.I)


class Empty(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport, self._head, self._missing = transport, b"", -1

    def data_received(self, data: bytes) -> None:
        if self._missing < 0:
            self._head += data
            end = self._head.find(b"\r\n\r\n")
            if end < 0:
                return
            length = LENGTH.search(self._head, 0, end)
            self._missing = int(length[1]) if length else 0
            data, self._head = self._head[end + 4 :], b""
        self._missing -= len(data)
        if self._missing <= 0:
            self._missing = -1
            self._transport.write(ANSWER)


async def serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Empty, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
