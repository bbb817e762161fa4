"""Files that are the same for all, sent under a policy that lets nothing else in."""

from __future__ import annotations

from pathlib import Path

from flask import Response, request, send_file
from werkzeug.exceptions import NotFound

# Werkzeug answers 503 to dates that no calendar has, and 412 with the whole file; browsers ask by If-None-Match
CONDITIONS = ("HTTP_IF_MODIFIED_SINCE", "HTTP_IF_UNMODIFIED_SINCE", "HTTP_IF_RANGE", "HTTP_IF_MATCH")


def file_reply(path: Path, policy: str, media_type: str | None = None) -> Response:
    """The file in `path`, of the type that its name says if none is given; 304 where it is known already."""
    if not path.is_file():
        raise NotFound
    _drop_conditions()
    about = path.stat()
    # somebody's name for a file need not fit into a header, and may tell the label of an example
    response = send_file(
        path.absolute(),
        media_type,
        download_name="file" if media_type else path.name,
        etag=f"{about.st_mtime_ns:x}-{about.st_size:x}",
    )
    response.headers["Content-Security-Policy"] = policy
    response.headers.pop("Content-Disposition", None)
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
    if "HTTP_IF_RANGE" in request.environ:
        request.environ.pop("HTTP_RANGE", None)  # whether the part still fits is then not known
    for condition in CONDITIONS:
        request.environ.pop(condition, None)
