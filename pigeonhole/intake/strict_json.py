"""Read a JSON object strictly: what two parsers might read differently is refused (RFC 7493, I-JSON)."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, NoReturn

from pigeonhole.errors import BadJSON

MAX_BRACKETS = 100  # `{` and `[` anywhere: nobody who sends pictures needs more, and Python's parser recurses
MAX_COMMAS = 1_000  # bounds what the values take: a million small ones would fill 150 MB


def loads(data: bytes) -> dict[str, Any]:
    """The object that `data` is, in UTF-8 without a byte order mark.

    >>> loads(b'{"top": 3}')
    {'top': 3}

    Raises:
        BadJSON: it is no JSON, no object, or has duplicate names, NaN, an infinity, half a surrogate pair, a number of
            more than 4,300 digits, or more values than any request needs.
    """
    if data.count(b"{") + data.count(b"[") > MAX_BRACKETS or data.count(b",") > MAX_COMMAS:
        raise BadJSON("the JSON holds more values than any request here needs.")
    try:
        value = json.loads(
            data.decode(),
            parse_float=_finite_number,
            parse_constant=_no_number,
            object_pairs_hook=_unambiguous,
        )
        if b"\\u" in data:
            json.dumps(value, ensure_ascii=False).encode()
    except ValueError as error:  # of the parser, of UTF-8, of int()'s limit, of a surrogate without its other half
        raise BadJSON("the body is not JSON in UTF-8.") from error
    if not isinstance(value, dict):
        raise BadJSON('the JSON is not an object; send {"image": BASE64} or {"url": ADDRESS}.')
    return value


def _finite_number(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise BadJSON("the JSON has a number that is too large.")
    return number


def _no_number(name: str) -> NoReturn:
    raise BadJSON(f"the JSON has {name}, which is no JSON.")


def _unambiguous(members: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(members)
    if len(unique) < len(members):
        raise BadJSON("the JSON gives the same name twice.")
    return unique
