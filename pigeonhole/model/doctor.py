"""Look into an export without running anything of it, and say whether and how it can be served.

`open_learner` asks the same question first, so what `doctor` calls servable is what the service opens, up to what shows
only when the network runs.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from pigeonhole.errors import ModelFileError
from pigeonhole.model.export.anatomy import Anatomy, dissect, other_kind
from pigeonhole.model.export.container import Container, check_file, opened, read_container
from pigeonhole.model.export.judging import Findings, judge_pickle, refusal
from pigeonhole.model.export.names import NOTEBOOK, judge
from pigeonhole.model.export.pickles import printable

OTHER_PACKAGES = ("fastai", "pandas", "pyarrow", "numpy", "scipy", "sklearn", "joblib")
DEFINITIONS = (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)
NOTEBOOK_FILE = "notebook.py"
LEARNER_PACKAGES = ("fastai", "torch", "torchvision", "timm")


@dataclass
class Diagnosis:
    """What is in an export. `problem` says why it cannot be served, and what to do; None if it can be.

    `left_out` are the names that get a stand-in; `notebook` those that the notebook defined, and `provided` what of
    them notebook.py defines; `refused` what no image learner needs; `missing` packages to install; `callbacks` the
    notebook's, which are left out although nobody can tell what they do.
    """

    file: str
    problem: str | None = None
    container: str = ""
    size: int = 0
    sha256: str = ""
    anatomy: Anatomy | None = None
    left_out: list[str] = field(default_factory=list)
    notebook: list[str] = field(default_factory=list)
    provided: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    callbacks: list[str] = field(default_factory=list)

    @property
    def servable(self) -> bool:
        return self.problem is None

    def as_json(self) -> dict[str, Any]:
        return {"servable": self.servable, **asdict(self)}


def notebook_beside(path: Path) -> Path | None:
    """The user's `notebook.py` beside the export, if there is one."""
    file = path.parent / NOTEBOOK_FILE
    return file if file.is_file() else None


def diagnose(path: Path, sha256: str | None = None, allowed: Collection[str] = ()) -> Diagnosis:
    """Look into the export in `path`, which has to have this SHA-256 if one is given; `allowed` names are admitted."""
    try:
        check_file(path)
        with opened(path) as file:
            return diagnose_file(file, path, sha256, allowed)
    except ModelFileError as error:
        return Diagnosis(str(path), str(error).removeprefix("MODEL="))


def diagnose_file(file: IO[bytes], path: Path, sha256: str | None, allowed: Collection[str]) -> Diagnosis:
    """The same for a file that is open already; `path` is where it lies."""
    diagnosis = Diagnosis(str(path))
    try:
        _examine(diagnosis, read_container(file, sha256), allowed)
    except (
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
        RecursionError,
    ):  # whatever a hostile file is built like
        diagnosis.problem = f"{path} cannot be served: it is not built like an export; export the learner again."
    except ModelFileError as error:
        diagnosis.problem = printable(f"{path} cannot be served: {error}")
    return diagnosis


def _examine(diagnosis: Diagnosis, container: Container, allowed: Collection[str]) -> None:
    diagnosis.container, diagnosis.size, diagnosis.sha256 = container.kind, container.size, container.sha256
    findings = judge_pickle(container.pickle, allowed)
    diagnosis.refused = findings.refused
    other = other_kind(container.pickle)
    if other and all(map(_is_of_another_kind, findings.refused)):
        raise ModelFileError(other)
    _list_names(diagnosis, findings)
    if findings.refused:
        raise refusal(findings.refused)
    diagnosis.anatomy = dissect(container.pickle, frozenset(allowed))
    diagnosis.callbacks = list(diagnosis.anatomy.callbacks)
    if diagnosis.anatomy.trouble:
        raise ModelFileError(diagnosis.anatomy.trouble)
    if container.kind == "pickle":
        raise ModelFileError("it is a bare pickle, without weights; copy the whole file that learn.export() wrote.")
    _check_needed(diagnosis)


def _is_of_another_kind(refused: str) -> bool:
    """Is it what files of another kind are full of (scikit-learn's, fastai 1's, learners of texts and tables)?"""
    named = re.findall(r"[\w<>]+(?:\.[\w<>]+)+", refused)
    plain = ("builtins.getattr", "types.MethodType", "builtins.type", "functools.partial")
    return bool(named) and all(name in plain or name.partition(".")[0] in OTHER_PACKAGES for name in named)


def _list_names(diagnosis: Diagnosis, findings: Findings) -> None:
    diagnosis.left_out = sorted(str(findings.verdicts[name]) for name in findings.with_fate("left out"))
    diagnosis.notebook = sorted(findings.with_fate("notebook"))
    modules = {verdict.module.partition(".")[0] for verdict in findings.verdicts.values() if verdict.fate != "left out"}
    diagnosis.missing = [
        name for name in LEARNER_PACKAGES if name in modules and importlib.util.find_spec(name) is None
    ]


def _check_needed(diagnosis: Diagnosis) -> None:
    """Raises ModelFileError if inference calls what nobody provides."""
    assert diagnosis.anatomy is not None
    if diagnosis.missing:
        raise ModelFileError(f"{' and '.join(diagnosis.missing)} is not installed here; `make serve` installs it.")
    beside = notebook_beside(Path(diagnosis.file))
    defined = defined_in(beside) if beside else set()
    diagnosis.provided = [name for name in diagnosis.notebook if name_of(name) in defined]
    diagnosis.callbacks = [name for name in diagnosis.callbacks if name_of(name) not in defined]
    wanted = [name for name in diagnosis.anatomy.needed if name_of(name) not in defined]
    if wanted:
        raise ModelFileError(not_provided(wanted))


def not_provided(wanted: Collection[str]) -> str:
    """The sentence for names that inference needs and nobody provides."""
    named = ", ".join(f"`{name_of(name)}`" for name in wanted)
    many = len(wanted) > 1
    ours = [name for name in wanted if judge(*name.rpartition(".")[::2]).fate == "left out"]
    if ours:
        return f"its inference calls {', '.join(ours)}, which is left out here; no image learner was known to call it."
    if any("<" in name for name in wanted):
        return f"its inference calls {named} of the notebook; give what has no name a name there, and export again."
    return (
        f"its inference calls {named}, which the notebook defined and the file does not hold; put "
        f"{'their definitions' if many else 'its definition'}, imports and all, into {NOTEBOOK_FILE} beside the file."
    )


def mind(callback: str) -> str:
    """The warning for a callback of the notebook of which the file holds the name only."""
    return (
        f"the callback `{name_of(callback)}` of the notebook is left out; if it changes what the network sees or says, "
        f"define it in {NOTEBOOK_FILE}"
    )


def name_of(name: str) -> str:
    """What notebook.py has to define: `Crop` for `__main__.Crop`, and for `__main__.Crop.Middle`."""
    return (
        name.removeprefix(NOTEBOOK + ".").partition(".")[0]
        if name.startswith(NOTEBOOK + ".")
        else name.rpartition(".")[2]
    )


def defined_in(notebook: Path) -> set[str]:
    """The names that `notebook` defines or imports at its top level, read and not run.

    Raises:
        ModelFileError: it is no Python.
    """
    try:
        tree = ast.parse(notebook.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError, OSError) as error:
        raise ModelFileError(f"{notebook} beside it cannot be read as Python: {error}.") from error
    defined: set[str] = set()
    for node in [inner for top in tree.body for inner in ([top] if isinstance(top, DEFINITIONS) else ast.walk(top))]:
        if isinstance(node, DEFINITIONS):
            defined.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            defined |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            defined.add(node.id)
    return defined


def as_text(diagnosis: Diagnosis) -> str:
    """For a person, in lines of `name: value`."""
    verdict = diagnosis.problem or "it can be served; nothing of it was run to find out."
    rows = [("file", diagnosis.file), *_about_the_file(diagnosis), *_about_the_learner(diagnosis.anatomy)]
    rows += [(title, ", ".join(listed)) for title, listed in _lists(diagnosis) if listed]
    return "\n".join(f"{title + ':':<18}{printable(text)}" for title, text in [*rows, ("verdict", verdict)])


def _about_the_file(diagnosis: Diagnosis) -> list[tuple[str, str]]:
    if not diagnosis.sha256:
        return []
    size = f"{diagnosis.size / 1e6:.1f} MB"
    return [("container", diagnosis.container), ("size", size), ("SHA-256", diagnosis.sha256)]


def _about_the_learner(anatomy: Anatomy | None) -> list[tuple[str, str]]:
    if anatomy is None:
        return []
    return [
        ("exported by", anatomy.era),
        ("network", anatomy.network),
        ("labels", f"{len(anatomy.labels)}: {', '.join(anatomy.labels)}"),
        ("answer", "several labels" if anatomy.multi_label else "one label"),
        ("item transforms", ", ".join(anatomy.item_transforms) or "none"),
        ("batch transforms", ", ".join(anatomy.batch_transforms) or "none"),
    ]


def _lists(diagnosis: Diagnosis) -> list[tuple[str, list[str]]]:
    return [
        ("of the notebook", diagnosis.notebook),
        ("in notebook.py", diagnosis.provided),
        ("left out", diagnosis.left_out),
        ("not installed", diagnosis.missing),
        ("refused", diagnosis.refused),
        ("mind", [mind(name) for name in diagnosis.callbacks]),
    ]
