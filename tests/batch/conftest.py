"""What the tests of `predict` share: the command with an engine that knows colours, in a folder of its own."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from pigeonhole.cli import main
from pigeonhole.model.predictor import Predictor
from tests.conftest import Colours, picture

Run = Callable[..., "Result"]
COLOURS = ("red", "green", "blue", "grey")


@dataclass(frozen=True)
class Result:
    status: int
    out: str
    err: str


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Run:
    """Run the command in a folder of its own, with `Colours` unless another engine is handed in."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def run(*arguments: str | Path, engine: Callable[[], object] = Colours) -> Result:
        try:
            status = main(["predict", *map(str, arguments)], Predictor(engine))  # type: ignore[arg-type]
        except SystemExit as exit:
            status = int(exit.code or 0)
        out, err = (os.fsdecode(text) for text in capfdbinary.readouterr())
        return Result(status, out, err)

    return run


def photos(folder: Path, **files: str) -> Path:
    """A picture of a colour for each name; `__` stands for a folder."""
    for name, colour in files.items():
        path = folder / f"{name.replace('__', '/')}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(colour))
    return folder


def answers(path: Path) -> list[list[str]]:
    with path.open(newline="", errors="surrogateescape") as file:
        return list(csv.reader(file))


@dataclass(frozen=True)
class Unexplained(Colours):
    why_unexplained: str | None = "it has no convolutions."


def unfinished(out: Path, content: bytes, **options: str) -> None:
    """Bring `out` into the state that a killed process of the same command leaves."""
    model = {
        "model (engine)": "colours",
        "ORIENTATION": "upright",
        "MAX_PIXELS": "25000000",
        "MAX_SIDE": "10000",
        "IMAGE_FORMATS": "jpeg,png,gif,webp,bmp",
    }
    made_by = {"PATH": '["p"]', "--top": "1", "--explain": "nothing", **model}
    kind = "csv" if out.suffix == ".csv" else "json"
    out.write_bytes(content)
    out.with_name(f".{out.name}.pigeonhole").write_text(json.dumps({**made_by, "format": kind, **options}))
