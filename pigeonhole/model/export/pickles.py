"""Read a pickle as data: a tree of what it names and what it would call, of which nothing is imported or called.

A pickle is a program for a small stack machine (PEP 307, PEP 3154, and the comments of CPython's pickletools.py). Here
it runs with every opcode that would import, call or build something replaced by one that notes it. cloudpickle's
functions and classes, which travel as CPython bytecode, are noted by their module and qualified name; their code is
never touched. (fickling, which also reads pickles without running them, makes Python source of them, for people.)
"""

from __future__ import annotations

import pickle
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import IO, Any, ClassVar, Literal

from pigeonhole.errors import ModelFileError
from pigeonhole.model.export.names import COMPUTED, MAKERS_OF_CODE, SETTERS_OF_CODE

UNREADABLE = (
    pickle.UnpicklingError,
    EOFError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
    RecursionError,
    OverflowError,
)


def printable(text: str) -> str:
    """`text` with nothing in it that could steer a terminal; a hostile file may have chosen it."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


class Node:
    """Something a pickle makes; two are the same only if they are one."""


@dataclass(eq=False)
class Global(Node):
    """A name in a module: `torch.nn.modules.linear`, `Linear`."""

    module: str
    name: str

    def __str__(self) -> str:
        return printable(f"{self.module}.{self.name}")


@dataclass(eq=False)
class Code(Global):
    """A function or class that travels as bytecode; `inside` is what it was made of, `bases` a class's bases."""

    inside: list[Any] = field(default_factory=list)
    bases: tuple[Any, ...] = ()
    members: dict[str, Any] = field(default_factory=dict)


@dataclass(eq=False)
class Weights(Node):
    """What lies outside the pickle: torch's storages. `key` is what the pickle says of it."""

    key: Any


@dataclass(eq=False)
class Made(Node):
    """What comes of `maker`: by a call, or as an empty object (`new`) that gets its `states` afterwards."""

    maker: Any
    arguments: Any
    how: Literal["call", "new"]
    states: list[Any] = field(default_factory=list)
    elements: list[Any] = field(default_factory=list)  # appended or added
    items: list[tuple[Any, Any]] = field(default_factory=list)

    def append(self, element: Any) -> None:
        self.elements.append(element)

    add = append

    def extend(self, elements: list[Any]) -> None:
        self.elements.extend(elements)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items.append((key, value))

    def get(self, name: str, default: Any = None) -> Any:
        """The attribute `name` that its states will give it."""
        for state in reversed(self.states):
            for part in state if isinstance(state, tuple) else (state,):
                if isinstance(part, dict) and name in part:
                    return part[name]
        return default

    @property
    def kind(self) -> str:
        """The name of what it is an instance or a result of."""
        return str(self.maker) if isinstance(self.maker, Global) else COMPUTED


@dataclass
class Pickle:
    """`root` is what the pickle leaves, `nodes` all that it made on the way, in order."""

    root: Any
    nodes: list[Node]


def read_pickle(stream: IO[bytes], *, partly: bool = False) -> Pickle:
    """Read one pickle from where `stream` stands, and leave it where the pickle ends.

    `partly`: of a pickle that breaks off, return what was read of it, with None as its root.

    Raises:
        ModelFileError: it is cut off or malformed.
    """
    reader = _Reader(stream)
    try:
        root = reader.load()
    except UNREADABLE as error:
        if partly and reader.nodes:
            return Pickle(None, reader.nodes)
        raise ModelFileError(
            "its pickle is cut off or malformed; copy the file again, or export the learner again."
        ) from error
    return Pickle(root, reader.nodes)


def children(node: Any) -> Iterator[Any]:
    """What `node` is directly made of."""
    if isinstance(node, Code):
        yield from node.inside
    elif isinstance(node, Made):
        yield from (node.maker, node.arguments, *node.states, *node.elements)
        yield from (part for item in node.items for part in item)
    elif isinstance(node, Weights):
        yield node.key
    elif isinstance(node, dict):
        yield from node
        yield from node.values()
    elif isinstance(node, (list, tuple, set, frozenset)):
        yield from node


def walk(root: Any, below: Any = children) -> Iterator[Any]:
    """`root` and all below it, each once, parents first."""
    seen, waiting = set(), [root]
    while waiting:
        node = waiting.pop()
        if isinstance(node, (Node, dict, list, tuple, set, frozenset)):
            if id(node) in seen:
                continue
            seen.add(id(node))
            yield node
            waiting.extend(reversed(list(below(node))))


class _Reader(pickle._Unpickler):
    """CPython's own unpickler, the one written in Python, with its hands tied."""

    stack: list[Any]
    append: Callable[[Any], None]
    proto: int

    def __init__(self, stream: IO[bytes]) -> None:
        super().__init__(stream, encoding="utf-8", errors="replace")
        self.nodes: list[Node] = []
        self._globals: dict[tuple[str, str], Global] = {}

    def _note(self, node: Node) -> Any:
        self.nodes.append(node)
        return node

    def find_class(self, module: Any, name: Any) -> Global:
        """The node for a name, the same one each time. Python 2's names become Python 3's, as `pickle` does it."""
        if self.proto < 3:
            module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        if (module, name) not in self._globals:
            self._globals[module, name] = self._note(Global(module, name))
        return self._globals[module, name]

    def persistent_load(self, pid: Any) -> Any:
        """Weights; or, in legacy files, a class with the source text of its module, which nobody needs."""
        if isinstance(pid, tuple) and len(pid) > 1 and pid[0] == "module":
            return pid[1]
        return self._note(Weights(pid))

    def get_extension(self, code: int) -> None:
        self.append(self._note(Global("copyreg", f"extension {code}")))

    def _instantiate(self, maker: Any, arguments: Any) -> None:
        self.append(self._note(Made(maker, tuple(arguments), "call")))

    def load_stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        names = [text if type(text) is str else COMPUTED for text in (module, name)]
        self.append(self.find_class(*names))

    def load_reduce(self) -> None:
        arguments, maker = self.stack.pop(), self.stack.pop()
        self.append(_from_cloudpickle(self, maker, arguments) or self._note(Made(maker, arguments, "call")))
        if isinstance(self.stack[-1], Code):
            self._note(self.stack[-1])

    def load_newobj(self) -> None:
        arguments, maker = self.stack.pop(), self.stack.pop()
        self.append(self._note(Made(maker, arguments, "new")))

    def load_newobj_ex(self) -> None:
        keywords, arguments, maker = self.stack.pop(), self.stack.pop(), self.stack.pop()
        if keywords:
            raise pickle.UnpicklingError("an object made with keywords, which no learner holds")
        self.append(self._note(Made(maker, arguments, "new")))

    def load_setitem(self) -> None:
        _check_keys(self.stack[-2:-1])
        super().load_setitem()  # type: ignore[misc]

    def load_setitems(self) -> None:
        _check_keys(self.stack[::2])
        super().load_setitems()  # type: ignore[misc]

    def load_dict(self) -> None:
        _check_keys(self.stack[::2])
        super().load_dict()  # type: ignore[misc]

    def load_additems(self) -> None:
        _check_keys(self.stack)
        super().load_additems()  # type: ignore[misc]

    def load_frozenset(self) -> None:
        _check_keys(self.stack)
        super().load_frozenset()  # type: ignore[misc]

    def load_build(self) -> None:
        state = self.stack.pop()
        if not isinstance(self.stack[-1], Made):
            raise pickle.UnpicklingError("a state for something that is no object")
        self.stack[-1].states.append(state)

    dispatch: ClassVar[dict[int, Callable[..., None]]] = {
        **pickle._Unpickler.dispatch,
        pickle.STACK_GLOBAL[0]: load_stack_global,
        pickle.REDUCE[0]: load_reduce,
        pickle.NEWOBJ[0]: load_newobj,
        pickle.NEWOBJ_EX[0]: load_newobj_ex,
        pickle.BUILD[0]: load_build,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.DICT[0]: load_dict,
        pickle.ADDITEMS[0]: load_additems,
        pickle.FROZENSET[0]: load_frozenset,
    }


def is_key(thing: Any) -> bool:
    """May it be a key of a dict, or in a set? Not a tuple of tuples of tuples: hashing one takes exponential time."""
    parts = thing if isinstance(thing, tuple) else (thing,)
    return not any(isinstance(part, (tuple, frozenset)) for part in parts)


def _check_keys(keys: list[Any]) -> None:
    if not all(map(is_key, keys)):
        raise pickle.UnpicklingError("a key that is made of tuples")


def _from_cloudpickle(reader: _Reader, maker: Any, arguments: Any) -> Any:
    """What cloudpickle's helpers would make of a function or a class, noted and not made; None for other makers."""
    if not isinstance(maker, Global) or maker.module not in ("cloudpickle.cloudpickle", "cloudpickle"):
        return None
    if maker.name == "_builtin_type":  # ("MethodType",), of the module types
        return reader.find_class("types", arguments[0])
    if maker.name == "_make_function":  # (code, globals, name, …); module and qualified name come with its state
        return Code(COMPUTED, str(arguments[2]), inside=[maker, arguments])
    if maker.name in MAKERS_OF_CODE:  # (metaclass, name, bases, keywords, …)
        keywords = arguments[3] if isinstance(arguments[3], dict) else {}
        bases = arguments[2] if isinstance(arguments[2], tuple) else ()
        return Code(str(keywords.get("__module__", COMPUTED)), str(arguments[1]), [maker, arguments], bases)
    if maker.name in SETTERS_OF_CODE and isinstance(arguments[0], Code):
        _name_code(arguments[0], maker, arguments[1])
        return arguments[0]
    return None


def _name_code(code: Code, setter: Any, state: Any) -> None:
    code.inside += [setter, state]
    attributes, slots = state if isinstance(state, tuple) and len(state) == 2 else (state, {})
    for part in (attributes, slots):
        if isinstance(part, dict):
            code.module = part["__module__"] if isinstance(part.get("__module__"), str) else code.module
            code.name = part["__qualname__"] if isinstance(part.get("__qualname__"), str) else code.name
            code.members.update(part)
