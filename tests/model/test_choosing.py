"""The compiled file serves where it belongs to the export; what else happens is said in one line."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pigeonhole.errors import CompiledFileError, ModelFileError
from pigeonhole.intake.pictures import open_probe
from pigeonhole.model import choosing
from pigeonhole.model.card import sha256_of_file as sha256
from pigeonhole.model.choosing import Model, check_model, compile_if_stale, open_engine
from pigeonhole.settings import MIB, Settings
from pigeonhole.wiring import model_of
from tests.model.compiled import rewritten
from tests.model.test_exports_compiled import FOLDER


def served(folder: Path, name: str = "export.pkl", **options: Any) -> str:
    """Which engine serves the model in `folder`."""
    return open_engine(Model(folder / name, **options), open_probe).about["engine"]


def test_where_all_is_well(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The compiled file serves, one line says so, and what it tells of itself is true."""
    with caplog.at_level(logging.INFO, "pigeonhole"):
        assert served(folder) == "compiled"
    (line,) = caplog.messages
    assert line.startswith(f"answers come from {folder / 'export.onnx'}, ")
    assert re.search(r"proven on \d+ pictures to within", line)
    engine = open_engine(Model(folder / "export.pkl", precision="exact"), open_probe)
    about = {"engine": "compiled", "precision": "float32", "device": "cpu"}
    assert engine.about == {**about, "model_sha256": sha256(folder / "export.pkl")}


def other_export(folder: Path) -> None:
    shutil.copy(FOLDER / "squish.pkl", folder / "export.pkl")


def notebook(folder: Path) -> None:
    (folder / "notebook.py").write_text("x = 1")


def damage(folder: Path) -> None:
    content = (folder / "export.onnx").read_bytes()
    (folder / "export.onnx").write_bytes(content[:5000] + b"\0" + content[5001:])


def missing(folder: Path) -> None:
    (folder / "export.onnx").unlink()


STALE = {
    other_export: "was compiled from another export than",
    notebook: "was compiled beside another notebook.py",
    damage: "is damaged",
    missing: "is not there",
}


@pytest.mark.parametrize("change", STALE, ids=lambda change: change.__name__)
def test_stale(folder: Path, change: Callable[[Path], None], caplog: pytest.LogCaptureFixture) -> None:
    """A compiled file that does not belong to the export does not serve; learner.predict does, and the log says why."""
    change(folder)
    with caplog.at_level(logging.INFO, "pigeonhole"):
        assert served(folder) == "learner"
    assert caplog.messages[-1].startswith("answers come from learner.predict, on cpu: ")
    assert STALE[change] in caplog.messages[-1]
    with pytest.raises(CompiledFileError, match=STALE[change]) as refusal:
        served(folder, engine="compiled")
    assert str(refusal.value).endswith("run `python -m pigeonhole compile` on the export.")
    assert served(folder, engine="learner") == "learner"


def test_the_compiled_file_alone(folder: Path) -> None:
    """Without the export the compiled file serves, by its own name or beside the export's; but it has to be whole."""
    (folder / "export.pkl").unlink()
    check_model(Model(folder / "export.pkl"))
    assert served(folder) == served(folder, "export.onnx") == served(folder, engine="compiled") == "compiled"
    with pytest.raises(ModelFileError, match="is not there"):
        served(folder, engine="learner")
    with pytest.raises(ModelFileError, match=r"learner.predict needs the export.pkl it was made of"):
        served(folder, "export.onnx", engine="learner")
    damage(folder)
    for name in ("export.pkl", "export.onnx"):
        with pytest.raises(CompiledFileError, match="is damaged"):
            served(folder, name)
    missing(folder)
    for name in ("export.pkl", "export.onnx"):
        with pytest.raises(ModelFileError, match=f"MODEL=.*{name} is not there"):
            check_model(Model(folder / name))


@pytest.mark.parametrize("place", [".", "/", "model"])
def test_a_folder(place: str, tmp_path: Path) -> None:
    """A folder is no model, however it is called."""
    (tmp_path / "model").mkdir()
    with pytest.raises(ModelFileError):
        check_model(Model(Path(place) if place != "model" else tmp_path / place))


def test_pinned(folder: Path) -> None:
    """MODEL_SHA256 pins the file that is named: the export, or the compiled file where that is all there is."""
    assert served(folder, sha256=sha256(folder / "export.pkl").upper()) == "compiled"
    assert served(folder, "export.onnx", sha256=sha256(folder / "export.onnx")) == "compiled"
    with pytest.raises(ModelFileError, match="SHA-256"):
        served(folder, sha256="0" * 64)
    with pytest.raises(ModelFileError, match="has another SHA-256 than MODEL_SHA256 says"):
        served(folder, "export.onnx", sha256=sha256(folder / "export.pkl"))


def test_a_file_that_answers_otherwise(folder: Path, compiled: Callable[[str], Path]) -> None:
    """A whole file that fails its known-answer test stops the start, whatever the export could do."""
    from tests.model.compiled import swapped

    rewritten(compiled("plain"), folder / "export.onnx", lambda card: swapped(card, 0, 1))
    with pytest.raises(CompiledFileError, match="does not give the answers"):
        served(folder)


@pytest.mark.parametrize("status", [0, 1])
def test_compiled_when_stale(folder: Path, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    """It is compiled in a process of its own, when it has to be; when that fails, it says what happens instead."""
    commands: list[list[str]] = []
    told: list[str] = []

    def run(command: list[str], **options: Any) -> Any:
        commands.append(command)
        return type("Done", (), {"returncode": status})

    monkeypatch.setattr(choosing.subprocess, "run", run)
    compile_if_stale(Model(folder / "export.pkl"), told.append)
    assert (commands, told) == ([], [])
    other_export(folder)
    for engine in ("learner", "compiled"):
        compile_if_stale(Model(folder / "export.pkl", engine=engine), told.append)  # type: ignore[arg-type]
    compile_if_stale(Model(folder / "export.onnx"), told.append)
    assert commands == []
    compile_if_stale(Model(folder / "export.pkl"), told.append)
    assert [command[1:] for command in commands] == [
        ["-m", "pigeonhole", "compile", str(folder / "export.pkl"), "-o", str(folder / "export.onnx")]
    ]
    assert "another export" in told[0]
    assert ["was not made" in line for line in told[1:]] == [True] * status
    monkeypatch.setattr(choosing, "NEEDED_TO_COMPILE", ("not_installed",))
    compile_if_stale(Model(folder / "export.pkl"), told.append)
    assert len(commands) == 1


def test_somebody_elses_onnx(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file beside the export that is not ours is not compiled over."""
    (folder / "export.onnx").write_bytes(b"a model of my own")
    monkeypatch.setattr(choosing.subprocess, "run", lambda command: pytest.fail("it is compiled over"))
    told: list[str] = []
    compile_if_stale(Model(folder / "export.pkl"), told.append)
    assert "It is left alone" in told[0]


def test_of_settings() -> None:
    """What is to be served is what the settings say."""
    settings = Settings(
        model="x.pkl", engine="compiled", precision="exact", workers=3, memory=99, model_sha256="a" * 64, device="mps"
    )
    assert model_of(settings) == Model(Path("x.pkl"), "a" * 64, frozenset(), "compiled", "exact", 3, 99 * MIB, "mps")
