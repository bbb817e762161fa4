"""The learner's item transforms at validation, in Pillow and numpy: the same bytes as fastai's own, without torch.

Each step is one transform of `fastai.vision.augment` (2.8), with its arithmetic kept, rounding and all: what `int` cuts
off there decides which pixels are seen. `RandomResizedCrop` and `RatioResize` are steps of their own because at
validation they are no plain resize either.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
from PIL import Image

Size = tuple[int, int]  # width and height in pixels
Method = Literal["crop", "squish", "pad"]
PadMode = Literal["zeros", "border", "reflection"]

NUMPYS_PAD_MODES = {"zeros": "constant", "border": "edge", "reflection": "reflect"}
# Pixels along each side that have to be left for every one needed. With 2, photos of 12 megapixels that were shrunk by
# 8 for 224 pixels had log-odds off by 0.25; with 3 and 4 it was 0.03.
OVERSAMPLING = 3
MIDDLE = 0.5  # where a validation crop lies, of the room there is


@dataclass(frozen=True)
class Step:
    """One item transform; `apply` takes a picture of mode RGB or L and gives another."""

    kind: ClassVar[str]

    def apply(self, picture: Image.Image) -> Image.Image:
        raise NotImplementedError

    def apply_reduced(self, picture: Image.Image, full: Size) -> Image.Image:
        """What `apply` makes of a picture of size `full`, from that picture shrunk before."""
        return self.apply(picture)

    def shrinks_by(self, size: Size) -> float:
        """How many pixels of a picture of `size` become one, along the side where they are fewest."""
        return 1.0

    def size_after(self, size: Size) -> Size:
        raise NotImplementedError


@dataclass(frozen=True)
class CropPad(Step):
    """fastai's `CropPad`, and `RandomCrop`, which then takes the middle: cut or padded to `size`, not resized."""

    kind: ClassVar[str] = "crop-pad"
    size: Size
    pad_mode: PadMode = "zeros"

    def apply(self, picture: Image.Image) -> Image.Image:
        return _crop_pad(picture, self.size, _middle(picture.size, self.size), self.pad_mode)

    def size_after(self, size: Size) -> Size:
        return self.size


@dataclass(frozen=True)
class Resize(Step):
    """fastai's `Resize`: the largest middle part of the right shape, or all of it squished, or padded; then `size`."""

    kind: ClassVar[str] = "resize"
    size: Size
    method: Method = "crop"
    pad_mode: PadMode = "reflection"
    resample: int = Image.Resampling.BILINEAR

    def apply(self, picture: Image.Image) -> Image.Image:
        part, top_left = self._part(picture.size)
        return _crop_pad(picture, part, top_left, self.pad_mode).resize(self.size, self.resample)

    def apply_reduced(self, picture: Image.Image, full: Size) -> Image.Image:
        """The part's edges need not fall between two of the pixels that are left."""
        part, top_left = self._part(full)
        factor = _factor(full, picture.size)
        left, top = top_left[0] / factor, top_left[1] / factor
        right, bottom = left + part[0] / factor, top + part[1] / factor
        edge = math.floor(left), math.floor(top)
        whole = math.ceil(right) - edge[0], math.ceil(bottom) - edge[1]
        picture = _crop_pad(picture, whole, edge, self.pad_mode)  # a filter would look over the edge of a box alone
        return picture.resize(
            self.size, self.resample, (left - edge[0], top - edge[1], right - edge[0], bottom - edge[1])
        )

    def shrinks_by(self, size: Size) -> float:
        ratios = (size[0] / self.size[0], size[1] / self.size[1])
        return max(ratios) if self.method == "pad" else min(ratios)

    def size_after(self, size: Size) -> Size:
        return self.size

    def _part(self, size: Size) -> tuple[Size, Size]:
        """The size and the top left corner of what is resized; the corner lies outside where padding comes."""
        if self.method == "squish":
            return size, (0, 0)
        scale = self.shrinks_by(size)
        part = int(scale * self.size[0]), int(scale * self.size[1])
        return part, (int(MIDDLE * (size[0] - part[0])), int(MIDDLE * (size[1] - part[1])))


@dataclass(frozen=True)
class RandomResizedCrop(Step):
    """fastai's `RandomResizedCrop` at validation: squished to `resize_to`, of which the middle `size` is cut out."""

    kind: ClassVar[str] = "random-resized-crop"
    size: Size
    resize_to: Size
    resample: int = Image.Resampling.BILINEAR

    def apply(self, picture: Image.Image) -> Image.Image:
        return self.apply_reduced(picture, picture.size)

    def apply_reduced(self, picture: Image.Image, full: Size) -> Image.Image:
        factor = _factor(full, picture.size)
        resized = picture.resize(self.resize_to, self.resample, (0, 0, full[0] / factor, full[1] / factor))
        return _crop_pad(resized, self.size, _middle(self.resize_to, self.size), "zeros")

    def shrinks_by(self, size: Size) -> float:
        return min(size[0] / self.resize_to[0], size[1] / self.resize_to[1])

    def size_after(self, size: Size) -> Size:
        return self.size


@dataclass(frozen=True)
class RatioResize(Step):
    """fastai's `RatioResize`: the longer side becomes `longest` pixels, the other keeps the ratio, rounded down.

    fastai lets the sliver that the rounding leaves over fall on a random side, when predicting too; here it is halved.
    """

    kind: ClassVar[str] = "ratio-resize"
    longest: int
    resample: int = Image.Resampling.BILINEAR

    def apply(self, picture: Image.Image) -> Image.Image:
        return self._resize(picture.size).apply(picture)

    def apply_reduced(self, picture: Image.Image, full: Size) -> Image.Image:
        return self._resize(full).apply_reduced(picture, full)

    def shrinks_by(self, size: Size) -> float:
        return max(size) / self.longest

    def size_after(self, size: Size) -> Size:
        width, height = size
        if width >= height:
            return self.longest, int(height * self.longest / width)
        return int(width * self.longest / height), self.longest

    def _resize(self, size: Size) -> Resize:
        return Resize(self.size_after(size), resample=self.resample)


KINDS: dict[str, Callable[..., Step]] = {step.kind: step for step in (CropPad, Resize, RandomResizedCrop, RatioResize)}


@dataclass(frozen=True)
class Recipe:
    """All item transforms, in their order. `mode` is Pillow's: RGB, or L for learners of grey pictures."""

    mode: Literal["RGB", "L"] = "RGB"
    steps: tuple[Step, ...] = field(default_factory=tuple)

    @property
    def channels(self) -> int:
        return 3 if self.mode == "RGB" else 1

    @property
    def size(self) -> Size | None:
        """The size of what comes out; None if it depends on the picture."""
        sizes = {self.size_after(size) for size in ((1000, 1000), (1000, 500), (500, 1000), (300, 200))}
        return sizes.pop() if len(sizes) == 1 else None

    def size_after(self, size: Size) -> Size:
        for step in self.steps:
            size = step.size_after(size)
        return size

    def shrinks_by(self, size: Size) -> float:
        """How many pixels of a picture of `size` become one, along each side."""
        return self.steps[0].shrinks_by(size) if self.steps else 1.0

    @property
    def useful_side(self) -> int | None:
        """In pixels: of a photo whose shorter side is longer, `OVERSAMPLING` times what is needed is left at this.

        None where a first step cuts out pixels as they are: there a smaller photo would show more of the scene.
        """
        scale = self.shrinks_by((1000, 1000)) / 1000
        if not math.isclose(self.shrinks_by((2000, 2000)), 2000 * scale):
            return None
        return math.ceil(OVERSAMPLING / scale)

    def allows_shrinking(self, size: Size, factor: int) -> bool:
        """May a picture of `size` be shrunk by `factor` beforehand? `OVERSAMPLING` times what is needed has to be left.

        Padding is made of whole pixels, so there the factor has to divide the sides.
        """
        pads = any(getattr(step, "method", "") == "pad" for step in self.steps[:1])
        divides = size[0] % factor == 0 == size[1] % factor
        return self.shrinks_by(size) >= OVERSAMPLING * factor and (divides or not pads)

    def apply(self, picture: Image.Image, full: Size | None = None) -> np.ndarray:
        """uint8, height × width × channels, of an RGB `picture`; `full` is its size where decoding shrank it."""
        picture = picture if picture.mode == self.mode else picture.convert(self.mode)
        for number, step in enumerate(self.steps):
            reduced = number == 0 and full is not None and full != picture.size
            picture = step.apply_reduced(picture, full) if reduced and full else step.apply(picture)
        pixels = np.asarray(picture)
        return pixels if pixels.ndim == 3 else pixels[..., None]

    def as_json(self) -> dict[str, Any]:
        return {"mode": self.mode, "steps": [{"kind": step.kind, **asdict(step)} for step in self.steps]}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Recipe:
        """The recipe that `as_json` described.

        Raises:
            KeyError, TypeError: it is of a newer Pigeonhole, or none.
        """
        return cls(data["mode"], tuple(map(_step, data["steps"])))

    def __str__(self) -> str:
        return ", ".join(
            f"{step.kind} {json.dumps(list(asdict(step).values()))[1:-1].replace(chr(34), '')}" for step in self.steps
        )


def _step(data: dict[str, Any]) -> Step:
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in data.items()}
    kind = str(options.pop("kind"))
    return KINDS[kind](**options)


def _middle(size: Size, part: Size) -> Size:
    """The top left corner of the middle `part`, negative where it is larger."""
    return (size[0] - part[0]) // 2, (size[1] - part[1]) // 2


def _factor(full: Size, reduced: Size) -> int:
    """By how much a decoder shrank a picture; it rounds sizes up, so the last row may stand for fewer pixels."""
    return max(round(full[0] / reduced[0]), round(full[1] / reduced[1]))


def _crop_pad(picture: Image.Image, size: Size, top_left: Size, pad_mode: PadMode) -> Image.Image:
    """`PILImage._do_crop_pad` without its resize: cut out what lies inside, pad what lies outside."""
    width, height = picture.size
    left, top = top_left
    picture = picture.crop((max(left, 0), max(top, 0), min(left + size[0], width), min(top + size[1], height)))
    before = max(-left, 0), max(-top, 0)
    after = max(size[0] - width + left, 0), max(size[1] - height + top, 0)
    return _pad(picture, before, after, pad_mode) if any((*before, *after)) else picture


def _pad(picture: Image.Image, before: Size, after: Size, mode: PadMode) -> Image.Image:
    pixels = np.asarray(picture)
    widths = [(before[1], after[1]), (before[0], after[0]), (0, 0)][: pixels.ndim]
    return Image.fromarray(np.pad(pixels, widths, mode=NUMPYS_PAD_MODES[mode]))  # type: ignore[call-overload]
