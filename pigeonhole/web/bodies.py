"""Read a request's query and body into the types that a route declared; what fits none of them is refused.

Nothing is guessed: a parameter that comes twice, a body of another type than was announced, or one that is cut off, is
an error of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Protocol, TypeVar

from pydantic import BaseModel, ValidationError
from werkzeug.datastructures import MultiDict

from pigeonhole.errors import (
    BadBase64,
    BadContentEncoding,
    BadContentType,
    BadJSON,
    BadMultipart,
    BadParameter,
    IncompleteBody,
    NoImage,
    NoSpace,
    PigeonholeError,
    RequestError,
    TooLarge,
    TooManyFiles,
)
from pigeonhole.intake import strict_json
from pigeonhole.web.picture_request import PictureRequest, SentPicture, how_to_send
from pigeonhole.web.schemas import RequestModel

Schema = type[BaseModel] | dict[str, Any]
Model = TypeVar("Model", bound=BaseModel)
Errors = tuple[type[PigeonholeError], ...]
FILE: dict[str, Any] = {"type": "string", "format": "binary"}
OF_ANY: Errors = (TooLarge, IncompleteBody, BadContentType, BadContentEncoding, NoImage, NoSpace)


class Body(Protocol):
    """A kind of body that a route takes."""

    @property
    def refuses(self) -> Errors: ...

    @property
    def needs_content_type(self) -> bool: ...

    @property
    def hint(self) -> str:
        """A way to send it, for the sentence of a refusal; may be empty."""

    @property
    def schemas(self) -> Mapping[str, Schema]:
        """What it looks like, by the media types it may come as."""

    def read(self, request: PictureRequest) -> Any: ...


@dataclass(frozen=True)
class Submission:
    """What a form or a JSON object brought: pictures, `several` if they came as a list, and other members."""

    pictures: Sequence[SentPicture]
    several: bool = False
    parameters: Any = None


@dataclass(frozen=True)
class Form:
    """A multipart form with files under one of some names, and parameters as text; read into a `Submission`.

    At least one file, unless it is `optional`.
    """

    files: Sequence[str]
    parameters: type[BaseModel] | None = None
    several: bool = True
    optional: bool = False

    refuses = (BadMultipart, TooManyFiles)
    needs_content_type = True

    @property
    def hint(self) -> str:
        return how_to_send(self.files)

    @cached_property  # each request looks at its media types, and pydantic takes its time to make a schema
    def schemas(self) -> Mapping[str, Schema]:
        first, *others = self.files
        files: dict[str, Any] = {first: {"type": "array", "items": FILE, "minItems": 1} if self.several else FILE}
        texts = self.parameters.model_json_schema()["properties"] if self.parameters else {}
        also = f"or under the name {' or '.join(f'`{name}`' for name in others)}" if others else ""
        return {
            "multipart/form-data": {
                "type": "object",
                "required": [first],
                "properties": files | texts,
                "description": " ".join(filter(None, ("pictures as files" if self.several else "one file", also))),
            }
        }

    def read(self, request: PictureRequest) -> Submission:
        pictures = request.images_if_any(self.files) if self.optional else request.images(self.files)
        if len(pictures) > 1 and not self.several:
            raise TooManyFiles("one file is taken here.")
        parameters = read_query(self.parameters, request.form) if self.parameters else None
        return Submission(pictures, len(pictures) > 1, parameters)


@dataclass(frozen=True)
class Raw:
    """A picture that is the whole body; read into a `SentPicture`."""

    refuses = ()
    needs_content_type = True
    hint = ""
    schemas = {"image/*": FILE, "application/octet-stream": FILE}  # noqa: RUF012

    def read(self, request: PictureRequest) -> SentPicture:
        return SentPicture(request.body())


class Encoding(RequestModel):
    """A JSON object that may hold pictures as text, in the member named `holds`."""

    holds: ClassVar[str]


@dataclass(frozen=True)
class JSON:
    """A JSON object that holds pictures; read into a `Submission`, whose parameters are the object without them.

    `wrong` is what to raise where these members do not fit.
    """

    model: type[Encoding]
    wrong: Mapping[str, type[RequestError]]

    needs_content_type = True
    hint = ""

    @property
    def refuses(self) -> Errors:
        return (BadJSON, BadParameter, BadBase64, TooManyFiles, *self.wrong.values())

    @property
    def schemas(self) -> Mapping[str, Schema]:
        return {"application/json": self.model}

    def read(self, request: PictureRequest) -> Submission:
        if request.mimetype_params.get("charset", "utf-8").lower() not in ("utf-8", "utf8"):  # UTF-7 has smuggled
            raise BadContentType("JSON is in UTF-8, and no other charset is taken.")
        file = request.body()
        with request.memory:
            values = strict_json.loads(file.read(), most_values=request.most_values)
            model = validated(self.model, values, self.wrong)
            held = getattr(model, model.holds)
            texts = held if isinstance(held, list) else [] if held is None else [held]
            pictures = request.decoded(texts)
        return Submission(pictures, isinstance(held, list), model.model_copy(update={model.holds: None}))


def read_body(kinds: Sequence[Body], request: PictureRequest) -> Any:
    """The body as the first of `kinds` that its Content-Type announces.

    Raises:
        NoImage: there is none.
        BadContentType: none of `kinds` is announced.
        RequestError: as the kinds say in `refuses`.
    """
    hint = "".join(kind.hint for kind in kinds)
    request.check_head()
    if not request.has_body and not request.mimetype:
        raise NoImage("no image found; " + (hint or "the request has no body."))
    for kind in kinds:
        if any(_matches(request.mimetype, media_type) for media_type in kind.schemas):
            return kind.read(request)
        if not request.mimetype and not kind.needs_content_type:
            return kind.read(request)
    seen = f"the body is announced as {request.shown_content_type}" if request.mimetype else "no Content-Type was sent"
    taken = ", ".join(media_type for kind in kinds for media_type in kind.schemas)
    raise BadContentType(f"{seen}; taken are {taken}" + (f": {hint}" if hint else "."))


def _matches(seen: str, media_type: str) -> bool:
    group, _, kind = media_type.partition("/")
    return seen.startswith(group + "/") if kind == "*" else seen == media_type


def read_query(model: type[Model], parameters: MultiDict[str, str]) -> Model:
    """The parameters that `model` knows; others are ignored, but for those that it refuses by name.

    Raises:
        BadParameter: one does not fit, comes twice, or is refused.
        NoImage: the one that names the picture lacks.
    """
    for name, reason in getattr(model, "refused", {}).items():
        if name in parameters:
            raise BadParameter(reason)
    for name in model.model_fields:
        if len(parameters.getlist(name)) > 1:
            raise BadParameter(f"`{name}` comes twice; send it once.")
    values = {name: parameters[name] for name in model.model_fields if name in parameters}
    return validated(model, values, are_texts=True)


def validated(
    model: type[Model],
    values: dict[str, Any],
    wrong: Mapping[str, type[RequestError]] | None = None,
    are_texts: bool = False,
) -> Model:
    """`values` as a `model`; what does not fit is told with the meaning of its first field that is wrong.

    Raises:
        NoImage: a field lacks.
        RequestError: what `wrong` has for a field that does not fit, else BadParameter.
    """
    try:
        return model.model_validate(values, context={"are_texts": are_texts})
    except ValidationError as error:
        name = str(error.errors(include_url=False, include_input=False)[0]["loc"][0])
        meaning = model.model_fields[name].description
        if name not in values:
            raise NoImage(f"`{name}` is missing: {meaning}.") from error
        raise (wrong or {}).get(name, BadParameter)(f"`{name}` does not fit: it is {meaning}.") from error
