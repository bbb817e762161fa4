"""What a process does before its first request, whoever serves with it: gunicorn's workers, and Ray's replicas."""

from __future__ import annotations

import logging
import resource

from flask import Flask

from pigeonhole.errors import SettingsError
from pigeonhole.machine import give_memory_back, trim_memory
from pigeonhole.model.predictor import Engine
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
    engine: Engine = app.extensions["predictor"].load()
    if settings.sandbox != "off":
        works = sandbox(settings.formats).works  # the first cell, and the word of warning if there is none
        if settings.sandbox == "on" and not works:
            raise SettingsError("SANDBOX=on is not possible on this system; SANDBOX=off does without.")
    if engine.about["engine"] == "compiled":
        give_memory_back()
        trim_memory()
    room: Room = app.extensions["measured"].room
    log.info("memory: %s", room)
    return engine
