"""What several tests of the model start from."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.model.test_exports_compiled import FOLDER


@pytest.fixture
def folder(tmp_path: Path, compiled: Callable[[str], Path]) -> Path:
    """An export and its compiled file."""
    (tmp_path / "model").mkdir()
    shutil.copy(FOLDER / "plain.pkl", tmp_path / "model" / "export.pkl")
    shutil.copy(compiled("plain"), tmp_path / "model" / "export.onnx")
    return tmp_path / "model"
