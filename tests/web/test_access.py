"""Who may call, by which name and from which page, and what browsers are told to make of the answers."""

from __future__ import annotations

from typing import Any

import pytest
from flask.testing import FlaskClient
from pydantic import SecretStr
from werkzeug.test import Client

from app import create_app
from pigeonhole.errors import SettingsError
from pigeonhole.model.predictor import Predictor
from pigeonhole.settings import Settings
from pigeonhole.web.headers import EVERY_ANSWER
from tests.conftest import Colours, form, picture

OURS = "https://example.com"
PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}


def client_of(settings: Settings, **changes: object) -> FlaskClient:
    return create_app(settings.model_copy(update=changes), Predictor(Colours)).test_client()


@pytest.mark.parametrize("origins", ["", "https://other.example", f"{OURS}.evil.example", f"{OURS}:8443"])
def test_off_or_others(settings: Settings, origins: str) -> None:
    """An origin that is not named is told nothing, and the service answers all the same."""
    client = client_of(settings, cors_origins=origins)
    for response, status in (
        (client.post("/predict", data=form((picture("red"), "x.png")), headers={"Origin": OURS}), 200),
        (client.options("/predict", headers={"Origin": OURS, **PREFLIGHT}), 204),
    ):
        assert response.status_code == status
        assert "Access-Control-Allow-Origin" not in response.headers


@pytest.mark.parametrize("origins", [OURS, f"https://a.example:8443, {OURS}", "*"])
def test_named(settings: Settings, origins: str) -> None:
    """A named origin may read answers and errors with their request id, and send JSON."""
    client = client_of(settings, cors_origins=origins)
    for response in (
        client.post("/predict", data=form((picture("red"), "x.png")), headers={"Origin": OURS}),
        client.post("/predict", headers={"Origin": OURS}),
        client.get("/nowhere", headers={"Origin": OURS}),
    ):
        assert response.headers["Access-Control-Allow-Origin"] == ("*" if origins == "*" else OURS)
        readable = response.headers["Access-Control-Expose-Headers"].split(", ")
        assert {"Inference-Header-Content-Length", "RateLimit-Remaining", "Retry-After", "X-Request-ID"} < set(readable)
        assert "Access-Control-Allow-Credentials" not in response.headers
    assert "Access-Control-Allow-Origin" not in client.get("/ping").headers
    preflight = client.options("/predict", headers={"Origin": OURS, **PREFLIGHT})
    assert preflight.headers["Access-Control-Allow-Methods"] == "GET, HEAD, POST"
    assert preflight.headers["Access-Control-Allow-Headers"] == "content-type"


@pytest.mark.parametrize("origins", ["example.com", "https://*.example.com", "https://x/", "null", "https://a b"])
def test_what_is_no_origin(monkeypatch: pytest.MonkeyPatch, origins: str) -> None:
    """What is not an origin is refused at the start: a pattern would not mean what it seems to."""
    monkeypatch.setenv("CORS_ORIGINS", origins)
    with pytest.raises(SettingsError, match="CORS_ORIGINS"):
        Settings.load()


def test_preflights_need_no_key(settings: Settings) -> None:
    """A page of a named origin may send its key: the browser's question beforehand holds none, and is answered."""
    client = client_of(settings, cors_origins=OURS, api_keys=SecretStr("page:0123456789abcdef"))
    asked = {**PREFLIGHT, "Access-Control-Request-Headers": "authorization, x-api-key"}
    response = client.options("/predict", headers={"Origin": OURS, **asked})
    assert response.status_code == 204
    assert response.headers["Access-Control-Allow-Headers"] == "authorization, x-api-key"


ASKED = {
    "json": ("GET", "/ping", 200),
    "no such address": ("GET", "/.git/config", 404),
    "other method": ("DELETE", "/predict", 405),
    "refused picture": ("POST", "/predict", 400),
    "metrics": ("GET", "/metrics", 200),
    "description": ("GET", "/openapi.json", 200),
    "page": ("GET", "/", 200),
    "refusing page": ("POST", "/", 400),
    "docs": ("GET", "/docs", 200),
    "file": ("GET", "/page/page.css", 200),
    "options": ("OPTIONS", "/predict", 204),
    "no Host": ("GET", "/ping", 400),
}


def test_what_they_are() -> None:
    """No answer of the API may be run, framed, guessed at, kept, or loaded by pages of others."""
    wanted = {
        "Cache-Control": "no-store",
        "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
    }
    assert wanted.items() <= EVERY_ANSWER.items()


@pytest.mark.parametrize(("method", "path", "status"), ASKED.values(), ids=ASKED.keys())
def test_every_answer_has_them(client: FlaskClient, method: str, path: str, status: int) -> None:
    """Every answer tells browsers not to guess, frame, keep or share it; pages and files say some of it stricter."""
    headers = {"Host": ""} if status == 400 and path == "/ping" else {}
    with client.open(path, method=method, headers=headers) as response:
        assert response.status_code == status
        own = {"Content-Security-Policy", "Cache-Control"} if response.mimetype in ("text/html", "text/css") else set()
        for name in set(EVERY_ANSWER) - own:
            assert response.headers.getlist(name) == [EVERY_ANSWER[name]], name
        policy = response.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'")
        assert "frame-ancestors 'none'" in policy
        assert "Access-Control-Allow-Origin" not in response.headers


METHODS = {
    "/predict": (["PUT", "PATCH", "DELETE", "TRACE", "CONNECT", "BREW"], "GET, HEAD, OPTIONS, POST"),
    "/ping": (["POST", "PUT", "PATCH", "DELETE", "TRACE", "CONNECT", "BREW"], "GET, HEAD, OPTIONS"),
    "/upload": (["GET", "HEAD", "PUT", "PATCH", "DELETE", "TRACE", "CONNECT", "BREW"], "OPTIONS, POST"),
}


@pytest.mark.parametrize(("path", "methods", "allowed"), [(path, *rest) for path, rest in METHODS.items()])
def test_other_methods(client: FlaskClient, path: str, methods: list[str], allowed: str) -> None:
    """A method that an address does not take is refused with those that it does; OPTIONS tells them, and is no page."""
    for method in methods:
        response = client.open(path, method=method)
        assert (response.status_code, response.mimetype, response.headers["Allow"]) == (
            405,
            "application/json",
            allowed,
        )
    told = client.options(path)
    assert (told.status_code, told.data, told.content_type) == (204, b"", None)
    assert sorted(told.headers["Allow"].split(", ")) == allowed.split(", ")


@pytest.mark.parametrize("path", ["/ping", "/ready", "/openapi.json", "/", "/predict?url=x"])
def test_head(client: FlaskClient, path: str) -> None:
    """HEAD is answered as GET is, without the body."""
    head, get = client.head(path), client.get(path)
    assert (head.status_code, head.data, head.content_type) == (get.status_code, b"", get.content_type)
    assert head.content_length == get.content_length


HOSTS = ["localhost", "example.com:8080", "my_service:5000", "127.0.0.1:5000", "[::1]:5000", "a.example.", "x:"]
NO_HOSTS = ["", "a b", "a/b", "me@host", "a,b", "host:port", "host:123456", "[::1", "::1", "h\xf6st", "<script>"]


@pytest.mark.parametrize("host", HOSTS)
def test_any_host(client: FlaskClient, host: str) -> None:
    """By default the service answers to every name."""
    assert client.get("/ping", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", NO_HOSTS)
@pytest.mark.parametrize("path", ["/ping", "/predict", "/nowhere"])
def test_no_host(client: FlaskClient, path: str, host: str) -> None:
    """What is no host and port is refused wherever it asks, and not echoed."""
    response = client.get(path, headers={"Host": host})
    assert (response.status_code, response.json["code"]) == (400, "bad_host")
    assert not host or host not in response.json["error"]


@pytest.mark.parametrize(("protocol", "status"), [("HTTP/1.1", 400), ("HTTP/1.0", 200)])
def test_without_host(client: FlaskClient, protocol: str, status: int) -> None:
    """HTTP/1.1 needs a Host; before that there was none."""

    def bare(environ: Any, start_response: Any) -> Any:
        del environ["HTTP_HOST"]
        return client.application({**environ, "SERVER_PROTOCOL": protocol}, start_response)

    assert Client(bare).get("/ping").status_code == status


NAMES = {
    "the name": ("example.com", 404),
    "with a port": ("example.com:8080", 404),
    "in capitals": ("EXAMPLE.com", 404),
    "below": ("api.pigeon.example", 404),
    "the top of below": ("pigeon.example", 404),
    "not below": ("www.example.com", 400),
    "ends alike": ("evilpigeon.example", 400),
    "begins alike": ("example.com.evil.example", 400),
    "by address": ("127.0.0.1", 400),
}


@pytest.mark.parametrize(("host", "status"), NAMES.values(), ids=NAMES.keys())
def test_trusted_hosts(settings: Settings, host: str, status: int) -> None:
    """With TRUSTED_HOSTS the service answers to these names alone, but for probes of its health."""
    client = client_of(settings, trusted_hosts="example.com, .pigeon.example")
    assert client.get("/nowhere", headers={"Host": host}).status_code == status
    assert client.get("/ping", headers={"Host": host}).status_code == 200
    assert client.get("/ready", headers={"Host": host}).status_code == 200


FORWARDED = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "evil.example", "X-Forwarded-Prefix": "/x"}


@pytest.mark.parametrize(("proxies", "told"), [(0, None), (1, "max-age=31536000")])
def test_what_a_proxy_says(settings: Settings, proxies: int, told: str | None) -> None:
    """Only behind a trusted proxy does X-Forwarded-Proto count, and browsers are told to stay with https."""
    response = client_of(settings, trusted_proxies=proxies).get("/ping", headers=FORWARDED)
    assert (response.status_code, response.headers.get("Strict-Transport-Security")) == (200, told)
    plain = client_of(settings, trusted_proxies=proxies).get("/ping")
    assert "Strict-Transport-Security" not in plain.headers


@pytest.mark.parametrize("hosts", ["a b/c", "*", "*.example.com", "http://example.com", "example.com:80", "a..b"])
def test_what_is_no_name(monkeypatch: pytest.MonkeyPatch, hosts: str) -> None:
    """What is no name is refused at the start."""
    monkeypatch.setenv("TRUSTED_HOSTS", hosts)
    with pytest.raises(SettingsError, match="TRUSTED_HOSTS"):
        Settings.load()
