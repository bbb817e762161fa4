"""What stands in front of the app under Ray, without Ray."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest

from pigeonhole.cluster import replica
from pigeonhole.cluster.proxy import Answered
from pigeonhole.cluster.whole import ASGI, Message, Receive, Scope, Send, Whole
from pigeonhole.errors import NoSpace
from pigeonhole.intake.uploads import Uploads
from pigeonhole.settings import Settings

OK = {"type": "http.response.start", "status": 200, "headers": [(b"x-content-type-options", b"nosniff")]}
HEADS = {
    "head_too_large": {"headers": [(b"x", b"y" * 40_000)]},
    "url_too_long": {"query_string": b"x" * 5_000},
    "bad_request": {"path": "*"},
    "too_large": {"headers": [(b"content-length", b"20000000")]},
}


def ask(app: ASGI, pieces: Sequence[bytes] = (b"",), **more: object) -> list[Message]:
    """What `app` sends to a client that sends `pieces`, and is patient."""
    said: list[Message] = []
    coming = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    coming[-1]["more_body"] = False
    scope = {"type": "http", "method": "POST", "path": "/predict", "raw_path": b"/predict", "query_string": b""}

    async def receive() -> Message:
        return coming.pop(0) if coming else await asyncio.sleep(60, {})

    async def send(message: Message) -> None:
        said.append(message)

    asyncio.run(asyncio.wait_for(app({"headers": [], **scope, **more}, receive, send), 10))  # type: ignore[arg-type]
    return said


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    body = b""
    while (message := await receive())["more_body"]:
        body += message["body"]
    await send(OK)
    await send({"type": "http.response.body", "body": body + message["body"]})


def code_of(said: list[Message]) -> str:
    return str(json.loads(said[1]["body"])["code"])


@pytest.mark.parametrize("size", [0, 1, 65_536, 65_537, 1_000_000])
def test_a_body_goes_on_as_it_came(settings: Settings, size: int) -> None:
    """Whatever its pieces were, the app gets all bytes in order."""
    body = bytes(range(256)) * (size // 256 + 1)
    assert ask(Whole(echo, settings), [body[:size][:9], body[:size][9:]])[1]["body"] == body[:size]


@pytest.mark.parametrize(("code", "head"), HEADS.items(), ids=HEADS)
def test_heads(settings: Settings, code: str, head: dict[str, Any]) -> None:
    """What the head alone shows is refused before a byte of the body is taken."""
    assert code_of(ask(Whole(echo, settings), **head)) == code


def test_too_much_comes(settings: Settings) -> None:
    """A body whose length is not announced is refused when it gets too long, and nothing of it is held any more."""
    whole = Whole(echo, settings)
    assert code_of(ask(whole, [bytes(6_000_000)] * 9)) == "too_large"
    assert whole._bodies == {}


def test_a_client_that_drips(settings: Settings) -> None:
    """Who does not send all of it in time is told so."""
    hasty = settings.model_copy(update={"receive_seconds": 0.05})

    async def stalls(scope: Scope, receive: Receive, send: Send) -> None:
        async def one_piece() -> Message:
            return {"type": "http.request", "body": b"x", "more_body": await asyncio.sleep(0.02, True)}

        await Whole(echo, hasty)(scope, one_piece, send)

    assert code_of(ask(stalls)) == "slow_upload"


def test_headers_with_underscores(settings: Settings) -> None:
    """No client can say what a proxy says, by another spelling, or what Ray believes."""
    seen: list[Any] = []

    async def look(scope: Scope, receive: Receive, send: Send) -> None:
        seen.extend(scope["headers"])

    names = [b"X_Forwarded_For", b"x-request-timeout-seconds", b"X-Request-ID", b"accept"]
    ask(Whole(look, settings), headers=[(name, b"1") for name in names])
    assert seen == [(b"accept", b"1")]


def test_a_replica_that_dies(settings: Settings) -> None:
    """Its request goes to another one, with the whole body; after three it is our trouble."""
    deaths: list[int] = []

    async def dies(scope: Scope, receive: Receive, send: Send) -> None:
        deaths.append(len((await receive())["body"]))
        if len(deaths) % 4 == 2:
            await send(OK)

    in_front = Whole(Answered(dies), settings)
    assert ask(in_front, [b"photo"]) == [OK | {"headers": OK["headers"]}]
    assert deaths == [5, 5]
    assert code_of(ask(in_front, [b"photo"])) == "service_error"
    assert deaths == [5] * 5


def test_what_ray_says(settings: Settings) -> None:
    """Its plain words come out as our JSON, with our status."""

    async def full(scope: Scope, receive: Receive, send: Send) -> None:
        await send(
            {"type": "http.response.start", "status": scope["says"], "headers": [(b"content-type", b"text/plain")]}
        )
        await send({"type": "http.response.body", "body": b"/internal/words"})

    in_front = Whole(Answered(full), settings)
    assert [code_of(ask(in_front, says=status)) for status in (503, 408, 404, 500)] == [
        *("overloaded", "overloaded", "not_ready", "service_error")
    ]


def test_no_more_than_there_is_room_for(settings: Settings) -> None:
    """Where memory leaves less than MAX_BODY_BYTES, a larger body is refused with what it leaves."""
    in_front = Whole(echo, settings, bodies=3)
    assert ask(in_front, [b"pho"])[0]["status"] == 200
    assert code_of(ask(in_front, [b"photo"])) == "too_large"


@pytest.mark.parametrize(
    ("cpus", "workers", "decoded"), [(1, 4, 1), (2, 2, 2), (0.5, 4, 1), (9, 1, 9)], ids="{} cores".format
)
def test_a_part_of_the_machine(cpus: float, workers: int, decoded: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A replica takes of a machine of four cores what Ray has promised it, and leaves the rest to others."""
    monkeypatch.setattr(replica, "usable_cores", lambda: 4)
    taken = replica.as_one_of_many(Settings(), cpus)
    assert (taken.workers, taken.max_decoded) == (workers, decoded)
    assert replica.as_one_of_many(Settings(max_decoded=3), cpus).max_decoded == 3


def test_who_came_last_is_received(settings: Settings) -> None:
    """Where too much is held, clients that stopped in the middle go, and a newcomer is received."""
    whole = Whole(echo, settings, bodies=10)
    said: dict[str, list[Message]] = {"stopped": [], "newcomer": []}
    scope = {"type": "http", "method": "POST", "path": "/predict", "raw_path": b"", "query_string": b"", "headers": []}

    async def client(name: str, pieces: list[Message]) -> None:
        async def receive() -> Message:
            return pieces.pop(0) if pieces else await asyncio.sleep(60, {})

        async def send(message: Message) -> None:
            said[name].append(message)

        await whole(scope, receive, send)

    async def both() -> None:
        stopped = asyncio.create_task(
            client("stopped", [{"type": "http.request", "body": b"8" * 8, "more_body": True}])
        )
        await asyncio.sleep(0.05)
        await client("newcomer", [{"type": "http.request", "body": b"6" * 6}])
        await stopped

    asyncio.run(asyncio.wait_for(both(), 5))
    assert said["newcomer"][1]["body"] == b"666666"
    assert code_of(said["stopped"]) == "overloaded"


def test_a_full_disk_takes_no_room_away(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """What could not be kept counts no longer once it is refused."""

    def full(self: Uploads) -> None:
        raise NoSpace("there is no room.")

    monkeypatch.setattr(Uploads, "new", full)
    whole = Whole(echo, settings, bodies=150_000)
    assert code_of(ask(whole, [b"x" * 100_000])) == "no_space"
    monkeypatch.undo()
    assert ask(whole, [b"x" * 100_000])[1]["body"] == b"x" * 100_000
    assert whole._bodies == {}
