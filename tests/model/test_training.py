"""Folders of photos in, a learner out that any fastai opens."""

from __future__ import annotations

import pickletools
import re
import zipfile
from pathlib import Path

import pytest

from pigeonhole.cli import main
from pigeonhole.errors import TrainingError
from pigeonhole.model.learner import open_learner
from pigeonhole.model.torch_ready import import_torch
from pigeonhole.model.training import Plan, Report, build_model, side_after, train_and_export
from tests.conftest import EXPORT
from tests.model.learners import export_learner, photos

QUICK = [
    "--arch=xresnet18",
    "--width=0.125",
    "--size=32",
    "--epochs=4",
    "--batch-size=4",
    "--mix=none",
]


def test_train(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`train` tells cats from dogs by colour, says how well, draws the confusion, and exports what serves."""
    train = photos(tmp_path / "photos")
    (train / "cat" / "broken.jpg").write_bytes(b"not a photo")
    (train / "astray.jpg").write_bytes((train / "cat" / "0.jpg").read_bytes())
    valid = photos(tmp_path / "valid", each=4)
    output = tmp_path / "out" / "animals.pkl"
    output.parent.mkdir()
    assert main(["train", str(train), "--valid", str(valid), "-o", str(output), *QUICK]) == 0
    printed = capsys.readouterr()
    assert "broken.jpg cannot be read as a picture" in printed.err
    assert "astray.jpg is not in a folder of its class" in printed.err
    rows = [line.split() for line in printed.out.splitlines() if " of " in line]
    assert [row[0] for row in rows] == ["cat", "dog", "owl", "all"]
    assert sum(int(row[1]) for row in rows[:3]) == int(rows[3][1]) > 4  # a third of twelve would be chance
    assert (output.with_name("animals-confusion.png")).read_bytes().startswith(b"\x89PNG")
    assert open_learner(output).labels == ("cat", "dog", "owl")
    assert sorted(path.name for path in output.parent.iterdir()) == ["animals-confusion.png", "animals.pkl"]
    assert telling(output) == []


def strings_of(export: Path) -> list[str]:
    """Every string in the pickle."""
    with zipfile.ZipFile(export) as archive:
        name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
        arguments = [argument for _, argument, _ in pickletools.genops(archive.read(name))]
    return [argument for argument in arguments if isinstance(argument, str)]


def telling(export: Path) -> list[str]:
    """What an export should not hold: a path of its maker's machine, or code."""
    path_or_code = re.compile(r"(/[A-Za-z][\w.-]+){2,}|cloudpickle|_make_function|marshal")
    return [text for text in strings_of(export) if path_or_code.search(text)]


def test_the_demo_holds_no_path_and_no_code() -> None:
    """The committed export names functions instead of carrying their bytecode, and no folder of its maker."""
    assert telling(EXPORT) == []


def test_what_is_telling(tmp_path: Path) -> None:
    """What fastai exports by itself does hold code, with paths in it."""
    assert telling(export_learner(tmp_path / "x", "colour")) != []


WRONG_FOLDERS = {
    "one class": (["a"], ["a"], "at least two; found 1"),
    "no class": ([], [], "at least two; found 0"),
    "a class too many": (["a", "b"], ["a", "c"], "that .* lacks: c"),
    "nothing to validate on": (["a", "b"], [], "holds no photos"),
    "nothing to hold back": (["a", "b"], None, "2 photos are too few"),
}


@pytest.mark.parametrize(("train", "valid", "words"), WRONG_FOLDERS.values(), ids=WRONG_FOLDERS.keys())
def test_wrong_folders(tmp_path: Path, train: list[str], valid: list[str] | None, words: str) -> None:
    """Folders that cannot be trained on are refused before anything is trained."""
    for name, classes in (("train", train), ("valid", valid or [])):
        (tmp_path / name).mkdir()
        photos(tmp_path / name, tuple(classes), each=1)
    plan = Plan(tmp_path / "train", None if valid is None else tmp_path / "valid")
    with pytest.raises(TrainingError, match=words):
        train_and_export(plan, tmp_path / "export.pkl")
    assert not (tmp_path / "export.pkl").exists()


@pytest.mark.parametrize(
    ("output", "confusion", "words"),
    [
        ("gone/export.pkl", None, "cannot be written: No such file"),
        (".", None, "is a folder"),
        ("export.pkl", ".", "is a folder"),
        ("export.pkl", "export.pkl", "at once"),
    ],
)
def test_nowhere_to_write(tmp_path: Path, output: str, confusion: str | None, words: str) -> None:
    """An output that cannot be written is noticed before hours of training."""
    with pytest.raises(TrainingError, match=words):
        train_and_export(Plan(tmp_path), tmp_path / output, confusion and tmp_path / confusion)


def test_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C in the middle of training leaves no file, and the model that was there."""
    output = tmp_path / "export.pkl"
    output.write_bytes(b"the old one")

    def interrupt(plan: Plan) -> None:
        assert len(list(tmp_path.glob(".export*"))) == 2  # the drafts
        raise KeyboardInterrupt

    monkeypatch.setattr("pigeonhole.model.training.train", interrupt)
    assert main(["train", str(tmp_path), "-o", str(output)]) == 130
    assert "what was not finished is not written" in capsys.readouterr().err
    assert [path.read_bytes() for path in tmp_path.iterdir() if path.is_file()] == [b"the old one"]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("arch", "width"), [("xresnet18", 0.25), ("xresnet18", None), ("resnet18", None), ("resnet10t", None)]
)
def test_architectures(tmp_path: Path, arch: str, width: float | None) -> None:
    """Networks of fastai, torchvision and timm are found by name and answer for each class."""
    torch = import_torch()
    model = build_model(Plan(tmp_path, arch=arch, width=width), 7).eval()
    assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 7)


@pytest.mark.parametrize(
    ("arch", "width", "words"),
    [
        ("resnet18", 0.5, "not for resnet18"),
        ("nonet", None, "nonet"),
        ("nn", None, "nn"),
        ("vit_b_16", None, "vit_b_16"),
    ],
)
def test_wrong_architectures(tmp_path: Path, arch: str, width: float | None, words: str) -> None:
    """An unknown name, and a width where there is none to choose, are refused."""
    import_torch()
    with pytest.raises(TrainingError, match=words):
        build_model(Plan(tmp_path, arch=arch, width=width), 2)


def test_pictures_grow() -> None:
    """Training begins at half the side, in steps a residual network halves evenly, and ends at the whole of it."""
    sides = [side_after(done / 100, 128) for done in range(101)]
    assert (sides[0], sides[-1], sorted(sides) == sides) == (64, 128, True)
    assert set(sides) <= {64, 96, 128}
    assert sides.count(128) > 30


def test_report() -> None:
    """The report counts the diagonal."""
    report = Report(("cat", "dog"), ((3, 1), (2, 4)))
    assert (report.right, report.total, report.per_class()) == (7, 10, [("cat", 3, 4), ("dog", 4, 6)])
    assert str(report).splitlines()[-1].split() == ["all", "7", "of", "10", "70.0%"]
