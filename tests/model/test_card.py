"""A compiled file is read only as it was written: every byte of it counts."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from pigeonhole.errors import CompiledFileError
from pigeonhole.model import card as cards
from pigeonhole.model.card import Card, Probe, Proof, read_card, write_compiled
from pigeonhole.model.recipe import Recipe, Resize

CARD = Card(
    labels=("cat", "dog é"),
    recipe=Recipe("RGB", (Resize((32, 24)),)),
    threshold=0.4,
    source="0" * 64,
    notebook=None,
    proof=Proof(24, 3, 1e-6),
    probes=(Probe(b"\xff\xd8{}", ["cat"], (("cat", 0.75), ("dog é", 1 / 3))),),
    versions={"torch": "2"},
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "here").mkdir()
    write_compiled(tmp_path / "here" / "x.onnx", bytes(range(256)) * 40, CARD)
    return tmp_path / "here" / "x.onnx"


def test_as_it_was_written(file: Path) -> None:
    """The card comes back as it went in, and its file is for everybody to read."""
    assert read_card(file) == CARD
    assert file.stat().st_mode & 0o777 == 0o644
    assert [path.name for path in file.parent.iterdir()] == ["x.onnx"]


def test_onnx_reads_it(compiled_demo: Path) -> None:
    """For ONNX's own tools the file is a model whose metadata has two entries more."""
    import onnx

    model = onnx.load(compiled_demo)
    onnx.checker.check_model(model)
    entries = {entry.key: entry.value for entry in model.metadata_props}
    assert Card.from_json(entries["pigeonhole.card"]) == read_card(compiled_demo)
    assert set(entries) == {"pigeonhole.card", "pigeonhole.seal"}


def test_any_flipped_bit(file: Path) -> None:
    """One flipped bit anywhere, in graph, card or seal, and the file is refused."""
    whole = file.read_bytes()
    places = {*range(0, len(whole), 97), *range(len(whole) - 120, len(whole))}
    for place in places:
        file.write_bytes(
            whole[:place] + bytes([whole[place] ^ 1 << random.Random(place).randrange(8)]) + whole[place + 1 :]
        )
        with pytest.raises(CompiledFileError, match="damaged|cut off"):
            read_card(file)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda whole: whole[:-1], "cut off"),
        (lambda whole: whole[:5000], "cut off"),
        (lambda whole: b"", "cut off"),
        (lambda whole: whole + b"\n", "cut off"),
        (lambda whole: b"version https://git-lfs.github.com/spec/v1\n", "cut off"),
    ],
    ids=["a-byte", "half", "empty", "longer", "lfs"],
)
def test_other_files(file: Path, change: object, sentence: str) -> None:
    """What is no whole compiled file is refused, with what to do."""
    file.write_bytes(change(file.read_bytes()))  # type: ignore[operator]
    with pytest.raises(CompiledFileError, match=sentence) as refusal:
        read_card(file)
    assert "python -m pigeonhole compile" in str(refusal.value)


def test_another_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of another format is refused, though nothing of it is damaged."""
    monkeypatch.setattr(cards, "FORMAT", 99)
    write_compiled(tmp_path / "x.onnx", b"graph", CARD)
    monkeypatch.undo()
    with pytest.raises(CompiledFileError, match="another version"):
        read_card(tmp_path / "x.onnx")


def test_missing_or_not_writable(tmp_path: Path) -> None:
    """A file that is not there, or whose folder is not, ends in a sentence."""
    with pytest.raises(CompiledFileError, match="cannot be read: No such file"):
        read_card(tmp_path / "x.onnx")
    with pytest.raises(CompiledFileError, match="cannot be written: No such file"):
        write_compiled(tmp_path / "no" / "x.onnx", b"", CARD)


def test_nothing_half_written(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When writing fails, the file that was there is still there, and no other."""
    before = file.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fchmod", fail)
    with pytest.raises(CompiledFileError, match="No space left"):
        write_compiled(file, b"graph", replace(CARD, labels=("a",)))
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == ["x.onnx"]
