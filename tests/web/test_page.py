"""The page without a browser: what it is made of, and what its form gets where JavaScript is off."""

from __future__ import annotations

import io
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flask.testing import FlaskClient
from PIL import Image
from werkzeug.test import TestResponse

from app import create_app
from pigeonhole.errors import FolderError, ModelFault, ModelFileError
from pigeonhole.model.explain import Explanation
from pigeonhole.model.predictor import Photo, Prediction, Predictor
from pigeonhole.settings import Settings
from pigeonhole.web.page import percent, whereabouts
from pigeonhole.web.theme import DARK, LIGHT, contrast, parsed, stylesheet
from tests.conftest import Colours, StartServer, form, picture
from tests.web.web import Web

NOTHING = (b"", "")  # what browsers send of a field for files where none was chosen
ON_THE_WEB = "https://example.com/photo.png"


def client_of(settings: Settings, engine: Any = Colours, **changes: Any) -> FlaskClient:
    changed = settings.model_copy(update=changes)
    return create_app(changed, Predictor(engine), Web({ON_THE_WEB: picture("blue")})).test_client()


def seen(response: TestResponse) -> str:
    """The text of the page, without what it holds for JavaScript."""
    return re.sub(r"<template.*?</template>|<section id=\"answer\".*?</section>", "", response.text, flags=re.S)


def labels(response: TestResponse) -> list[str]:
    return re.findall(r'<h2 class="label" id="label-\d+">(.*?)</h2>', seen(response))


def test_nothing_of_another_host(client: FlaskClient) -> None:
    """The page names no other host, and has no script and no style of its own that the policy would have to allow."""
    page = client.get("/")
    assert (page.status_code, page.mimetype, page.headers["Cache-Control"]) == (200, "text/html", "no-store")
    assert "unsafe" not in page.headers["Content-Security-Policy"]
    assert page.headers["Content-Security-Policy"].startswith(
        "default-src 'none'; script-src 'self'; style-src 'self';"
    )
    assert not re.search(r"//(?!www\.w3\.org/2000/svg)\w|<script>|<style| style=| on\w+=", page.text)


def test_small(client: FlaskClient) -> None:
    """HTML, styles, script and icon are under 100 KB together, uncompressed."""
    text = client.get("/").text
    names = set(re.findall(r'(?:href|src)="(/page/[^"]+)"', text))
    assert names == {"/page/page.js", "/page/page.css", "/page/theme.css", "/page/icon.svg"}
    sizes = [len(text.encode())]
    for name in names:
        with client.get(name) as file:
            assert file.status_code == 200
            sizes.append(len(file.data))
    assert sum(sizes) < 100_000


@pytest.mark.parametrize("name", ["page.html", "docs.js", "../app.py", "..%2fpage.py", "%00"])
def test_no_other_file(client: FlaskClient, name: str) -> None:
    """Only the page's own files are under /page."""
    assert client.get(f"/page/{name}").status_code == 404


@pytest.mark.parametrize("name", ["page.js", "theme.css", "icon.svg"])
@pytest.mark.parametrize("condition", ["If-Modified-Since", "If-Unmodified-Since", "If-Match"])
def test_conditions_nobody_can_meet(client: FlaskClient, name: str, condition: str) -> None:
    """A date that no calendar has is ignored, and what a browser has already is not sent again."""
    with client.get(f"/page/{name}", headers={condition: "Mon, 01 Jan 99999999999 00:00:00 GMT"}) as first:
        assert (first.status_code, first.headers["Cache-Control"]) == (200, "no-cache")
    with client.get(f"/page/{name}", headers={"If-None-Match": first.headers["ETag"]}) as again:
        assert again.status_code == 304


def test_a_plain_form(client: FlaskClient) -> None:
    """A picture sent by the form alone is answered with a page: its label, the others, and where the model looked."""
    response = client.post("/", data=form((picture("blue"), "sky.png"), explain="1"))
    assert (response.status_code, response.mimetype, labels(response)) == (200, "text/html", ["blue"])
    assert response.headers["Content-Security-Policy"] == client.get("/").headers["Content-Security-Policy"]
    text = seen(response)
    assert "sky.png" in text
    assert re.search(r'<meter min="0" max="1" value="1.0" aria-label="blue">', text)
    assert len(re.findall(r'<img class="crop" src="data:image/png;base64,', text)) == 2
    assert "Where it looked for <b>blue</b>: most in the middle" in text
    assert re.search(r"100%, answered in \d\.\d\d s", text)


def test_without_heatmap(client: FlaskClient) -> None:
    """Who takes the tick away gets the label alone."""
    response = client.post("/", data=form((picture("blue"), "sky.png")))
    assert labels(response) == ["blue"]
    assert "data:image" not in seen(response)


def test_several(client: FlaskClient) -> None:
    """Several pictures are answered in order."""
    response = client.post("/", data=form((picture("red"), "a.png"), (picture("blue"), "b.png"), explain="1"))
    assert labels(response) == ["red", "blue"]
    assert "all 2 answered in" in response.text


def test_more_labels_than_five(settings: Settings) -> None:
    """Five labels are shown, and all of them on request."""
    response = client_of(settings, Many).post("/", data=form((picture(), "a.png")))
    first, _, rest = seen(response).partition("<details>")
    assert (first.count("<meter"), rest.count("<meter")) == (5, 7)
    assert "All 7 labels" in rest


class Many(Colours):
    def __init__(self) -> None:
        super().__init__(labels=("a", "b", "c", "d", "e", "<script>", "g"))

    def predict(self, photo: Photo) -> Prediction:
        return Prediction("<script>", (0.1, 0.1, 0.1, 0.1, 0.1, 0.4, 0.1))


def test_a_label_is_text(settings: Settings) -> None:
    """A label that is markup is shown as it is written."""
    assert labels(client_of(settings, Many).post("/", data=form((picture(), "a.png")))) == ["&lt;script&gt;"]


@pytest.mark.parametrize("name", ["<img src=x onerror=alert(1)>.png", "../../etc/passwd", "'\"><script>x</script>.png"])
def test_a_file_name_is_text(client: FlaskClient, name: str) -> None:
    """A client's file name is neither markup nor a path."""
    response = client.post("/", data=form((picture(), name)))
    assert labels(response) == ["red"]
    assert name not in response.text
    assert not re.search(r"<img src=x|<script>|\.\./", response.text)


@pytest.mark.parametrize(("success", "told"), [([], "None of its labels"), (["red", "blue"], "red, blue")])
def test_several_labels(settings: Settings, success: list[str], told: str) -> None:
    """A multi-label model's labels are all named, or that there is none."""

    class Multi(Colours):
        def predict(self, photo: Photo) -> Prediction:
            return Prediction(success, (0.7, 0.1, 0.6, 0.2))

    assert labels(client_of(settings, Multi).post("/", data=form((picture(), "a.png"), explain="1"))) == [told]


def test_an_address(settings: Settings) -> None:
    """Where pictures may be fetched, the form takes an address; the empty field for files beside it does not matter."""
    client = client_of(settings, fetch_urls=True)
    assert 'name="url"' in client.get("/").text
    assert labels(client.post("/", data=form(NOTHING, url=f" {ON_THE_WEB} "))) == ["blue"]
    both = client.post("/", data=form((picture(), "a.png"), url=ON_THE_WEB))
    assert (both.status_code, "send one of them" in both.text) == (400, True)


def test_no_address(client: FlaskClient) -> None:
    """Where nothing is fetched, the page does not offer it, and says so to who asks all the same."""
    assert 'name="url"' not in client.get("/").text
    response = client.post("/", data=form(NOTHING, url=ON_THE_WEB))
    assert (response.status_code, "pictures are not fetched from addresses here" in response.text) == (403, True)


PNG = picture()
PART = b'--b\r\nContent-Disposition: form-data; name="image"; filename="x.png"\r\n\r\n' + PNG
REFUSED = {
    "nothing chosen": ({"data": form(NOTHING, url="")}, 400, "no picture was chosen"),
    "no picture": ({"data": form((b"hello", "x.png"))}, 415, "the file is not a picture"),
    "one of two": ({"data": form((PNG, "a.png"), (b"hello", "b.png"))}, 415, "picture 2 (b.png): the file is not"),
    "too large": ({"data": form((PNG.ljust(3000), "x.png"))}, 413, "the request is too large"),
    "too many": ({"data": form(*[(PNG, "x.png")] * 3)}, 413, "more than 2 pictures were sent"),
    "cut off": ({"data": PART, "content_type": "multipart/form-data; boundary=b"}, 400, "the form is cut off"),
    "no form": ({"data": b"image=x", "content_type": "application/x-www-form-urlencoded"}, 415, "is announced as"),
    "twice": ({"data": form((PNG, "x.png"), explain=["1", "1"])}, 400, "`explain` comes twice"),
}


@pytest.mark.parametrize(("sent", "status", "sentence"), REFUSED.values(), ids=REFUSED)
def test_refusals(settings: Settings, sent: dict[str, Any], status: int, sentence: str) -> None:
    """What is refused gets a page with the API's status, sentence, request id and headers."""
    response = client_of(settings, max_body_bytes=2000, max_files=2).post("/", **renewed(sent))
    assert (response.status_code, response.mimetype) == (status, "text/html")
    assert sentence in response.text
    assert response.headers["X-Request-ID"] in response.text
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert "default-src 'none'" in response.headers["Content-Security-Policy"]
    assert "Retry-After" not in response.headers


def renewed(sent: dict[str, Any]) -> dict[str, Any]:
    """With streams that have not been read: the test client reads them up."""
    if isinstance(sent["data"], bytes):
        return sent
    files = [(io.BytesIO(file.getvalue()), name) for file, name in sent["data"]["image"]]
    return {"data": {**sent["data"], "image": files}}


def test_the_same_sentence(client: FlaskClient) -> None:
    """A person reads what a program would have read."""
    told = client.post("/predict", data=form((b"hello", "x.png"))).json["error"]
    assert f'<p class="sentence">{told}</p>' in client.post("/", data=form((b"hello", "x.png"))).text


class Failing(Colours):
    def predict(self, photo: Photo) -> Prediction:
        raise ModelFault("the model failed on this picture.")


def closed() -> Colours:
    raise ModelFileError("export.pkl is not there")


@pytest.mark.parametrize(
    ("engine", "method"), [(Failing, "POST"), (closed, "POST"), (closed, "GET")], ids=["fault", "closed", "at once"]
)
def test_our_own_trouble(settings: Settings, engine: Any, method: str) -> None:
    """What is our fault says so on a page, and when to try again; nothing of ours is in it."""
    sent = form((picture(), "a.png")) if method == "POST" else None
    response = client_of(settings, engine).open("/", method=method, data=sent)
    assert (response.status_code, response.mimetype, response.headers["Retry-After"]) == (503, "text/html", "5")
    assert "Please try again in a moment." in response.text
    assert not re.search(r"Traceback|export\.pkl|Error", response.text)


def test_nobody_foresaw(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even what nobody foresaw is a page, and a closed one."""
    monkeypatch.setattr("pigeonhole.web.page.likely", lambda *_: 1 / 0)
    response = client_of(settings).post("/", data=form((picture(), "a.png")))
    assert (response.status_code, response.mimetype) == (503, "text/html")
    assert "ZeroDivision" not in response.text


def test_other_methods(client: FlaskClient) -> None:
    """The page takes GET and POST; other errors stay JSON."""
    response = client.put("/")
    assert (response.status_code, response.json["code"], response.headers["Allow"]) == (
        405,
        "bad_method",
        "GET, HEAD, OPTIONS, POST",
    )


def test_off(settings: Settings) -> None:
    """PAGE=0 leaves the API alone."""
    client = client_of(settings, page=False, page_examples=Path("nowhere"))
    for method, path in (("GET", "/"), ("POST", "/"), ("GET", "/page/page.js"), ("GET", "/examples/1")):
        assert client.open(path, method=method).status_code == 404
    assert client.post("/predict", data=form((picture(), "a.png"))).json == {"success": "red"}


def test_a_page_of_ones_own(settings: Settings) -> None:
    """Title and description are what was set, as text."""
    own = {"page_title": "<script>alert(1)</script>", "page_description": 'Birds & "bees"'}
    text = client_of(settings, **own).get("/").text
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 2
    assert "<p>Birds &amp; &#34;bees&#34;</p>" in text
    assert "<script>" not in text


def test_the_colour(settings: Settings) -> None:
    """The colour is that of the icon and of what is filled."""
    client = client_of(settings, page_colour="#7a3fd1")
    assert "--accent: #7a3fd1;" in client.get("/page/theme.css").text
    assert 'fill="#7a3fd1"' in client.get("/page/icon.svg").text


COLOURS = ["#000000", "#ffffff", "#ff0000", "#00ff00", "#0000ff", "#ffff00", "#777777", "#767676", "#0b6e5f", "#123456"]


@pytest.mark.parametrize("colour", COLOURS)
def test_any_colour_can_be_read(colour: str) -> None:
    """Letters on the colour, and letters of it on light and on dark, have a contrast of 4.5 to 1."""
    light, dark = re.findall(r"--accent-ink: (#\w{6});", stylesheet(colour))
    (on_accent,) = re.findall(r"--on-accent: (#\w{6});", stylesheet(colour))
    assert contrast(parsed(on_accent), parsed(colour)) >= 4.5
    assert contrast(parsed(light), LIGHT) >= 4.5
    assert contrast(parsed(dark), DARK) >= 4.5


def test_contrast_is_that_of_wcag() -> None:
    """Black on white is 21 to 1, and the grey that is known as the limit on white is just above 4.5."""
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
    assert contrast(parsed("#767676"), (255, 255, 255)) == pytest.approx(4.54, abs=0.005)


def test_the_grounds_are_those_of_the_stylesheet(client: FlaskClient) -> None:
    """What the colour is made readable on is what page.css puts below it."""
    with client.get("/page/page.css") as css:
        assert re.findall(r"--sunk: #(\w+);", css.text) == [bytes(LIGHT).hex(), bytes(DARK).hex()]


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    folder = tmp_path / "examples"
    folder.mkdir()
    (folder / "b ü.jpg").write_bytes(picture("blue"))  # by content a PNG
    (folder / "a.png").write_bytes(picture("green"))
    (folder / ".DS_Store").write_bytes(b"not looked at")
    return folder


def test_examples(settings: Settings, examples: Path) -> None:
    """Examples are served under numbers in the order of their names, by their content, and nothing else is."""
    client = client_of(settings, page_examples=examples)
    for number, colour in ((1, "green"), (2, "blue")):
        with client.get(f"/examples/{number}") as file:
            assert (file.mimetype, file.data) == ("image/png", picture(colour))
            assert "filename" not in str(file.headers)
    assert client.get("/").text.count('src="/examples/') == 2
    for name in ("0", "3", "a.png", ".DS_Store", "01", "-1", "1.0"):
        assert client.get(f"/examples/{name}").status_code == 404


def test_an_example_without_javascript(settings: Settings, examples: Path) -> None:
    """The button of an example sends its number, and gets its answer."""
    client = client_of(settings, page_examples=examples)
    assert labels(client.post("/", data=form(NOTHING, example="2", explain="1"))) == ["blue"]
    assert labels(client.post("/", data=form((PNG, "x.png"), example="2", url=ON_THE_WEB))) == ["blue"]
    assert client.post("/", data=form(NOTHING, example="3")).status_code == 400


@pytest.mark.parametrize("name", ["new\nline.png", "lat\udce9in.png", 'a"b;c.png'], ids=ascii)
def test_an_example_of_any_name(settings: Settings, tmp_path: Path, name: str) -> None:
    """A name that no header can hold keeps no example from being shown."""
    folder = tmp_path / "examples"
    folder.mkdir()
    (folder / name).write_bytes(PNG)
    with client_of(settings, page_examples=folder).get("/examples/1") as file:
        assert (file.status_code, file.data) == (200, PNG)


def test_an_example_that_has_gone(settings: Settings, examples: Path) -> None:
    """An example that was removed while the service runs is not there, and that is said."""
    client = client_of(settings, page_examples=examples)
    (examples / "a.png").unlink()
    assert client.get("/examples/1").status_code == 404
    answer = client.post("/", data=form(NOTHING, example="1"))
    assert (answer.status_code, "not there any more" in answer.text) == (400, True)


def full(folder: Path) -> None:
    for number in range(13):
        (folder / f"{number}.png").write_bytes(PNG)


BAD_FOLDERS = {
    "missing": (shutil.rmtree, "it is not a folder with files that can be read"),
    "empty": (lambda folder: None, "it holds 0 files, and 1 to 12 pictures are possible"),
    "thirteen": (full, "it holds 13 files"),
    "text": (lambda folder: (folder / "x.png").write_text("hello"), "x.png: the file is not a picture"),
    "heic": (lambda folder: (folder / "x").write_bytes(b"\0\0\0\x18ftypheic"), "x: the file is a HEIC picture"),
    "a folder": (lambda folder: (folder / "x").mkdir(), "x is not a file"),
    "a pipe": (lambda folder: os.mkfifo(folder / "x.png"), "x.png is not a file"),
    "large": (lambda folder: (folder / "x.png").write_bytes(PNG.ljust(9000)), "x.png is larger than"),
}


@pytest.mark.parametrize(("fill", "reason"), BAD_FOLDERS.values(), ids=BAD_FOLDERS)
def test_bad_examples(settings: Settings, tmp_path: Path, fill: Any, reason: str) -> None:
    """A folder that will not do is refused at the start, with the reason."""
    folder = tmp_path / "examples"
    folder.mkdir()
    fill(folder)
    with pytest.raises(FolderError, match=re.escape(f"PAGE_EXAMPLES={folder} is not possible: ")) as refusal:
        client_of(settings, page_examples=folder, max_body_bytes=8000)
    assert reason in str(refusal.value)


def test_it_does_not_start(start_server: StartServer, tmp_path: Path) -> None:
    """gunicorn says the sentence and stops, before it opens the model."""
    server = start_server(PAGE_EXAMPLES=str(tmp_path / "none"), UPLOADS=str(tmp_path), wait=False)
    assert server.process.wait(30) == 1
    assert "Pigeonhole does not start.\nPAGE_EXAMPLES=" in server.log.read_text()


def test_what_cannot_be_explained(settings: Settings) -> None:
    """A model whose heatmaps cannot be drawn is not asked for them, and the page says why."""
    client = client_of(settings, lambda: Colours(why_unexplained="the network has no convolutions.", useful_side=None))
    page = client.get("/").text
    assert 'name="explain"' not in page
    assert 'data-explains=""' in page
    assert "the network has no convolutions." in page
    assert "originals" not in page
    assert labels(client.post("/", data=form((picture("blue"), "a.png"), explain="1"))) == ["blue"]


PERCENTS = [(0, "0%"), (0.0004, "below 0.1%"), (0.001, "0.1%"), (0.041, "4.1%"), (0.0625, "6.3%"), (0.0994, "9.9%"),
            (0.0996, "10%"), (0.125, "13%"), (0.976, "98%"), (1, "100%")]  # fmt: skip


@pytest.mark.parametrize(("probability", "told"), PERCENTS)
def test_percent(probability: float, told: str) -> None:
    """Probabilities are told as closely as anybody wants to know."""
    assert percent(probability) == told


WHEREABOUTS = [
    ([[1, 0, 0], [0, 0, 0], [0, 0, 0]], "most at the top left"),
    ([[0, 1, 0], [0, 0, 0], [0, 0, 0]], "most at the top"),
    ([[0, 0, 0], [0, 1, 0], [0, 0, 0]], "most in the middle"),
    ([[0, 0, 0], [0, 0, 1], [0, 0, 0]], "most at the right"),
    ([[0, 0, 0], [0, 0, 0], [1, 0, 0]], "most at the bottom left"),
    ([[0, 0], [0, 0]], "nowhere in particular"),
    # two hot columns of four are the right half, not the middle
    ([[0, 0, 0.1, 0.1], [0, 0.1, 1, 0.9], [0, 0, 0.2, 0.1], [0, 0, 0, 0]], "most at the top right"),
]


@pytest.mark.parametrize(("rows", "told"), WHEREABOUTS)
def test_whereabouts(rows: list[list[float]], told: str) -> None:
    """Where the model looked is told in words, too."""
    assert whereabouts(Explanation("x", Image.new("RGB", (3, 3)), np.array(rows, np.float32))) == told
