"""What Ray Serve's proxy, one on each machine, does with a request before it chooses a replica, and after.

Its environment has to say so: `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=pigeonhole.cluster.proxy.in_front`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from starlette.middleware import Middleware

from pigeonhole.cluster.whole import ASGI, Message, Received, Scope, Send, Whole
from pigeonhole.errors import OUR_FAULT, NotReady, Overloaded, ServiceError
from pigeonhole.settings import Settings
from pigeonhole.web.log_lines import start_logging

log = logging.getLogger(__name__)

TRIES = 3  # replicas that get the same request, if one after the other dies with it
OURS = b"x-content-type-options"  # every answer of the app has it, and none of Ray's
REQUEST_ID = b"x-request-id"
ABOUT_RAY = "/-/"  # addresses that Ray answers itself


def in_front() -> list[Any]:
    """Ray calls this in each of its proxies."""
    settings = Settings.load()
    start_logging(settings.log_level)
    return [Middleware(Answered), Middleware(Whole, settings=settings)]  # the last one comes first


class Answered:
    """Gives a request to another replica where one died with it, and puts into our JSON what Ray says by itself.

    A prediction changes nothing, so that it can be asked for again; which replica gets it is Ray's choice.
    """

    def __init__(self, app: ASGI) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Any, send: Send) -> None:
        if not isinstance(receive, Received) or scope["path"].startswith(ABOUT_RAY):
            await self._app(scope, receive, send)
            return
        for _ in range(TRIES):
            receive.rewind()
            answer = Answer(send)
            await self._app(scope, receive, answer)
            if answer.has_begun or receive.is_given_up:
                return
            if answer.trouble:
                break
            log.warning("a replica died with a request in hand.")
        raise answer.trouble or ServiceError(OUR_FAULT)


class Answer:
    """A `send` that lets the app's answer through, and keeps `trouble` of which Ray speaks instead."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.has_begun = False
        self.trouble: ServiceError | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            names = {name.lower() for name, _ in message["headers"]}
            if OURS not in names:
                self.trouble = _trouble(message["status"])
                return
            self.has_begun = True
            message["headers"] = _once(message["headers"])
        if self.has_begun:
            await self._send(message)


def _trouble(status: int) -> ServiceError:
    """As Ray's proxy has no route (404), no room (503, 429) or no patience (408); of anything else no more is known."""
    if status == 404:
        return NotReady("the model is not loaded.")
    if status in (408, 429, 503):
        return Overloaded("too many requests are waiting already; please try again.")
    return ServiceError(OUR_FAULT)


def _once(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Without the request id that Ray adds at the end to the one that our log knows."""
    ids = [pair for pair in headers if pair[0].lower() == REQUEST_ID]
    return [pair for pair in headers if pair[0].lower() != REQUEST_ID] + ids[:1]
