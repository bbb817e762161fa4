"""`python -m pigeonhole doctor` tells what is in an export and whether it can be served, and runs nothing of it."""

from __future__ import annotations

import hashlib
import json
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pigeonhole.cli import main
from pigeonhole.model.doctor import diagnose
from tests.conftest import EXPORT, ROOT, StartServer
from tests.model.export.hostile import copied, in_zip, learner_pickle

SHA256 = hashlib.sha256(EXPORT.read_bytes()).hexdigest()
FIXTURES = ROOT / "tests" / "exports" / "fixtures"


def test_the_demo(capsys: pytest.CaptureFixture[str]) -> None:
    """The demo: what it is, by whom, with which labels and transforms; exit status 0."""
    assert main(["doctor", str(EXPORT)]) == 0
    lines = dict(line.split(":", 1) for line in capsys.readouterr().out.splitlines())
    told = {name: value.strip() for name, value in lines.items()}
    assert told["container"] == "zip"
    assert told["SHA-256"] == SHA256
    assert told["exported by"] == "fastai 2.8"
    assert told["labels"].startswith("10: dress, hat, longsleeve")
    assert told["answer"] == "one label"
    assert re.search(r"; 5,6\d\d,\d{3} parameters$", told["network"])
    assert "RandomResizedCrop(size=(128, 128)" in told["item transforms"]
    assert "Normalize" in told["batch transforms"]
    assert "fastai.metrics.accuracy" in told["left out"]
    assert told["verdict"].startswith("it can be served")


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    """The same for programs; of a file that cannot be served too, with exit status 1."""
    assert main(["doctor", str(EXPORT), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["servable"], told["problem"], told["sha256"], told["refused"]) == (True, None, SHA256, [])
    assert (told["anatomy"]["labels"][:2], told["anatomy"]["multi_label"]) == (["dress", "hat"], False)
    assert main(["doctor", "gone.pkl", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["problem"].startswith("gone.pkl is not there")


def test_without_torch() -> None:
    """Looking into a file loads neither torch nor fastai."""
    code = f"""
import sys
from pathlib import Path
from pigeonhole.model.doctor import diagnose
assert diagnose(Path({str(EXPORT)!r})).servable
print([name for name in ("torch", "fastai", "timm", "numpy") if name in sys.modules])"""
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout == "[]\n"


def test_pinned(monkeypatch: pytest.MonkeyPatch, start_server: StartServer, tmp_path: Path) -> None:
    """MODEL_SHA256 pins the file: another one is named and not opened, by the doctor and by the service."""
    assert diagnose(EXPORT, SHA256.upper()).servable
    wrong = "0" * 64
    assert f"its SHA-256 is {SHA256}, and MODEL_SHA256 says {wrong}" in str(diagnose(EXPORT, wrong).problem)
    monkeypatch.setenv("MODEL_SHA256", wrong)
    assert main(["doctor", str(EXPORT)]) == 1
    server = start_server(MODEL_SHA256=wrong, UPLOADS=str(tmp_path), wait=False)
    assert server.process.wait(60) != 0
    assert f"MODEL_SHA256 says {wrong}; it was not read" in server.log.read_text()


def test_modules_that_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packages that the learner needs and that are not installed are listed."""
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "timm" else found(name))
    diagnosis = diagnose(FIXTURES / "fastai-2.8.12" / "timm.pkl")
    assert diagnosis.missing == ["timm"]
    assert "timm is not installed here; `make serve` installs it" in str(diagnosis.problem)
    assert diagnose(FIXTURES / "fastai-2.8.12" / "plain.pkl").servable


def test_a_network_of_an_old_timm_that_nobody_compared(tmp_path: Path) -> None:
    """A network of timm before 0.9 is refused if its answers were not compared: today's code may mean another."""
    problems = {}
    for version in ("2.5.6", "2.7.19"):
        source = FIXTURES / f"fastai-{version}" / "timm.pkl"
        renamed = learner_pickle(source).replace(b"\nDenseNet\n", b"\nDenserNet\n")
        problems[version] = diagnose(copied(tmp_path / "export.pkl", source, **{"data.pkl": renamed})).problem
    assert "its network, DenserNet, was exported with timm 0.8 or before" in str(problems["2.5.6"])
    assert problems["2.7.19"] is None


def test_escapes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A hostile file cannot steer the terminal of who looks into it."""
    in_zip(b"\x80\x02cos\n\x1b[2Jsystem\n.", tmp_path / "export.pkl")
    assert main(["doctor", str(tmp_path / "export.pkl")]) == 1
    printed = capsys.readouterr().out
    assert "os.?[2Jsystem" in printed
    assert "\x1b" not in printed


def test_damaged_pickles(tmp_path: Path) -> None:
    """Whatever stands in the pickle, the doctor has a sentence for it."""
    source = FIXTURES / "fastai-2.7.19" / "function-in-main.pkl"
    pickle = learner_pickle(source)
    dice = random.Random(7)
    sentences = set()
    for _ in range(150):
        changed = bytearray(pickle)
        for _ in range(dice.choice((1, 1, 3, 30))):
            changed[dice.randrange(len(changed))] = dice.randrange(256)
        diagnosis = diagnose(copied(tmp_path / "export.pkl", source, **{"data.pkl": bytes(changed)}))
        assert diagnosis.problem is None or diagnosis.problem.startswith(str(tmp_path))
        sentences.add(str(diagnosis.problem).partition("served: ")[2][:12])
    assert len(sentences) > 2
