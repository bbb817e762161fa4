"""Files that are the same for all, sent under a policy that lets nothing else in."""

from __future__ import annotations

from pathlib import Path

from flask import Response, request, send_from_directory

# Werkzeug answers 503 to dates that no calendar has, and 412 with the whole file; browsers ask by If-None-Match
CONDITIONS = ("HTTP_IF_MODIFIED_SINCE", "HTTP_IF_UNMODIFIED_SINCE", "HTTP_IF_RANGE", "HTTP_IF_MATCH")


def file_reply(folder: Path, name: str, policy: str, media_type: str | None = None) -> Response:
    """The file `name` of `folder`, of the type that its name says if none is given; 304 where it is known already."""
    _drop_conditions()
    response = send_from_directory(folder.absolute(), name, mimetype=media_type)
    response.headers["Content-Security-Policy"] = policy
    response.headers.pop("Content-Disposition", None)  # it would tell the name of an example, which may be its label
    return response


def text_reply(text: str, media_type: str, policy: str) -> Response:
    """What would be a file if it did not depend on the settings; 304 where it is known already."""
    _drop_conditions()
    response = Response(text, mimetype=media_type)
    response.headers.update({"Content-Security-Policy": policy, "Cache-Control": "no-cache"})
    response.add_etag()
    response.make_conditional(request.environ)
    return response


def _drop_conditions() -> None:
    for condition in CONDITIONS:
        request.environ.pop(condition, None)
