"""The serving packages alone serve the whole thing: no torch, no fastai, nothing that phones home."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import EXPORT, ROOT, StartServer
from tests.test_serving import post

LOCK = json.loads((ROOT / "Pipfile.lock").read_text())

# run as `python -c`, so that what is not in the serving environment cannot be imported; connections are counted
ALONE = """
import importlib.abc, json, sys

class Nothing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

ABSENT = set(json.loads(sys.argv[1]))
sys.meta_path.insert(0, Nothing())
connections = []
sys.addaudithook(lambda event, arguments: connections.append(arguments) if event == "socket.connect" else None)

from app import create_app
client = create_app().test_client()
answers = [client.get("/ready").json]
for path in sys.argv[2:]:
    with open(path, "rb") as file:
        answers.append(client.post("/predict", data={"image": (file, "x.jpg")}).json)
loaded = sorted({name.partition(".")[0] for name in sys.modules})
print(json.dumps({"answers": answers, "connections": len(connections), "loaded": loaded}))
"""


def modules_of_the_learner() -> list[str]:
    """What the learner category installs and the serving one does not, by the names they are imported by."""
    import importlib.metadata

    serving = {name.lower() for name in LOCK["default"]}
    modules = set()
    for module, packages in importlib.metadata.packages_distributions().items():
        if not {package.lower().replace("_", "-") for package in packages} & serving:
            modules.add(module)
    return sorted(modules & {name.replace("-", "_") for name in LOCK["learner"]})


@pytest.fixture
def alone(compiled_demo: Path, tmp_path: Path) -> Path:
    (tmp_path / "alone").mkdir()
    shutil.copy(compiled_demo, tmp_path / "alone" / "export.onnx")
    return tmp_path / "alone" / "export.onnx"


def test_without_the_learner_packages(
    alone: Path, one_of_each: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With export.onnx and the serving packages, photos are answered; nothing of the learner's is loaded."""
    absent = modules_of_the_learner()
    assert {"torch", "torchvision", "fastai", "timm", "onnx", "onnxscript", "fastcore"} <= set(absent)
    monkeypatch.setenv("MODEL", str(alone))
    monkeypatch.setenv("UPLOADS", str(alone.parent.parent / "uploads"))
    command = [sys.executable, "-c", ALONE, json.dumps(absent), *map(str, one_of_each.values())]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    seen = json.loads(result.stdout)
    ready, *answers = seen["answers"]
    assert (ready["success"], ready["engine"]) == ("ready", "compiled")
    assert [answer["success"] in one_of_each for answer in answers] == [True] * 10
    assert seen["connections"] == 0
    assert not {*absent, "openvino_telemetry"} & set(seen["loaded"])


def test_no_telemetry_is_installed() -> None:
    """No category of the lock holds OpenVINO's telemetry, what serves and compiles holds none, and it is not here."""
    assert not [category for category in LOCK.values() if "openvino-telemetry" in category]
    assert not [name for category in ("default", "learner") for name in LOCK[category] if "telemetry" in name]
    assert subprocess.run([sys.executable, "-c", "import openvino_telemetry"], capture_output=True).returncode == 1


def test_the_first_start_compiles(start_server: StartServer, tmp_path: Path, one_of_each: dict[str, Path]) -> None:
    """`make serve`'s first start compiles the export, the second does not, and both answer the same."""
    (tmp_path / "model").mkdir()
    model = Path(shutil.copy(EXPORT, tmp_path / "model"))
    photos = [path.read_bytes() for path in one_of_each.values()]
    answers = []
    for first in (True, False):
        server = start_server(MODEL=str(model), UPLOADS=str(tmp_path / "uploads"))
        answers.append([post(server, photo) for photo in photos])
        assert server.stop() == 0
        log = server.log.read_text()
        assert ("Compiling" in log, "same label as learner.predict" in log) == (first, first)
        assert "answers come from" in log
    assert answers[0] == answers[1]
    assert sorted(path.name for path in model.parent.iterdir()) == ["export.onnx", "export.pkl"]


def test_both_engines_say_the_same(
    start_server: StartServer, alone: Path, tmp_path: Path, one_of_each: dict[str, Path]
) -> None:
    """ENGINE=learner and the compiled model, exact or not, say the same over HTTP."""
    photos = [path.read_bytes() for path in one_of_each.values()]
    shutil.copy(EXPORT, alone.parent)
    answers = []
    for settings in ({"ENGINE": "learner"}, {"ENGINE": "compiled"}, {"ENGINE": "compiled", "PRECISION": "exact"}):
        server = start_server(MODEL=str(alone.with_suffix(".pkl")), UPLOADS=str(tmp_path / "uploads"), **settings)
        answers.append([post(server, photo) for photo in photos])
        assert server.stop() == 0
    assert answers[0] == answers[1] == answers[2]
