"""Requests that work as they stand, for the description and for whoever tries it."""

from __future__ import annotations

from pathlib import Path

WAYS_IN = Path(__file__).with_name("ways_in.md")  # the README has the same text
# a red disc on white, 24 by 24 pixels, as PNG
PICTURE = (
    "iVBORw0KGgoAAAANSUhEUgAAABgAAAAYAQMAAADaua+7AAAABlBMVEX////IHh7kMBY6AAAAPklEQVR42mXMoQ2AMABFwesHUdkR"
    "GIXJmK2jMEJlBSFYCC85+3h3WEoviT2rLVUL0tTgZ5hBppHLmVvn+BwfVIsJ4LKcSMMAAAAASUVORK5CYII="
)
ADDRESS = {"url": "https://upload.wikimedia.org/wikipedia/commons/a/a9/Example.jpg"}
