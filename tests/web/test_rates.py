"""How often somebody may ask: who counts as one, what is counted, and what happens when Redis is not there."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
from flask.testing import FlaskClient
from pydantic import SecretStr

from app import create_app
from pigeonhole.errors import SettingsError
from pigeonhole.model.predictor import Predictor
from pigeonhole.settings import Settings
from pigeonhole.web import rates
from tests.conftest import Colours, StartServer, form, free_port, picture

ASK = "/predict?url=https://example.com/x.png"  # is refused with 403, as nothing is fetched, but counted


def client_of(settings: Settings, **changes: object) -> FlaskClient:
    return create_app(settings.model_copy(update=changes), Predictor(Colours)).test_client()


def statuses(client: FlaskClient, times: int, address: str = "192.0.2.1", **headers: str) -> Counter[int]:
    asked = (
        client.get(ASK, headers=headers, environ_overrides={"REMOTE_ADDR": address}).status_code for _ in range(times)
    )
    return Counter(asked)


def test_too_often(settings: Settings) -> None:
    """Beyond the limit requests are refused until the window ends, with words and headers that say when that is."""
    client = client_of(settings, rate_limit="2/hour")
    first = client.post("/predict", data=form((picture("red"), "x.png")))
    told = [first.headers.get(name) for name in ("RateLimit-Limit", "RateLimit-Remaining", "Retry-After")]
    assert (first.status_code, told) == (200, ["2", "1", None])
    client.get(ASK)
    refused = client.post("/predict", data=form((picture("red"), "x.png")))
    assert (refused.status_code, refused.json["code"]) == (429, "rate_limited")
    assert refused.json["error"].startswith("too many requests: 2 per 1 hour are taken; try again in 3")
    assert 3590 <= int(refused.headers["Retry-After"]) <= 3601
    assert refused.headers["RateLimit-Remaining"] == "0"
    assert refused.headers["RateLimit-Reset"] == refused.headers["Retry-After"]


def test_it_passes(settings: Settings) -> None:
    """When the time that Retry-After says is over, requests are taken again."""
    client = client_of(settings, rate_limit="1/second")
    assert statuses(client, 2) == {403: 1, 429: 1}
    time.sleep(int(client.get(ASK).headers.get("Retry-After", 1)))
    assert statuses(client, 1, "192.0.2.1") == {403: 1}


def test_what_is_not_counted(settings: Settings) -> None:
    """Health, description, metrics, pages, files and preflights are not counted, nor refused when others are."""
    client = client_of(settings, rate_limit="1/hour")
    for _ in range(3):
        for path in ("/ping", "/ready", "/metrics", "/openapi.json", "/docs", "/", "/page/page.js", "/v2"):
            with client.get(path) as response:
                assert (response.status_code, "RateLimit-Limit" in response.headers) == (200, False)
        assert client.options("/predict").status_code == 204
    assert client.get(ASK).status_code == 403


COUNTED = ["/predict", "/upload", "/image-recognition", "/api/v1/model/predict", "/v2/models/pigeonhole/infer", "/"]


@pytest.mark.parametrize("path", COUNTED)
def test_what_is_counted(settings: Settings, path: str) -> None:
    """Every way to send a picture counts, also one that is then refused, and they count together."""
    client = client_of(settings, rate_limit="1/hour")
    assert client.post(path).status_code == 400
    refused = client.post(path)
    assert (refused.status_code, refused.mimetype) == (429, "text/html" if path == "/" else "application/json")
    assert statuses(client, 1, "127.0.0.1") == {429: 1}


class Unread:
    """A body that nobody may read."""

    def read(self, size: int = -1) -> bytes:
        raise AssertionError("it was read")


def test_refused_before_the_body(settings: Settings) -> None:
    """Of who asks too often not a byte of the body is read."""
    client = client_of(settings, rate_limit="1/hour")
    client.post("/predict")
    unread = {"wsgi.input": Unread(), "CONTENT_LENGTH": "99", "CONTENT_TYPE": "image/png"}
    assert client.post("/predict", environ_overrides=unread).status_code == 429


WHO = {
    "two clients": ("192.0.2.1", "192.0.2.2", False),
    "one of IPv4 twice written": ("192.0.2.1", "::ffff:192.0.2.1", True),
    "one customer of IPv6": ("2001:db8::1", "2001:db8::ffff:0:0:1", True),
    "two customers of IPv6": ("2001:db8::1", "2001:db8:0:1::1", False),
    "no addresses": ("", "unix:", True),
}


@pytest.mark.parametrize(("one", "other", "are_one"), WHO.values(), ids=WHO.keys())
def test_who_is_one(settings: Settings, one: str, other: str, are_one: bool) -> None:
    """An IPv4 address is somebody, and so is an IPv6 network of 64 bits, which is what a customer has."""
    client = client_of(settings, rate_limit="1/hour")
    assert statuses(client, 1, one) == {403: 1}
    assert statuses(client, 1, other) == {429 if are_one else 403: 1}


SPOOFED = {
    "X-Forwarded-For": "203.0.113.{}",
    "Forwarded": "for=203.0.113.{}",
    "X-Real-IP": "203.0.113.{}",
    "X-API-Key": "key-0123456789-{}",
}


@pytest.mark.parametrize(("header", "value"), SPOOFED.items())
def test_nobody_pretends_to_be_another(settings: Settings, header: str, value: str) -> None:
    """No header makes one client two."""
    client = client_of(settings, rate_limit="1/hour")
    answers = [statuses(client, 1, **{header: value.format(number)}) for number in range(2)]
    assert answers == [{403: 1}, {429: 1}]


BEHIND = {
    "its clients are told apart": (1, ["203.0.113.1", "203.0.113.2"], [403, 403]),
    "it is believed, the client before it is not": (1, ["1.1.1.1, 203.0.113.1", "2.2.2.2, 203.0.113.1"], [403, 429]),
    "two of them": (2, ["203.0.113.1, 10.0.0.1", "203.0.113.2, 10.0.0.1"], [403, 403]),
    "fewer than there should be": (2, ["203.0.113.1", "203.0.113.2"], [403, 429]),
    "nonsense": (1, ["<a>", "<b>"], [403, 429]),
}


@pytest.mark.parametrize(("proxies", "headers", "expected"), BEHIND.values(), ids=BEHIND.keys())
def test_behind_proxies(settings: Settings, proxies: int, headers: list[str], expected: list[int]) -> None:
    """With TRUSTED_PROXIES the client is who the outermost of them says that it is."""
    client = client_of(settings, rate_limit="1/hour", trusted_proxies=proxies)
    assert [client.get(ASK, headers={"X-Forwarded-For": one}).status_code for one in headers] == expected


def test_by_key(settings: Settings) -> None:
    """A key counts from wherever it is used; tries without one, or with a wrong one, count by their address."""
    keys = SecretStr("alice:alice-0123456789, bob:bob-0123456789ab")
    client = client_of(settings, rate_limit="1/hour", api_keys=keys)
    assert statuses(client, 1, "192.0.2.1", Authorization="Bearer alice-0123456789") == {403: 1}
    assert statuses(client, 1, "192.0.2.2", Authorization="Bearer alice-0123456789") == {429: 1}
    assert statuses(client, 1, "192.0.2.1", Authorization="Bearer bob-0123456789ab") == {403: 1}
    assert statuses(client, 2, "192.0.2.3") == {401: 1, 429: 1}
    assert statuses(client, 2, "192.0.2.4", Authorization="Bearer guess-0123456789") == {403: 1, 429: 1}


def test_several_limits(settings: Settings) -> None:
    """Of several limits each counts, and the one that is nearest is told, however long it is."""
    client = client_of(settings, rate_limit="2/minute; 9/day; 1/hour")
    for status in (403, 429):
        answer = client.get(ASK)
        assert (answer.status_code, answer.headers["RateLimit-Limit"]) == (status, "1")
    assert int(answer.headers["Retry-After"]) > 60
    assert statuses(client_of(settings, rate_limit="2/minute; 9/day"), 3) == {403: 2, 429: 1}


@pytest.mark.parametrize("rate", ["often", "60", "60/fortnight", "0/minute", "-1/minute", "1/minute; x"])
def test_what_is_no_rate(monkeypatch: pytest.MonkeyPatch, rate: str) -> None:
    """What is no rate, or would let nobody in, is refused at the start."""
    monkeypatch.setenv("RATE_LIMIT", rate)
    with pytest.raises(SettingsError, match="RATE_LIMIT=.* is not possible: it must be how many requests"):
        Settings.load()


def test_no_password_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The password in an address of Redis is shown neither in the list of settings nor where it is refused."""
    from pigeonhole.model.store.addresses import shown

    monkeypatch.setenv("RATE_LIMIT_STORAGE", "redis://:geheim@redis:6379/1")
    assert "geheim" not in repr(Settings.load())
    listed = {one.name: one.value for one in Settings.load().listed(mask=shown)}
    assert listed["RATE_LIMIT_STORAGE"] == "redis://…@redis:6379/1"
    monkeypatch.setenv("RATE_LIMIT_STORAGE", "http://:geheim@redis:6379/1")
    with pytest.raises(SettingsError, match="^RATE_LIMIT_STORAGE=… is not possible") as refusal:
        Settings.load()
    assert "geheim" not in str(refusal.value)


@dataclass
class Redis:
    """A Redis server that keeps nothing, on a free port of this machine."""

    command: list[str]
    url: str
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL)
        import redis

        client = redis.Redis.from_url(self.url)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                client.ping()
                break
            except redis.RedisError:
                time.sleep(0.02)
        client.close()

    def signal(self, number: signal.Signals) -> None:
        assert self.process
        self.process.send_signal(number)

    def stop(self) -> None:
        if self.process:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait(10)
            self.process = None

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """It takes connections, and says nothing."""
        self.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.signal(signal.SIGCONT)


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Redis]:
    program = shutil.which("redis-server")
    if not program:
        pytest.skip("redis-server is not here")
    port = free_port()
    options = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(tmp_path), "--save", "", "--appendonly", "no"]
    server = Redis([program, *options, "--requirepass", "geheim"], f"redis://:geheim@127.0.0.1:{port}/0")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def pair(settings: Settings, redis: Redis) -> list[FlaskClient]:
    """Two services that count together, four an hour."""
    shared = {"rate_limit": "4/hour", "rate_limit_storage": redis.url}
    return [client_of(settings, **shared), client_of(settings, **shared)]


def test_together(pair: list[FlaskClient]) -> None:
    """What one service counts in Redis, the other knows."""
    assert statuses(pair[0], 3) == {403: 3}
    assert statuses(pair[1], 2) == {403: 1, 429: 1}
    assert statuses(pair[0], 1) == {429: 1}


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    assert "geheim" not in caplog.text
    return [record.levelname for record in caplog.records if "RATE_LIMIT_STORAGE" in record.message]


def test_redis_is_gone(pair: list[FlaskClient], redis: Redis, caplog: Any, monkeypatch: Any) -> None:
    """Without Redis each service counts for itself, says so once, and goes back to it when it is there again."""
    monkeypatch.setattr(rates, "ASKED_AGAIN_AFTER", 0.5)
    redis.stop()
    assert [statuses(client, 5) for client in pair] == [{403: 4, 429: 1}] * 2
    assert told(caplog) == ["WARNING"] * 2  # one of each service
    redis.start()
    time.sleep(0.6)
    assert [statuses(client, 2) for client in pair] == [{403: 2}] * 2
    assert statuses(pair[0], 1) == {429: 1}


def test_redis_hangs(pair: list[FlaskClient], redis: Redis, caplog: Any) -> None:
    """A Redis that takes connections and says nothing delays a request by a moment, once, and fails none."""
    with redis.hanging():
        began = time.monotonic()
        with ThreadPoolExecutor(8) as threads:
            answers = list(threads.map(lambda _: pair[0].application.test_client().get(ASK).status_code, range(16)))
        assert time.monotonic() - began < 2
        assert Counter(answers) == {403: 4, 429: 12}
        began = time.monotonic()
        assert pair[0].get("/ping").status_code == 200
        assert statuses(pair[0], 5, "192.0.2.7") == {403: 4, 429: 1}
        assert time.monotonic() - began < 0.2
    assert told(caplog) == ["WARNING"]


def test_nobody_listens(settings: Settings, caplog: Any) -> None:
    """A service starts, and answers, where Redis never was."""
    client = client_of(settings, rate_limit="1/hour", rate_limit_storage=f"redis://127.0.0.1:{free_port()}")
    assert statuses(client, 2) == {403: 1, 429: 1}
    assert told(caplog) == ["WARNING"]


def test_two_workers(start_server: StartServer, redis: Redis, uploads: Path) -> None:
    """The workers of a real server share a limit in Redis: of 40 requests, six are let in."""
    server = start_server(
        UPLOADS=str(uploads), WORKERS="2", RATE_LIMIT="6/hour", RATE_LIMIT_STORAGE=redis.url, LOG_LEVEL="warning"
    )
    with ThreadPoolExecutor(8) as clients:
        answers = Counter(clients.map(lambda _: requests.get(server.url + ASK, timeout=30).status_code, range(40)))
    assert server.stop() == 0
    assert answers == {403: 6, 429: 34}


def test_guesses_at_metrics(settings: Settings) -> None:
    """Keys that are tried where no picture is taken are counted, too."""
    client = client_of(settings, rate_limit="2/hour", api_keys=SecretStr("alice:alice-0123456789"))
    wrong = {"Authorization": "Bearer no-such-key-at-all"}
    assert [client.get("/metrics", headers=wrong).status_code for _ in range(3)] == [403, 403, 429]
