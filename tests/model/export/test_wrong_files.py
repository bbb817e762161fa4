"""A file that cannot be served gets a sentence: what was seen, and what is needed."""

from __future__ import annotations

import io
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pigeonhole.errors import ModelFileError
from pigeonhole.model.doctor import diagnose
from pigeonhole.model.export.container import check_file
from pigeonhole.model.learner import open_learner
from pigeonhole.model.torch_ready import import_torch
from tests.conftest import EXPORT, ROOT
from tests.model.learners import export_learner

FASTAI_1 = ROOT / "tests" / "exports" / "fixtures" / "fastai-1.0.61" / "plain.pkl"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"


def test_head() -> None:
    """A missing file and a folder are told apart, already by the first look."""
    with pytest.raises(ModelFileError, match="is not there; put the file there"):
        check_file(ROOT / "gone.pkl")
    with pytest.raises(ModelFileError, match="is a folder"):
        check_file(ROOT)


CONTENTS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "git lfs": (LFS, "Git LFS pointer, not the model itself: run `git lfs install`, then `git lfs pull`"),
    "html": (b"\n<!DOCTYPE html><html>", "is a web page"),
    "text": (b"hello", "starts with b'hello'"),
    "photo": (b"\xff\xd8\xff\xe0\x00\x10JFIF", "is not what learn.export() writes"),
    "half a zip": (EXPORT.read_bytes()[:9999], "damaged or incomplete zip"),
    "all but the last byte": (EXPORT.read_bytes()[:-1], "damaged or incomplete zip"),
    "only a zip's head": (b"PK\x03\x04", "damaged or incomplete zip"),
    "half a pickle": (pickle.dumps({"a": list(range(99))})[:50], "cut off or malformed"),
    "a list": (pickle.dumps([1, 2]), "it holds a list, not what learn.export() writes"),
    "a number": (pickle.dumps(1), "it holds a int"),
}


def test_tar(tmp_path: Path) -> None:
    """torch.load unpacks a tar before it looks any further."""
    (tmp_path / "c").write_text("hello")
    with tarfile.open(tmp_path / "export.pkl", "w", format=tarfile.USTAR_FORMAT) as archive:
        archive.add(tmp_path / "c", "c")
    refused(tmp_path / "export.pkl", "it is a tar archive")


@pytest.mark.parametrize(("content", "words"), CONTENTS.values(), ids=CONTENTS.keys())
def test_contents(tmp_path: Path, content: bytes, words: str) -> None:
    """Bytes that are no export."""
    path = tmp_path / "export.pkl"
    path.write_bytes(content)
    refused(path, words)


def refused(path: Path, words: str) -> None:
    """The doctor and the service say the same, in one line."""
    problem = diagnose(path).problem
    assert problem is not None
    assert words in problem
    assert "\n" not in problem
    with pytest.raises(ModelFileError) as error:
        open_learner(path)
    assert str(error.value) == f"MODEL={problem}"


def weights(torch: Any) -> Any:
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).state_dict()


SAVED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "state_dict": (weights, "it is a state_dict"),
    "learn.save()": (
        lambda torch: {"model": weights(torch), "opt": {"state": [], "hypers": []}},
        "what learn.save() wrote",
    ),
    "a bare network": (lambda torch: torch.nn.Sequential(torch.nn.Linear(2, 2)), "a bare network (torch.nn.modules"),
    "a tensor": (lambda torch: torch.zeros(3), "not what learn.export() writes"),
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize(("thing", "words"), SAVED.values(), ids=SAVED.keys())
def test_saved_by_torch(tmp_path: Path, thing: Callable[[Any], Any], words: str, zipped: bool) -> None:
    """What torch.save writes of other things, in both of its formats."""
    torch = import_torch()
    path = tmp_path / "export.pkl"
    torch.save(thing(torch), path, _use_new_zipfile_serialization=zipped)
    refused(path, words)


def test_torchscript(tmp_path: Path) -> None:
    """A TorchScript archive, which torch.load would run."""
    torch = import_torch()
    path = tmp_path / "export.pkl"
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))
    refused(path, "it is a TorchScript archive")


def test_another_zip(tmp_path: Path) -> None:
    """A zip of something else."""
    with zipfile.ZipFile(tmp_path / "export.pkl", "w") as archive:
        archive.writestr("photos/a.txt", "hello")
    refused(tmp_path / "export.pkl", "a zip that torch did not write")


def test_compressed(tmp_path: Path) -> None:
    """torch.save stores; what is compressed may be a bomb."""
    with zipfile.ZipFile(tmp_path / "export.pkl", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"}.")
    refused(tmp_path / "export.pkl", "compressed")


def test_scikit_learn(tmp_path: Path) -> None:
    """scikit-learn's models, pickled and as joblib writes them."""
    joblib = pytest.importorskip("joblib")
    from sklearn.ensemble import RandomForestClassifier

    forest = RandomForestClassifier(3).fit([[0], [1]], ["a", "b"])
    path = tmp_path / "export.pkl"
    path.write_bytes(pickle.dumps(forest))
    refused(path, "it is a scikit-learn model (sklearn.ensemble._forest.RandomForestClassifier)")
    joblib.dump(forest, path)
    refused(path, "it is a scikit-learn model")


def test_fastai_1() -> None:
    """An export that fastai 1.0.61 wrote."""
    refused(FASTAI_1, "it is an export of fastai 1")


def test_other_learners(tmp_path: Path) -> None:
    """A learner of rows of a table."""
    import_torch()
    import pandas
    from fastai.tabular.data import TabularDataLoaders
    from fastai.tabular.learner import tabular_learner

    rows = pandas.DataFrame({"x": [0.0, 1.0] * 20, "y": ["p", "q"] * 20})
    dls = TabularDataLoaders.from_df(rows, y_names="y", cont_names=["x"], bs=8, path=tmp_path, num_workers=0)
    tabular_learner(dls).export("table.pkl")
    refused(tmp_path / "table.pkl", "it is a learner of rows of a table; only image classifiers are served")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("regression", "the learner predicts numbers (regression)"),
        ("segmentation", "the learner predicts a mask (segmentation)"),
        ("points", "the learner predicts points"),
        ("boxes", "the learner predicts boxes"),
    ],
)
def test_other_targets(kind: str, words: str, tmp_path: Path) -> None:
    """Learners of pictures that do not classify."""
    refused(export_learner(tmp_path / kind, kind), words)


def test_texts(tmp_path: Path) -> None:
    """A learner of texts."""
    import_torch()
    import pandas
    from fastai.text.core import BaseTokenizer
    from fastai.text.data import TextDataLoaders
    from fastai.text.learner import text_classifier_learner
    from fastai.text.models.awdlstm import AWD_LSTM

    rows = pandas.DataFrame({"text": ["good film", "bad film"] * 20, "label": ["p", "q"] * 20})
    dls = TextDataLoaders.from_df(rows, tok_tfm=BaseTokenizer(), bs=4, path=tmp_path, num_workers=0)
    text_classifier_learner(dls, AWD_LSTM, pretrained=False, config=None).export("text.pkl")
    refused(tmp_path / "text.pkl", "it is a learner of texts")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_flipped_bit(tmp_path: Path, zipped: bool) -> None:
    """One bit of one weight, which torch.load does not notice: a zip's checksum tells; a legacy file needs a pin."""
    torch = import_torch()
    path = tmp_path / "export.pkl"
    torch.save({"weight": torch.full((64,), 3.0)}, path, _use_new_zipfile_serialization=zipped)
    whole = diagnose(path).sha256
    content = bytearray(path.read_bytes())
    content[content.index(torch.full((4,), 3.0).numpy().tobytes()) + 2] ^= 1
    path.write_bytes(content)
    loaded = torch.load(io.BytesIO(content), weights_only=False)["weight"]
    assert loaded[0] != 3.0  # torch takes it
    if zipped:
        refused(path, "does not match its checksum: the file is damaged")
    else:
        assert f"MODEL_SHA256 says {whole}" in str(diagnose(path, whole).problem)


def test_a_flipped_bit_in_a_learner(tmp_path: Path) -> None:
    """The same in the demo, in the middle of its weights."""
    content = bytearray(EXPORT.read_bytes())
    content[len(content) // 2] ^= 1
    path = tmp_path / "export.pkl"
    path.write_bytes(content)
    refused(path, "does not match its checksum")


def test_legacy_of_the_wrong_length(tmp_path: Path) -> None:
    """A legacy file has no checksums, but its length can be reckoned."""
    torch = import_torch()
    path = tmp_path / "export.pkl"
    torch.save({"weight": torch.zeros(9)}, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    for changed in (whole[:-1], whole + b"x"):
        path.write_bytes(changed)
        refused(path, f"has {len(changed)} bytes where {len(whole)} belong")
