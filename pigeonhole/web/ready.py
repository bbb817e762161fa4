"""What a process does before its first request, whoever serves with it: gunicorn's workers, and Ray's replicas."""

from __future__ import annotations

import logging
import resource
from concurrent.futures import ThreadPoolExecutor

from flask import Flask

from pigeonhole.errors import SettingsError
from pigeonhole.machine import give_memory_back, trim_memory
from pigeonhole.model.predictor import Engine
from pigeonhole.settings import Settings
from pigeonhole.sizing import Room
from pigeonhole.web.classifier import sandbox
from pigeonhole.web.log_lines import start_logging

log = logging.getLogger(__name__)


def prepare_process(app: Flask) -> Engine:
    """Load the model of `app`, start what decodes, and see that there is memory left for pictures.

    Raises:
        StartError: it cannot serve.
    """
    settings = app.config["SETTINGS"]
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # what a crash leaves on the disk would hold photos
    start_logging(settings.log_level)
    with ThreadPoolExecutor(1) as beside:  # what cells are forked from loads while the model does
        works = beside.submit(_cells_work, settings)
        engine: Engine = app.extensions["predictor"].load()
    if not works.result() and settings.sandbox == "on":
        raise SettingsError("SANDBOX=on is not possible on this system; SANDBOX=off does without.")
    if engine.about["engine"] == "compiled":
        give_memory_back()
        trim_memory()
    room: Room = app.extensions["measured"].room
    log.info("memory: %s", room)
    return engine


def _cells_work(settings: Settings) -> bool:
    """Ask for the first cell, which says a word of warning if there is none; not where none is wanted."""
    return settings.sandbox != "off" and sandbox(settings.formats).works
