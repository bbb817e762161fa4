"""Which engine serves a model: export.onnx where it belongs to the export, else learner.predict."""

from __future__ import annotations

import importlib.util
import logging
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from pigeonhole.errors import CompiledFileError, ModelFileError, PackagesMissing
from pigeonhole.model.card import COMPILE, Card, is_ours, read_card, sha256_of_file
from pigeonhole.model.doctor import notebook_beside
from pigeonhole.model.export.container import check_file
from pigeonhole.model.known_answers import OpenPhoto
from pigeonhole.model.learner import open_learner
from pigeonhole.model.loading import Networks, Precision, load_compiled
from pigeonhole.model.pipeline import understand
from pigeonhole.model.predictor import Engine
from pigeonhole.model.torch_network import NEEDED, Device, check_device, networks

log = logging.getLogger(__name__)

COMPILED_SUFFIX = ".onnx"
NEEDED_TO_COMPILE = ("fastai", "torch", "onnx", "onnxscript", "openvino")


def compiled_beside(export: Path) -> Path:
    """Where the compiled file of an export lies."""
    return export.parent / f"{export.stem}{COMPILED_SUFFIX}"


@dataclass(frozen=True)
class Model:
    """What is to be served, and how: the settings of the same names."""

    path: Path
    sha256: str | None = None
    allowed: frozenset[str] = frozenset()
    engine: Literal["auto", "compiled", "learner"] = "auto"
    precision: Precision = "auto"
    workers: int = 1
    memory: int | None = None  # in bytes
    device: Device = "cpu"

    @property
    def compiled(self) -> Path:
        """Where its compiled file lies, if it is compiled: beside it."""
        return compiled_beside(self.path)

    @property
    def is_compiled_only(self) -> bool:
        """There is no export to compare with: the compiled file is what was named, or all that was brought along."""
        return self.path == self.compiled or (not self.path.exists() and self.compiled.exists())

    @property
    def file(self) -> Path:
        """What was named and is there."""
        return self.compiled if self.is_compiled_only else self.path


def check_model(model: Model) -> None:
    """Look whether what is named is there, and at the first bytes of an export, before anything is loaded.

    Raises:
        ModelFileError: it is missing, or an export is visibly something else.
        PackagesMissing: what computes on its device is not installed.
    """
    _check_computable(model)
    if not model.is_compiled_only:
        check_file(model.path)
    elif not model.compiled.is_file():
        raise ModelFileError(f"MODEL={model.compiled} is not there; {COMPILE}")


def _check_computable(model: Model) -> None:
    """Where PyTorch computes, it and the export have to be there; whether it finds the device is seen by loading it."""
    if model.device == "cpu":
        return
    if missing := [package for package in NEEDED if not importlib.util.find_spec(package)]:
        raise PackagesMissing(f"DEVICE={model.device} computes with {missing[0]}, which is not installed here.")
    if model.is_compiled_only:
        raise ModelFileError(
            f"DEVICE={model.device} computes with the network of the export that {model.compiled} was made of; "
            f"put that export.pkl beside it and name it as MODEL."
        )


def open_engine(model: Model, open_photo: OpenPhoto, count: Callable[[str], object] = lambda way: None) -> Engine:
    """The engine that `model.engine` asks for; one log line says which and why. `count` as in `load_compiled`.

    Raises:
        CompiledFileError: the compiled file is asked for, or all there is, and cannot be used.
        ModelFileError, PackagesMissing: the same of the export and learner.predict.
        SettingsError: the device is not there.
    """
    if model.device != "cpu":
        _check_computable(model)
        check_device(model.device)
    if model.engine == "learner":
        return _learner(model, "ENGINE=learner")
    reason = why_not_compiled(model)
    if reason is None:
        networks = _networks(model)
        engine = load_compiled(
            model.compiled, open_photo, model.precision, model.workers, model.memory, count, networks
        )
        proof = engine.card.proof
        log.info(
            "answers come from %s, %s, on %s; proven on %d pictures to within %.1g of learner.predict",
            *(model.compiled, engine.way, model.device, proof.pictures, proof.largest_difference),
        )
        return engine
    if model.engine == "compiled" or model.is_compiled_only:
        raise CompiledFileError(f"{reason}; {COMPILE}")
    return _learner(model, reason)


def _networks(model: Model) -> Networks | None:
    """What makes networks in PyTorch; None where OpenVINO computes."""
    if model.device == "cpu":
        return None
    learner = open_learner(model.path, model.sha256, model.allowed)
    return networks(understand(learner.learner, learner.mode), model.device)


def _learner(model: Model, reason: str) -> Engine:
    if model.path == model.compiled:
        raise ModelFileError(f"MODEL={model.path} is compiled; learner.predict needs the export.pkl it was made of.")
    engine = open_learner(model.path, model.sha256, model.allowed, model.device)
    log.info("answers come from learner.predict, on %s: %s", model.device, reason)
    return engine


def why_not_compiled(model: Model) -> str | None:
    """What speaks against serving the compiled file; None if it is whole and belongs to the export."""
    if not model.compiled.is_file():
        return f"{model.compiled} is not there"
    if model.is_compiled_only:
        _check_pin(model)
    try:
        card = read_card(model.compiled)
    except CompiledFileError as error:
        return str(error).removesuffix(f"; {COMPILE}")
    return None if model.is_compiled_only else _why_stale(model, card)


def _check_pin(model: Model) -> None:
    if model.sha256 and sha256_of_file(model.compiled) != model.sha256.lower():
        raise ModelFileError(f"MODEL={model.compiled} has another SHA-256 than MODEL_SHA256 says; it is not opened.")


def _why_stale(model: Model, card: Card) -> str | None:
    export = sha256_of_file(model.path)
    if model.sha256 and export != model.sha256.lower():
        return f"{model.path} has another SHA-256 than MODEL_SHA256 says"
    if card.source != export:
        return f"{model.compiled} was compiled from another export than {model.path}"
    notebook = notebook_beside(model.path)
    if card.notebook != (sha256_of_file(notebook) if notebook else None):
        return f"{model.compiled} was compiled beside another notebook.py"
    return None


def compile_if_stale(model: Model, tell: Callable[[str], None], output: IO[str] | None = None) -> None:
    """Compile the export in a process of its own, so that torch is never loaded in this one or in what it forks.

    Nothing is done where the compiled file is up to date, was not asked for, or what compiles is not installed. When it
    does not work out, that process says why. What it prints goes to `output`, by default to standard output.
    """
    if model.engine != "auto" or model.is_compiled_only or not _can_compile():
        return
    reason = why_not_compiled(model)
    if reason is None:
        return
    if model.compiled.exists() and not is_ours(model.compiled):
        tell(f"{reason}. It is left alone; move it away, and {model.path} will be compiled.")
        return
    tell(f"{reason}. Compiling {model.path}:")
    command = [sys.executable, "-m", "pigeonhole", "compile", str(model.path), "-o", str(model.compiled)]
    if subprocess.run(command, stdout=output).returncode != 0:
        tell(f"{model.compiled} was not made. ENGINE=learner starts without trying.")


def _can_compile() -> bool:
    return all(importlib.util.find_spec(package) for package in NEEDED_TO_COMPILE)
