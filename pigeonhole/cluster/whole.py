"""ASGI in front of an app: a request goes on when all of it is here, within the limits that our own server keeps.

Ray's proxy hands a body on while it comes. There is no limit to what it takes, and a client that drips would hold a
thread of a replica for as long as it likes.
"""

from __future__ import annotations

import asyncio
import io
import re
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from types import SimpleNamespace
from typing import IO, Any

from pigeonhole.errors import (
    BadRequest,
    IncompleteBody,
    Overloaded,
    RequestError,
    ServiceError,
    SlowUpload,
    URLTooLong,
)
from pigeonhole.intake.uploads import Uploads
from pigeonhole.server.incoming import IN_MEMORY, MAX_HEAD, body_too_large, head_too_large
from pigeonhole.server.refusals import TOO_MUCH, body_and_headers, shared_with
from pigeonhole.settings import Settings
from pigeonhole.sizing import BODIES
from pigeonhole.web.log_lines import tell_request

MAX_URL = 4094  # bytes, as gunicorn has it
PIECE = 64 * 1024  # bytes that are handed on at a time
# what Ray would believe a client: how long it may take, whether it may hang up, and what Ray's logs call it
RAYS_OWN = (b"x-request-id", b"x-request-timeout-seconds", b"x-request-disconnect-disabled")

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGI = Callable[[Scope, Receive, Send], Awaitable[None]]


class Whole:
    """Hands on to `app`, as its `receive`, a `Received`; answers what is refused, here or by `app`.

    Bodies of `bodies` bytes may be here at once, by default of a few times the largest one. A header with an underscore
    goes no further: WSGI could not tell `X_Forwarded_For` from what a proxy said.
    """

    def __init__(self, app: ASGI, settings: Settings, bodies: int | None = None) -> None:
        self._app, self._settings = app, settings
        self._most = bodies or BODIES * settings.max_body_bytes
        self._largest = min(settings.max_body_bytes, self._most)
        self._bodies: dict[Received, asyncio.Task[None] | None] = {}  # and who receives them; of one event loop

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.monotonic()
        received = Received(Uploads(self._settings.uploads), receive)
        try:
            _check_head(scope)
            await self._receive(received, _announced(scope))
            await self._app({**scope, **_safe(scope)}, received, send)
        except (RequestError, ServiceError) as error:
            received.close()
            await refuse(error, scope, send, began, self._settings.origins)
        except asyncio.CancelledError:  # the client left, and a thread may still read: it closes with its last reader
            raise
        else:
            received.close()
        finally:
            self._bodies.pop(received, None)

    async def _receive(self, received: Received, announced: int) -> None:
        seconds = self._settings.receive_seconds
        self._check_size(announced)
        self._bodies[received] = asyncio.current_task()
        try:
            async with asyncio.timeout(seconds):
                while not received.is_whole:
                    await received.take()
                    self._check_size(received.size)
                    self._make_room(received)
        except TimeoutError as error:
            raise SlowUpload(f"the request did not come within {seconds:g} seconds.") from error
        except asyncio.CancelledError:
            if received in self._bodies:
                raise
            raise Overloaded(TOO_MUCH) from None
        self._bodies[received] = None

    def _check_size(self, size: int) -> None:
        if size > self._largest:
            raise body_too_large(self._largest)

    def _make_room(self, newcomer: Received) -> None:
        """Where too much is held, those go that have been coming longest, as with our own server."""
        while sum(received.size for received in self._bodies) > self._most:
            receiving = [one for one, task in self._bodies.items() if task and one.size]
            longest = min(receiving, key=lambda one: one.began, default=newcomer)
            task = self._bodies[longest]
            if longest is newcomer or task is None:
                raise Overloaded(TOO_MUCH)
            del self._bodies[longest]
            task.cancel()


class Received:
    """A body that is here, and can be received again after `rewind`; then what else comes, which is the client's end.

    `began` and `at` are when the request and its last byte came, by `time.monotonic`.
    """

    def __init__(self, uploads: Uploads, receive: Receive) -> None:
        self.body: IO[bytes] = io.BytesIO()
        self.size = 0
        self.is_whole = self.is_given_up = False
        self.began = self.at = time.monotonic()
        self._uploads, self._receive = uploads, receive

    async def take(self) -> None:
        """What the client sends next; raises IncompleteBody if it is its end."""
        message = await self._next()
        if self.is_given_up:
            raise IncompleteBody("the body is cut off.")
        self._keep(message.get("body", b""))
        if not message.get("more_body", False):
            self.is_whole, self.at = True, time.monotonic()
            self.rewind()

    def rewind(self) -> None:
        self.body.seek(0)
        self._left = self.size or None  # a body of nothing is a message, too

    async def __call__(self) -> Message:
        if self._left == 0:
            return await self._next()
        data = self.body.read(PIECE)
        self._left = (self._left or 0) - len(data)
        return {"type": "http.request", "body": data, "more_body": self._left > 0}

    async def _next(self) -> Message:
        message = await self._receive()
        self.is_given_up = message["type"] == "http.disconnect"
        return message

    def close(self) -> None:
        self.body.close()
        self._uploads.close()

    def _keep(self, data: bytes) -> None:
        self.size += len(data)
        if self.size > IN_MEMORY and isinstance(self.body, io.BytesIO):
            file = self._uploads.new()
            file.write(self.body.getbuffer())
            self.body = file
        self.body.write(data)


async def refuse(
    error: RequestError | ServiceError, scope: Scope, send: Send, began: float, origins: frozenset[str]
) -> None:
    """Answer what the app does not see, with the JSON and the headers that it would give."""
    request_id = uuid.uuid4().hex
    head = [(name.decode("latin-1").upper(), value.decode("latin-1")) for name, value in _head(scope)]
    body, headers = body_and_headers(error, request_id)
    headers |= shared_with(origins, SimpleNamespace(headers=head))
    encoded = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
    tell_request(request_id, scope["method"], scope["path"], error.status, time.monotonic() - began, code=error.code)
    await send({"type": "http.response.start", "status": error.status, "headers": encoded})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


def _check_head(scope: Scope) -> None:
    if not scope["path"].startswith("/"):
        raise BadRequest("the request is not well-formed HTTP.")
    if len(scope["raw_path"]) + len(scope["query_string"]) > MAX_URL:
        raise URLTooLong("the address is too long.")
    if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEAD:
        raise head_too_large()


def _safe(scope: Scope) -> Scope:
    """What a2wsgi and Ray make something else of than it is, without that."""
    headers = [(name, value) for name, value in _head(scope) if b"_" not in name and name not in RAYS_OWN]
    query = re.sub(rb"[^!-~]", lambda byte: f"%{ord(byte[0]):02X}".encode(), scope["query_string"])
    return {"headers": headers, "query_string": query}


def _announced(scope: Scope) -> int:
    """Bytes of the body; the server in front has seen that it is a number."""
    return next((int(value) for name, value in _head(scope) if name == b"content-length"), 0)


def _head(scope: Scope) -> list[tuple[bytes, bytes]]:
    return [(name.lower(), value) for name, value in scope["headers"]]
