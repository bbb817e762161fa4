"""The reference engine answers what learner.predict answers, whoever asks at the same time, and keeps nothing."""

from __future__ import annotations

import gc
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pigeonhole.intake.pictures import read_picture
from pigeonhole.model.learner import LearnerEngine, open_learner
from pigeonhole.model.predictor import Shown
from pigeonhole.model.torch_ready import import_torch
from tests.conftest import EXPORT, LIMITS
from tests.model.learners import FACTORIES, export_as_people_do, export_learner


def plain_predict(export: Path, photo: Path) -> tuple[Any, list[float]]:
    """What fastai alone says in a notebook: the decoded answer and the probabilities."""
    import_torch()
    import fastai.callback.progress  # noqa: F401  gives the Learner its no_bar
    from fastai.learner import load_learner

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        learner = load_learner(export)
    with learner.no_bar():
        decoded, _, probabilities = learner.predict(photo)
    return decoded, probabilities.tolist()


def read(photo: Path) -> Shown:
    with photo.open("rb") as file:
        return Shown(read_picture(file, LIMITS))


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


@pytest.mark.parametrize("kind", FACTORIES)
def test_factories(kind: str, tmp_path: Path, photo: Path) -> None:
    """Learners as people make them: by each of fastai's factories, with its losses, transforms and callbacks."""
    export = export_as_people_do(tmp_path / "it", kind)
    decoded, probabilities = plain_predict(export, photo)
    prediction = open_learner(export).predict(read(photo))
    decoded = [str(label) for label in decoded] if isinstance(decoded, list) else str(decoded)
    assert (prediction.success, list(prediction.probabilities)) == (decoded, probabilities)


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
