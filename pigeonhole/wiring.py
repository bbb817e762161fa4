"""From the settings to the model they name: for the app and for gunicorn's master, which share no other code."""

from __future__ import annotations

from pathlib import Path

from pigeonhole.model.choosing import Model
from pigeonhole.model.store.addresses import is_address
from pigeonhole.model.store.fetching import fetch
from pigeonhole.settings import Settings, hush_downloaders
from pigeonhole.sizing import Box


def model_of(settings: Settings) -> Model:
    """What is to be served, and how; downloaded first, where MODEL is an address.

    Raises:
        DownloadError, ModelFileError, PackagesMissing: that did not work.
    """
    return Model(
        path=downloaded(settings) if is_address(settings.model) else Path(settings.model),
        sha256=settings.model_sha256,
        allowed=settings.allowed_globals,
        engine=settings.engine,
        precision=settings.precision,
        workers=settings.workers,
        memory=Box.here(settings.memory).memory,
        device=settings.device,
    )


def downloaded(settings: Settings) -> Path:
    """Where the file lies that the address MODEL gives; raises as `model_of`."""
    hush_downloaders()
    return fetch(settings.model, settings.model_cache, settings.model_sha256)
