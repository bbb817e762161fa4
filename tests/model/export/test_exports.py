"""Exports of every era of fastai open, and answer what they answered then.

The exports and the answers of their own `learner.predict` were made by tests/exports/make.sh, each with the fastai, the
torch and the Pillow of its time.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pigeonhole.model.doctor import diagnose
from pigeonhole.model.export.container import opened, read_container
from pigeonhole.model.export.pickles import Code, Global
from pigeonhole.model.learner import open_learner
from pigeonhole.model.predictor import Shown
from pigeonhole.model.torch_ready import import_torch
from tests.conftest import EXPORT, ROOT
from tests.model.learners import export_learner

FIXTURES = ROOT / "tests" / "exports" / "fixtures"
EXPORTS = sorted(path for path in FIXTURES.glob("*/*.pkl") if not path.parent.name.startswith("fastai-1."))
LARGEST_DIFFERENCE = 1e-5  # of a probability; the README says so


def named(path: Path) -> str:
    return f"{path.parent.name}-{path.stem}"


@cache
def answers(era: Path) -> dict[str, dict[str, Any]]:
    return json.loads((era / "answers.json").read_text())


def test_the_table_is_whole() -> None:
    """Six eras, twelve kinds each; and the package's first name, and a notebook."""
    kinds = {era.name: {path.stem for path in era.glob("*.pkl")} for era in FIXTURES.iterdir()}
    whole = [era for era, held in kinds.items() if len(held) == 12]
    assert [era.removeprefix("fastai-") for era in sorted(whole)] == [
        "2.0.13",
        "2.3.1",
        "2.5.6",
        "2.7.19",
        "2.8.12",
        "2.8.12-python-3.13",
    ]
    assert kinds["fastai2-0.0.30"] == {"plain", "multi-label"}
    assert kinds["fastai-2.0.13-notebook"] == {"function-in-main"}


@pytest.mark.parametrize("export", EXPORTS, ids=named)
def test_answers_as_then(export: Path, request: pytest.FixtureRequest) -> None:
    """It opens; and for 40 photos that it was not trained on: the same labels, the same probabilities."""
    engine = open_learner(export)
    clothing = request.getfixturevalue("clothing")  # or this is as far as it comes
    then = answers(export.parent)[export.stem]
    assert len(then) == 40
    for photo, (label, probabilities) in then.items():
        with Image.open(clothing / "validation" / photo) as picture:
            now = engine.predict(Shown(picture.convert("RGB")))
        assert now.success == label
        assert max(abs(a - b) for a, b in zip(now.probabilities, probabilities, strict=True)) <= LARGEST_DIFFERENCE
    assert len({str(label) for label, _ in then.values()}) > 1  # it does tell photos apart


@pytest.mark.parametrize("export", EXPORTS, ids=named)
def test_doctor(export: Path) -> None:
    """The doctor finds each of them servable, and knows its era, labels and transforms."""
    diagnosis = diagnose(export)
    assert (diagnosis.problem, diagnosis.refused, diagnosis.missing) == (None, [], [])
    anatomy = diagnosis.anatomy
    assert anatomy is not None
    assert anatomy.multi_label == (export.stem == "multi-label")
    assert anatomy.era.startswith(ERAS[export.parent.name])
    assert anatomy.labels[-1] in ("t-shirt", "True")
    assert TRANSFORMS.get(export.stem, "Resize(size=(64, 64), method=crop") in str(anatomy)
    assert anatomy.needed == ()
    by_name_only = export.stem == "user-callbacks" and "2.8" not in export.parent.name
    assert diagnosis.callbacks == ["__main__.CountSteps"] * by_name_only


def test_a_callback_of_which_there_is_only_a_name(caplog: pytest.LogCaptureFixture) -> None:
    """Until fastai 2.7 nobody can tell what a callback of the notebook does; that it is left out is said at a start."""
    open_learner(FIXTURES / "fastai-2.7.19" / "user-callbacks.pkl")
    assert "the callback `CountSteps` of the notebook is left out; if it changes" in caplog.text


ERAS = {
    "fastai2-0.0.30": "fastai2, before 2.0",
    "fastai-2.0.13": "fastai 2.0 or 2.1",
    "fastai-2.0.13-notebook": "fastai 2.0 or 2.1",
    "fastai-2.3.1": "fastai 2.0 to 2.3",
    "fastai-2.5.6": "fastai 2.4 to 2.6",
    "fastai-2.7.19": "fastai 2.7",
    "fastai-2.8.12": "fastai 2.8",
    "fastai-2.8.12-python-3.13": "fastai 2.8, Python 3.13 or later",
}
TRANSFORMS = {
    "presizing": "RandomResizedCropGPU(size=(64, 64), min_scale=0.75",
    "squish": "method=squish",
    "pad": "method=pad, pad_mode=zeros",
    "random-resized-crop": "RandomResizedCrop(size=(64, 64)",
}


def test_what_a_notebook_leaves() -> None:
    """The export of a notebook holds what only a notebook leaves: display handles, progress bars of HTML."""
    diagnosis = diagnose(FIXTURES / "fastai-2.0.13-notebook" / "function-in-main.pkl")
    assert any("DisplayHandle" in name for name in diagnosis.left_out)
    assert any("NBProgressBar" in name for name in diagnosis.left_out)
    assert diagnosis.notebook == ["__main__.half_right", "__main__.label_of"]


PLAIN = """
import pathlib, sys, warnings
from pigeonhole.model.torch_ready import import_torch
import_torch()
warnings.simplefilter("ignore")
from fastai.learner import load_learner
if len(sys.argv) > 3:
    sys.modules["pathlib._local"] = pathlib  # as on the Python it comes from
learner = load_learner(sys.argv[1])
print("loaded", flush=True)
with learner.no_bar():
    print(learner.predict(sys.argv[2])[0])
"""


FAILURES = {  # (export, whether pathlib._local is there): (how far plain fastai comes, its error)
    ("fastai-2.7.19", False): ("", "attempted to import from `fastcore.dispatch`"),
    ("fastai-2.8.12-python-3.13", False): ("", "cannot access local variable 'res'"),  # fastai's, after an ImportError
    ("fastai-2.8.12-python-3.13", True): ("loaded\n", "SystemError"),  # another Python's bytecode
}


@pytest.mark.parametrize(("era", "mended"), FAILURES, ids=["2.7", "python-3.13", "python-3.13-mended"])
def test_where_fastai_itself_fails(era: str, mended: bool, tmp_path: Path) -> None:
    """fastai 2.8 opens neither an export of 2.7 nor one of Python 3.13; mended, that one breaks when it predicts."""
    photo = tmp_path / "photo.png"
    Image.new("RGB", (80, 60), "red").save(photo)
    export = FIXTURES / era / "plain.pkl"
    command = [sys.executable, "-c", PLAIN, str(export), str(photo), *["mended"] * mended]
    plain = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    reached, error = FAILURES[era, mended]
    assert plain.returncode != 0
    assert plain.stdout == reached
    assert error in plain.stderr or plain.returncode < 0  # or the process is killed: what such code does is chance
    with Image.open(photo) as picture:
        assert open_learner(export).predict(Shown(picture)).success in open_learner(export).labels


def test_bytecode_is_in_them() -> None:
    """The exports of fastai 2.8 do carry bytecode, and nothing of it is among what is built."""
    for era in ("fastai-2.8.12", "fastai-2.8.12-python-3.13"):
        with opened(FIXTURES / era / "function-in-main.pkl") as file:
            nodes = read_container(file).pickle.nodes
        carried = {str(node) for node in nodes if isinstance(node, Code)}
        assert {"__main__.label_of", "fastai.vision.core.PILBase.create"} <= carried


def test_legacy_container(tmp_path: Path) -> None:
    """A learner in torch's older format, with the source of its classes in it, answers the same."""
    torch = import_torch()
    import cloudpickle
    from fastai.learner import load_learner

    export, path = export_learner(tmp_path / "learner", "colour"), tmp_path / "legacy.pkl"
    learner = load_learner(export)
    torch.save(learner, path, _use_new_zipfile_serialization=False, pickle_module=cloudpickle, pickle_protocol=2)
    assert diagnose(path).container == "legacy"
    picture = Image.linear_gradient("L").convert("RGB")
    assert open_learner(path).predict(Shown(picture)) == open_learner(export).predict(Shown(picture))


@pytest.mark.parametrize("export", [*EXPORTS, EXPORT], ids=named)
def test_a_second_reader(export: Path) -> None:
    """fickling, which reads pickles in a way of its own, sees the same names in them.

    (Those of the module types are cloudpickle's `_builtin_type("CodeType")` and the like, which we take by their word.)
    """
    from fickling import fickle

    with zipfile.ZipFile(export) as archive:
        data = archive.read(next(name for name in archive.namelist() if name.endswith("/data.pkl")))
    operations = fickle.Pickled.load(io.BytesIO(data))
    theirs = {tuple(op.arg.split(" ")) for op in operations if isinstance(op, fickle.Global)}
    with opened(export) as file:
        nodes = read_container(file).pickle.nodes
    ours = {(node.module, node.name) for node in nodes if type(node) is Global}
    assert {modern(*pair) for pair in theirs} == {(module, name) for module, name in ours if module != "types"}


def modern(module: str, name: str) -> tuple[str, str]:
    """Python 3's name for one of Python 2's."""
    from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING

    return NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
