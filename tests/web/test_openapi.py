"""The description says what the service does: it is valid, complete, and its examples work."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from flask.testing import FlaskClient
from openapi_spec_validator import OpenAPIV31SpecValidator
from pydantic import SecretStr

from app import create_app
from pigeonhole import errors
from pigeonhole.model.predictor import Predictor
from pigeonhole.settings import Settings
from pigeonhole.web.examples import ADDRESS
from pigeonhole.web.replies import HTTP_CODES
from tests.conftest import Colours, form, picture
from tests.test_errors import family
from tests.web.web import Web

NOT_DESCRIBED = {"/", "/page/<name>", "/examples/<name>", "/docs", "/docs/<name>"}  # pages for people
BLUE = picture("blue")


@pytest.fixture
def document(client: FlaskClient) -> dict[str, Any]:
    return dict(client.get("/openapi.json").json)


def test_valid(document: dict[str, Any]) -> None:
    """It is OpenAPI 3.1."""
    OpenAPIV31SpecValidator(document).validate()


def test_every_route(settings: Settings, document: dict[str, Any]) -> None:
    """Every route and method that the app has is described, and no other."""
    app = create_app(settings, Predictor(Colours))
    routes = {
        (rule.rule.replace("<", "{").replace(">", "}"), method.lower())
        for rule in app.url_map.iter_rules()
        if rule.rule not in NOT_DESCRIBED
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    assert {(path, method) for path, item in document["paths"].items() for method in item} == routes


@pytest.fixture
def guarded(settings: Settings) -> dict[str, Any]:
    """The description where keys are needed and requests are counted."""
    changes = {"api_keys": SecretStr("alice:0123456789abcdef"), "rate_limit": "60/minute"}
    client = create_app(settings.model_copy(update=changes), Predictor(Colours)).test_client()
    return dict(client.get("/openapi.json").json)


def test_who_may_call_is_described(guarded: dict[str, Any], document: dict[str, Any]) -> None:
    """Where keys are needed, the description says so, and how they are sent; else it names none."""
    OpenAPIV31SpecValidator(guarded).validate()
    assert set(guarded["components"]["securitySchemes"]) == {"bearer", "header"}
    for path, method, operation in examples(guarded):
        takes_pictures = method == "post" or path in ("/predict", "/classify-url")
        needs_key = takes_pictures or path == "/metrics"
        assert operation.get("security") == ([{"bearer": []}, {"header": []}] if needs_key else None)
        assert ["401" in operation["responses"], "429" in operation["responses"]] == [needs_key, takes_pictures]
    assert not [one for _, _, one in examples(document) if {"401", "429"} & set(one["responses"]) or "security" in one]


def test_every_error_is_described_somewhere(guarded: dict[str, Any]) -> None:
    """Each code that can be answered stands in the description, under its status."""
    described = {
        (int(status), code)
        for item in guarded["paths"].values()
        for operation in item.values()
        for status, response in operation["responses"].items()
        for code in response["description"].replace("`", "").split(" or ")
        if status != "200"
    }
    answered = {(kind.status, kind.code) for kind in family(errors.PigeonholeError) if "code" in vars(kind)}
    anywhere = {("service_error", 503), *((code, status) for status, code in HTTP_CODES.items())}
    assert {pair for pair in answered if pair[::-1] not in anywhere} == described


def examples(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [(path, method, operation) for path, item in document["paths"].items() for method, operation in item.items()]


def test_examples_work(settings: Settings, document: dict[str, Any]) -> None:
    """Each operation answers its own example with what it says that it answers."""

    on = settings.model_copy(update={"fetch_urls": True})
    client = create_app(on, Predictor(Colours), Web({ADDRESS["url"]: BLUE})).test_client()
    answered = []
    for path, method, operation in examples(document):
        parameters = operation.get("parameters", ())
        query = {one["name"]: one["example"] for one in parameters if "example" in one and one["in"] == "query"}
        assert [one["name"] for one in parameters if one["required"] and "example" not in one] == []
        places = {one["name"]: one["example"] for one in parameters if one["in"] == "path"}
        url = path.format(**places)
        for sent in bodies(operation):
            response = client.open(url, method=method.upper(), query_string=query, **sent)
            assert response.status_code == 200, (path, sent, response.text)
            check(document, operation["responses"]["200"], response)
            answered.append(path)
    assert len(answered) >= 22


def bodies(operation: dict[str, Any]) -> list[dict[str, Any]]:
    """A body of each described kind: the example, or files under the first name."""
    made: list[dict[str, Any]] = []
    for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
        if media_type == "application/json":
            made.append({"json": content["example"]})
        elif media_type == "multipart/form-data":
            made.append({"data": form((BLUE, "x.png"), field=content["schema"]["required"][0])})
        elif "infer" not in operation["operationId"]:  # there the octets are JSON with tensors behind it
            made.append({"data": BLUE, "content_type": media_type.replace("*", "png")})
    return made or [{}]


def test_binary_answers_are_described(client: FlaskClient, document: dict[str, Any]) -> None:
    """Where tensors come behind JSON, the media type and the header are described."""
    operation = document["paths"]["/v2/models/{name}/infer"]["post"]
    asked = {**operation["requestBody"]["content"]["application/json"]["example"]}
    answer = client.post("/v2/models/pigeonhole/infer", json={**asked, "parameters": {"binary_data_output": True}})
    described = operation["responses"]["200"]
    assert answer.mimetype in described["content"]
    assert set(described["headers"]) <= set(answer.headers.keys())
    assert set(described["headers"]) == {one["name"] for one in operation["parameters"] if one["in"] == "header"}


def test_the_models_name_is_described(settings: Settings) -> None:
    """With MODEL_NAME the description says how the model is called, so that it can be tried."""
    client = create_app(settings.model_copy(update={"model_name": "birds"}), Predictor(Colours)).test_client()
    (name,) = client.get("/openapi.json").json["paths"]["/v2/models/{name}"]["get"]["parameters"]
    assert (name["example"], name["schema"]["enum"]) == ("birds", ["birds"])


def check(document: dict[str, Any], described: dict[str, Any], response: Any) -> None:
    content = described["content"]
    assert response.mimetype in content
    if schema := content[response.mimetype].get("schema"):
        jsonschema.validate(response.json, {**schema, "components": document["components"]})


def test_answers_have_examples(document: dict[str, Any]) -> None:
    """Each answer and each error is shown by an example that fits."""
    shown = 0
    for _, _, operation in examples(document):
        for response in operation["responses"].values():
            for content in response["content"].values():
                if "$ref" in content.get("schema", ()):
                    schema = {**content["schema"], "components": document["components"]}
                    jsonschema.validate(content["example"], schema)
                    shown += 1
    assert shown > 60


def test_docs(client: FlaskClient) -> None:
    """The page and its files come from this host, under a policy that lets nothing else in."""
    with client.get("/docs") as page:
        assert page.mimetype == "text/html"
        text = page.text
    assert "http" not in text
    for name in ("docs.js", "docs.css", "swagger-ui.css", "swagger-ui-bundle.js"):
        assert f"docs/{name}" in text
        with client.get(f"/docs/{name}") as got:
            assert (got.status_code, got.headers["Cache-Control"]) == (200, "no-cache")
            assert got.headers["Content-Security-Policy"].startswith("default-src 'none'; script-src 'self';")


@pytest.mark.parametrize(
    "headers",
    [
        {"If-Modified-Since": "Mon, 01 Jan 99999999999 00:00:00 GMT"},
        {"If-Range": "Mon, 01 Jan 2020 00:00:00 +99999999999999999999", "Range": "bytes=0-3"},
        {"If-Unmodified-Since": "Mon, 99999999999999999999 Jan 2020 00:00:00 GMT"},
        {"If-Match": "*"},
    ],
    ids=str,
)
def test_conditions_nobody_can_meet(client: FlaskClient, headers: dict[str, str]) -> None:
    """A date that no calendar has is ignored."""
    with client.get("/docs/docs.js", headers=headers) as response:
        assert response.status_code in (200, 206)


def test_files_that_did_not_change(client: FlaskClient) -> None:
    """What a browser has already is not sent again."""
    with client.get("/docs/docs.js") as first:
        tag = first.headers["ETag"]
    with client.get("/docs/docs.js", headers={"If-None-Match": tag}) as again:
        assert again.status_code == 304


@pytest.mark.parametrize(
    "name", ["../app.py", "..%2fopenapi.py", "nothing.js", "docs.html", "swagger-ui.css.map", "%00"]
)
def test_docs_serves_nothing_else(client: FlaskClient, name: str) -> None:
    """Only its own files are under /docs."""
    response = client.get(f"/docs/{name}")
    assert (response.status_code, json.loads(response.text)["code"]) == (404, "not_found")
