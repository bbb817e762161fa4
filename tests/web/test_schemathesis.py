"""Schemathesis asks every route what its description allows, and what it does not, and finds nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import Server

HERE = Path(__file__).parent
RUN = ["--max-examples", "15", "--seed", "1", "--workers", "2", "--continue-on-failure", "--warnings", "off"]


def test_nothing_is_found(server: Server, tmp_path: Path) -> None:
    """No answer of the running service is another than its description says, and none a server's error."""
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", HERE / "schemathesis.toml", "run"]
    ran = subprocess.run(
        [*command, f"{server.url}/openapi.json", *RUN],
        cwd=tmp_path,
        env={**os.environ, "SCHEMATHESIS_HOOKS": "tests.web.schemathesis_hooks", "PYTHONPATH": str(HERE.parent.parent)},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-2000:]
    assert "No issues found" in ran.stdout
    assert "Selected: 18/18" in ran.stdout
