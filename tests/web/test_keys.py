"""Keys: who has to send one, how, which count, and that none is ever told."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from pydantic import SecretStr

from app import create_app
from pigeonhole.cli import main
from pigeonhole.errors import SettingsError
from pigeonhole.model.predictor import Predictor
from pigeonhole.settings import Settings
from pigeonhole.web import keys
from tests.conftest import Colours, form, picture
from tests.web.web import Web

ALICE, BOB, NEW = "alice-0123456789", "bob-0123456789ab", "new:0123456789=+/"
ADDRESS = "https://example.com/photo.png"
PICTURE = {"data": form((picture("red"), "x.png"))}


def client_of(settings: Settings, **changes: object) -> FlaskClient:
    return create_app(settings.model_copy(update=changes), Predictor(Colours)).test_client()


def ask(client: FlaskClient, **headers: str) -> tuple[int, str | None]:
    """The status, and the code of a refusal."""
    response = client.post("/predict", data=form((picture("red"), "x.png")), headers=headers)
    return response.status_code, response.json.get("code")


@pytest.fixture
def client(settings: Settings) -> FlaskClient:
    """The service with two keys, one of which only its digest is known of."""
    both = f"alice:{ALICE}, bob:sha256={hashlib.sha256(BOB.encode()).hexdigest()}"
    return client_of(settings, api_keys=SecretStr(both), fetch_urls=True)


SENT: dict[str, tuple[dict[str, str], int, str | None]] = {
    "bearer": ({"Authorization": f"Bearer {ALICE}"}, 200, None),
    "in small letters": ({"Authorization": f"bearer {ALICE}"}, 200, None),
    "header": ({"X-API-Key": ALICE}, 200, None),
    "by its digest": ({"X-API-Key": BOB}, 200, None),
    "beside a proxy's": ({"Authorization": "Basic eDp5", "X-API-Key": ALICE}, 200, None),
    "nothing": ({}, 401, "no_key"),
    "empty": ({"X-API-Key": ""}, 401, "no_key"),
    "no bearer": ({"Authorization": f"Basic {ALICE}"}, 401, "no_key"),
    "another": ({"X-API-Key": "0123456789abcdef"}, 403, "bad_key"),
    "a part": ({"X-API-Key": ALICE[:-1]}, 403, "bad_key"),
    "with its name": ({"X-API-Key": f"alice:{ALICE}"}, 403, "bad_key"),
    "the digest itself": ({"X-API-Key": hashlib.sha256(BOB.encode()).hexdigest()}, 403, "bad_key"),
    "no ASCII": ({"X-API-Key": "schlüssel-schlüssel"}, 403, "bad_key"),
}


@pytest.mark.parametrize(("headers", "status", "code"), SENT.values(), ids=SENT.keys())
def test_a_key_is_sent(client: FlaskClient, headers: dict[str, str], status: int, code: str | None) -> None:
    """A key that is known lets a picture in, as a bearer token or in its own header, and nothing else does."""
    assert ask(client, **headers) == (status, code)


NEEDING: dict[str, tuple[str, str, dict[str, Any]]] = {
    "a form": ("POST", "/predict", PICTURE),
    "an address": ("GET", f"/predict?url={ADDRESS}", {}),
    "its head": ("HEAD", f"/predict?url={ADDRESS}", {}),
    "Cougar or Not": ("POST", "/upload", PICTURE),
    "its address": ("GET", f"/classify-url?url={ADDRESS}", {}),
    "MLflow": ("POST", "/api/v1/model/predict", PICTURE),
    "the course": ("POST", "/image-recognition", {"json": {"img": ""}}),
    "inference": ("POST", "/v2/models/pigeonhole/infer", {"json": {}}),
    "its version": ("POST", "/v2/models/pigeonhole/versions/1/infer", {"json": {}}),
    "metrics": ("GET", "/metrics", {}),
    "the page": ("POST", "/", PICTURE),
}


@pytest.mark.parametrize(("method", "path", "sent"), NEEDING.values(), ids=NEEDING.keys())
def test_who_needs_one(settings: Settings, method: str, path: str, sent: dict[str, Any]) -> None:
    """All that takes pictures, and what counts them, needs a key; nothing is fetched without."""
    web = Web({ADDRESS: picture()})
    on = settings.model_copy(update={"api_keys": SecretStr(f"alice:{ALICE}"), "fetch_urls": True})
    app = create_app(on, Predictor(Colours), web)
    sent = {"data": form((picture("red"), "x.png"))} if "data" in sent else sent
    response = app.test_client().open(path, method=method, **sent)
    assert (response.status_code, response.headers["WWW-Authenticate"], web.asked) == (401, "Bearer", [])


def test_nobody_forgot_one(client: FlaskClient) -> None:
    """What the description says to need a key is what needs one, but for the page."""
    paths = client.get("/openapi.json").json["paths"]
    described = {
        (method.upper(), path.format(name="pigeonhole", version="1"))
        for path, item in paths.items()
        for method, operation in item.items()
        if "security" in operation
    }
    assert described == {(method, path.partition("?")[0]) for method, path, _ in NEEDING.values()} - {
        ("POST", "/"),
        ("HEAD", "/predict"),
    }


@pytest.mark.parametrize(
    "path", ["/ping", "/ready", "/v2/health/live", "/v2/health/ready", "/openapi.json", "/docs", "/", "/page/page.js"]
)
def test_who_needs_none(client: FlaskClient, path: str) -> None:
    """Health, description and pages are open."""
    with client.get(path) as response:
        assert response.status_code == 200


class Unread:
    """A body that nobody may read."""

    def read(self, size: int = -1) -> bytes:
        raise AssertionError("it was read")


def test_refused_before_the_body(client: FlaskClient) -> None:
    """Of who has no key not a byte of the body is read."""
    unread = {"wsgi.input": Unread(), "CONTENT_LENGTH": "99", "CONTENT_TYPE": "image/png"}
    response = client.post("/predict", environ_overrides=unread)
    assert (response.status_code, response.json["code"]) == (401, "no_key")


def test_the_page_without_javascript(client: FlaskClient) -> None:
    """The plain form has a field for the key, and a wrong one is told on a page."""
    assert '<input type="password" id="key" name="key"' in client.get("/").text
    for key, status, told in ((ALICE, 200, "red"), ("x" * 20, 403, "not one that is accepted"), ("", 401, "is needed")):
        response = client.post("/", data=form((picture("red"), "x.png"), key=key))
        assert (response.status_code, response.mimetype, told in response.text) == (status, "text/html", True)
        assert ALICE not in response.text


def test_without_keys(settings: Settings) -> None:
    """Where no keys are set, none is asked for, on the page and in the description, and one that is sent is nothing."""
    client = client_of(settings)
    assert 'name="key"' not in client.get("/").text
    assert "securitySchemes" not in client.get("/openapi.json").json["components"]
    assert ask(client, **{"X-API-Key": "whatever"}) == (200, None)


def test_secrets_are_not_told(
    client: FlaskClient, caplog: pytest.LogCaptureFixture, settings: Settings, capsys: Any, monkeypatch: Any
) -> None:
    """No log, no answer, no list of settings and no traceback shows a key, a good one or a bad one."""
    caplog.set_level(logging.DEBUG)
    wrong = "wrong-0123456789"
    response = client.post("/predict", headers={"X-API-Key": wrong})
    ask(client, **{"Authorization": f"Bearer {ALICE}"})
    monkeypatch.setenv("API_KEYS", f"alice:{ALICE}")
    main(["settings"])
    told = caplog.text + response.text + str(response.headers) + capsys.readouterr().out + repr(Settings.load())
    assert "API_KEYS" in told
    assert ALICE not in told
    assert wrong not in told


BAD_KEYS = [
    "alice",
    f"alice:{ALICE[:15]}",
    f":{ALICE}",
    f"a b:{ALICE}",
    f"alice:{ALICE},,bob",
    f"alice: {ALICE}",
    "a:sha256=0123456789abcdef",
]


@pytest.mark.parametrize("text", BAD_KEYS)
def test_what_is_no_key(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """A key without a name, or shorter than 16 characters, is refused at the start, and not repeated there."""
    monkeypatch.setenv("API_KEYS", text)
    with pytest.raises(SettingsError, match="^API_KEYS=… is not possible: it must be keys that clients") as refusal:
        Settings.load()
    assert ALICE[:8] not in str(refusal.value)


def written(file: Path, *lines: str) -> None:
    """As an editor or an orchestrator does it: a new file in the place of the old one."""
    fresh = file.with_suffix(".new")
    fresh.write_text("\n".join(lines))
    fresh.replace(file)


def eventually(client: FlaskClient, secret: str, status: int) -> bool:
    """Is it answered with `status` within three seconds?"""
    deadline = time.monotonic() + 3
    while time.monotonic() < deadline:
        if ask(client, **{"X-API-Key": secret})[0] == status:
            return True
        time.sleep(0.1)
    return False


def test_rotation(settings: Settings, tmp_path: Path) -> None:
    """A changed file counts within a second or so: new keys are taken, old ones are not, and API_KEYS stay."""
    file = tmp_path / "keys"
    written(file, "# ours", f"bob:{BOB}  # until May", "")
    client = client_of(settings, api_keys=SecretStr(f"alice:{ALICE}"), api_keys_file=file)
    assert ask(client, **{"X-API-Key": BOB}) == (200, None)
    written(file, f"bob:{BOB}", f"bob:{NEW}")
    assert eventually(client, NEW, 200)
    assert ask(client, **{"X-API-Key": BOB}) == (200, None)
    written(file, f"bob:{NEW}")
    assert eventually(client, BOB, 403)
    assert ask(client, **{"X-API-Key": ALICE}) == (200, None)


@pytest.mark.parametrize("how", ["gone", "empty", "short", "binary", "folder"])
def test_a_file_that_turns_bad(settings: Settings, tmp_path: Path, caplog: Any, monkeypatch: Any, how: str) -> None:
    """A file that vanishes or turns bad leaves the keys of before, and is told once; mended, it counts again."""
    monkeypatch.setattr(keys, "CHECKED_EVERY", 0)
    file = tmp_path / "keys"
    written(file, f"bob:{BOB}")
    client = client_of(settings, api_keys_file=file)
    file.unlink()
    if how == "folder":
        file.mkdir()
    elif how != "gone":
        file.write_bytes({"empty": b"", "short": b"bob:short", "binary": os.urandom(99) + b"\xff"}[how])
    for _ in range(3):
        assert ask(client, **{"X-API-Key": BOB}) == (200, None)
    assert [record.levelname for record in caplog.records if "API_KEYS_FILE" in record.message] == ["WARNING"]
    assert "bob:" not in caplog.text
    if how == "folder":
        file.rmdir()
    written(file, f"bob:{NEW}")
    assert eventually(client, NEW, 200)


FILES = {
    "none": (None, "cannot be read"),
    "empty": ("", "holds no key"),
    "comments": ("# nothing\n", "holds no key"),
    "short": (f"bob:{BOB}\ncarol:short", "line 2 is neither"),
    "half a digest": ("bob:sha256=", "line 1 is neither"),
}


@pytest.mark.parametrize(("text", "told"), FILES.values(), ids=FILES.keys())
def test_a_bad_file_at_the_start(settings: Settings, tmp_path: Path, text: str | None, told: str) -> None:
    """The service does not start with a file of keys that is not one."""
    if text is not None:
        (tmp_path / "keys").write_text(text)
    with pytest.raises(SettingsError, match=told) as refusal:
        client_of(settings, api_keys_file=tmp_path / "keys")
    assert "carol" not in str(refusal.value)
