"""Settings come from the environment, are checked once, and all complaints come at once."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from pigeonhole.errors import SettingsError
from pigeonhole.settings import Settings, hush_downloaders


def test_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    """With nothing set, the service runs on this machine alone."""
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    settings = Settings.load()
    assert (settings.host, settings.port, settings.model) == ("127.0.0.1", 5000, "export.pkl")


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name in the environment is the field's in capitals."""
    monkeypatch.setenv("PORT", "8123")
    monkeypatch.setenv("ORIENTATION", "as-stored")
    monkeypatch.setenv("LOG_LEVEL", "WARNING")
    assert Settings.load().log_level == "warning"
    assert (Settings.load().port, Settings.load().orientation) == (8123, "as-stored")


@pytest.mark.parametrize(
    ("name", "value"),
    [("PORT", "http"), ("PORT", "0"), ("PORT", "65536"), ("THREADS", "0"), ("WORKERS", "1.5"),
     ("PAGE", "maybe"), ("PAGE_COLOUR", "red"), ("PAGE_COLOUR", "#fff"), ("PAGE_COLOUR", "#0b6e5f;}"),
     ("PAGE_TITLE", "a\nb"), ("PAGE_TITLE", "x" * 101), ("PAGE_DESCRIPTION", "x" * 501),
     ("ORIENTATION", "left"), ("IMAGE_FORMATS", "jpeg,svg"), ("IMAGE_FORMATS", "jpegpng"), ("MODEL_SHA256", "abc"),
     ("ALLOW_PICKLE_GLOBALS", "os.system()"), ("MAX_PIXELS", "100000000"), ("LOG_LEVEL", "loud"),
     ("DEVICE", "cuda:1")],
)  # fmt: skip
def test_refusals(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """A value that does not fit is refused by name, with what was seen."""
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=f"^{name}={re.escape(value)} is not possible: it must"):
        Settings.load()


@pytest.mark.parametrize("text", ["a.B,c.d.E", "a.B c.d.E", " a.B,  c.d.E,"])
def test_names_by_commas(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """The names that a file may use as well."""
    monkeypatch.setenv("ALLOW_PICKLE_GLOBALS", text)
    assert Settings.load().allowed_globals == {"a.B", "c.d.E"}


def test_empty_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that is there but empty, as compose files like to pass them, leaves the default."""
    monkeypatch.setenv("PORT", "")
    monkeypatch.setenv("UPLOADS", "")
    assert (Settings.load().port, Settings.load().uploads) == (5000, Path("tmp"))


def test_with_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that was downloaded becomes MODEL, here and for the processes that are started; the rest stays."""
    monkeypatch.setenv("MODEL", "https://example.com/export.pkl")
    monkeypatch.setenv("PORT", "8123")
    settings = Settings.load().with_model(Path("/cache/export.pkl"))
    assert (settings.model, settings.port, os.environ["MODEL"]) == ("/cache/export.pkl", 8123, "/cache/export.pkl")


def test_hushed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What downloads sends no telemetry, whatever was set; how often it tries is left to who set it."""
    for name in ("MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK", "HF_HUB_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "9")
    before = dict(os.environ)
    hush_downloaders()
    try:
        assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == os.environ["DO_NOT_TRACK"] == "true"
        assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"
        assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "9"
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]


def test_all_complaints_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two mistakes are told in one go."""
    monkeypatch.setenv("PORT", "http")
    monkeypatch.setenv("THREADS", "none")
    with pytest.raises(SettingsError) as refusal:
        Settings.load()
    assert [line.partition("=")[0] for line in str(refusal.value).splitlines()] == ["PORT", "THREADS"]


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("PORT", "x", "it must be a valid integer."),
        ("THREADS", "0", "it must be greater than or equal to 1."),
        ("CORS_ORIGINS", "https://a.example/", "it must be origins like `https://example.com`, by commas"),
        ("MODEL_SHA256", "abc", "it must be the SHA-256 that `MODEL` has to have"),
    ],
)
def test_complaints_are_for_people(monkeypatch: pytest.MonkeyPatch, name: str, value: str, told: str) -> None:
    """A complaint says what is meant, not which pattern did not match."""
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as refusal:
        Settings.load()
    assert f"{name}={value} is not possible: {told}" in str(refusal.value)
