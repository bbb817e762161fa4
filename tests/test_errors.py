"""The error tree in the docstring is the error tree."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pigeonhole import errors
from pigeonhole.errors import PigeonholeError, RequestError, ServiceError


def family(kind: type[PigeonholeError]) -> Iterator[type[PigeonholeError]]:
    for child in kind.__subclasses__():
        yield child
        yield from family(child)


def test_docstring_draws_the_tree() -> None:
    """Every error stands in the module's docstring, with its status and code."""
    drawn = re.findall(r"── (\w+)(?: +(\d+) (\w+))?", errors.__doc__ or "")
    leaves = [kind for kind in family(PigeonholeError)]
    answered = {
        kind
        for kind in leaves
        if issubclass(kind, RequestError | ServiceError) and kind.__bases__[0] is not PigeonholeError
    }
    assert {name for name, _, _ in drawn} == {kind.__name__ for kind in leaves}
    assert {row for row in drawn if row[1]} == {(kind.__name__, str(kind.status), kind.code) for kind in answered}


def test_codes_are_unique() -> None:
    """A code means one thing."""
    codes = [kind.code for kind in family(PigeonholeError) if hasattr(kind, "code")]
    assert len(codes) == len(set(codes))
