"""A pickle module for `load_learner` that judges every name before it builds anything, and never runs a file's code.

>>> load_learner("export.pkl", pickle_module=PickleModule(notebook))

First the whole pickle is read as data (pickles.py) and judged (judging.py); then what is admitted is built, with
stand-ins for what inference never calls. Weights come through torch's own hook.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import IO, Any

from pigeonhole.errors import ModelFileError
from pigeonhole.model.export import names
from pigeonhole.model.export.judging import judge_pickle, refusal
from pigeonhole.model.export.names import Family, Verdict
from pigeonhole.model.export.pickles import Code, Global, Made, Weights, read_pickle
from pigeonhole.model.export.shapes import bound, fate_of, implementations, kept, kind_of
from pigeonhole.model.export.standins import StandIn, StandInClass, as_function, stand_in

TRANSFORM_METHODS = ("encodes", "decodes")
# a network's hooks are functions; those of a learner that is exported are empty
HOOKS = ("_backward_hooks", "_backward_pre_hooks", "_forward_hooks", "_forward_pre_hooks", "_state_dict_hooks",
         "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks")  # fmt: skip


class PickleModule:
    """What `torch.load` wants of a pickle module: `Unpickler` and `load`.

    `notebook` is a module whose functions and classes come first for what the file calls the notebook's own. `allowed`
    holds names, with their module, that are admitted on top.
    """

    __name__ = __name__

    def __init__(self, notebook: ModuleType | None = None, allowed: Collection[str] = ()) -> None:
        members = {"notebook": notebook, "allowed": frozenset(allowed)}
        self.Unpickler: type[GuardedUnpickler] = type("Unpickler", (GuardedUnpickler,), members)

    def load(self, file: IO[bytes], **_: Any) -> Any:
        return self.Unpickler(file).load()


class GuardedUnpickler:
    """Reads a pickle from `file`, judges it, and only then builds it; torch gives it its `persistent_load`.

    Raises:
        ModelFileError: it is malformed, or holds something that is not admitted; the sentence names it.
    """

    notebook: ModuleType | None = None
    allowed: frozenset[str] = frozenset()
    persistent_load: Callable[[Any], Any]

    def __init__(self, file: IO[bytes], **_: Any) -> None:  # torch passes an encoding; pickles.py has its own
        self._file = file
        self._built: dict[int, tuple[Any, Any]] = {}  # by the id of a node, which is kept so that no id comes twice
        self._stand_ins: dict[str, StandInClass] = {}

    def load(self) -> Any:
        pickle = read_pickle(self._file)
        refused = judge_pickle(pickle, self.allowed).refused
        if refused:
            raise refusal(refused)
        for node in pickle.nodes:
            if isinstance(node, Weights):
                self.build(node)  # also those that nothing built refers to: torch misses them in a legacy file
        return self.build(pickle.root)

    def find_class(self, module: str, name: str) -> Any:
        """The object of an admitted name, or its stand-in. torch asks its own table of storages before.

        Raises:
            ModelFileError: the name is not admitted, or not installed.
        """
        return self._object_of(module, name, names.judge(module, name, self.allowed))

    def _object_of(self, module: str, name: str, verdict: Verdict) -> Any:
        if verdict.fate == "refused":
            raise refusal([f"{module}.{name}"])
        if verdict.fate == "notebook":
            return _of_notebook(self.notebook, name) or self.stand_in(f"{module}.{name}")
        if verdict.fate == "left out":
            return self.stand_in(str(verdict))
        found = _look_up(verdict.module, verdict.name)
        if verdict.family:
            _check_family(found, verdict, verdict.family)
        return found

    def stand_in(self, wanted: str) -> StandInClass:
        """The same for the same name."""
        if wanted not in self._stand_ins:
            self._stand_ins[wanted] = stand_in(wanted)
        return self._stand_ins[wanted]

    def build(self, node: Any) -> Any:
        """What `node` stands for; the same object each time."""
        if id(node) in self._built:
            return self._built[id(node)][1]
        if isinstance(node, Made):
            return self._build_made(node)
        if isinstance(node, Code):
            verdict = names.judge(node.module, node.name, self.allowed, code=True)
            return self._remember(node, self._object_of(node.module, node.name, verdict))
        if isinstance(node, Global):
            return self._remember(node, self.find_class(node.module, node.name))
        if isinstance(node, Weights):
            return self._remember(node, self.persistent_load(self.build(node.key)))
        return self._build_plain(node)

    def _remember(self, node: Any, made: Any) -> Any:
        self._built[id(node)] = (node, made)
        return made

    def _build_plain(self, node: Any) -> Any:
        """Lists and dicts are remembered before they are filled: they may hold themselves."""
        if isinstance(node, list):
            made: Any = self._remember(node, [])
            made.extend(map(self.build, node))
        elif isinstance(node, dict):
            made = self._remember(node, {})
            made.update((self.build(key), self.build(value)) for key, value in node.items())
        elif isinstance(node, (tuple, set, frozenset)):
            made = self._remember(node, type(node)(list(map(self.build, node))))
        else:
            made = node
        return made

    def _build_made(self, node: Made) -> Any:
        special = SPECIAL.get(kind_of(node))
        if special:
            return self._remember(node, special(self, node))
        maker = self.build(node.maker)
        if isinstance(maker, StandInClass):
            return self._remember(node, _stand_in_object(maker, node))
        if node.how == "call" and fate_of(node.maker, self.allowed) == "notebook":
            raise refusal([f"a call of {node.maker}"])  # the user's file provides it; this one must not call it
        arguments = self.build(node.arguments)
        made = self._remember(node, maker(*arguments) if node.how == "call" else maker.__new__(maker, *arguments))
        self._fill(made, node)
        return made

    def _fill(self, made: Any, node: Made) -> None:
        """Give `made` its elements, items and states."""
        for element in node.elements:
            (made.add if isinstance(made, set) else made.append)(self.build(element))
        for key, value in node.items:
            made[self.build(key)] = self.build(value)
        for state in node.states:
            if isinstance(made, partial):
                made.__setstate__(self.build(state))  # type: ignore[attr-defined]
            else:
                self._set_attributes(made, node, state)

    def _set_attributes(self, made: Any, node: Made, state: Any) -> None:
        """As CPython's load_build, except that an object cannot bring a `__setstate__` of its own."""
        attributes, slots = state if isinstance(state, tuple) else (state, None)
        built = self._build_attributes(made, node, attributes or {})
        if hasattr(type(made), "__setstate__"):
            type(made).__setstate__(made, built)
        else:
            vars(made).update(built)
        for name, value in self._build_attributes(made, node, slots or {}).items():
            object.__setattr__(made, name, value)

    def _build_attributes(self, made: Any, node: Made, state: dict[Any, Any]) -> dict[Any, Any]:
        functions = TRANSFORM_METHODS if _is_transform(made) else ()
        built = {
            name: self.build(value)
            for name, value in kept(node, state)
            if name not in functions and not (name == "setups" and functions)
        }
        _check_attributes(made, built)
        built.update(self._functions_of_transform(state, functions))
        return built

    def _functions_of_transform(self, state: dict[Any, Any], methods: Collection[str]) -> dict[str, Any]:
        """A Transform's functions, dispatched as the installed fasttransform does it. Setting up is over."""
        from fasttransform.transform import Transform

        made = {}
        for name in methods:
            functions = [as_function(self.build(function)) for function in implementations(state.get(name))]
            if functions:
                made[name] = Transform(enc=functions).encodes
        return made


def _check_attributes(made: Any, attributes: dict[Any, Any]) -> None:
    """Refuse attributes that would hide a method, or make a network call what is no part of it.

    Raises:
        ModelFileError: they would.
    """
    from torch import nn

    for name, value in attributes.items():
        hidden = inspect.getattr_static(type(made), name, None) if isinstance(name, str) else made
        is_method = callable(hidden) or isinstance(hidden, (staticmethod, classmethod))  # a property is not hidden
        if is_method and not _is_pipeline_of(made, name, value):
            raise refusal([f"{type(made).__module__}.{type(made).__qualname__} whose {name} is replaced"])
    if isinstance(made, nn.Module):
        layers = attributes.get("_modules") or {}
        hooked = [name for name in HOOKS if attributes.get(name)]
        if hooked or not all(layer is None or isinstance(layer, (nn.Module, StandIn)) for layer in layers.values()):
            raise refusal([f"{type(made).__module__}.{type(made).__qualname__} with parts that are no layers"])


def _is_pipeline_of(made: Any, name: str, value: Any) -> bool:
    """A loader keeps its pipelines of transforms under the names of methods that do nothing."""
    from fastai.data.load import DataLoader
    from fasttransform.transform import Pipeline

    return (
        isinstance(made, DataLoader)
        and name in ("after_item", "before_batch", "after_batch")
        and isinstance(value, Pipeline)
    )


def _is_transform(made: Any) -> bool:
    from fasttransform.transform import Transform

    return isinstance(made, Transform)


def _stand_in_object(maker: StandInClass, node: Made) -> StandIn:
    made: StandIn = object.__new__(maker)  # type: ignore[arg-type]
    split_idx = node.get("split_idx", node.maker.members.get("split_idx") if isinstance(node.maker, Code) else None)
    made.split_idx = split_idx if isinstance(split_idx, int) else None
    if isinstance(node.maker, Code):
        made.decodes = "decodes" in node.maker.members
    else:  # a name tells nothing; those of fastai's that are left out undo nothing
        made.decodes = not made.stands_for.startswith("fastai.")
    return made


def _of_notebook(notebook: ModuleType | None, dotted: str) -> Any:
    """A function or class that notebook.py defines, or a class that it imports of a package unknown here; else None.

    No function that it merely imports, nothing of Python's own or of a package that names.py speaks for, and nothing
    through a module: `__main__.os.system` and `__main__.Popen` are not what it offers.
    """
    first, *rest = dotted.split(".")
    found = vars(notebook).get(first) if notebook else None
    for part in rest:
        found = vars(found).get(part) if isinstance(found, type) else None
    if not callable(found) or isinstance(found, ModuleType):
        return None
    home = str(getattr(found, "__module__", ""))
    known = {*sys.stdlib_module_names, *names.KNOWN.split()}
    imported = isinstance(found, type) and home.partition(".")[0] not in known
    return found if imported or (notebook and home == notebook.__name__) else None


def _look_up(module: str, dotted: str) -> Any:
    """Today's object of an admitted name.

    Raises:
        ModelFileError: what is installed does not have it.
    """
    try:
        return _attribute(importlib.import_module(module), dotted)
    except (ImportError, AttributeError) as error:
        package = ".".join(module.split(".")[:2])  # timm moves layers from file to file within timm.layers
        found = getattr(importlib.import_module(package), dotted, None) if package == "timm.layers" else None
        if found is None:
            installed = module.partition(".")[0]
            raise ModelFileError(
                f"it needs `{dotted}` of {module}, which the {installed} here does not have."
            ) from error
        return found


def _attribute(owner: Any, dotted: str) -> Any:
    for part in dotted.split("."):
        owner = getattr(owner, part)
    return owner


def _check_family(found: Any, verdict: Verdict, family: Family) -> None:
    base, *barred = (_look_up(*path.rsplit(".", 1)) for path in (family.base, *names.WRITE_CODE))
    if not (isinstance(found, type) and issubclass(found, base)) or issubclass(found, tuple(barred)):
        raise refusal([str(verdict)])


def _bound_attribute(unpickler: GuardedUnpickler, node: Made) -> Any:
    owner_node, attribute = bound(node)
    owner = unpickler.build(owner_node)
    if isinstance(owner, (StandInClass, StandIn)):
        return unpickler.stand_in(f"{owner.stands_for}.{attribute}")
    if isinstance(owner_node, Made):
        raise refusal([f"a method of {owner_node.kind}"])
    return getattr(owner, attribute)


def _tensor_of_class(unpickler: GuardedUnpickler, node: Made) -> Any:
    """torch's and fastai's `_rebuild_from_type(function, class, arguments, state)`: a tensor of a class of fastai's."""
    function, cls, arguments, *_ = node.arguments
    tensor = unpickler.build(Made(function, arguments, "call"))
    return tensor.as_subclass(unpickler.build(cls))


def _tensor_of_fastai(unpickler: GuardedUnpickler, node: Made) -> Any:
    """fastai's `_fa_rebuild_tensor(class, *arguments)`, until 2.3."""
    from torch._utils import _rebuild_tensor_v2

    cls, *arguments = node.arguments
    tensor = _rebuild_tensor_v2(*unpickler.build(tuple(arguments)))  # type: ignore[no-untyped-call]
    return tensor.as_subclass(unpickler.build(cls))


def _path(unpickler: GuardedUnpickler, node: Made) -> Path:
    """A path of any system as one of this system; inference reads none."""
    return Path(*map(str, node.arguments))


def _reconstruct(unpickler: GuardedUnpickler, node: Made) -> Any:
    """`copyreg._reconstructor(class, base, state)`: NEWOBJ, as protocols before 2 write it."""
    cls, base, state = node.arguments
    arguments = () if str(base) == "builtins.object" else (state,)
    return unpickler.build(Made(cls, arguments, "new", node.states, node.elements, node.items))


def _dtype(unpickler: GuardedUnpickler, node: Made) -> Any:
    """A NumPy dtype of numbers, text or objects; of its state only the order of bytes counts."""
    import numpy as np

    orders = [state[1] for state in node.states if isinstance(state, tuple) and len(state) > 1]
    order = next((order for order in orders if order in ("<", ">", "|", "=")), "=")
    return np.dtype(node.arguments[0]).newbyteorder(order)


def _scalar(unpickler: GuardedUnpickler, node: Made) -> Any:
    """`numpy.core.multiarray.scalar(dtype, bytes)`."""
    return _array_of(unpickler.build(node.arguments[0]), (), unpickler.build(node.arguments[1]))[()]


def _array(unpickler: GuardedUnpickler, node: Made) -> Any:
    """`numpy.core.multiarray._reconstruct(…)`; its state: (version, shape, dtype, Fortran's order, bytes or list)."""
    _, shape, dtype, is_fortran, content = unpickler.build(node.states[-1])
    array = _array_of(dtype, shape, content)
    return array.reshape(shape[::-1]).T if is_fortran else array


def _array_of(dtype: Any, shape: tuple[int, ...], content: Any) -> Any:
    import numpy as np

    if dtype.hasobject:  # a list of what was built already; raw bytes would be taken for pointers
        array = np.empty(len(content), dtype=object)
        array[:] = list(content) if isinstance(content, list) else [None] * len(content)
    else:
        array = np.frombuffer(content, dtype).copy()
    return array.reshape(shape)


SPECIAL: dict[str, Callable[[GuardedUnpickler, Made], Any]] = {
    "builtins.getattr": _bound_attribute,
    "types.MethodType": _bound_attribute,
    "builtins.type": lambda unpickler, node: type(None),
    "numpy.dtype": _dtype,
    "numpy._core.multiarray.scalar": _scalar,
    "numpy._core.multiarray._reconstruct": _array,
    "torch._tensor._rebuild_from_type": _tensor_of_class,
    "torch._tensor._rebuild_from_type_v2": _tensor_of_class,
    "torch._tensor._fa_rebuild_tensor": _tensor_of_fastai,
    "copyreg._reconstructor": _reconstruct,
    **{f"pathlib.{name}": _path for name in names.CALLED["pathlib"].split()},
}
