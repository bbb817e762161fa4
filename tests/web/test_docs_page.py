"""/docs in a real browser: a photo is chosen, sent and answered, offline and under a strict policy."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr

from app import create_app
from pigeonhole.model.predictor import Predictor
from pigeonhole.settings import Settings
from tests.conftest import Colours, Server, picture
from tests.web.browser import page_of
from tests.web.web import listening


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


def test_authorize(settings: Settings, tmp_path: Path) -> None:
    """Where a key is needed, it is entered once, and sent with what is tried."""
    (tmp_path / "photo.png").write_bytes(picture("blue"))
    app = create_app(settings.model_copy(update={"api_keys": SecretStr("alice:0123456789abcdef")}), Predictor(Colours))
    with listening(app) as address, page_of(f"{address}/docs") as page:
        page.locator(".auth-wrapper .authorize").first.click()
        page.locator(".auth-container input").first.fill("0123456789abcdef")
        page.locator(".auth-container .authorize").first.click()
        page.locator(".auth-container .btn-done").first.click()
        page.click("#operations-Classify-post_predict .opblock-summary-control")
        operation = page.locator("#operations-Classify-post_predict")
        operation.locator("input[type=file]").set_input_files(tmp_path / "photo.png")
        operation.locator(".execute").click()
        answer = operation.locator(".live-responses-table .response-col_description pre").first
        answer.wait_for()
        assert '"success": "blue"' in answer.inner_text()
