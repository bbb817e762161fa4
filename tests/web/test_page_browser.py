"""The page in a real browser: every way of sending a photo, what is shown of the answer, and for whom."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import FileChooser, Page, TimeoutError, expect
from pydantic import SecretStr

from app import create_app
from pigeonhole.errors import ModelFault
from pigeonhole.model.explain import Explanation
from pigeonhole.model.predictor import Photo, Prediction, Predictor
from pigeonhole.settings import Settings
from tests.conftest import Colours, encoded, picture
from tests.web.browser import page_of
from tests.web.test_page import PERCENTS, WHEREABOUTS
from tests.web.web import Web, listening

SECRET = "secret-0123456789"
ON_THE_WEB = "https://example.com/photo.png"
ORIENTATION = 0x0112  # the EXIF tag


WATCH_URLS = """() => {
  const { createObjectURL, revokeObjectURL } = URL;
  window.made = [];
  window.letGo = [];
  URL.createObjectURL = (blob) => { window.made.push(createObjectURL(blob)); return window.made.at(-1); };
  URL.revokeObjectURL = (url) => { window.letGo.push(url); revokeObjectURL(url); };
}"""


@dataclass(frozen=True)
class Watching(Colours):
    """Colours that remember the sizes of what arrived, and fail as often as they are told to."""

    sizes: list[tuple[int, int]] = field(default_factory=list)
    failures: list[None] = field(default_factory=list)

    def explain(self, photo: Photo, label: str | None = None) -> tuple[Prediction, Explanation]:
        if self.failures:
            self.failures.pop()
            raise ModelFault("the model failed on this picture.")
        self.sizes.append(photo.size)
        return super().explain(photo, label)


@pytest.fixture
def engine() -> Watching:
    return Watching()


@pytest.fixture
def address(settings: Settings, engine: Watching, tmp_path: Path) -> Iterator[str]:
    """Where the page is, with two examples, and a web where there is one blue picture."""
    examples = tmp_path / "examples"
    examples.mkdir()
    for colour in ("green", "blue"):
        (examples / f"{colour}.png").write_bytes(picture(colour))
    own = settings.model_copy(update={"fetch_urls": True, "page_examples": examples})
    with listening(create_app(own, Predictor(lambda: engine), Web({ON_THE_WEB: picture("blue")}))) as address:
        yield f"{address}/"


def photo(colour: str = "blue", name: str = "photo.png", size: tuple[int, int] = (64, 48)) -> dict[str, Any]:
    """What Playwright takes for a file that somebody chose."""
    return {"name": name, "mimeType": "image/png", "buffer": picture(colour, size)}


def choose(page: Page, *files: dict[str, Any]) -> None:
    page.locator("#image").set_input_files(list(files))


def answered(page: Page, label: str) -> None:
    expect(page.locator("#answer .label")).to_have_text(label)
    expect(page.locator("#bars .bar")).to_have_count(4)


def carried(page: Page, *files: dict[str, Any]) -> Any:
    """A DataTransfer that holds `files`, as a drop or the clipboard brings it."""
    made = "files => { const data = new DataTransfer(); for (const {name, mimeType, bytes} of files) "
    made += "data.items.add(new File([new Uint8Array(bytes)], name, {type: mimeType})); return data; }"
    sent = [{**file, "bytes": list(file["buffer"]), "buffer": None} for file in files]
    return page.evaluate_handle(made, sent)


def test_choose(address: str) -> None:
    """A chosen photo is answered: its label, how probable each is, how long it took, and where the model looked."""
    with page_of(address) as page:
        choose(page, photo())
        answered(page, "blue")
        expect(page.locator("#sure")).to_contain_text("100%, answered in ")
        expect(page.locator("#bars .bar").first).to_have_text("blue100%")
        expect(page.locator("#caption")).to_have_text("Where it looked for blue: most in the middle")
        expect(page.locator("#status")).to_contain_text("blue, 100%, answered in")
        expect(page.locator("#file")).to_have_text("photo.png")


def test_drop(address: str) -> None:
    """A photo may be dropped anywhere, and the page shows that it may."""
    with page_of(address) as page:
        for at, colour in (("body", "green"), (".drop", "red"), ("footer", "blue")):
            dragged = carried(page, photo(colour))
            page.dispatch_event(at, "dragenter", {"dataTransfer": dragged})
            expect(page.locator(".veil")).to_be_visible()
            page.dispatch_event(at, "drop", {"dataTransfer": dragged})
            answered(page, colour)
            expect(page.locator(".veil")).to_be_hidden()


def test_paste(address: str) -> None:
    """A picture in the clipboard may be pasted, and so may an address."""
    paste = "data => document.body.dispatchEvent(new ClipboardEvent('paste', {clipboardData: data, bubbles: true}))"
    with page_of(address) as page:
        page.evaluate(paste, carried(page, photo("red")))
        answered(page, "red")
        page.evaluate(
            "url => { const data = new DataTransfer(); data.setData('text/plain', url); (" + paste + ")(data); }",
            ON_THE_WEB,
        )
        answered(page, "blue")


def test_address(address: str) -> None:
    """A photo on the web is answered; what the model saw is its picture."""
    with page_of(address) as page:
        page.fill("#url", ON_THE_WEB)
        page.keyboard.press("Enter")
        answered(page, "blue")
        assert page.locator("#crop").get_attribute("src").startswith("data:image/png;base64,")
        expect(page.locator("#line")).to_contain_text(f'{{"url":"{ON_THE_WEB}"')


def test_example(address: str) -> None:
    """An example is answered at a click."""
    with page_of(address) as page:
        page.locator(".example").nth(1).click()
        answered(page, "green")


@pytest.mark.parametrize("touch", [True, False], ids=["phone", "desktop"])
def test_camera(address: str, touch: bool) -> None:
    """A phone offers its camera; a desk has none to offer."""
    with page_of(address, 390, has_touch=touch, is_mobile=touch) as page:
        expect(page.get_by_text("Take a photo")).to_be_visible(visible=touch)
        page.locator("#camera").set_input_files(photo("red"))
        answered(page, "red")


def test_another_label(address: str) -> None:
    """A click on a bar shows where the model looked for that label."""
    with page_of(address) as page:
        choose(page, photo())
        answered(page, "blue")
        before = heat_at_the_top_left(page)
        bars = page.locator("#bars")
        bars.get_by_role("button", name="red").click()
        expect(page.locator("#caption")).to_have_text("Where it looked for red: most at the top left")
        expect(bars.get_by_role("button", name="red")).to_have_attribute("aria-pressed", "true")
        expect(bars.get_by_role("button", name="blue")).to_have_attribute("aria-pressed", "false")
        expect(page.locator("#status")).to_have_text("Where it looked for red: most at the top left")
        assert (before[2] > before[0], heat_at_the_top_left(page)[0] > 120) == (True, True)  # from blue to red


def heat_at_the_top_left(page: Page) -> list[int]:
    page.wait_for_timeout(100)  # it is drawn when the picture is decoded
    read = "canvas => [...canvas.getContext('2d').getImageData(1, 1, 1, 1).data]"
    return list(page.locator("#heat").evaluate(read))


def test_the_colours_of_the_heat(address: str) -> None:
    """The heat in the page has the values of the grid at its cells, in the colours of the service's overlay."""
    grid = np.zeros((3, 3), np.float32)
    grid[1, 1] = 1
    overlay = np.asarray(Explanation("x", Image.new("RGB", (320, 320)), grid).overlay(), int)
    with page_of(address) as page:
        choose(page, photo())
        answered(page, "blue")
        heat_at_the_top_left(page)
        for x, y in ((53, 53), (160, 160), (266, 160)):
            read = f"canvas => [...canvas.getContext('2d').getImageData({x}, {y}, 1, 1).data].slice(0, 3)"
            assert page.locator("#heat").evaluate(read) == pytest.approx(list(overlay[y, x] * 2), abs=8)


def test_slider(address: str) -> None:
    """The slider, by its label and by keys, lets the picture through."""
    with page_of(address) as page:
        choose(page, photo())
        answered(page, "blue")
        opacity = "canvas => canvas.style.opacity || getComputedStyle(canvas).opacity"
        assert page.locator("#heat").evaluate(opacity) == "0.5"
        page.get_by_label("Heatmap", exact=True).press("Home")
        assert page.locator("#heat").evaluate(opacity) == "0"
        expect(page.get_by_label("Heatmap", exact=True)).to_have_attribute("aria-valuetext", "0%")


def test_keyboard(address: str) -> None:
    """All of it can be done by keys: sending, another label, what was before, and the focus is never lost."""
    with page_of(address) as page:
        page.keyboard.press("Tab")
        assert focused(page) == "image"
        chooser_by_key(page, "Enter").set_files(photo())
        answered(page, "blue")
        assert focused(page) == "image"
        green = page.locator("#bars").get_by_role("button", name="green")
        green.focus()
        page.keyboard.press("Enter")
        expect(page.locator("#caption")).to_contain_text("green")
        expect(green).to_be_focused()
        page.locator(".tile").focus()
        page.keyboard.press("Space")
        expect(page.locator(".tile")).to_be_focused()
        page.locator("#clear").press("Enter")
        assert focused(page) == "image"


def chooser_by_key(page: Page, key: str) -> FileChooser:
    """What opens; pressed again where Chromium, whose page has just come up, opens nothing (one time in three)."""
    for _ in range(8):
        try:
            with page.expect_file_chooser(timeout=1000) as chooser:
                page.keyboard.press(key)
            return chooser.value
        except TimeoutError:
            continue
    raise AssertionError("no file chooser opens")


def focused(page: Page) -> str:
    return str(page.evaluate("document.activeElement.id"))


def test_several(address: str) -> None:
    """Several photos are answered each by a request of its own, one that fails among them, and listed in order."""
    colours = ("red", "green", "blue")
    broken = {"name": "notes.png", "mimeType": "image/png", "buffer": b"hello"}
    with page_of(address, refused=415) as page:
        choose(page, *[photo(colour, f"{colour}.png") for colour in colours], broken)
        expect(page.locator(".tile-label")).to_have_text([*colours, "Did not work"])
        expect(page.locator("#answer")).to_be_hidden()
        expect(page.locator("#status")).to_have_text("4 pictures: red; green; blue; Did not work.")
        page.locator(".tile").nth(1).click()
        answered(page, "green")


def test_at_most_two_at_once(address: str) -> None:
    """However many are dropped, no more than two are on the way at a time."""
    with page_of(address) as page:
        page.evaluate(
            "() => { window.open_ = window.most = 0; const send = XMLHttpRequest.prototype.send; "
            "XMLHttpRequest.prototype.send = function (body) { window.most = Math.max(window.most, ++window.open_); "
            "this.addEventListener('loadend', () => window.open_--); send.call(this, body); }; }"
        )
        choose(page, *[photo(name=f"{number}.png") for number in range(7)])
        expect(page.locator(".tile-label")).to_have_text(["blue"] * 7)
        assert page.evaluate("window.most") == 2


def test_visit(address: str) -> None:
    """What was answered before can be looked at again, and is gone when it is cleared."""
    with page_of(address) as page:
        page.evaluate(WATCH_URLS)
        for colour in ("red", "green"):
            choose(page, photo(colour, f"{colour}.png"))
            answered(page, colour)
        expect(page.locator(".tile-label")).to_have_text(["green", "red"])
        page.locator(".tile").nth(1).click()
        answered(page, "red")
        expect(page.locator("#file")).to_have_text("red.png")
        page.locator("#clear").click()
        expect(page.locator(".tile")).to_have_count(0)
        expect(page.locator("#answer")).to_be_hidden()
        made, let_go = page.evaluate("[window.made, window.letGo]")
        assert (len(made), sorted(made)) == (2, sorted(let_go))  # the browser may forget the photos


def test_nothing_is_kept(address: str) -> None:
    """A page that is opened anew knows nothing of the last visit."""
    with page_of(address) as page:
        choose(page, photo())
        answered(page, "blue")
        assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]
        page.reload()
        expect(page.locator(".tile")).to_have_count(0)


@pytest.mark.parametrize(
    ("original", "size", "arrived"),
    [(False, (960, 1200), (96, 120)), (True, (960, 1200), (960, 1200)), (False, (96, 500), (96, 500))],
    ids=["shrunk", "original", "small"],
)
def test_shrunk(
    address: str, engine: Watching, original: bool, size: tuple[int, int], arrived: tuple[int, int]
) -> None:
    """A photo is shrunk to the side that the model can use, unless the original is asked for, or it is smaller."""
    with page_of(address) as page:
        if original:
            page.get_by_label("Send the original").check()
        choose(page, photo(size=size))
        answered(page, "blue")
    assert engine.sizes == [arrived]


@pytest.mark.parametrize(("orientation", "arrived"), [("upright", (96, 120)), ("as-stored", (1200, 960))])
def test_shrunk_upright(settings: Settings, engine: Watching, orientation: str, arrived: tuple[int, int]) -> None:
    """A photo that lies on its side is shrunk as the service would have turned it; as-stored it is not shrunk."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    lying = encoded(Image.new("RGB", (1200, 960), "blue"), "JPEG", exif=exif)
    app = create_app(settings.model_copy(update={"orientation": orientation}), Predictor(lambda: engine))
    with listening(app) as address, page_of(f"{address}/") as page:
        choose(page, {"name": "x.jpg", "mimeType": "image/jpeg", "buffer": lying})
        answered(page, "blue")
    assert engine.sizes == [arrived]


def test_nothing_to_shrink_to(settings: Settings) -> None:
    """Where none may be shrunk, there is no switch, and originals arrive."""
    engine = Watching(useful_side=None)
    with listening(create_app(settings, Predictor(lambda: engine))) as address, page_of(f"{address}/") as page:
        expect(page.locator("#originals")).to_have_count(0)
        choose(page, photo(size=(960, 1200)))
        answered(page, "blue")
    assert engine.sizes == [(960, 1200)]


def test_unexplained(settings: Settings) -> None:
    """Where heatmaps cannot be drawn, the photo is shown without, labels are no buttons, and the page says why."""
    engine = Colours(why_unexplained="the network has no convolutions.")
    with listening(create_app(settings, Predictor(lambda: engine))) as address, page_of(f"{address}/") as page:
        choose(page, photo())
        answered(page, "blue")
        expect(page.locator("button.bar")).to_have_count(0)
        expect(page.locator("#crop")).to_be_visible()
        expect(page.locator("#tools")).to_be_hidden()
        expect(page.get_by_text("the network has no convolutions.")).to_be_visible()


def test_refused(address: str) -> None:
    """What the service refuses is told in its own sentence, with the request's id; another photo works."""
    with page_of(address, refused=415) as page:
        choose(page, {"name": "<b>notes</b>.png", "mimeType": "image/png", "buffer": b"hello"})
        expect(page.locator("#sure")).to_have_text(
            "the file is not a picture; accepted are JPEG, PNG, GIF, WebP and BMP."
        )
        assert len(page.locator("#reported code").inner_text()) == 32
        expect(page.locator("#file")).to_have_text("<b>notes</b>.png")
        expect(page.locator("#again")).to_be_hidden()
        choose(page, photo("red"))
        answered(page, "red")


def test_too_large(address: str) -> None:
    """A file that is too large is not sent at all."""
    with page_of(address) as page:
        page.get_by_label("Send the original").check()
        choose(page, {"name": "x.jpg", "mimeType": "image/jpeg", "buffer": b"\xff\xd8\xff".ljust(11 << 20)})
        expect(page.locator("#sure")).to_have_text("the file has 11 MiB; at most 10 MiB are accepted.")


def test_again(address: str, engine: Watching) -> None:
    """After trouble of ours there is a button to try again, and it works."""
    engine.failures.append(None)
    with page_of(address, refused=503) as page:
        choose(page, photo())
        expect(page.locator("#sure")).to_have_text("the model failed on this picture.")
        page.locator("#again").click()
        answered(page, "blue")
        assert focused(page) == "label"


def test_trouble_with_another_label(address: str, engine: Watching) -> None:
    """Where a label's heatmap cannot be had, the page says why in its place; another click tries again."""
    with page_of(address, refused=503) as page:
        choose(page, photo())
        answered(page, "blue")
        engine.failures.append(None)
        for told in ("the model failed on this picture.", "Where it looked for red: most at the top left"):
            page.locator("#bars").get_by_role("button", name="red").click()
            expect(page.locator("#caption")).to_have_text(told)
        expect(page.locator("#heat")).to_be_visible()


def test_unreachable(address: str) -> None:
    """Without a network the page says so, and offers to try again."""
    with page_of(address) as page:
        page.evaluate("XMLHttpRequest.prototype.send = function () { this.dispatchEvent(new Event('error')); }")
        choose(page, photo())
        expect(page.locator("#sure")).to_have_text("The service cannot be reached. Are you online?")
        expect(page.locator("#again")).to_be_visible()


HARD_NAMES = ("photo.png", 'it\'s a; $(touch hacked) "photo", 100%.png', "-", "@x;type=text.png", "back\\slash.png")


def test_curl(address: str, tmp_path: Path) -> None:
    """The line for curl works as it stands, whatever the photo is called."""
    lines = []
    with page_of(address) as page:
        page.locator("#curl summary").click()
        for name in HARD_NAMES:
            (tmp_path / name).write_bytes(picture("blue"))
            choose(page, photo(name=name))
            expect(page.locator("#file")).to_have_text(name)
            lines.append(page.locator("#line").inner_text())
        answered(page, "blue")
    for line in lines:
        ran = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, timeout=20)
        assert '"success":"blue"' in ran.stdout, line
    assert not (tmp_path / "hacked").exists()


def test_curl_of_an_address(address: str, tmp_path: Path) -> None:
    """So does the line for a photo on the web, and it can be copied."""
    with page_of(address, permissions=["clipboard-read", "clipboard-write"]) as page:
        page.fill("#url", ON_THE_WEB)
        page.get_by_role("button", name="Fetch").click()
        answered(page, "blue")
        page.locator("#curl summary").click()
        page.locator("#copy").click()
        expect(page.locator("#copy")).to_have_text("Copied")
        line = page.evaluate("navigator.clipboard.readText()")
    ran = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, timeout=20)
    assert '"success":"blue"' in ran.stdout, line


def test_without_javascript(address: str) -> None:
    """The form alone sends a photo, and a page comes back."""
    with page_of(address, 390, 500, java_script_enabled=False) as page:
        choose(page, photo())
        page.get_by_role("button", name="Ask the model").click()
        expect(page.get_by_role("heading", name="blue")).to_be_in_viewport()
        expect(page.get_by_role("heading", name="blue")).to_be_visible()
        expect(page.get_by_text("Where it looked for blue")).to_be_visible()
        for text in ("Drop photos here", "Send the original", "The same request with curl"):
            expect(page.get_by_text(text)).to_be_hidden()  # what would do nothing
        assert [scroll_width(page, width) for width in WIDTHS] == [*WIDTHS]


def test_error_without_javascript(address: str) -> None:
    """So does a page that says what was wrong, and it still has the form."""
    with page_of(address, refused=400, java_script_enabled=False) as page:
        page.get_by_role("button", name="Ask the model").click()
        expect(page.get_by_role("heading", name="That did not work")).to_be_visible()
        expect(page.locator("#image")).to_be_visible()


def test_a_hostile_label_is_text(settings: Settings) -> None:
    """A label that is markup is shown as it is written."""
    hostile = Colours(labels=("<img src=x onerror=alert(1)>", "green", "blue", "grey"))
    with listening(create_app(settings, Predictor(lambda: hostile))) as address, page_of(f"{address}/") as page:
        choose(page, photo("red"))
        answered(page, hostile.labels[0])
        expect(page.locator(".tile-label")).to_have_text(hostile.labels[0])


def test_a_hostile_title_is_text(settings: Settings) -> None:
    """A title that is markup is shown as it is written."""
    own = settings.model_copy(update={"page_title": "<script>alert(1)</script>"})
    with listening(create_app(own, Predictor(Colours))) as address, page_of(f"{address}/") as page:
        expect(page.locator("h1")).to_have_text("<script>alert(1)</script>")
        assert page.title() == "<script>alert(1)</script>"


WIDTHS = (360, 768, 1280, 3840)


def test_no_width_scrolls_sideways(address: str) -> None:
    """From a small phone to a wall, nothing sticks out: empty, with several, and with an answer."""
    name = "a_very_long_name_without_any_place_to_break_it_" * 4 + ".png"
    with page_of(address) as page:
        assert [scroll_width(page, width) for width in WIDTHS] == [*WIDTHS]
        choose(page, photo("red", name), photo("blue", name))
        expect(page.locator(".tile-label")).to_have_text(["red", "blue"])
        assert [scroll_width(page, width) for width in WIDTHS] == [*WIDTHS]
        page.locator(".tile").first.click()
        answered(page, "red")
        page.locator("#curl summary").click()
        assert [scroll_width(page, width) for width in WIDTHS] == [*WIDTHS]


def scroll_width(page: Page, width: int) -> int:
    page.set_viewport_size({"width": width, "height": 900})
    return int(page.evaluate("document.documentElement.scrollWidth"))


def violations(page: Page) -> str:
    """What axe finds wrong with how the page is now."""
    page.wait_for_timeout(400)  # for what moves
    return str(Axe().run(page).generate_report() if Axe().run(page).violations_count else "")


@pytest.mark.parametrize("width", [1200, 390], ids=["desktop", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessible(address: str, scheme: str, width: int) -> None:
    """axe finds nothing: empty, answered, another label, failed, and with several."""
    with page_of(address, width, refused=415, color_scheme=scheme) as page:
        assert violations(page) == ""
        choose(page, photo())
        answered(page, "blue")
        assert violations(page) == ""
        page.locator("#bars").get_by_role("button", name="red").click()
        page.locator("#curl summary").click()
        expect(page.locator("#caption")).to_contain_text("red")
        assert violations(page) == ""
        choose(page, {"name": "x.png", "mimeType": "image/png", "buffer": b"hello"})
        expect(page.locator("#sure")).to_contain_text("not a picture")
        assert violations(page) == ""
        choose(page, photo("red"), photo("green"))
        expect(page.locator(".tile-label").first).to_have_text("red")
        expect(page.locator("#answer")).to_be_hidden()
        assert violations(page) == ""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessible_without_javascript(address: str, scheme: str) -> None:
    """axe finds nothing on the pages that come back to the form alone."""
    with page_of(address, refused=400, color_scheme=scheme) as page:
        page.route("**/page.js", lambda route: route.fulfill(body=""))  # axe itself needs JavaScript
        page.reload()
        assert violations(page) == ""
        choose(page, photo(), photo("red"))
        page.get_by_role("button", name="Ask the model").click()
        expect(page.get_by_role("heading", name="blue")).to_be_visible()
        assert violations(page) == ""
        page.get_by_role("button", name="Ask the model").click()
        expect(page.get_by_role("heading", name="That did not work")).to_be_visible()
        assert violations(page) == ""


def test_said_alike(address: str) -> None:
    """What the page says in its own words it says as the service does where there is no JavaScript."""
    with page_of(address) as page:
        for probability, told in PERCENTS:
            assert page.evaluate("(probability) => percent(probability)", probability) == told
        for rows, told in WHEREABOUTS:
            assert page.evaluate("(rows) => place(rows)", rows) == told


def test_an_example_that_cannot_be_had(address: str) -> None:
    """That is said where its answer would be, and nothing is sent."""
    with page_of(address, refused=503) as page:
        page.route("**/examples/*", lambda route: route.fulfill(status=503, body="{}"))
        page.locator(".example").first.click()
        expect(page.locator("#sure")).to_have_text("The example cannot be had at the moment.")
        expect(page.locator("#label")).to_have_text("That did not work")


@pytest.fixture
def guarded(settings: Settings) -> Iterator[str]:
    """Where the page is whose service asks for a key."""
    own = settings.model_copy(update={"api_keys": SecretStr(f"alice:{SECRET}")})
    with listening(create_app(own, Predictor(Colours))) as address:
        yield f"{address}/"


def test_a_key(guarded: str) -> None:
    """The page asks for a key, sends it, and keeps it in the tab alone, and out of the curl line."""
    with page_of(guarded, refused=401) as page:
        choose(page, photo())
        expect(page.locator("#sure")).to_contain_text("a key is needed here")
        page.get_by_label("Your key").fill(SECRET)
        page.get_by_role("button", name="Try again").click()
        answered(page, "blue")
        page.reload()
        choose(page, photo("red"))
        answered(page, "red")
        kept = page.evaluate(
            "[sessionStorage.getItem('key'), sessionStorage.length, localStorage.length, document.cookie]"
        )
        assert kept == [SECRET, 1, 0, ""]
        expect(page.locator("#line")).to_contain_text('curl -H "X-API-Key: $KEY" -F image=@photo.png')
        assert violations(page) == ""


def test_a_wrong_key(guarded: str) -> None:
    """A key that is not accepted is told, and another one can be tried; where there is no JavaScript, too."""
    with page_of(guarded, refused=403) as page:
        page.get_by_label("Your key").fill(SECRET[::-1])
        choose(page, photo())
        expect(page.locator("#sure")).to_contain_text("not one that is accepted")
        page.route("**/page.js", lambda route: route.fulfill(body=""))
        page.reload()
        for key, heading in ((SECRET[::-1], "That did not work"), (SECRET, "blue")):
            page.get_by_label("Your key").fill(key)
            choose(page, photo())
            page.get_by_role("button", name="Ask the model").click()
            expect(page.get_by_role("heading", name=heading)).to_be_visible()
            expect(page.get_by_label("Your key")).to_have_value("")
            assert violations(page) == ""


def test_more_than_are_kept(address: str, engine: Watching) -> None:
    """What is answered makes room for what is still to be answered, and every picture gets its answer."""
    with page_of(address) as page:
        for _ in range(2):
            choose(page, *(photo(name=f"{number}.png", size=(8, 8)) for number in range(40)))
        expect(page.locator(".tile")).to_have_count(60)
        expect(page.locator(".tile-label", has_text="blue")).to_have_count(60)
