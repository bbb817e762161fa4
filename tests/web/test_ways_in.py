"""Every way a picture can come to /predict, and what is refused at each (CASES.md D)."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from PIL import Image

from app import create_app
from pigeonhole.intake.fetch import USER_AGENT
from pigeonhole.model.predictor import Predictor
from pigeonhole.settings import MIB, Settings
from tests.conftest import Colours, form, picture
from tests.web.web import Web

RED, BLUE = picture("red"), picture("blue")
TEXT = base64.b64encode(BLUE).decode()
URL = "https://example.org/blue.png"


@pytest.fixture
def web() -> Web:
    return Web({URL: BLUE})


@pytest.fixture
def fetching(settings: Settings, web: Web) -> FlaskClient:
    """The service with FETCH_URLS=1 and that web."""
    on = settings.model_copy(update={"fetch_urls": True})
    return create_app(on, Predictor(Colours), web).test_client()


def post_json(client: FlaskClient, value: Any, **options: Any) -> Any:
    return client.post("/predict", data=json.dumps(value), content_type="application/json", **options)


WAYS: dict[str, Callable[[FlaskClient], Any]] = {
    "form": lambda client: client.post("/predict", data=form((BLUE, "x.png"))),
    "raw": lambda client: client.post("/predict", data=BLUE, content_type="image/png"),
    "raw, another type": lambda client: client.post("/predict", data=BLUE, content_type="image/jpeg"),
    "octets": lambda client: client.post("/predict", data=BLUE, content_type="application/octet-stream"),
    "base64": lambda client: post_json(client, {"image": TEXT}),
    "D2 data URI": lambda client: post_json(client, {"image": "data:image/png;base64," + TEXT}),
    "D2 data URI, another type": lambda client: post_json(client, {"image": "data:text/html;base64," + TEXT}),
    "D2 data URI without a type": lambda client: post_json(client, {"image": "data:;base64," + TEXT}),
    "charset by another name": lambda client: client.post(
        "/predict", data=json.dumps({"image": TEXT}), content_type="application/json;charset=utf8"
    ),
    "charset": lambda client: client.post(
        "/predict", data=json.dumps({"image": TEXT}), content_type="application/json; charset=UTF-8"
    ),
    "URL in JSON": lambda client: post_json(client, {"url": URL}),
    "URL in the query": lambda client: client.get("/predict", query_string={"url": URL}),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_one_picture_every_way(fetching: FlaskClient, way: Callable[[FlaskClient], Any]) -> None:
    """The same picture has the same label, however it comes."""
    response = way(fetching)
    assert (response.status_code, response.json) == (200, {"success": "blue"})


def test_a_list_of_pictures(client: FlaskClient) -> None:
    """A list is answered with a list, in order, also one of one."""
    both = [TEXT, base64.b64encode(RED).decode()]
    assert post_json(client, {"image": both}).json == {"success": ["blue", "red"]}
    assert post_json(client, {"image": both[:1]}).json == {"success": ["blue"]}


def test_the_bad_one_of_a_list_is_numbered(client: FlaskClient) -> None:
    """A picture without a name is told by its place."""
    response = post_json(client, {"image": [TEXT, base64.b64encode(b"hello").decode()]})
    assert response.status_code == 415
    assert response.json["error"].startswith("picture 2: the file is not a picture")


TOP = [{"label": "blue", "probability": 1.0}, {"label": "red", "probability": 0.0}]
ALL = [*TOP, {"label": "green", "probability": 0.0}, {"label": "grey", "probability": 0.0}]


@pytest.mark.parametrize(
    "ask",
    [
        lambda client: client.post("/predict?top=2", data=form((BLUE, "x.png"))),
        lambda client: client.post("/predict", data=form((BLUE, "x.png"), top="2")),
        lambda client: client.post("/predict?top=2", data=form((BLUE, "x.png"), top="2")),
        lambda client: client.post("/predict?top=2", data=BLUE, content_type="image/png"),
        lambda client: post_json(client, {"image": TEXT, "top": 2}),
        lambda client: post_json(client, {"image": TEXT, "top": 2.0, "explain": False}),
        lambda client: post_json(client, {"url": URL, "top": 2}),
        lambda client: client.get("/predict", query_string={"url": URL, "top": "2", "explain": "0"}),
    ],
    ids=["query", "form", "both the same", "raw", "JSON", "JSON float", "URL in JSON", "GET"],
)
def test_top(fetching: FlaskClient, ask: Callable[[FlaskClient], Any]) -> None:
    """`top` adds that many labels, best first; of equals, the one the model names first."""
    assert ask(fetching).json == {"success": "blue", "predictions": TOP}


@pytest.mark.parametrize("top", ["all", "4", "10000"])
def test_top_all(client: FlaskClient, top: str) -> None:
    """All labels are listed for `all`, and for more than there are."""
    response = client.post(f"/predict?top={top}", data=form((BLUE, "x.png")))
    assert response.json == {"success": "blue", "predictions": ALL}


def test_top_of_several(client: FlaskClient) -> None:
    """Several pictures have a list of predictions each."""
    answer = client.post("/predict?top=1", data=form((BLUE, "x.png"), (RED, "y.png"))).json
    assert answer["success"] == ["blue", "red"]
    assert [[one["label"] for one in each] for each in answer["predictions"]] == [["blue"], ["red"]]


PARAMETERS = ["top=0", "top=-1", "top=10001", "top=1.5", "top=many", "top=", "top=1&top=1", "top=%D9%A3",
              "top=99999999999999999999", "explain=2", "explain=yes", "explain=", "explain=0&explain=0"]  # fmt: skip


@pytest.mark.parametrize("query", PARAMETERS)
def test_bad_parameters(client: FlaskClient, query: str) -> None:
    """A parameter that does not fit, or comes twice, is an error that says what it is."""
    response = client.post(f"/predict?{query}", data=form((BLUE, "x.png")))
    assert (response.status_code, response.json["code"]) == (400, "bad_parameter")
    assert f"`{query.partition('=')[0]}`" in response.json["error"]


@pytest.mark.parametrize(
    "members",
    [
        {"top": None},
        {"top": "2"},
        {"explain": "0"},
        {"explain": None},
        {"top": 0},
        {"top": 1.5},
        {"top": True},
        {"top": [1]},
        {"top": {}},
        {"explain": 2},
        {"explain": 0.5},
        {"explain": "1"},
        {"explain": "yes"},
    ],
    ids=str,
)
def test_bad_members(client: FlaskClient, members: dict[str, Any]) -> None:
    """In JSON a parameter has its type."""
    response = post_json(client, {"image": TEXT, **members})
    assert (response.status_code, response.json["code"]) == (400, "bad_parameter")


def test_contradicting_parameters(client: FlaskClient) -> None:
    """One value in the query and another in the body is an error, not a choice."""
    for response in (
        client.post("/predict?top=2", data=form((BLUE, "x.png"), top="3")),
        post_json(client, {"image": TEXT, "top": "all"}, query_string={"top": "1"}),
    ):
        assert (response.status_code, response.json["code"]) == (400, "bad_parameter")


def png_of(uri: str) -> Image.Image:
    head, _, text = uri.partition(",")
    assert head == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(text, validate=True)))


@pytest.mark.parametrize(
    "ask",
    [
        lambda client: client.post("/predict?explain=1", data=form((BLUE, "x.png"))),
        lambda client: client.post("/predict", data=form((BLUE, "x.png"), explain="true")),
        lambda client: client.post("/predict?explain=1", data=BLUE, content_type="image/png"),
        lambda client: post_json(client, {"image": TEXT, "explain": True}),
        lambda client: post_json(client, {"image": TEXT, "explain": 1}),
        lambda client: client.get("/predict", query_string={"url": URL, "explain": "1"}),
    ],
    ids=["query", "form", "raw", "json", "json as a number", "get"],
)
def test_explaining(fetching: FlaskClient, ask: Callable[[FlaskClient], Any]) -> None:
    """`explain=1` adds the heatmap over what the model saw, as a PNG, and the label it is of."""
    answer = ask(fetching).json
    assert (answer["success"], answer["explanation"]["label"]) == ("blue", "blue")
    assert sorted(answer["explanation"]) == ["label", "overlay"]
    overlay = png_of(answer["explanation"]["overlay"])
    assert overlay.size == (24, 24)
    middle, corner = overlay.getpixel((12, 12)), overlay.getpixel((0, 0))
    assert middle[0] > corner[0] + 50  # hot is red


def test_raw_explanation(client: FlaskClient) -> None:
    """`explain=raw` gives what the model saw, and the grid of numbers."""
    explanation = client.post("/predict?explain=raw", data=form((BLUE, "x.png"))).json["explanation"]
    assert sorted(explanation) == ["heatmap", "label", "picture"]
    assert explanation["heatmap"] == [[0, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert png_of(explanation["picture"]).getpixel((3, 3)) == (0, 0, 255)


@pytest.mark.parametrize("explain", [{}, {"explain": True}, {"explain": "raw"}], ids=str)
def test_explaining_another_label(client: FlaskClient, explain: dict[str, Any]) -> None:
    """`explain_label` names the label, also by itself; what is said stays."""
    answer = post_json(client, {"image": TEXT, "explain_label": "grey", **explain}).json
    assert (answer["success"], answer["explanation"]["label"]) == ("blue", "grey")
    assert ("heatmap" in answer["explanation"]) == (explain == {"explain": "raw"})


@pytest.mark.parametrize("explain", ["", "&explain=0", "&explain=raw"])
def test_an_empty_label(client: FlaskClient, explain: str) -> None:
    """A form that sends its empty fields as well names no label by that."""
    answer = client.post(f"/predict?explain_label={explain}", data=form((BLUE, "x.png"))).json
    assert (answer["success"], "explanation" in answer) == ("blue", explain == "&explain=raw")


def test_explaining_several(client: FlaskClient) -> None:
    """Several pictures have an explanation each, in order."""
    answer = client.post("/predict?explain=raw", data=form((BLUE, "x.png"), (RED, "y.png"))).json
    assert [one["label"] for one in answer["explanation"]] == answer["success"] == ["blue", "red"]


def test_no_such_label(client: FlaskClient) -> None:
    """A label that the model does not have is an error of the request, of none of its pictures."""
    for files in ([(BLUE, "x.png")], [(BLUE, "x.png"), (RED, "y.png")]):
        response = client.post("/predict?explain_label=Blue", data=form(*files))
        assert (response.status_code, response.json["code"]) == (400, "bad_parameter")
        assert response.json["error"] == "the label to explain is none of the model's labels."


def test_explaining_and_not(client: FlaskClient) -> None:
    """To name a label and to ask for no explanation is an error, not a choice."""
    response = client.post("/predict?explain=0", data=form((BLUE, "x.png"), explain_label="grey"))
    assert (response.status_code, response.json["code"]) == (400, "bad_parameter")


def test_what_cannot_be_explained(settings: Settings) -> None:
    """Where a model cannot be explained the answer is 501 with the reason; without `explain` it answers."""
    client = create_app(settings, Predictor(lambda: Colours(why_unexplained="it has no eyes."))).test_client()
    response = client.post("/predict?explain=1", data=form((BLUE, "x.png")))
    assert (response.status_code, response.json["code"]) == (501, "not_available")
    assert response.json["error"] == "it has no eyes."
    assert client.post("/predict?explain=0", data=form((BLUE, "x.png"))).json == {"success": "blue"}


# D1 to D8 of CASES.md
def encoded(text: str | bytes) -> bytes:
    return b'{"image": "' + (text if isinstance(text, bytes) else text.encode()) + b'"}'


OBJECT = json.dumps({"image": TEXT}).encode()
JSON_REFUSALS = {
    "D1 no padding": (encoded(TEXT + "A"), 400, "bad_base64"),
    "D1 too much padding": (encoded(TEXT + "===="), 400, "bad_base64"),
    "D1 URL-safe": (encoded("_-_-"), 400, "bad_base64"),
    "D1 newlines": (encoded(TEXT[:40] + "\\n" + TEXT[40:]), 400, "bad_base64"),
    "D1 not ASCII": (encoded("ü" * 8), 400, "bad_base64"),
    "D1 spaces": (encoded(" " + TEXT), 400, "bad_base64"),
    "D2 percent-encoded": (encoded("data:image/png,%89PNG"), 400, "bad_base64"),
    "D2 base64, but not said so": (encoded("data:image/png," + TEXT), 400, "bad_base64"),
    "D2 no comma": (encoded("data:image/png;base64" + TEXT), 400, "bad_base64"),
    "D3 empty": (encoded(""), 400, "empty_image"),
    "D3 null": (b'{"image": null}', 400, "bad_base64"),
    "D3 number": (b'{"image": 1}', 400, "bad_base64"),
    "D3 true": (b'{"image": true}', 400, "bad_base64"),
    "D3 empty list": (b'{"image": []}', 400, "no_image"),
    "D3 object": (b'{"image": {}}', 400, "bad_base64"),
    "D3 nested": (b'{"image": [["AAAA"]]}', 400, "bad_base64"),
    "D3 list of null": (b'{"image": [null]}', 400, "bad_base64"),
    "D3 array": (b"[]", 400, "bad_json"),
    "D3 string": (b'"image"', 400, "bad_json"),
    "D3 number alone": (b"1", 400, "bad_json"),
    "D3 null alone": (b"null", 400, "bad_json"),
    "D3 nothing": (b"", 400, "bad_json"),
    "D3 no member": (b"{}", 400, "no_image"),
    "D3 another member": (b'{"images": "AAAA"}', 400, "no_image"),
    "D4 11 pictures": (json.dumps({"image": [TEXT] * 11}).encode(), 413, "too_many_files"),
    "D4 100 000 names": (json.dumps({str(n): 0 for n in range(100_000)}).encode(), 400, "bad_json"),
    "D4 larger than a body may be": (encoded("A" * 11 * MIB), 413, "too_large"),
    "D5 100 000 deep": (b'{"image":' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400, "bad_json"),
    "D5 100 000 deep, open": (b"[" * 100_000, 400, "bad_json"),
    "D5 100 000 digits": (b'{"top": ' + b"1" * 100_000 + b"}", 400, "bad_json"),
    "D5 NaN": (b'{"top": NaN}', 400, "bad_json"),
    "D5 Infinity": (b'{"top": -Infinity}', 400, "bad_json"),
    "D5 1e999": (b'{"top": 1e999}', 400, "bad_json"),
    "D5 same name twice": (OBJECT[:-1] + b', "image": ""}', 400, "bad_json"),
    "D5 UTF-16": (OBJECT.decode().encode("utf-16"), 400, "bad_json"),
    "D5 byte order mark": (b"\xef\xbb\xbf" + OBJECT, 400, "bad_json"),
    "D5 bad UTF-8": (b'{"image": "\xff"}', 400, "bad_json"),
    "D5 half a surrogate pair": (b'{"image": "\\ud800"}', 400, "bad_json"),
    "D5 half in a name": (b'{"\\udfff": 1}', 400, "bad_json"),
    "D5 something behind": (OBJECT + b"{}", 400, "bad_json"),
    "D5 cut off": (OBJECT[:-5], 400, "bad_json"),
    "D7 URL": (encoded("https://example.org/x.png"), 400, "bad_base64"),
    "D7 path": (encoded("/etc/passwd"), 400, "bad_base64"),
    "D7 file URL": (encoded("file:///etc/passwd"), 400, "bad_base64"),
    "D7 curl's": (encoded("@/etc/passwd"), 400, "bad_base64"),
    "D8 both": (json.dumps({"image": TEXT, "url": URL}).encode(), 400, "bad_parameter"),
    "D8 both, no address": (json.dumps({"image": TEXT, "url": ""}).encode(), 400, "bad_parameter"),
    "D8 both, no picture": (json.dumps({"image": [], "url": URL}).encode(), 400, "bad_parameter"),
    "D5 900 deep with an escape": (b'{"image":' + b"[" * 900 + b'"\\u0041"' + b"]" * 900 + b"}", 400, "bad_json"),
    "D5 900 deep": (b'{"image":' + b"[" * 900 + b"]" * 900 + b"}", 400, "bad_base64"),
    "a URL that is a number": (b'{"url": 1}', 400, "bad_url"),
}


@pytest.mark.parametrize(("body", "status", "code"), JSON_REFUSALS.values(), ids=JSON_REFUSALS.keys())
def test_refused_json(fetching: FlaskClient, web: Web, body: bytes, status: int, code: str) -> None:
    """Each is told apart, and none is fetched or opened."""
    response = fetching.post("/predict", data=body, content_type="application/json")
    assert (response.status_code, response.json["code"]) == (status, code)
    assert web.asked == []


def test_a_path_that_happens_to_be_base64(client: FlaskClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a path's letters decode to is no picture; the file, which is one, is not opened (D7)."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp" / "blue").write_bytes(BLUE)
    assert post_json(client, {"image": "tmp/blue"}).json["code"] == "not_an_image"


def test_several_base64_one_bad(client: FlaskClient) -> None:
    """Which text of a list is not base64 is told."""
    response = post_json(client, {"image": [TEXT, "@"]})
    assert (response.status_code, response.json["code"]) == (400, "bad_base64")
    assert response.json["error"].startswith("picture 2: the image is not base64")


def test_as_many_pictures_as_are_set(settings: Settings) -> None:
    """MAX_FILES bounds a list, and no other bound does before."""
    client = create_app(settings.model_copy(update={"max_files": 1000}), Predictor(Colours)).test_client()
    uri = "data:image/png;base64," + TEXT
    assert post_json(client, {"image": [uri] * 1000}).json == {"success": ["blue"] * 1000}
    assert post_json(client, {"image": [uri] * 1001}).json["code"] == "too_many_files"


@pytest.mark.parametrize(
    "beside",
    [{"image": "https://example.org/x.png"}, {"image_file": ""}, {"image": (io.BytesIO(RED), "")}],
    ids=["text", "empty text", "no name"],
)
def test_a_file_beside_what_is_none(client: FlaskClient, beside: dict[str, Any]) -> None:
    """A file is not answered where something else was meant as a picture too."""
    response = client.post("/predict", data={"file": (io.BytesIO(BLUE), "x.png"), **beside})
    assert (response.status_code, response.json["code"]) == (400, "no_image")


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "",
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/json; charset=utf-7",
        "application/json; charset=latin-1",
        "text/json",
    ],
)
def test_json_announced_as_something_else(client: FlaskClient, content_type: str | None) -> None:
    """D6: JSON has to say that it is JSON, in UTF-8."""
    response = client.post("/predict", data=OBJECT, content_type=content_type)
    assert (response.status_code, response.json["code"]) == (415, "bad_content_type")


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate, gzip", "x"])
def test_compressed_bodies(client: FlaskClient, encoding: str) -> None:
    """Nothing is inflated (B14)."""
    response = client.post(
        "/predict", data=OBJECT, content_type="application/json", headers={"Content-Encoding": encoding}
    )
    assert (response.status_code, response.json["code"]) == (415, "bad_content_encoding")


def test_compressed_transfer(client: FlaskClient) -> None:
    """Nor is a transfer coding taken for chunks alone."""
    response = client.post(
        "/predict", data=BLUE, content_type="image/png", headers={"Transfer-Encoding": "gzip, chunked"}
    )
    assert (response.status_code, response.json["code"]) == (415, "bad_content_encoding")


@pytest.mark.parametrize("content_type", ["image/png", "application/json"])
def test_a_body_that_is_cut_off(client: FlaskClient, content_type: str) -> None:
    """A body shorter than announced is never answered as if it were whole."""
    body = BLUE if content_type == "image/png" else OBJECT
    response = client.post(
        "/predict", data=body, content_type=content_type, environ_overrides={"CONTENT_LENGTH": str(len(body) + 9)}
    )
    assert (response.status_code, response.json["code"]) == (400, "incomplete_body")


@pytest.mark.parametrize("size", [10 * MIB, 10 * MIB + 1])
@pytest.mark.parametrize("announced", [True, False])
def test_raw_limit_is_exact(client: FlaskClient, size: int, announced: bool) -> None:
    """A raw body of exactly the limit is read, a byte more is not, whether its length is announced or not."""
    body = BLUE.ljust(size, b"\0")
    chunked = (
        {} if announced else {"HTTP_TRANSFER_ENCODING": "chunked", "CONTENT_LENGTH": "", "wsgi.input_terminated": True}
    )
    response = client.post("/predict", data=body, content_type="image/png", environ_overrides=chunked)
    assert response.status_code == (200 if size == 10 * MIB else 413)


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [(b"", 400, "empty_image"), (b"hello", 415, "not_an_image"), (BLUE[:60], 422, "broken_image")],
)
def test_raw_bodies_that_are_no_picture(client: FlaskClient, body: bytes, status: int, code: str) -> None:
    """A raw body is told by its content, like any picture."""
    response = client.post("/predict", data=body, content_type="image/png")
    assert (response.status_code, response.json["code"]) == (status, code)


def test_urls_are_off_by_default(settings: Settings, web: Web) -> None:
    """E1: without FETCH_URLS an address is refused, and nothing is asked."""
    client = create_app(settings, Predictor(Colours), web).test_client()
    for response in (post_json(client, {"url": URL}), client.get("/predict", query_string={"url": URL})):
        assert (response.status_code, response.json["code"]) == (403, "url_off")
    assert web.asked == []


def test_an_address_in_two_places(fetching: FlaskClient, web: Web) -> None:
    """D8, B8: an address beside a picture is refused, in the query or in the form."""
    for response in (
        fetching.post("/predict", query_string={"url": URL}, data=form((BLUE, "x.png"))),
        fetching.post("/predict", data=form((BLUE, "x.png"), url=URL)),
        fetching.post("/predict", query_string={"url": URL}),
        fetching.get("/predict?url=a&url=b"),
    ):
        assert (response.status_code, response.json["code"]) == (400, "bad_parameter")
    assert web.asked == []


def test_get_without_an_address(fetching: FlaskClient) -> None:
    """GET needs to be told where the picture is."""
    response = fetching.get("/predict")
    assert (response.status_code, response.json["code"]) == (400, "no_image")


def test_a_failed_fetch(fetching: FlaskClient) -> None:
    """What could not be fetched is the client's error."""
    response = post_json(fetching, {"url": URL + "?"})
    assert (response.status_code, response.json["code"]) == (422, "url_failed")


def test_no_fetching_in_a_circle(fetching: FlaskClient, web: Web) -> None:
    """E17: a request that a service like this one makes gets nothing fetched."""
    response = fetching.get("/predict", query_string={"url": URL}, headers={"User-Agent": USER_AGENT})
    assert (response.status_code, response.json["code"]) == (422, "url_not_allowed")
    assert web.asked == []
