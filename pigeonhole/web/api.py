"""Routes whose types say what they take and give: what reads a request, and what the description shows, is the same.

A view is added with the pydantic model of its query and the kinds of body it takes, which are read for it; what it
returns is a pydantic model too. `web.openapi` describes exactly that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, Required, TypedDict, Unpack, cast, get_args, get_type_hints

from flask import Flask, Response, current_app, request
from pydantic import BaseModel

from pigeonhole.errors import (
    BadExpectation,
    BadHost,
    BadKey,
    BadParameter,
    BadRequest,
    BadURL,
    BrokenImage,
    EmptyImage,
    HeadTooLarge,
    ModelFault,
    NoImage,
    NoKey,
    NoSpace,
    NotAnImage,
    NotReady,
    Overloaded,
    PigeonholeError,
    RateLimited,
    SlowUpload,
    TooManyPixels,
    UnknownModel,
    UnsupportedType,
    URLFailed,
    URLNotAllowed,
    URLOff,
    URLTooLong,
)
from pigeonhole.web.bodies import OF_ANY, Body, read_body, read_query
from pigeonhole.web.picture_request import PictureRequest
from pigeonhole.web.schemas import ResponseModel

ABOUT = "About the service"  # the tag of routes that are not about pictures
View = Callable[..., Any]
OF_HTTP = (BadRequest, SlowUpload, URLTooLong, BadExpectation, HeadTooLarge, Overloaded)  # whatever is asked for
OF_URLS = (BadURL, URLOff, URLNotAllowed, URLFailed, Overloaded, NoSpace)
OF_PICTURES = (EmptyImage, NotAnImage, UnsupportedType, TooManyPixels, BrokenImage, NotReady, ModelFault)


class Described(TypedDict, total=False):
    """What a route says of itself; see `Operation`."""

    tag: Required[str]
    places: Mapping[str, str]
    query: type[BaseModel]
    bodies: Sequence[Body]
    takes_pictures: bool
    for_operators: bool
    needs_model: bool
    refuses: Sequence[type[PigeonholeError]]
    example: Any
    description: str
    media_type: str
    also: Mapping[str, Any]


@dataclass(frozen=True)
class Operation:
    """One method of one path.

    `path` is as Flask writes it (`/v2/models/<name>`); `places` are the only values that its variables may have, else
    it is UnknownModel. `example` is a query, or a body of JSON, that works as it stands. `description` is Markdown; by
    default it is what the view's docstring says after its first line. `refuses` are errors beyond those that its query,
    its bodies, pictures and the model bring along. What is answered is of `media_type`; where that is JSON, it is the
    model that the view returns. `also` is what OpenAPI should say besides. Where there are keys, what `takes_pictures`
    or is `for_operators` needs one.
    """

    method: str
    path: str
    view: View
    tag: str
    places: Mapping[str, str] = field(default_factory=dict)
    query: type[BaseModel] | None = None
    bodies: Sequence[Body] = ()
    takes_pictures: bool = False
    for_operators: bool = False
    needs_model: bool = False
    refuses: Sequence[type[PigeonholeError]] = ()
    example: Any = None
    description: str = ""
    media_type: str = "application/json"
    also: Mapping[str, Any] = field(default_factory=dict)

    @property
    def endpoint(self) -> str:
        """What Flask calls it, which keeps dots for blueprints."""
        return f"{self.method} {self.path}".replace(".", " ")

    @property
    def needs_key(self) -> bool:
        return self.takes_pictures or self.for_operators

    @property
    def answer(self) -> type[ResponseModel] | None:
        """The model that the view returns, if it does; it may answer with a ready `Response` as well."""
        hint = get_type_hints(self.view).get("return")
        kinds = get_args(hint) or (hint,)
        models = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, ResponseModel)]
        return models[0] if models else None

    @property
    def errors(self) -> Sequence[type[PigeonholeError]]:
        """All that it may itself answer with, each once."""
        errors = [*self.refuses]
        errors += (BadParameter, NoImage) if self.query else ()
        errors += [*OF_ANY, *(error for body in self.bodies for error in body.refuses)] if self.bodies else ()
        errors += OF_PICTURES if self.takes_pictures else ()
        errors += (NotReady,) if self.needs_model else ()
        errors += (UnknownModel,) if self.places else ()
        return list(dict.fromkeys([*errors, *OF_HTTP]))


@dataclass
class API:
    """The routes of an app, each with what the description needs."""

    app: Flask
    has_keys: bool = False
    has_rates: bool = False
    operations: list[Operation] = field(default_factory=list)

    def errors_of(self, operation: Operation) -> Sequence[type[PigeonholeError]]:
        """All that `operation` may be answered with: its own, and those of `web.access`, which asks who calls."""
        errors: list[type[PigeonholeError]] = [BadHost, *operation.errors]
        errors += (NoKey, BadKey) if self.has_keys and operation.needs_key else ()
        errors += (RateLimited,) if self.has_rates and operation.takes_pictures else ()
        return errors

    def get(self, path: str, **described: Unpack[Described]) -> Callable[[View], View]:
        return self._route("GET", path, described)

    def post(self, path: str, **described: Unpack[Described]) -> Callable[[View], View]:
        return self._route("POST", path, described)

    def _route(self, method: str, path: str, described: Described) -> Callable[[View], View]:
        def add(view: View) -> View:
            operation = Operation(method, path, view, **described)
            self.operations.append(operation)
            self.app.add_url_rule(path, operation.endpoint, _answering(operation), methods=[method])
            return view

        return add


def _answering(operation: Operation) -> Callable[..., Response]:
    """The view as Flask calls it: its query and body are read for it, its answer becomes JSON."""

    @wraps(operation.view)
    def answer(**places: str) -> Response:
        if any(operation.places[name] != value for name, value in places.items()):
            raise UnknownModel("no model of this name and version is served here.")
        arguments: dict[str, Any] = {}
        if operation.query:
            arguments["query"] = read_query(operation.query, request.args)
        if operation.bodies:
            with current_app.extensions["metrics"].phase("read"):
                arguments["body"] = read_body(operation.bodies, cast(PictureRequest, request))
        answered = operation.view(**arguments)
        return as_json(answered) if isinstance(answered, BaseModel) else answered

    return answer


def as_json(answer: BaseModel) -> Response:
    """Without the members that are None."""
    return Response(answer.model_dump_json(exclude_none=True) + "\n", mimetype="application/json")
