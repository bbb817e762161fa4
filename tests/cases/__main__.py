"""Run every case and print the table: `python -m tests.cases`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
WHERE = ["tests/cases", "tests/web/test_ways_in.py", "tests/intake"]

with tempfile.TemporaryDirectory() as folder:
    table = Path(folder) / "table.md"
    status = pytest.main([*(str(ROOT / path) for path in WHERE), "-q", "--cases-table", str(table), *sys.argv[1:]])
    print(table.read_text("utf-8"))
sys.exit(status)
