"""/docs in a real browser: a photo is chosen, sent and answered, offline and under a strict policy."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Server
from tests.web.browser import page_of


@pytest.mark.parametrize("width", [1200, 390], ids=["desktop", "phone"])
def test_a_photo_is_classified(server: Server, one_of_each: dict[str, Path], tmp_path: Path, width: int) -> None:
    """The file picker works, and the answer is the label."""
    with page_of(f"{server.url}/docs", width) as page:
        page.click("#operations-Classify-post_predict .opblock-summary-control")
        operation = page.locator("#operations-Classify-post_predict")
        operation.locator("input[type=file]").set_input_files(one_of_each["hat"])
        operation.locator(".execute").click()
        answer = operation.locator(".live-responses-table .response-col_description pre").first
        answer.wait_for()
        page.screenshot(path=tmp_path / "docs.png", full_page=True)
        assert '"success": "hat"' in answer.inner_text()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
