"""The description of the API, made of the routes themselves, and a page to try it on: all from this host, no CDN."""

from __future__ import annotations

import importlib.util
import inspect
import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from flask import Response
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from werkzeug.exceptions import NotFound

from pigeonhole import __version__
from pigeonhole.errors import PigeonholeError, RequestError, ServiceError
from pigeonhole.web.answers import Problem
from pigeonhole.web.api import ABOUT, API, Operation
from pigeonhole.web.bodies import Schema
from pigeonhole.web.files import file_reply

STATIC = Path(__file__).parent / "static"
OURS = ("docs.js", "docs.css")
SWAGGER_UI = ("swagger-ui-bundle.js", "swagger-ui.css")
POLICY = (  # Swagger UI draws its icons from data URIs, and its own styles into the page
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
REFERENCE = "#/components/schemas/{model}"
KEYS = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}
DESCRIPTION = """\
What is on a picture, as the fastai learner says that was exported.

Errors are JSON with a sentence, a stable `code` and the `request_id`. No picture is kept.
"""


def install(api: API) -> None:
    """Add `GET /openapi.json`, which describes the routes of `api`, and `GET /docs`, where people can try them."""
    app = api.app

    @cache
    def described() -> str:
        return json.dumps(description(api))

    @api.get("/openapi.json", tag=ABOUT)
    def openapi() -> Response:
        """This description, as OpenAPI 3.1."""
        return Response(described(), mimetype="application/json")

    @app.get("/docs")
    def docs() -> Response:
        """A page to try the API on."""
        return file_reply(STATIC / "docs.html", POLICY)

    @app.get("/docs/<name>")
    def docs_file(name: str) -> Response:
        if name not in OURS + SWAGGER_UI:
            raise NotFound
        return file_reply((STATIC if name in OURS else _swagger_ui(name)) / name, POLICY)


def _swagger_ui(name: str) -> Path:
    """The folder of one of Swagger UI's files, in the package that brings them; its code is not imported."""
    spec = importlib.util.find_spec("flask_openapi_swagger")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "templates" / "swagger" / Path(name).suffix[1:]


def description(api: API) -> dict[str, Any]:
    """The OpenAPI 3.1 document of the routes of `api`."""
    operations = api.operations
    paths: dict[str, dict[str, Any]] = defaultdict(dict)
    for operation in operations:
        paths[re.sub(r"<(\w+)>", r"{\1}", operation.path)][operation.method.lower()] = _described(api, operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Pigeonhole", "version": __version__, "description": DESCRIPTION},
        "tags": [{"name": name} for name in dict.fromkeys(operation.tag for operation in operations)],
        "paths": paths,
        "components": {"schemas": _schemas(operations), **({"securitySchemes": KEYS} if api.has_keys else {})},
    }


def _schemas(operations: Sequence[Operation]) -> dict[str, Any]:
    """Those of every model that a request or an answer is made of."""
    bodies = (schema for operation in operations for body in operation.bodies for schema in body.schemas.values())
    models: set[type[BaseModel]] = {Problem, *(schema for schema in bodies if isinstance(schema, type))}
    models |= {operation.answer for operation in operations if operation.answer}
    by_name = sorted(models, key=lambda model: model.__name__)
    _, schemas = models_json_schema([(model, "validation") for model in by_name], ref_template=REFERENCE)
    return dict(schemas["$defs"])


def _described(api: API, operation: Operation) -> dict[str, Any]:
    summary, _, more = inspect.cleandoc(operation.view.__doc__ or "").partition("\n\n")
    described: dict[str, Any] = {
        "tags": [operation.tag],
        "operationId": re.sub(r"\W+", "_", f"{operation.method.lower()}{operation.path}").strip("_"),
        "summary": summary.rstrip("."),
        "description": operation.description or more,
        "parameters": [*_in_path(operation), *_in_query(operation)],
        "requestBody": _body(operation) if operation.bodies else None,
        "responses": {
            "200": _success(operation),
            **_failures(api.errors_of(operation)),
        },
        "security": [{name: []} for name in KEYS] if api.has_keys and operation.needs_key else None,
    }
    return _merged({name: value for name, value in described.items() if value}, operation.also)


def _merged(here: dict[str, Any], also: Mapping[str, Any]) -> dict[str, Any]:
    """`here` with what `also` adds, at any depth; lists are joined."""
    for name, value in also.items():
        if isinstance(value, Mapping):
            here[name] = _merged(here.get(name, {}), value)
        else:
            here[name] = here.get(name, []) + value if isinstance(value, list) else value
    return here


def _in_path(operation: Operation) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "enum": [value]}, "example": value}
        for name, value in operation.places.items()
    ]


def _in_query(operation: Operation) -> list[dict[str, Any]]:
    schema = operation.query.model_json_schema() if operation.query else {"properties": {}}
    examples = operation.example if operation.method == "GET" and operation.example else {}
    return [
        {
            "name": name,
            "in": "query",
            "required": name in schema.get("required", ()),
            "description": member["description"],
            "schema": {key: value for key, value in member.items() if key not in ("title", "description")},
            **({"example": examples[name]} if name in examples else {}),
        }
        for name, member in schema["properties"].items()
    ]


def _body(operation: Operation) -> dict[str, Any]:
    schemas = {media_type: schema for body in operation.bodies for media_type, schema in body.schemas.items()}
    content = {media_type: {"schema": _schema(schema)} for media_type, schema in schemas.items()}
    if operation.example and "application/json" in content:
        content["application/json"]["example"] = operation.example
    return {"required": True, "content": content}


def _schema(schema: Schema) -> dict[str, Any]:
    return schema if isinstance(schema, dict) else {"$ref": REFERENCE.format(model=schema.__name__)}


def _success(operation: Operation) -> dict[str, Any]:
    if operation.answer is None:
        return {"description": "as it says", "content": {operation.media_type: {}}}
    content = {operation.media_type: {"schema": _schema(operation.answer), "example": operation.answer.example}}
    return {"description": inspect.cleandoc(operation.answer.__doc__ or ""), "content": content}


def _failures(errors: Sequence[type[PigeonholeError]]) -> dict[str, Any]:
    """The codes of each status; every answer of it is a Problem."""
    codes: dict[int, list[str]] = defaultdict(list)
    for error in errors:
        assert issubclass(error, RequestError | ServiceError)
        codes[error.status].append(error.code)
    return {
        str(status): {
            "description": " or ".join(f"`{code}`" for code in sorted(codes[status])),
            "content": {
                "application/json": {
                    "schema": _schema(Problem),
                    "example": {**Problem.example, "code": min(codes[status])},
                }
            },
        }
        for status in sorted(codes)
    }
