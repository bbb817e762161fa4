"""Nothing in a file runs: each attack is refused by name, in every container, by the doctor and by the service."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from pigeonhole.errors import ModelFileError
from pigeonhole.model.doctor import diagnose
from pigeonhole.model.learner import open_learner
from tests.conftest import ROOT, StartServer
from tests.model.export.hostile import (
    ATTACKS,
    CONTAINERS,
    PROTOCOL_2,
    Attack,
    call,
    copied,
    in_legacy,
    in_zip,
    learner_pickle,
    touch,
)


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())
def test_attacks(attack: Attack, container: str, tmp_path: Path) -> None:
    """An attack is named and not run."""
    opcodes, named, _ = attack
    canary = tmp_path / "canary"
    path = CONTAINERS[container](opcodes(canary), tmp_path / "export.pkl")
    diagnosis = diagnose(path)
    assert not diagnosis.servable
    with pytest.raises(ModelFileError) as refusal:
        open_learner(path)
    assert str(refusal.value) == f"MODEL={diagnosis.problem}"
    assert named in str(refusal.value)
    assert not canary.exists()


RUN_PLAINLY = """
import pickle, sys, torch
for path in sys.argv[1:]:
    try: torch.load(path, pickle_module=pickle, weights_only=False)
    except Exception: pass
"""


def test_the_attacks_are_real(tmp_path: Path) -> None:
    """Plain torch.load does run those that are marked so, from both of its containers."""
    paths, canaries = [], []
    for number, (opcodes, _, runs) in enumerate(ATTACKS.values()):
        for kind in (in_zip, in_legacy):
            canary = tmp_path / f"{kind.__name__}-{number}"
            paths.append(str(kind(opcodes(canary), tmp_path / f"{kind.__name__}-{number}.pkl")))
            canaries += [canary] if runs else []
    subprocess.run([sys.executable, "-c", RUN_PLAINLY, *paths], cwd=tmp_path, capture_output=True, timeout=120)
    assert [canary.name for canary in canaries if not canary.exists()] == []


@pytest.mark.parametrize("container", ["zip", "legacy"])
def test_the_service_and_the_doctor(container: str, tmp_path: Path, start_server: StartServer) -> None:
    """Neither the service nor `doctor` runs it; both name it, and end with an error."""
    canary = tmp_path / "canary"
    hostile = PROTOCOL_2 + call("posix", "system", touch(canary)) + b"."
    path = CONTAINERS[container](hostile, tmp_path / "export.pkl")
    server = start_server(MODEL=str(path), UPLOADS=str(tmp_path / "uploads"), wait=False)
    assert server.process.wait(60) != 0
    assert "it holds posix.system, which no image learner needs" in server.log.read_text()
    doctor = subprocess.run(
        [sys.executable, "-m", "pigeonhole", "doctor", str(path)], cwd=ROOT, capture_output=True, text=True
    )
    assert (doctor.returncode, doctor.stderr) == (1, "")
    assert "refused:          posix.system" in doctor.stdout
    assert "Traceback" not in server.log.read_text()
    assert not canary.exists()


def test_a_command_after_the_learner(tmp_path: Path) -> None:
    """A learner with a command behind it, on the stack or after the end, is refused; the copy alone is not."""
    canary = tmp_path / "canary"
    learner, command = learner_pickle(), call("posix", "system", touch(canary))
    assert diagnose(copied(tmp_path / "copy.pkl")).problem is None
    hidden = copied(tmp_path / "hidden.pkl", **{"data.pkl": learner[:-1] + command + b"0."})
    assert "it holds posix.system" in str(diagnose(hidden).problem)
    behind = copied(tmp_path / "behind.pkl", **{"data.pkl": learner + PROTOCOL_2 + command + b"."})
    assert "goes on after its end" in str(diagnose(behind).problem)
    for path in (hidden, behind):
        with pytest.raises(ModelFileError):
            open_learner(path)
    assert not canary.exists()


@pytest.mark.parametrize("name", ["other.pkl", "data/evil.pkl", "code/__torch__.py"])
def test_a_second_pickle(name: str, tmp_path: Path) -> None:
    """A zip with parts that torch does not write is refused, whatever is in them."""
    path = copied(tmp_path / "export.pkl", **{name: PROTOCOL_2 + call("posix", "system", "true") + b"."})
    assert any(words in str(diagnose(path).problem) for words in ("which torch.save does not write", "TorchScript"))


def test_two_pickles_of_one_name(tmp_path: Path) -> None:
    """Readers of zips do not agree on which of two parts of one name counts; such a file is refused."""
    path = copied(tmp_path / "export.pkl")
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/data.pkl", learner_pickle())
    assert "'data.pkl' twice" in str(diagnose(path).problem)


def test_a_pickle_where_numbers_belong(tmp_path: Path) -> None:
    """The small pickles around the learner in a legacy file may hold nothing that is called."""
    canary = tmp_path / "canary"
    path = in_legacy(b"}.", tmp_path / "export.pkl")
    command = PROTOCOL_2 + call("posix", "system", touch(canary)) + b"."
    path.write_bytes(path.read_bytes().replace(b"\x80\x02]q\x00.", command))
    assert "as none does" in str(diagnose(path).problem)
    assert not canary.exists()


def test_allowed_by_name(tmp_path: Path) -> None:
    """ALLOW_PICKLE_GLOBALS admits what it names and nothing more; then the file is no learner, and says so."""
    path = in_zip(PROTOCOL_2 + call("posix", "getpid") + b".", tmp_path / "export.pkl")
    assert "it holds posix.getpid" in str(diagnose(path).problem)
    assert "not what learn.export() writes" in str(diagnose(path, allowed={"posix.getpid"}).problem)
    assert "it holds posix.getpid" in str(diagnose(path, allowed={"posix.getppid"}).problem)
