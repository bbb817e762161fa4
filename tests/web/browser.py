"""A real browser for tests: Debian's Chromium, driven by Playwright, with an empty profile."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from playwright.sync_api import Page, sync_playwright

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@contextmanager
def page_of(
    url: str, width: int = 1200, height: int = 1400, refused: int | None = None, **context: Any
) -> Iterator[Page]:
    """A page at `url`; afterwards it must have asked no other host, and complained of nothing.

    Chromium itself complains of answers that are errors: those of status `refused` are expected, and there must be one.
    """
    chromium = shutil.which("chromium")
    if not chromium:
        pytest.skip("Chromium is not here")
    asked: list[str] = []
    complaints: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        try:
            page = browser.new_page(viewport={"width": width, "height": height}, **context)
            page.set_default_timeout(10_000)
            page.on("request", lambda request: asked.append(request.url))
            page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.goto(url)
            yield page
        finally:
            browser.close()
    host = url.split("/")[2]
    assert [one for one in asked if not one.startswith((f"http://{host}/", "data:", "blob:"))] == []
    expected = [text for text in complaints if f"responded with a status of {refused} " in text]
    assert [text for text in complaints if text not in expected] == []
    assert bool(expected) == bool(refused)
