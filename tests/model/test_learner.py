"""The reference engine answers what learner.predict answers, whoever asks at the same time, and keeps nothing."""

from __future__ import annotations

import gc
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pigeonhole.errors import ModelFileError
from pigeonhole.intake.pictures import read_picture
from pigeonhole.model.learner import LearnerEngine, check_export, open_learner
from pigeonhole.model.torch_ready import import_torch
from tests.conftest import EXPORT, LIMITS
from tests.model.learners import export_learner


def plain_predict(export: Path, photo: Path) -> tuple[Any, list[float]]:
    """What fastai alone says in a notebook: the decoded answer and the probabilities."""
    import_torch()
    from fastai.learner import load_learner

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        learner = load_learner(export)
    with learner.no_bar():
        decoded, _, probabilities = learner.predict(photo)
    return decoded, probabilities.tolist()


def read(photo: Path) -> Image.Image:
    with photo.open("rb") as file:
        return read_picture(file, LIMITS)


@pytest.fixture(scope="session")
def demo() -> LearnerEngine:
    return open_learner(EXPORT)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.effect_noise((60, 50), 80).convert("RGB").save(path)
    return path


def test_the_demo_answers_as_the_notebook_does(demo: LearnerEngine, one_of_each: dict[str, Path]) -> None:
    """For a real photo of each class: the same label, the same probabilities to the last bit."""
    for photo in one_of_each.values():
        decoded, probabilities = plain_predict(EXPORT, photo)
        prediction = demo.predict(read(photo))
        assert (prediction.success, list(prediction.probabilities)) == (decoded, probabilities)


@pytest.mark.parametrize("kind", ["colour", "grey", "is_cat", "multi-label"])
def test_kinds(kind: str, tmp_path: Path, photo: Path) -> None:
    """Learners of colour and grey pictures, of bool labels, and of several labels: as fastai alone."""
    export = export_learner(tmp_path / kind, kind)
    decoded, probabilities = plain_predict(export, photo)
    prediction = open_learner(export).predict(read(photo))
    assert prediction.success == (list(decoded) if kind == "multi-label" else str(decoded))
    assert list(prediction.probabilities) == probabilities


def test_labels(tmp_path: Path) -> None:
    """Labels are strings, in the order of the probabilities, also where a function made them True and False."""
    assert open_learner(export_learner(tmp_path / "a", "is_cat")).labels == ("False", "True")
    assert open_learner(export_learner(tmp_path / "b", "colour")).labels == ("cat", "dog", "owl")


def test_eight_threads_at_once(demo: LearnerEngine, one_of_each: dict[str, Path]) -> None:
    """Threads that ask at the same time get the answers they would get alone."""
    pictures = [read(path) for path in one_of_each.values()]
    alone = [demo.predict(picture) for picture in pictures]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(demo.predict, pictures * 6))
    assert together == alone * 6


def test_nothing_is_kept(demo: LearnerEngine, photo: Path) -> None:
    """After an answer, no picture is alive that was not alive before, nor a tensor that could hold one."""
    torch = import_torch()
    picture = read(photo)
    demo.predict(picture)  # what is made once is made now

    def alive() -> set[int]:
        gc.collect()
        things = gc.get_objects()
        pictures = {id(thing) for thing in things if issubclass(type(thing), Image.Image)}
        return pictures | {
            id(thing) for thing in things if issubclass(type(thing), torch.Tensor) and thing.numel() > 999
        }

    before, state = alive(), dict(vars(demo._learner))
    demo.predict(picture)
    assert alive() - before == set()
    assert vars(demo._learner) == state


def test_silent(demo: LearnerEngine, photo: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """No progress bar, nothing printed."""
    demo.predict(read(photo))
    assert capfd.readouterr() == ("", "")


def test_the_model_is_left_as_it_was_after_a_failure(demo: LearnerEngine, photo: Path) -> None:
    """A prediction that fails does not spoil the next."""
    before = demo.predict(read(photo))
    with pytest.raises(AttributeError):
        demo.predict(None)  # type: ignore[arg-type]
    assert demo.predict(read(photo)) == before


WRONG_FILES = {
    "empty": (b"", "is empty"),
    "git lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "git lfs pull"),
    "html": (b"\n<!DOCTYPE html><html>", "web page"),
    "text": (b"hello", "starts with b'hello'"),
}


@pytest.mark.parametrize(("content", "words"), WRONG_FILES.values(), ids=WRONG_FILES.keys())
def test_wrong_files(tmp_path: Path, content: bytes, words: str) -> None:
    """A file that is visibly no export is refused with a sentence that says what it is."""
    path = tmp_path / "export.pkl"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=words):
        check_export(path)


def test_no_file(tmp_path: Path) -> None:
    """A missing file and a folder are told apart."""
    with pytest.raises(ModelFileError, match="is not there"):
        check_export(tmp_path / "export.pkl")
    with pytest.raises(ModelFileError, match="is a folder"):
        check_export(tmp_path)


def test_truncated(tmp_path: Path) -> None:
    """Half an export is refused."""
    path = tmp_path / "export.pkl"
    path.write_bytes(export_learner(tmp_path / "whole", "colour").read_bytes()[:9999])
    with pytest.raises(ModelFileError, match="cannot be opened"):
        open_learner(path)


def test_a_classifier_of_tables(tmp_path: Path) -> None:
    """A learner that has labels but takes rows of a table is refused."""
    import_torch()
    import pandas
    from fastai.tabular.data import TabularDataLoaders
    from fastai.tabular.learner import tabular_learner

    rows = pandas.DataFrame({"x": [0.0, 1.0] * 20, "y": ["p", "q"] * 20})
    dls = TabularDataLoaders.from_df(rows, y_names="y", cont_names=["x"], bs=8, path=tmp_path, num_workers=0)
    tabular_learner(dls).export("table.pkl")
    with pytest.raises(ModelFileError, match="does not take pictures"):
        open_learner(tmp_path / "table.pkl")


def test_not_a_classifier(tmp_path: Path) -> None:
    """A learner that predicts a number is refused by what it lacks."""
    with pytest.raises(ModelFileError, match="no list of labels"):
        open_learner(export_learner(tmp_path / "x", "regression"))
