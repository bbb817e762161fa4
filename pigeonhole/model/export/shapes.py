"""Which attributes of which objects are built: what inference reads, and nothing that could be called in its stead.

An object that a pickle makes can be given any attribute, and an attribute can hide a method: `learner.predict`,
`network.forward`. So fastai's own structures get the attributes listed here and no others, own methods that were
pickled along with an object are dropped (the class has them), and building.py refuses what would hide a method.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pigeonhole.model.export import names
from pigeonhole.model.export.pickles import Code, Global, Made, Weights, children

INERT = ("left out", "notebook")  # fates of what gets a stand-in
BOUND = ("builtins.getattr", "types.MethodType")
TYPE_DISPATCH = "fastcore.dispatch.TypeDispatch"  # what held a Transform's functions until fastai 2.7
PLUM_FUNCTIONS = ("plum._function.Function", "plum.function.Function")  # and since

KEPT = {
    "fastai.learner.Learner": "dls model loss_func cbs lr wd wd_bn_bias train_bn moms n_out",
    "fastai.data.core.DataLoaders": "loaders _device device",
    "fastai.vision.data.ImageDataLoaders": "loaders _device device",
    "fastai.data.core.TfmdDL": "after_item before_batch after_batch dataset bs shuffle drop_last indexed n pin_memory "
    "timeout _device device num_workers offs fake_l _n_inp _types",
    "fastai.data.load._FakeLoader": "dataset default d pin_memory num_workers timeout persistent_workers "
    "pin_memory_device",
    "fastai.data.core.Datasets": "tls n_inp split_idx",
    "fastai.data.core.TfmdLists": "items splits tfms types split_idx",
    "fasttransform.transform.Pipeline": "fs split_idx default",
    "fasttransform.transform.Transform": "split_idx order _name encodes decodes",
    "fastcore.foundation.L": "items",
}


def kind_of(node: Any) -> str:
    """The class or function that made `node`, by the name it has today."""
    if isinstance(node, Made) and isinstance(node.maker, Global):
        return ".".join(names.moved(node.maker.module, node.maker.name))
    return ""


def fate_of(node: Global, allowed: frozenset[str] = frozenset()) -> str:
    return names.judge(node.module, node.name, allowed, code=isinstance(node, Code)).fate


def kept(node: Made, state: dict[Any, Any]) -> Iterator[tuple[Any, Any]]:
    """The attributes of `state` that are built: (name, value)."""
    listed = KEPT.get(kind_of(node))
    for name, value in state.items():
        dunder = isinstance(name, str) and name.startswith("__")
        if not dunder and not is_own_method(node, name, value) and (listed is None or name in listed.split()):
            yield name, value


def is_own_method(owner: Made, name: Any, value: Any) -> bool:
    """Is `value` the method `name` of `owner` itself?"""
    if not (isinstance(value, Made) and kind_of(value) in BOUND):
        return False
    pair = bound(value)
    return len(pair) == 2 and pair[0] is owner and pair[1] == name


def bound(node: Made) -> tuple[Any, ...]:
    """`getattr(owner, name)` or `MethodType(function, owner)` as (owner, name); () if it is neither."""
    arguments = node.arguments if isinstance(node.arguments, tuple) and len(node.arguments) == 2 else None
    if arguments is None:
        return ()
    if kind_of(node) == "builtins.getattr":
        return arguments
    function, owner = arguments
    if isinstance(function, Made):  # itself a getattr
        inner = bound(function)
        return (owner, inner[1]) if inner else ()
    return (owner, function.name.rpartition(".")[2]) if isinstance(function, Global) else ()


def parts_built(node: Any, allowed: frozenset[str] = frozenset()) -> Iterator[Any]:
    """What of `node` is built with it, its maker aside."""
    if isinstance(node, (Code, Global)):
        return
    if not isinstance(node, Made):
        yield from children(node)
        return
    if isinstance(node.maker, Global) and fate_of(node.maker, allowed) in INERT:
        if kind_of(node) in (TYPE_DISPATCH, *PLUM_FUNCTIONS):
            yield from implementations(node)
        return  # a stand-in has nothing in it
    if kind_of(node) == "types.MethodType":
        yield from bound(node)[:1]
    else:
        yield node.arguments
    yield from node.elements
    yield from (part for item in node.items for part in item)
    for state in node.states:
        for part in state if isinstance(state, tuple) else (state,):
            yield from (value for _, value in kept(node, part)) if isinstance(part, dict) else (part,)


def implementations(holder: Any) -> list[Any]:
    """The nodes of the functions that a Transform's `encodes` or `decodes` holds, each once."""
    if not isinstance(holder, Made):
        return [] if holder is None else [holder]
    if holder.kind == TYPE_DISPATCH:  # a table by the first argument's type, of tables by the second's
        found = [function for inner in _table(holder.get("funcs")) for function in _table(inner)]
    elif holder.kind in PLUM_FUNCTIONS:
        resolver = holder.get("_resolver")
        methods = resolver.get("methods") if isinstance(resolver, Made) else None
        listed = methods.elements if isinstance(methods, Made) else []
        found = [holder.get("_f"), *(method.get("implementation") for method in listed if isinstance(method, Made))]
    else:
        found = [holder]
    return list({id(function): function for function in found if function is not None}.values())


def _table(table: Any) -> list[Any]:
    held = table.get("d") if isinstance(table, Made) else None
    return list(held.values()) if isinstance(held, dict) else []


def is_storage_key(key: Any) -> bool:
    """("storage", class, key, place, count[, view]): what torch says of a storage."""
    return (
        isinstance(key, tuple)
        and len(key) >= 5
        and key[0] == "storage"
        and isinstance(key[1], Global)
        and isinstance(key[2], str)
        and isinstance(key[4], int)
    )


def count_of(weights: Any) -> int:
    """How many numbers lie in a storage; -1 for what is none."""
    return int(weights.key[4]) if isinstance(weights, Weights) and is_storage_key(weights.key) else -1
