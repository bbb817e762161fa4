"""The pydantic models that requests and answers are made of; their JSON Schema says "may lack", not "may be null"."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict
from pydantic.json_schema import SkipJsonSchema

BASE64: dict[str, Any] = {"type": "string", "contentEncoding": "base64", "format": "byte"}


def _never(value: Any) -> Any:
    raise ValueError("null is not the same as nothing")


# the types of what may lack, `Top | Absent = None`: in what is sent null is not taken for it, in answers it is left out
Absent = SkipJsonSchema[Annotated[None, BeforeValidator(_never)]]
LeftOut = SkipJsonSchema[None]


def without_null_defaults(schema: dict[str, Any]) -> None:
    """Take away `"default": null`, which is pydantic's way to write that a member may lack."""
    for member in schema.get("properties", {}).values():
        if member.get("default", ...) is None:
            del member["default"]


class RequestModel(BaseModel):
    """A model of what is sent: each member has to be of its type."""

    model_config = ConfigDict(strict=True, json_schema_extra=without_null_defaults)


class ResponseModel(BaseModel):
    """A model of what is answered, with an example of it."""

    example: ClassVar[dict[str, Any]]

    model_config = ConfigDict(json_schema_extra=without_null_defaults)
