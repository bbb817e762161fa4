"""Read a JSON object strictly: what two parsers might read differently is refused (RFC 7493, I-JSON)."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from pigeonhole.errors import BadJSON

HALF_A_PAIR = re.compile("[\ud800-\udfff]")


def loads(data: bytes, most_values: int = 1_000) -> dict[str, Any]:
    """The object that `data` is, in UTF-8 without a byte order mark, with at most `most_values` commas and brackets.

    They are counted before it is parsed, in texts too: a million small values would fill 150 MB.

    >>> loads(b'{"top": 3}')
    {'top': 3}

    Raises:
        BadJSON: it is no JSON, no object, or has duplicate names, NaN, an infinity, half a surrogate pair, a number of
            more than 4,300 digits, or more values than any request needs.
    """
    if data.count(b"{") + data.count(b"[") > most_values or data.count(b",") > most_values:
        raise BadJSON("the JSON holds more values than any request here needs.")
    try:
        value = json.loads(
            data.decode(),
            parse_float=_finite_number,
            parse_constant=_no_number,
            object_pairs_hook=_unambiguous,
        )
        if b"\\u" in data and _has_half_a_pair(value):
            raise BadJSON("the JSON holds half of a surrogate pair.")
    except (ValueError, RecursionError) as error:  # ValueError: of the parser, of UTF-8, of int()
        raise BadJSON("the body is not JSON in UTF-8.") from error
    if not isinstance(value, dict):
        raise BadJSON("the JSON is not an object.")
    return value


def _has_half_a_pair(value: Any) -> bool:
    if isinstance(value, str):
        return HALF_A_PAIR.search(value) is not None
    inside = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(map(_has_half_a_pair, inside))


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
