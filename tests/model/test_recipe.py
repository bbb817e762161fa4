"""The recipe's bytes are fastai's own, for every item transform, method, pad mode and shape of picture."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pigeonhole.intake.pictures import open_photo, open_probe
from pigeonhole.model.pipeline import ITEM_STEPS
from pigeonhole.model.recipe import CropPad, RandomResizedCrop, RatioResize, Recipe, Resize, Step
from pigeonhole.model.torch_ready import import_torch
from tests.conftest import LIMITS

SIZES = [(300, 200), (200, 300), (97, 61), (64, 64), (65, 64), (40, 30), (500, 20), (31, 7), (1000, 999)]
TRANSFORMS: dict[str, Callable[[Any], Any]] = {
    **{
        f"Resize {method} {mode}": lambda augment, method=method, mode=mode: augment.Resize(
            (48, 64), method=method, pad_mode=mode
        )
        for method in ("crop", "squish", "pad")
        for mode in ("zeros", "border", "reflection")
    },
    **{
        f"CropPad {mode}": lambda augment, mode=mode: augment.CropPad((64, 80), pad_mode=mode)
        for mode in ("zeros", "border", "reflection")
    },
    "Resize bicubic": lambda augment: augment.Resize(64, resamples=(Image.Resampling.BICUBIC, 0)),
    "RandomCrop": lambda augment: augment.RandomCrop((50, 40)),
    "OldRandomCrop": lambda augment: augment.OldRandomCrop(50),
    "RandomResizedCrop": lambda augment: augment.RandomResizedCrop((64, 48)),
    "RandomResizedCrop of all": lambda augment: augment.RandomResizedCrop(64, val_xtra=0),
    "RatioResize": lambda augment: augment.RatioResize(70),
}


@pytest.fixture(scope="session")
def augment() -> Any:
    import_torch()
    import fastai.vision.augment

    return fastai.vision.augment


def noise(size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(np.random.default_rng(size[0]).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8))


@pytest.mark.parametrize("name", TRANSFORMS)
def test_same_bytes(name: str, augment: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a step makes of a picture is what the transform makes of it at validation, in colour and in grey."""
    from fastai.vision.core import PILImage, PILImageBW

    monkeypatch.setattr(random, "random", lambda: 0.5)  # RatioResize draws where it crops, when predicting too
    transform = TRANSFORMS[name](augment)
    step = ITEM_STEPS[type(transform).__name__](transform)
    for size in SIZES:
        for kind, mode in ((PILImage, "RGB"), (PILImageBW, "L")):
            picture = noise(size).convert(mode)
            theirs = np.asarray(transform(kind(picture), split_idx=1))
            ours = Recipe(mode, (step,)).apply(noise(size))
            assert ours.dtype == theirs.dtype
            assert np.array_equal(ours.squeeze(), theirs.squeeze()), (size, mode)
            assert (ours.shape[1], ours.shape[0]) == step.size_after(size)


STEPS: list[Step] = [
    Resize((64, 48), "crop"),
    Resize((64, 48), "squish"),
    Resize((48, 64), "pad", "zeros"),
    RandomResizedCrop((64, 64), (80, 80)),
    RatioResize(80),
]


@pytest.mark.parametrize("step", STEPS, ids=lambda step: f"{step.kind} {getattr(step, 'method', '')}")
@pytest.mark.parametrize("size", [(1201, 903), (1003, 1501), (960, 720)])
def test_shrunk_while_decoded(step: Step, size: tuple[int, int]) -> None:
    """A JPEG whose decoder shrank it gives nearly the pixels of the whole one, whatever its sides are multiples of."""
    file = io.BytesIO()
    noise((size[0] // 16, size[1] // 16)).resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=95)
    photo, recipe = open_probe(file), Recipe("RGB", (step,))
    reduction = photo.reduction(recipe.allows_shrinking)
    if getattr(step, "method", "") == "pad" and size != (960, 720):
        assert reduction == 1  # padding is made of whole pixels
        return
    assert reduction > 1
    whole = recipe.apply(photo.decoded()).astype(int)
    shrunk = recipe.apply(photo.decoded(reduction), photo.size).astype(int)
    careless = recipe.apply(photo.decoded(reduction)).astype(int)  # as if the shrunk picture were all there is
    assert whole.shape == shrunk.shape
    off, carelessly_off = np.abs(whole - shrunk).mean(), np.abs(whole - careless).mean()
    assert off < 1.5  # of 255
    assert off < carelessly_off / 3 or size == (960, 720)  # whose sides are multiples of what it is shrunk by
    assert photo.decoded(reduction).width < size[0]


def test_no_detail_is_lost() -> None:
    """Nothing is shrunk beforehand unless three times the pixels are left that are needed; nor what is only cut."""
    recipe = Recipe("RGB", (Resize((100, 100)),))
    for side, factor in ((599, 1), (600, 2), (1199, 2), (1200, 4), (2400, 8), (5000, 8)):
        file = io.BytesIO()
        Image.new("RGB", (side, side + 50)).save(file, "JPEG")
        assert open_probe(file).reduction(recipe.allows_shrinking) == factor, side
        assert open_probe(file).reduction(Recipe("RGB", (CropPad((10, 10)),)).allows_shrinking) == 1


def test_a_thin_picture() -> None:
    """A JPEG so thin that nothing would be left of its short side is shrunk to one pixel there."""
    file = io.BytesIO()
    Image.new("RGB", (4000, 7), "red").save(file, "JPEG")
    photo, recipe = open_probe(file), Recipe("RGB", (Resize((224, 224), "pad"),))
    assert photo.reduction(recipe.allows_shrinking) == 1  # padding is made of whole pixels
    assert recipe.apply(photo.decoded(8), photo.size).shape == (224, 224, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_shrunk_and_turned(orientation: int) -> None:
    """A photo that is turned is shrunk only by what divides its sides, so that its edges lie where they should."""
    recipe = Recipe("RGB", (RandomResizedCrop((40, 40), (40, 40)),))
    for size, factor in (((1601, 1201), 1), ((1602, 1202), 2), ((1604, 1204), 4), ((1600, 1200), 8)):
        file = io.BytesIO()
        exif = Image.Exif()
        exif[0x0112] = orientation
        noise((40, 30)).resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=95, exif=exif)
        photo = open_photo(file, LIMITS)
        reduction = photo.reduction(recipe.allows_shrinking)
        assert reduction == (8 if orientation == 1 else factor)
        whole = recipe.apply(photo.decoded()).astype(int)
        shrunk = recipe.apply(photo.decoded(reduction), photo.size).astype(int)
        assert np.abs(whole - shrunk).mean() < 1.5


def test_as_json() -> None:
    """A recipe survives being written down, for every kind of step."""
    recipe = Recipe("L", (CropPad((3, 4), "border"), *STEPS))
    assert Recipe.from_json(json.loads(json.dumps(recipe.as_json()))) == recipe
    with pytest.raises(KeyError):
        Recipe.from_json({"mode": "RGB", "steps": [{"kind": "rotate"}]})


def test_size() -> None:
    """A recipe knows the size of what comes out, or that there is none."""
    assert Recipe("RGB", (RatioResize(80), Resize((64, 48)))).size == (64, 48)
    assert Recipe("RGB", (RatioResize(80),)).size is None
    assert Recipe("RGB", ()).size is None
