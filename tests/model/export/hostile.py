"""Pickles that try to run something, written opcode by opcode, and the containers they come in."""

from __future__ import annotations

import marshal
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

from tests.conftest import EXPORT

PROTOCOL_2 = b"\x80\x02"
PROTOCOL_4 = b"\x80\x04"


def call(module: str, name: str, *arguments: str | int) -> bytes:
    """GLOBAL, arguments, REDUCE: `module.name(*arguments)` on the stack."""
    return f"c{module}\n{name}\n".encode() + b"(" + b"".join(map(literal, arguments)) + b"tR"


def literal(value: str | int | bytes) -> bytes:
    if isinstance(value, bytes):
        return b"B" + struct.pack("<I", len(value)) + value
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def stack_global(module: str, name: str) -> bytes:
    return literal(module) + literal(name) + b"\x93"


def touch(canary: Path) -> str:
    return f"touch {canary}"


def code_of(canary: Path) -> bytes:
    return marshal.dumps(compile(f"open({str(canary)!r}, 'w').close()", "<hostile>", "exec"))


# name: (the opcodes, given the file they would make; what the refusal names; whether plain pickle makes the file)
Attack = tuple[Callable[[Path], bytes], str, bool]

ATTACKS: dict[str, Attack] = {
    "os.system": (lambda c: PROTOCOL_2 + call("posix", "system", touch(c)) + b".", "posix.system", True),
    "exec": (
        lambda c: PROTOCOL_2 + call("__builtin__", "exec", f"open({str(c)!r}, 'w')") + b".",
        "builtins.exec",
        True,
    ),
    "eval in protocol 0": (
        lambda c: f"c__builtin__\neval\n(Vopen({str(c)!r}, 'w')\ntR.".encode(),
        "builtins.eval",
        True,
    ),
    "getattr on an admitted class": (  # PILImage.__init__.__globals__ holds all of fastai, and os
        lambda c: (
            PROTOCOL_2 + b"c__builtin__\ngetattr\n(cfastai.vision.core\nPILImage\n" + literal("__init__") + b"tR."
        ),
        "builtins.getattr of fastai.vision.core.PILImage, __init__",
        False,
    ),
    "getattr on a result": (
        lambda c: (
            PROTOCOL_2
            + b"c__builtin__\ngetattr\n("
            + call("collections", "OrderedDict")
            + literal("__class__")
            + b"tR."
        ),
        "builtins.getattr of collections.OrderedDict, __class__",
        False,
    ),
    "importlib": (
        lambda c: (
            PROTOCOL_2
            + b"c__builtin__\ngetattr\n("
            + call("importlib", "import_module", "os")
            + literal("system")
            + b"tR("
            + literal(touch(c))
            + b"tR."
        ),
        "importlib.import_module",
        True,
    ),
    "runpy": (
        lambda c: PROTOCOL_2 + call("runpy", "_run_code", f"open({str(c)!r}, 'w')") + b".",
        "runpy._run_code",
        False,
    ),
    "torch.hub": (lambda c: PROTOCOL_2 + call("torch.hub", "load", "a/b", "c") + b".", "torch.hub.load", False),
    "torch.load": (
        lambda c: PROTOCOL_2 + call("torch.serialization", "load", "x") + b".",
        "torch.serialization",
        False,
    ),
    "nested pickle": (
        lambda c: (
            PROTOCOL_2 + b"c_pickle\nloads\n(" + literal(PROTOCOL_2 + call("posix", "system", touch(c)) + b".") + b"tR."
        ),
        "_pickle.loads",
        True,
    ),
    "behind a memo": (  # the function is put away among honest things, and called from there
        lambda c: (
            PROTOCOL_2
            + b"cposix\nsystem\nq\x050"
            + call("collections", "OrderedDict")
            + b"0h\x05("
            + literal(touch(c))
            + b"tR."
        ),
        "posix.system",
        True,
    ),
    "a dotted name": (
        lambda c: PROTOCOL_4 + stack_global("torch", "serialization.os.system") + b"(" + literal(touch(c)) + b"tR.",
        "torch.serialization.os.system",
        True,
    ),
    "a dotted name in fastcore": (
        lambda c: PROTOCOL_4 + stack_global("fastcore.xtras", "run") + b"(" + literal(touch(c)) + b"tR.",
        "fastcore.xtras.run",
        True,
    ),
    "a computed name": (  # "flfgrz" is "system" in rot13
        lambda c: (
            PROTOCOL_4
            + literal("posix")
            + call("_codecs", "encode", "flfgrz", "rot13")
            + b"\x93("
            + literal(touch(c))
            + b"tR."
        ),
        "posix.(computed)",
        True,
    ),
    "BUILD with __setstate__": (
        lambda c: (
            PROTOCOL_2
            + b"cfastai.callback.core\nTrainEvalCallback\n)\x81}"
            + literal("__setstate__")
            + b"cposix\nsystem\nsb"
            + literal(touch(c))
            + b"b."
        ),
        "posix.system",
        True,
    ),
    "marshalled code": (
        lambda c: PROTOCOL_2 + b"ctypes\nFunctionType\n(cmarshal\nloads\n(" + literal(code_of(c)) + b"tR}tR)R.",
        "marshal.loads",
        True,
    ),
    "cloudpickle, called": (
        lambda c: (
            PROTOCOL_2
            + b"ccloudpickle.cloudpickle\n_make_function\n(cmarshal\nloads\n("
            + literal(code_of(c))
            + b"tR}"
            + literal("innocent")
            + b"NNtR)R."
        ),
        "(computed).innocent",
        False,
    ),
    "subimport": (
        lambda c: PROTOCOL_2 + call("cloudpickle.cloudpickle", "subimport", "this") + b".",
        "subimport",
        False,
    ),
    "INST": (lambda c: b"(S'" + touch(c).encode() + b"'\niposix\nsystem\n.", "posix.system", True),
    "OBJ": (lambda c: b"(cposix\nsystem\nS'" + touch(c).encode() + b"'\no.", "posix.system", True),
    "an extension": (lambda c: PROTOCOL_2 + b"\x82\x05.", "copyreg.extension 5", False),
    "a command thrown away": (
        lambda c: PROTOCOL_2 + b"}" + call("posix", "system", touch(c)) + b"0.",
        "posix.system",
        True,
    ),
    "a command behind partial": (
        lambda c: PROTOCOL_2 + b"cfunctools\npartial\n(cposix\nsystem\n" + literal(touch(c)) + b"tR.",
        "posix.system",
        False,
    ),
    "a caller of what it is given": (
        lambda c: (
            PROTOCOL_2
            + b"ctorch._tensor\n_rebuild_from_type_v2\n(c__builtin__\nprint\ncfastai.torch_core\nTensorBase\n("
            + literal("x")
            + b"t}tR."
        ),
        "torch._tensor._rebuild_from_type_v2 of builtins.print",
        False,
    ),
    "an admitted class, called": (
        lambda c: PROTOCOL_2 + call("fastai.learner", "Learner", "x") + b".",
        "a call of fastai.learner.Learner",
        False,
    ),
    "an admitted class, called and thrown away": (
        lambda c: PROTOCOL_2 + b"}" + call("fastai.learner", "Learner", "x") + b"0.",
        "a call of fastai.learner.Learner",
        False,
    ),
    "a member of an enumeration, changed": (
        lambda c: PROTOCOL_2 + b"cPIL.Image\nResampling\nK\x02\x85R}" + literal("_value_") + b"K\x00sb.",
        "a change of PIL.Image.Resampling",
        False,
    ),
    "a class of an admitted family that runs its state": (
        lambda c: PROTOCOL_2 + b"ctorchvision.models.feature_extraction\nDualGraphModule\n)\x81.",
        "torchvision.models.feature_extraction.DualGraphModule",
        False,
    ),
    "what everything has": (
        lambda c: PROTOCOL_4 + stack_global("__main__", "__class__.__base__.__subclasses__") + b")R.",
        "__main__.__class__.__base__.__subclasses__",
        False,
    ),
}


def in_zip(hostile: bytes, path: Path, *, beside: dict[str, bytes] | None = None) -> Path:
    """As torch.save has written it since torch 1.6."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {"data.pkl": hostile, "byteorder": b"little", "version": b"3\n", **(beside or {})}.items():
            archive.writestr(f"archive/{name}", content)
    return path


def in_legacy(hostile: bytes, path: Path) -> Path:
    """As torch.save wrote it before."""
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    parts = (pickle.dumps(0x1950A86A20F9469CFC6C, 2), pickle.dumps(1001, 2), pickle.dumps(system, 2), hostile)
    path.write_bytes(b"".join(parts) + pickle.dumps([], 2))
    return path


def bare(hostile: bytes, path: Path) -> Path:
    path.write_bytes(hostile)
    return path


CONTAINERS: dict[str, Callable[[bytes, Path], Path]] = {"zip": in_zip, "legacy": in_legacy, "bare": bare}


def learner_pickle(source: Path = EXPORT) -> bytes:
    """The pickle of an export."""
    with zipfile.ZipFile(source) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith("/data.pkl")))


def copied(path: Path, source: Path = EXPORT, **changed: bytes) -> Path:
    """An export with some of its parts changed, or others added."""
    with zipfile.ZipFile(source) as original, zipfile.ZipFile(path, "w") as copy:
        for part in original.infolist():
            name = part.filename.partition("/")[2]
            copy.writestr(f"archive/{name}", changed.pop(name, None) or original.read(part))
        for name, content in changed.items():
            copy.writestr(f"archive/{name}", content)
    return path
