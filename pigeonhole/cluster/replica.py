"""The service as a deployment of Ray Serve: `serve run deploy/ray-serve.yaml`.

A replica is a process like a worker of gunicorn's, with a model of its own. Ray chooses which one gets a request,
starts and stops them as requests are in flight, and replaces one whose `/ready` says no.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from a2wsgi import WSGIMiddleware
from ray import get_runtime_context, serve

from app import create_app
from pigeonhole.cluster.whole import ASGI, Receive, Received, Scope, Send, Whole
from pigeonhole.errors import NotReady
from pigeonhole.intake.formats import load_decoders
from pigeonhole.intake.uploads import prepare
from pigeonhole.machine import usable_cores
from pigeonhole.settings import Settings
from pigeonhole.web.ready import prepare_process

if TYPE_CHECKING:
    from flask import Flask

RECEIVED = "pigeonhole.received"  # in an ASGI scope, the whole request
WSGI = Callable[[dict[str, Any], Any], Iterable[bytes]]


@serve.deployment(name="pigeonhole")
@serve.ingress()
class Replica:
    """Is there for Ray once its model has passed its known-answer test; until then, and if not, nobody is sent to it.

    Raises:
        StartError: it does not start; Ray tries again and tells the reason in its status.
    """

    def __init__(self) -> None:
        self._flask = ready_app(
            as_one_of_many(Settings.load(), get_runtime_context().get_assigned_resources().get("CPU", 1))
        )

    def __serve_build_asgi_app__(self) -> ASGI:  # noqa: N807  Ray's name
        return as_asgi(
            self._flask.wsgi_app, self._flask.config["SETTINGS"], self._flask.extensions["measured"].room.bodies
        )

    def check_health(self) -> None:
        """Ray asks every `health_check_period_s`; raises NotReady where `/ready` does not say 200."""
        answer = self._flask.test_client().get("/ready")
        if answer.status_code != 200:
            raise NotReady(answer.get_json()["error"])

    def __del__(self) -> None:
        if hasattr(self, "_flask"):  # it may have failed to start
            self._flask.extensions["traces"].close()


app: Any = Replica.bind()  # type: ignore[attr-defined]  # Ray makes another class of it


def as_one_of_many(settings: Settings, cpus: float) -> Settings:
    """The settings of a replica that Ray has promised `cpus` of this machine's cores.

    Ray only counts them. To the rest of the service it looks as if as many workers as fit shared the machine, so that
    it takes its part of the cores and of the memory. What Ray itself holds there, `sizing` does not know.
    """
    cores = max(1, math.ceil(cpus))
    workers = max(1, usable_cores() // cores)
    return settings.model_copy(update={"workers": workers, "max_decoded": settings.max_decoded or cores})


def ready_app(settings: Settings) -> Flask:
    """The Flask app, ready to answer, in a process that does what gunicorn's do before their first request."""
    prepare(settings.uploads)
    load_decoders(settings.formats)
    app = create_app(settings)
    prepare_process(app)
    return app


def as_asgi(app: WSGI, settings: Settings, bodies: int | None = None) -> ASGI:
    """`app` as Ray calls it, which gets requests whole and with their deadlines, as from our own server.

    `bodies` as `Whole` has it.
    """

    def with_body(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        received: Received = environ["asgi.scope"][RECEIVED]
        environ |= {"wsgi.input": received.body, "wsgi.input_terminated": True}
        environ |= {"pigeonhole.began": received.began, "pigeonhole.received": received.at}
        environ["pigeonhole.deadline"] = received.at + settings.answer_seconds
        return app(environ, start_response)

    bridge: Any = WSGIMiddleware(with_body, workers=settings.threads)

    async def bridged(scope: Scope, receive: Receive, send: Send) -> None:
        await bridge({**scope, RECEIVED: receive}, receive, send)

    return Whole(bridged, settings, bodies)
