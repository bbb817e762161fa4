"""Every kind of export of today's fastai, compiled, answers real photos as learner.predict does."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pigeonhole.intake.pictures import open_probe
from pigeonhole.model.known_answers import EXACT, furthest
from pigeonhole.model.learner import open_learner
from pigeonhole.model.predictor import Prediction
from tests.conftest import EXPORT, ROOT
from tests.model.compiled import Ways, load

FOLDER = ROOT / "tests" / "exports" / "fixtures" / "fastai-2.8.12"
FIXTURES = [path.stem for path in sorted(FOLDER.glob("*.pkl"))]
FAST = 0.02  # largest difference of a probability, with PRECISION=auto
EVERY = 4  # of the 341 validation photos, for the small exports


@dataclass(frozen=True)
class Compared:
    """How the answers of two engines differ."""

    pictures: int
    other_labels: int
    largest_difference: float


def compare(photos: list[Path], expected: list[Prediction], ask: Callable) -> Compared:  # type: ignore[type-arg]
    answers = []
    for photo in photos:
        with photo.open("rb") as file:
            answers.append(ask(open_probe(file)))
    pairs = list(zip(answers, expected, strict=True))
    return Compared(
        len(pairs),
        sum(answer.success != wanted.success for answer, wanted in pairs),
        float(np.max([furthest(answer.probabilities, wanted.probabilities) for answer, wanted in pairs])),
    )


def reference(export: Path, photos: list[Path]) -> list[Prediction]:
    engine, answers = open_learner(export), []
    for photo in photos:
        with photo.open("rb") as file:
            answers.append(engine.predict(open_probe(file)))
    return answers


def check(path: Path, export: Path, photos: list[Path]) -> float:
    """Both precisions give every label of learner.predict's; return the share of guarded re-runs."""
    expected = reference(export, photos)
    exact = compare(photos, expected, load(path, "exact").predict)
    assert (exact.pictures, exact.other_labels) == (len(photos), 0)
    assert exact.largest_difference <= EXACT
    ways = Ways()
    auto = compare(photos, expected, load(path, count=ways).predict)
    assert (auto.pictures, auto.other_labels) == (len(photos), 0)
    assert auto.largest_difference <= FAST
    assert sum(ways.values()) == len(photos)
    return ways["rerun"] / len(photos)


def test_the_demo(compiled_demo: Path, clothing: Path) -> None:
    """All 341 validation photos: every label in both precisions, and few re-runs."""
    photos = sorted((clothing / "validation").glob("*/*.jpg"))
    assert len(photos) == 341
    assert check(compiled_demo, EXPORT, photos) < 0.1


@pytest.mark.parametrize("kind", FIXTURES)
def test_each_kind(kind: str, compiled: Callable[[str], Path], clothing: Path) -> None:
    """Crop, squish, pad, random resized crop, presizing, several labels, timm's networks and whatever else there is."""
    photos = sorted((clothing / "validation").glob("*/*.jpg"))[::EVERY]
    check(compiled(kind), FOLDER / f"{kind}.pkl", photos)


def test_large_photos(compiled_demo: Path, clothing: Path) -> None:
    """Photos of 12 and 24 megapixels, shrunk while they are decoded, get the labels of their whole selves."""
    photos = sorted((clothing / "validation").glob("*/*.jpg"))[::43]
    ways = Ways()
    auto, exact = load(compiled_demo, count=ways), load(compiled_demo, "exact")
    for number, path in enumerate(photos):
        photo = open_probe(enlarged(path, (12e6, 24e6)[number % 2]))
        assert photo.reduction(auto.card.recipe.allows_shrinking) > 1
        assert auto.predict(photo).success == exact.predict(photo).success
    assert ways["fast"] > len(photos) / 2


def enlarged(path: Path, pixels: float) -> io.BytesIO:
    with Image.open(path) as picture:
        scale = (pixels / (picture.width * picture.height)) ** 0.5
        size = int(picture.width * scale), int(picture.height * scale)
        file = io.BytesIO()
        picture.convert("RGB").resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file
