"""What a request to /predict asks: which pictures, and what about them; what contradicts itself is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, ConfigDict, Field, ValidationInfo, WithJsonSchema

from pigeonhole.errors import BadParameter, NoImage
from pigeonhole.web.bodies import Encoding, Submission
from pigeonhole.web.picture_request import SentPicture, how_to_send
from pigeonhole.web.schemas import BASE64, Absent, RequestModel, without_null_defaults

MOST = 10_000  # labels listed; more than any learner here has
IMAGE_FIELDS = ("image", "file", "image_file")  # ours first; the others are what clients of older systems send
FLAGS = {"0": False, "1": True, "false": False, "true": True}


def _number(value: Any, info: ValidationInfo) -> Any:
    """A number that is text in a query, and that JSON may write as 3.0."""
    if info.context and info.context["are_texts"]:
        return int(value) if value.isascii() and value.isdigit() and len(value) < 9 else value  # int() has a limit
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _flag(value: Any, info: ValidationInfo) -> Any:
    """True or False, which a query writes as 1 and 0, and JSON may as well."""
    if info.context and info.context["are_texts"]:
        return FLAGS.get(value, value)
    return bool(value) if type(value) in (int, float) and value in (0, 1) else value


def _image_or_url(schema: dict[str, Any]) -> None:
    without_null_defaults(schema)
    schema["oneOf"] = [{"required": ["image"]}, {"required": ["url"]}]


TOP = {"oneOf": [{"type": "integer", "minimum": 1, "maximum": MOST}, {"const": "all"}], "examples": [3]}
Top = Annotated[Annotated[int, Field(ge=1, le=MOST)] | Literal["all"], BeforeValidator(_number), WithJsonSchema(TOP)]
HOW = {"oneOf": [{"type": "boolean"}, {"type": "integer", "enum": [0, 1]}, {"const": "raw"}], "examples": [True]}
How = Annotated[bool | Literal["raw"], BeforeValidator(_flag), WithJsonSchema(HOW)]
Label = Annotated[str, WithJsonSchema({"type": "string", "examples": [""]})]  # a form sends its empty fields as well
Base64 = Annotated[str, WithJsonSchema(BASE64)]
Address = Annotated[
    str, WithJsonSchema({"type": "string", "format": "uri", "pattern": "^https?://", "maxLength": 2048})
]
Images = Annotated[
    str | list[str], WithJsonSchema({"oneOf": [BASE64, {"type": "array", "items": BASE64, "minItems": 1}]})
]


class Options(RequestModel):
    """What can be asked beside the label."""

    refused: ClassVar[dict[str, str]] = {"url": "`url` goes into JSON, or into the query of a GET."}

    top: Annotated[
        Top | Absent, Field(description=f"how many labels to list, the most probable first: 1 to {MOST}, or all")
    ] = None
    explain: Annotated[
        How | Absent,
        Field(
            description="whether to show where the model looked: 0, 1 for a heatmap over the picture, "
            "or raw for the numbers"
        ),
    ] = None
    explain_label: Annotated[
        Label | Absent,
        Field(description="the label to show it for, empty for the most probable one; brings `explain` along"),
    ] = None


class InQuery(RequestModel):
    """A picture on the web."""

    url: Annotated[Address, Field(description="the address of a picture on the public web")]


class GetQuery(Options, InQuery):
    """A picture on the web, and what to say of it."""

    refused = {}  # noqa: RUF012


class Encoded(Options, Encoding):
    """A picture as text, several, or the address of one."""

    model_config = ConfigDict(json_schema_extra=_image_or_url)
    holds = "image"

    image: Annotated[
        Images | Absent, Field(description="a picture as base64 text or as a data URI of base64, or a list of such")
    ] = None
    url: Annotated[Address | Absent, Field(description="the address of a picture on the public web")] = None


@dataclass(frozen=True)
class PredictionRequest:
    """Either pictures or an address; `several` if a list is to be answered."""

    pictures: Sequence[SentPicture]
    url: str | None
    several: bool
    top: int | Literal["all"] | None
    explain: bool | Literal["raw"]
    explain_label: str | None


def combined(query: Options, body: Submission | SentPicture | None) -> PredictionRequest:
    """What came in the query and in the body, put together.

    Raises:
        BadParameter: both a picture and an address, or two values for one thing.
        NoImage: neither a picture nor an address.
    """
    sent = Submission([body]) if isinstance(body, SentPicture) else body or Submission([])
    inside = sent.parameters or Options()
    url = getattr(inside, "url", None) if body else getattr(query, "url", None)
    if url is not None and (sent.pictures or sent.several):
        raise BadParameter("both a picture and an address were sent; send one of them.")
    if url is None and not sent.pictures:
        raise NoImage("no image found; " + how_to_send(IMAGE_FIELDS))
    explain, label = _one("explain", query, inside), _one("explain_label", query, inside) or None
    if label is not None and explain is False:
        raise BadParameter("`explain_label` asks for what `explain` says no to; leave one of them out.")
    return PredictionRequest(
        pictures=sent.pictures,
        url=url,
        several=sent.several,
        top=_one("top", query, inside),
        explain=label is not None if explain is None else explain,
        explain_label=label,
    )


def _one(name: str, query: Options, inside: Options) -> Any:
    values = [value for value in (getattr(query, name), getattr(inside, name)) if value is not None]
    if len(values) == 2 and values[0] != values[1]:
        raise BadParameter(f"`{name}` is one thing in the query and another in the body; send it once.")
    return values[0] if values else None
