"""Pages of other origins read the answers where CORS_ORIGINS names them, and nowhere else."""

from __future__ import annotations

import pytest
from flask.testing import FlaskClient

from app import create_app
from pigeonhole.errors import SettingsError
from pigeonhole.model.predictor import Predictor
from pigeonhole.settings import Settings
from tests.conftest import Colours, form, picture

OURS = "https://example.com"
PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}


def client_for(settings: Settings, origins: str) -> FlaskClient:
    return create_app(settings.model_copy(update={"cors_origins": origins}), Predictor(Colours)).test_client()


@pytest.mark.parametrize("origins", ["", "https://other.example", f"{OURS}.evil.example", f"{OURS}:8443"])
def test_off_or_others(settings: Settings, origins: str) -> None:
    """An origin that is not named is told nothing, and the service answers all the same."""
    client = client_for(settings, origins)
    for response in (
        client.post("/predict", data=form((picture("red"), "x.png")), headers={"Origin": OURS}),
        client.options("/predict", headers={"Origin": OURS, **PREFLIGHT}),
    ):
        assert response.status_code == 200
        assert "Access-Control-Allow-Origin" not in response.headers


@pytest.mark.parametrize("origins", [OURS, f"https://a.example:8443, {OURS}", "*"])
def test_named(settings: Settings, origins: str) -> None:
    """A named origin may read answers and errors with their request id, and send JSON."""
    client = client_for(settings, origins)
    for response in (
        client.post("/predict", data=form((picture("red"), "x.png")), headers={"Origin": OURS}),
        client.post("/predict", headers={"Origin": OURS}),
        client.get("/nowhere", headers={"Origin": OURS}),
    ):
        assert response.headers["Access-Control-Allow-Origin"] == ("*" if origins == "*" else OURS)
        readable = response.headers["Access-Control-Expose-Headers"].split(", ")
        assert readable == ["Inference-Header-Content-Length", "Retry-After", "X-Request-ID"]
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
