"""Which engine serves a model: export.onnx where it belongs to the export, else learner.predict."""

from __future__ import annotations

import importlib.util
import logging
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from prometheus_client import CollectorRegistry

from pigeonhole.errors import CompiledFileError, ModelFileError
from pigeonhole.model.card import COMPILE, Card, read_card, sha256_of
from pigeonhole.model.doctor import notebook_beside
from pigeonhole.model.export.container import check_file, opened
from pigeonhole.model.known_answers import OpenPhoto, load_compiled
from pigeonhole.model.learner import open_learner
from pigeonhole.model.predictor import Engine

if TYPE_CHECKING:
    from pigeonhole.settings import Settings

log = logging.getLogger(__name__)

COMPILED_SUFFIX = ".onnx"
NEEDED_TO_COMPILE = ("fastai", "torch", "onnx", "onnxscript", "openvino")


@dataclass(frozen=True)
class Model:
    """What is to be served, and how: the settings of the same names."""

    path: Path
    sha256: str | None = None
    allowed: frozenset[str] = frozenset()
    engine: Literal["auto", "compiled", "learner"] = "auto"
    precision: Literal["auto", "exact"] = "auto"
    workers: int = 1

    @classmethod
    def of(cls, settings: Settings) -> Model:
        return cls(
            path=settings.model,
            sha256=settings.model_sha256,
            allowed=settings.allowed_globals,
            engine=settings.engine,
            precision=settings.precision,
            workers=settings.workers,
        )

    @property
    def compiled(self) -> Path:
        """Where its compiled file lies, if it is compiled: beside it."""
        return self.path.with_suffix(COMPILED_SUFFIX)

    @property
    def is_compiled_only(self) -> bool:
        """No export is there to be opened or compared with; what there is, or should be, is the compiled file."""
        return self.path == self.compiled or (not self.path.exists() and self.compiled.exists())


def check_model(model: Model) -> None:
    """Look at the first bytes of what is named, before anything is loaded.

    Raises:
        ModelFileError: it is missing, empty, or visibly something else.
    """
    if model.is_compiled_only:
        with opened(model.compiled):
            return
    check_file(model.path)


def open_engine(model: Model, open_photo: OpenPhoto, registry: CollectorRegistry) -> Engine:
    """The engine that `model.engine` asks for, having passed its known-answer test; one log line says which and why.

    Raises:
        CompiledFileError: the compiled file is asked for, or all there is, and cannot be used.
        ModelFileError, PackagesMissing: the same of the export and learner.predict.
    """
    if model.engine == "learner":
        return _learner(model, "ENGINE=learner")
    reason = why_not_compiled(model)
    if reason is None:
        engine = load_compiled(model.compiled, open_photo, model.precision, model.workers, registry)
        proof = engine.card.proof
        log.info(
            "answers come from %s, %s; on %d of %d pictures proven to within %.1g of learner.predict",
            *(model.compiled, engine.way, proof.same_labels, proof.pictures, proof.largest_difference),
        )
        return engine
    if model.engine == "compiled" or model.is_compiled_only:
        raise CompiledFileError(f"{reason}; {COMPILE}")
    return _learner(model, reason)


def _learner(model: Model, reason: str) -> Engine:
    if model.path == model.compiled:
        raise ModelFileError(f"MODEL={model.path} is compiled; learner.predict needs the export.pkl it was made of.")
    engine = open_learner(model.path, model.sha256, model.allowed)
    log.info("answers come from learner.predict, because of %s", reason)
    return engine


def why_not_compiled(model: Model) -> str | None:
    """What speaks against serving the compiled file; None if it is whole and belongs to the export."""
    if not model.compiled.exists():
        return f"{model.compiled} is not there"
    try:
        card = read_card(model.compiled)
    except CompiledFileError as error:
        return str(error).removesuffix(f"; {COMPILE}")
    if model.is_compiled_only:
        return _why_not_pinned(model)
    return _why_stale(model, card)


def _why_not_pinned(model: Model) -> str | None:
    if model.sha256 and _sha256(model.compiled) != model.sha256.lower():
        return f"{model.compiled} has another SHA-256 than MODEL_SHA256 says"
    return None


def _why_stale(model: Model, card: Card) -> str | None:
    export = _sha256(model.path)
    if model.sha256 and export != model.sha256.lower():
        return f"{model.path} has another SHA-256 than MODEL_SHA256 says"
    if card.source != export:
        return f"{model.compiled} was compiled from another export than {model.path}"
    if card.notebook != _sha256(notebook_beside(model.path)):
        return f"{model.compiled} was compiled beside another notebook.py"
    return None


def compile_if_stale(model: Model, tell: Callable[[str], None]) -> None:
    """Compile the export in a process of its own, so that torch is never loaded in this one or in what it forks.

    Nothing is done where the compiled file is up to date, was not asked for, or what compiles is not installed. When it
    does not work out, the process says why, and learner.predict will serve.
    """
    if model.engine != "auto" or model.is_compiled_only or not _can_compile():
        return
    reason = why_not_compiled(model)
    if reason is None:
        return
    tell(f"{reason}. Compiling {model.path}, which happens once:")
    command = [sys.executable, "-m", "pigeonhole", "compile", str(model.path), "-o", str(model.compiled)]
    if subprocess.run(command).returncode != 0:
        tell("It is served by learner.predict instead, which is slower. ENGINE=learner does not try to compile it.")


def _can_compile() -> bool:
    return all(importlib.util.find_spec(package) for package in NEEDED_TO_COMPILE)


def _sha256(path: Path | None) -> str | None:
    if path is None:
        return None
    with path.open("rb") as file:
        return sha256_of(file)
