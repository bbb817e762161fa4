"""What the notebook defined is left out where inference does not call it, and asked for by name where it does."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from pigeonhole.errors import ModelFileError
from pigeonhole.model.doctor import diagnose
from pigeonhole.model.export.building import PickleModule
from pigeonhole.model.export.standins import StandInClass
from pigeonhole.model.learner import notebook_of, open_learner
from pigeonhole.model.predictor import Shown
from tests.conftest import ROOT
from tests.model.export.hostile import PROTOCOL_4, in_zip, literal, stack_global
from tests.model.learners import photos

NOTEBOOK = Path(__file__).with_name("a_notebook.py")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of exports of all kinds, without a notebook.py."""
    folder = tmp_path_factory.mktemp("notebook")
    photos(folder / "photos")
    Image.linear_gradient("L").convert("RGB").resize((70, 50)).save(folder / "photo.png")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, str(NOTEBOOK), str(folder)], env=environment, check=True, timeout=120)
    return folder


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "mine"))


def answers_as_the_notebook(folder: Path, kind: str) -> None:
    with Image.open(folder / "photo.png") as photo:
        prediction = open_learner(folder / f"{kind}.pkl").predict(Shown(photo.convert("RGB")))
    label, probabilities = json.loads((folder / "answers.json").read_text())[kind]
    assert prediction.success == label
    assert prediction.probabilities == pytest.approx(probabilities, abs=1e-6)


@pytest.mark.parametrize("kind", ["training-transform", "looking-callback", "lambda"])
def test_left_out(kind: str, folder: Path) -> None:
    """Labelling functions, callbacks that look on and transforms of training are not needed."""
    answers_as_the_notebook(folder, kind)


@pytest.mark.parametrize(
    ("kind", "name"), [("transform", "Invert"), ("function", "flipped"), ("network", "Net"), ("callback", "Dim")]
)
def test_asked_for_and_provided(kind: str, name: str, folder: Path) -> None:
    """What inference calls is named; a notebook.py beside the export that defines it is all it takes."""
    export = folder / f"{kind}.pkl"
    with pytest.raises(ModelFileError) as refusal:
        open_learner(export)
    assert f"its inference calls `{name}`, which the notebook defined" in str(refusal.value)
    assert "into notebook.py beside the file" in str(refusal.value)
    assert str(refusal.value) == f"MODEL={diagnose(export).problem}"
    shutil.copy(NOTEBOOK, folder / "notebook.py")
    answers_as_the_notebook(folder, kind)
    assert f"__main__.{name}" in diagnose(export).provided


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("def broken(:", "cannot be read as Python"),
        ("Invert = 1 / 0", "fails: ZeroDivisionError"),
        ("import nowhere_to_be_found\nclass Invert: pass", "fails: ModuleNotFoundError"),
        ("Invert = 3", "its inference calls `Invert`"),
    ],
)
def test_a_notebook_that_does_not_work(content: str, words: str, folder: Path) -> None:
    """A notebook.py that cannot be used is blamed by name, with its fault."""
    (folder / "notebook.py").write_text(content)
    with pytest.raises(ModelFileError) as refusal:
        open_learner(folder / "transform.pkl")
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_the_doctor_does_not_run_the_notebook(folder: Path) -> None:
    """The doctor reads notebook.py, and runs nothing of it."""
    (folder / "notebook.py").write_text("class Invert: pass\nopen('ran', 'w').close()\n")
    assert diagnose(folder / "transform.pkl").provided == ["__main__.Invert"]
    assert not (folder / "ran").exists()
    assert not Path("ran").exists()


def test_what_a_notebook_offers(tmp_path: Path) -> None:
    """What notebook.py defines, and classes of packages unknown here; nothing of Python's own or of a known package."""
    (tmp_path / "notebook.py").write_text(
        "import os\nfrom os import system\nfrom subprocess import Popen\nfrom torch.fx import GraphModule\n"
        "from flask_like import Thing\ndef get_x(path): return path\nclass Crop:\n    class Inner: pass\nsize = 3\n"
    )
    (tmp_path / "flask_like.py").write_text("class Thing: pass")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        unpickler = PickleModule(notebook_of(tmp_path / "export.pkl")).Unpickler(io.BytesIO())
    offered = {
        name
        for name in (
            "get_x",
            "Crop",
            "Crop.Inner",
            "Thing",
            "size",
            "system",
            "os.system",
            "Popen",
            "GraphModule",
            "gone",
        )
        if not isinstance(unpickler.find_class("__main__", name), StandInClass)
    }
    assert offered == {"get_x", "Crop", "Crop.Inner", "Thing"}


@pytest.mark.parametrize("name", ["os.system", "system", "run", "Popen", "Popen.__init__"])
def test_what_the_notebook_imports_is_not_the_files(name: str, tmp_path: Path) -> None:
    """A file cannot call what notebook.py merely imports, not even where nothing looked at it before."""
    (tmp_path / "notebook.py").write_text("import os\nfrom os import system\nfrom subprocess import run, Popen\n")
    canary = tmp_path / "canary"
    command = PROTOCOL_4 + stack_global("__main__", name) + b"(" + literal(f"touch {canary}") + b"tR."
    assert not diagnose(in_zip(command, tmp_path / "export.pkl")).servable
    with contextlib.suppress(ModelFileError):
        PickleModule(notebook_of(tmp_path / "export.pkl")).load(io.BytesIO(command))
    assert not canary.exists()
