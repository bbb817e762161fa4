"""Judge a pickle that was read as data: every name it uses, every call it would make, everything it would build.

Nothing is imported. What is not reached from the pickle's root is judged too: a call whose result is thrown away would
have been made all the same. Only the inside of functions that travel as bytecode is passed over, because it is never
built.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

from pigeonhole.errors import ModelFileError
from pigeonhole.model.export import names
from pigeonhole.model.export.names import Verdict
from pigeonhole.model.export.pickles import Code, Global, Made, Pickle, Weights, children, is_key, printable, walk
from pigeonhole.model.export.shapes import (
    BOUND,
    INERT,
    bound,
    count_of,
    is_own_method,
    is_storage_key,
    kind_of,
    parts_built,
)

NAMED = 5  # refused things that a sentence names
FROM_TYPE = (
    "torch._tensor._rebuild_from_type",
    "torch._tensor._rebuild_from_type_v2",
)  # (function, class, arguments, …)
TENSOR_MAKERS = ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter")
NUMBERS = re.compile(r"[|<>=]?([bcfiu]\d{1,2}|[SU]\d{1,4}|O8?)")  # dtypes
MAY_HAVE_STATE = ("functools.partial", "collections.OrderedDict", "numpy.dtype", "numpy._core.multiarray._reconstruct")


@dataclass
class Findings:
    """What a pickle asks for: each name with its fate, and in `refused` a line for each thing that is not admitted."""

    verdicts: dict[str, Verdict] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)

    def with_fate(self, fate: str) -> list[str]:
        return [name for name, verdict in self.verdicts.items() if verdict.fate == fate]


def refusal(refused: Collection[str]) -> ModelFileError:
    """The error that names what is refused."""
    named = printable("; ".join(list(refused)[:NAMED])) + (" and more" if len(refused) > NAMED else "")
    advice = " If you know better, name it in ALLOW_PICKLE_GLOBALS." if re.fullmatch(r"[\w.]+", named) else ""
    return ModelFileError(f"it holds {named}, which no image learner needs; nothing of it was run.{advice}")


def judge_pickle(pickle: Pickle, allowed: Collection[str] = ()) -> Findings:
    """Judge all of `pickle`; `allowed` holds names that the user vouches for, with their module."""
    return _Judge(frozenset(allowed)).judge(pickle)


def outside_code(node: Any) -> Iterator[Any]:
    """What `node` is made of, but for the inside of bytecode."""
    return iter(()) if isinstance(node, Code) else children(node)


class _Judge:
    def __init__(self, allowed: frozenset[str]) -> None:
        self._allowed = allowed
        self._findings = Findings()
        self._subjects: set[int] = set()  # argument lists whose first is called or asked, and not held

    def judge(self, pickle: Pickle) -> Findings:
        inside_code = {id(node) for node in walk([code.inside for code in pickle.nodes if isinstance(code, Code)])}
        reached = {id(node) for node in walk(pickle.root, outside_code)}
        judged = [node for node in pickle.nodes if id(node) in reached or id(node) not in inside_code]
        for node in judged:
            if isinstance(node, Global):
                self._judge_name(node)
        dropped = {pair for node in judged for pair in _own_methods(node)}
        unreached = [node for node in judged if id(node) not in reached and isinstance(node, Made)]
        thrown_away = [node for node in unreached if _pair(node) not in dropped]
        built = list(walk([pickle.root, *thrown_away], self._parts))
        for node in built:
            if kind_of(node) in (*BOUND, *FROM_TYPE, "copyreg._reconstructor"):
                self._subjects.add(id(node.arguments))
        for node in built:
            self._judge_built(node)
        return self._findings

    def _parts(self, node: Any) -> Iterator[Any]:
        return parts_built(node, self._allowed)

    def _verdict(self, node: Global) -> Verdict:
        return names.judge(node.module, node.name, self._allowed, code=isinstance(node, Code))

    def _refuse(self, what: str) -> None:
        if what not in self._findings.refused:
            self._findings.refused.append(what)

    def _judge_name(self, node: Global) -> None:
        verdict = self._findings.verdicts[str(node)] = self._verdict(node)
        if verdict.fate == "refused":
            self._refuse(str(node))

    def _judge_built(self, node: Any) -> None:
        if isinstance(node, Made):
            self._judge_made(node)
        elif isinstance(node, Weights) and not is_storage_key(node.key):
            self._refuse("weights of an unknown kind")
        for part in self._held_by(node):
            if isinstance(part, Global) and not names.may_be_held(self._verdict(part)):
                self._refuse(f"{part}, not called")

    def _held_by(self, node: Any) -> Iterator[Any]:
        """What `node` holds, as against what it calls or asks for an attribute."""
        if isinstance(node, Made):
            yield from (part for part in self._parts(node) if part is not node.arguments)
        elif not isinstance(node, Global):
            yield from list(children(node))[int(id(node) in self._subjects) :]

    def _judge_made(self, node: Made) -> None:
        if not isinstance(node.maker, Global):
            return self._refuse("a call of something that is computed")
        verdict = self._verdict(node.maker)
        if verdict.fate in (*INERT, "refused") or verdict.why:
            return None
        if node.how == "new" and verdict.fate != "made":
            return self._refuse(f"an object of {node.maker}")
        if node.how == "call" and verdict.fate != "called":
            return self._refuse(f"a call of {node.maker}")
        if node.how == "call" and node.states and str(verdict) not in MAY_HAVE_STATE:
            return self._refuse(f"a change of {node.maker}")
        if node.how == "new" and not all(map(_is_attributes, node.states)):
            return self._refuse(f"{node.maker} with a state that is no attributes")
        check = CHECKS.get(str(verdict))
        if check and not check(self, node):
            return self._refuse(f"{node.maker} of {_described(_arguments(node))}")
        return None

    def may_get(self, node: Made) -> bool:
        """Is it a pair that occurs in exports? (An object's own methods are dropped before it comes to this.)"""
        pair = bound(node)
        if len(pair) != 2 or not isinstance(pair[1], str):
            return False
        owner, attribute = pair
        if isinstance(owner, Made):
            return isinstance(owner.maker, Global) and self._verdict(owner.maker).fate in INERT
        if not isinstance(owner, Global):
            return False
        verdict = self._verdict(owner)
        return verdict.fate in INERT or names.may_get(str(verdict), attribute)

    def is_of_a_function(self, node: Made) -> bool:
        """`partial(function)` and its state (function, arguments, keywords, attributes): a name, and the same twice."""
        arguments = _arguments(node)
        function = arguments[0] if arguments else None
        told = [state[0] for state in node.states if isinstance(state, tuple) and len(state) == 4]
        if len(told) != len(node.states) or any(other is not function for other in told):
            return False
        return isinstance(function, Global) and self._verdict(function).fate in ("held", "made", *INERT)

    def is_for_making(self, node: Made) -> bool:
        """`copyreg._reconstructor(class, base, state)` of a class of which objects may be made."""
        arguments = _arguments(node)
        cls = arguments[0] if len(arguments) == 3 else None
        return isinstance(cls, Global) and self._verdict(cls).fate in ("made", *INERT)


def _own_methods(node: Any) -> Iterator[tuple[int, Any]]:
    """The methods that `node` holds of itself: pickle writes some of them twice and throws one away."""
    for state in node.states if isinstance(node, Made) else ():
        if isinstance(state, dict):
            yield from (_pair(value) for name, value in state.items() if is_own_method(node, name, value))


def _pair(node: Made) -> tuple[int, Any]:
    pair = bound(node) if kind_of(node) in BOUND else ()
    return (id(pair[0]), pair[1]) if len(pair) == 2 and isinstance(pair[1], str) else (0, None)


def _is_attributes(state: Any) -> bool:
    parts = state if isinstance(state, tuple) and len(state) == 2 else (state,)
    return all(part is None or isinstance(part, dict) for part in parts)


def _arguments(node: Made) -> tuple[Any, ...]:
    return node.arguments if isinstance(node.arguments, tuple) else ()


def _makes_a_tensor(_: _Judge, node: Made) -> bool:
    arguments = _arguments(node)
    function, cls, inner = arguments[:3] if len(arguments) >= 3 else (None, None, None)
    if not (isinstance(function, Global) and isinstance(cls, Global) and isinstance(inner, tuple)):
        return False
    return str(function) in TENSOR_MAKERS and _CHECKS_OF_TENSORS[str(function)](_, Made(function, inner, "call"))


def _tensor_fits(_: _Judge, node: Made) -> bool:
    """`_rebuild_tensor_v2(storage, offset, size, stride, …)` within the storage; torch would make it larger."""
    arguments = _arguments(node)
    if len(arguments) < 4 or not all(isinstance(sides, tuple) for sides in arguments[2:4]):
        return False
    weights, offset, size, stride = arguments[:4]
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or not all(type(number) is int and number >= 0 for number in numbers):
        return False
    last = offset + sum((side - 1) * step for side, step in zip(size, stride, strict=True))
    return 0 in size or last < count_of(weights)


def _fastai_tensor_fits(judge: _Judge, node: Made) -> bool:
    arguments = _arguments(node)
    return isinstance(arguments[0] if arguments else None, Global) and _tensor_fits(
        judge, Made(node.maker, arguments[1:], "call")
    )


def _is_parameter(_: _Judge, node: Made) -> bool:
    arguments = _arguments(node)
    return len(arguments) >= 2 and isinstance(arguments[0], Made)


def _is_dtype(_: _Judge, node: Made) -> bool:
    arguments = _arguments(node)
    return bool(arguments) and isinstance(arguments[0], str) and NUMBERS.fullmatch(arguments[0]) is not None


def _is_text(_: _Judge, node: Made) -> bool:
    """Protocol 2 writes bytes as latin-1 text, and no bytes as `bytes()`."""
    arguments = _arguments(node)
    return arguments == () or (all(isinstance(part, str) for part in arguments) and arguments[1:] == ("latin1",))


def _is_set(_: _Judge, node: Made) -> bool:
    arguments = _arguments(node)
    return arguments == () or (
        len(arguments) == 1 and isinstance(arguments[0], list) and all(map(is_key, arguments[0]))
    )


CHECKS: dict[str, Callable[[_Judge, Made], bool]] = {
    "builtins.getattr": _Judge.may_get,
    "types.MethodType": _Judge.may_get,
    "builtins.type": lambda _, node: _arguments(node) == (None,),  # cloudpickle's way to write None's class
    "builtins.bytes": _is_text,
    "builtins.set": _is_set,
    "builtins.frozenset": _is_set,
    "_codecs.encode": _is_text,
    "functools.partial": _Judge.is_of_a_function,
    "copyreg._reconstructor": _Judge.is_for_making,
    "numpy.dtype": _is_dtype,
    "torch._utils._rebuild_tensor_v2": _tensor_fits,
    "torch._utils._rebuild_parameter": _is_parameter,
    "torch._tensor._fa_rebuild_tensor": _fastai_tensor_fits,
    **dict.fromkeys(FROM_TYPE, _makes_a_tensor),
}
_CHECKS_OF_TENSORS = {maker: CHECKS[maker] for maker in TENSOR_MAKERS}


def _described(arguments: tuple[Any, ...]) -> str:
    return ", ".join(part.kind if isinstance(part, Made) else str(part)[:80] for part in arguments[:2])
