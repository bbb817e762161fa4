"""What measures a GPU runs where fastai and torch are, and next to nothing else; here on the processor."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import THREADS
from tests.conftest import ROOT
from tests.model.learners import photos
from tests.model.test_exports_compiled import FOLDER

ALLOWED = ("fastai", "torch", "torchvision", "numpy", "pillow")

# run as `python -c`, so that what ALLOWED do not need cannot be imported
ALONE = """
import json, sys
from importlib.machinery import PathFinder

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in ABSENT else super().find_spec(name, path, target)

ABSENT = set(json.loads(sys.argv.pop(1)))
sys.meta_path = [Without if finder is PathFinder else finder for finder in sys.meta_path]

from benchmarks.gpu import main
main(sys.argv[1:])
"""


def with_needs(packages: tuple[str, ...]) -> set[str]:
    """`packages` and all that is installed for them."""
    found: set[str] = set()
    waiting = [*packages]
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name not in found:
            found.add(name)
            try:
                needs = importlib.metadata.requires(name) or []
            except importlib.metadata.PackageNotFoundError:
                continue
            waiting += [re.split(r"[^\w.-]", need, maxsplit=1)[0] for need in needs if "extra ==" not in need]
    return found


def others() -> list[str]:
    """The modules installed here that fastai and torch do not need."""
    needed = with_needs(ALLOWED)
    return [
        module
        for module, packages in importlib.metadata.packages_distributions().items()
        if not {re.sub(r"[-_.]+", "-", package).lower() for package in packages} & needed
    ]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, object], str]:
    """What the README's command prints without a GPU, and in a moment: the JSON, and the table after it."""
    folder = photos(tmp_path_factory.mktemp("gpu") / "photos", each=3)
    absent = [*others(), "pydantic"]  # which fastai needs for text only
    assert {"openvino", "flask", "pydantic_settings", "onnx", "onnxscript", "timm"} <= set(absent)
    command = [sys.executable, "-c", ALONE, json.dumps(absent), "--device=cpu", "--seconds=0.1"]
    ended = subprocess.run([*command, FOLDER / "multi-label.pkl", folder], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    text, _, table = ended.stdout.partition("\n}\n")
    return json.loads(text + "}"), table


def test_all_is_measured(measured: tuple[dict[str, object], str]) -> None:
    """Nothing fails, batches form, and in float32 every answer is that of `learner.predict`."""
    results, table = measured
    rows = results["rows"]
    assert isinstance(rows, list)
    assert [row["failed"] for row in rows] == [None] * 19
    assert min(row["per_second"] for row in rows) > 0
    threaded = [row for row in rows if row["who"] == "TorchNetwork float32"]
    assert [row["at_once"] for row in threaded] == list(THREADS)
    assert threaded[0]["pictures_a_batch"] == 1 < threaded[-1]["pictures_a_batch"]
    for row in rows:
        if row["same_label"] is not None and "bfloat16" not in row["who"]:
            assert (row["same_label"], row["largest_difference"] < 1e-4) == (9, True)
    assert table.count("\n| ") == 2 + len(rows)


def test_what_fails_does_not_end_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A measurement that fails says so in its row, and the others are made."""
    from benchmarks.gpu import Bench, Row, markdown

    bench = Bench("cpu", tmp_path, [], 0.1)
    bench.add(Row("a", 1), lambda row: 1 / 0)  # type: ignore[arg-type,return-value]
    bench.add(Row("b", 1), lambda row: None)
    rows = [vars(row) for row in bench.rows]
    table = markdown({"learner": "x", "about": {"device": "d", "torch": "1"}, "pictures": 0, "rows": rows})
    assert "| a | 1 | failed: ZeroDivisionError: division by zero |" in table
    assert "| b | 1 | 0 |" in table
