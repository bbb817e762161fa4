"""What schemathesis has to be told about this API: what a picture is, and what the description cannot say."""

from __future__ import annotations

import base64
import io
from typing import Any

import schemathesis
from hypothesis import strategies
from PIL import Image

MOST = 10  # pictures in a request


def _picture(colour: str, kind: str, size: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, kind)
    return file.getvalue()


PICTURES = [
    _picture("red", "PNG", (32, 32)),
    _picture("blue", "JPEG", (300, 200)),
    _picture("green", "WEBP", (1, 1)),
    _picture("grey", "GIF", (8, 640)),
    _picture("white", "BMP", (20, 20)),
]
TEXTS = [base64.b64encode(picture).decode() for picture in PICTURES]

schemathesis.openapi.format("binary", strategies.sampled_from(PICTURES))
schemathesis.openapi.format("byte", strategies.sampled_from(TEXTS))
for media_type in ("image/*", "application/octet-stream"):
    schemathesis.openapi.media_type(media_type, strategies.sampled_from(PICTURES))


@schemathesis.hook
def filter_case(context: Any, case: Any) -> bool:
    """No more pictures than are taken, and nothing said twice in different ways."""
    body = case.body if isinstance(case.body, dict) else {}
    several = next((body[name] for name in ("image", "image_file") if isinstance(body.get(name), list)), ())
    query = case.query or {}
    twice = any(name in body and name in query for name in ("top", "explain", "explain_label"))
    return len(several) <= MOST and not twice and not _contradicts(query | body)


def _contradicts(sent: dict[str, Any]) -> bool:
    return "explain_label" in sent and str(sent.get("explain", "1")).lower() in ("0", "false")


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """`image/*` is sent as a type that it stands for, and a label is one that the demo knows."""
    for where in (case.query, case.body):
        if isinstance(where, dict) and isinstance(where.get("explain_label"), str):
            where["explain_label"] = "hat"
    if case.media_type == "image/*":
        case.media_type = "image/png"
