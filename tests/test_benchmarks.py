"""The benchmark runs, on a small model and few requests."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT
from tests.model.test_exports_compiled import FOLDER


def test_it_runs(tmp_path: Path) -> None:
    """It prints a row for each measure, with four servers side by side, and ends by itself."""
    model = shutil.copy(FOLDER / "plain.pkl", tmp_path)
    command = [sys.executable, "benchmarks/serving.py", "--model", str(model), "--rounds", "1", "--requests", "8"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    titles = "one client, 800x600, ms|8 clients, 800x600, /s|first answer, s|memory, MB"
    rows = dict(re.findall(rf"^({titles}) +(.*)$", result.stdout, re.M))
    assert len(rows) == 4
    assert [len(re.findall(r"\d+\.\d \(", row)) for name, row in rows.items() if "800" in name] == [4, 4]
