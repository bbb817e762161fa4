"""Judge a pickle that was read as data: every name it uses, every call it would make, every attribute it would take.

Nothing is imported. What is not reached from the pickle's root is judged too: a call whose result is thrown away would
have been made all the same. Only the inside of functions that travel as bytecode is passed over, because it is never
built.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

from pigeonhole.errors import ModelFileError
from pigeonhole.model.export import names
from pigeonhole.model.export.names import Verdict
from pigeonhole.model.export.pickles import Code, Global, Made, Pickle, children, walk

NAMED = 5  # refused things that a sentence names
INERT = ("left out", "notebook")  # fates of what is not called when the file asks for it


@dataclass
class Findings:
    """What a pickle asks for: each name with its fate, and in `refused` a line for each thing that is not admitted."""

    verdicts: dict[str, Verdict] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)

    def with_fate(self, fate: str) -> list[str]:
        return [name for name, verdict in self.verdicts.items() if verdict.fate == fate]


def refusal(refused: Collection[str]) -> ModelFileError:
    """The error that names what is refused."""
    named = "; ".join(list(refused)[:NAMED]) + (" and more" if len(refused) > NAMED else "")
    return ModelFileError(
        f"it holds {named}, which no image learner needs; nothing of it was run. If you know better, name it in "
        "ALLOW_PICKLE_GLOBALS."
    )


def judge_pickle(pickle: Pickle, allowed: Collection[str] = ()) -> Findings:
    """Judge all of `pickle`; `allowed` holds names that the user vouches for, with their module."""
    findings = Findings()
    inside_code = {id(node) for node in walk([code.inside for code in pickle.nodes if isinstance(code, Code)])}
    reached = {id(node) for node in walk(pickle.root, outside_code)}
    for node in pickle.nodes:
        if id(node) in reached or id(node) not in inside_code:
            if isinstance(node, Global):
                findings.verdicts[str(node)] = _judge_name(node, allowed)
            complaint = _complaint(node, allowed)
            if complaint and complaint not in findings.refused:
                findings.refused.append(complaint)
    return findings


def outside_code(node: Any) -> Iterator[Any]:
    """What `node` is made of, but for the inside of bytecode."""
    return iter(()) if isinstance(node, Code) else children(node)


def _judge_name(node: Global, allowed: Collection[str]) -> Verdict:
    return names.judge(node.module, node.name, allowed, code=isinstance(node, Code))


def _complaint(node: Any, allowed: Collection[str]) -> str | None:
    """What is wrong with `node` by itself; None if nothing is."""
    if isinstance(node, Global):
        return str(node) if _judge_name(node, allowed).fate == "refused" else None
    if not isinstance(node, Made):
        return None
    if not isinstance(node.maker, Global):
        return "a call of something that is computed"
    verdict = _judge_name(node.maker, allowed)
    if verdict.fate in INERT:
        return None
    if node.how == "call" and verdict.fate == "real":
        return f"a call of {node.maker}"
    if str(verdict) in names.STATELESS and (node.how == "new" or node.states):
        return f"a change of {node.maker}"
    return _complaint_of_call(node, str(verdict), allowed)


def _complaint_of_call(call: Made, maker: str, allowed: Collection[str]) -> str | None:
    """What is wrong with the arguments of the calls that could do anything, if they took any."""
    arguments = call.arguments if isinstance(call.arguments, tuple) else ()
    if maker == "builtins.getattr" and not may_get(arguments, allowed):
        return f"builtins.getattr of {_described(arguments)}"
    if maker == "builtins.type" and arguments != (None,):  # cloudpickle's way to write None's class
        return f"builtins.type of {_described(arguments)}"
    if maker == "types.MethodType" and not may_get(bound(arguments), allowed):
        return f"types.MethodType of {_described(arguments)}"
    if maker in names.NEW_OBJECTS and not _is_for_making(arguments, allowed):
        return f"{maker} of {_described(arguments)}"
    if maker in names.CALLERS and not _makes_a_tensor(arguments):
        return f"{maker} of {_described(arguments)}"
    return None


def may_get(arguments: tuple[Any, ...], allowed: Collection[str] = ()) -> bool:
    """Is `getattr(*arguments)` one of those that occur in exports?"""
    if not (len(arguments) == 2 and isinstance(arguments[1], str)):
        return False
    owner, attribute = arguments
    if isinstance(owner, Made) and isinstance(owner.maker, Global):  # a method of an object of the learner's own
        return _judge_name(owner.maker, allowed).fate in INERT or attribute in names.METHODS.split()
    if isinstance(owner, Global):
        verdict = _judge_name(owner, allowed)
        return verdict.fate in INERT or names.may_get(str(verdict), attribute)
    return False


def bound(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """`MethodType(function, owner)` as the `getattr(owner, name)` that it stands for."""
    if len(arguments) != 2:
        return ()
    function, owner = arguments
    if isinstance(function, Made) and isinstance(function.arguments, tuple) and len(function.arguments) == 2:
        return (owner, function.arguments[1])  # itself a getattr
    return (owner, function.name.rpartition(".")[2]) if isinstance(function, Global) else ()


def _is_for_making(arguments: tuple[Any, ...], allowed: Collection[str]) -> bool:
    cls = arguments[0] if arguments else None
    return isinstance(cls, Global) and _judge_name(cls, allowed).fate in ("real", *INERT)


def _makes_a_tensor(arguments: tuple[Any, ...]) -> bool:
    function = arguments[0] if len(arguments) >= 3 else None
    return isinstance(function, Global) and str(function) in names.TENSOR_MAKERS and isinstance(arguments[2], tuple)


def _described(arguments: tuple[Any, ...]) -> str:
    return ", ".join(part.kind if isinstance(part, Made) else str(part)[:80] for part in arguments[:2])
