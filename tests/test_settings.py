"""Settings come from the environment, are checked once, and all complaints come at once."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pigeonhole.errors import SettingsError
from pigeonhole.settings import Settings


def test_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    """With nothing set, the service runs on this machine alone."""
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    settings = Settings.load()
    assert (settings.host, settings.port, settings.model) == ("127.0.0.1", 5000, Path("export.pkl"))


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name in the environment is the field's in capitals."""
    monkeypatch.setenv("PORT", "8123")
    monkeypatch.setenv("ORIENTATION", "as-stored")
    assert (Settings.load().port, Settings.load().orientation) == (8123, "as-stored")


@pytest.mark.parametrize(
    ("name", "value"),
    [("PORT", "http"), ("PORT", "0"), ("PORT", "65536"), ("THREADS", "0"), ("WORKERS", "1.5"),
     ("ORIENTATION", "left"), ("MODEL_SHA256", "abc"),
     ("ALLOW_PICKLE_GLOBALS", "os.system()"), ("MAX_PIXELS", "100000000"), ("LOG_LEVEL", "loud")],
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


def test_all_complaints_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two mistakes are told in one go."""
    monkeypatch.setenv("PORT", "http")
    monkeypatch.setenv("THREADS", "none")
    with pytest.raises(SettingsError) as refusal:
        Settings.load()
    assert [line.partition("=")[0] for line in str(refusal.value).splitlines()] == ["PORT", "THREADS"]
