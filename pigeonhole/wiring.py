"""From the settings to the model they name: for the app and for gunicorn's master, which share no other code."""

from __future__ import annotations

from pigeonhole.model.choosing import Model
from pigeonhole.settings import Settings


def model_of(settings: Settings) -> Model:
    """What is to be served, and how."""
    return Model(
        path=settings.model,
        sha256=settings.model_sha256,
        allowed=settings.allowed_globals,
        engine=settings.engine,
        precision=settings.precision,
        workers=settings.workers,
    )
