"""Pictures to ask a model about before it is trusted: made here, so that every machine has them.

They have the spectrum of photos (amplitude falls as one over frequency: Field 1987, "Relations between the statistics
of natural images and the response properties of cortical cells"), in colours that differ, with shapes in front. A
network trained on photos answers such pictures with doubt, which is what a probe is for: an answer in between moves
when a weight, a filter or a channel is wrong; a certain one hardly does.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from pigeonhole.model.card import Probe
from pigeonhole.model.recipe import Recipe, Size

CANDIDATES = 24
KEPT = 8
KEPT_LARGE, KEPT_MOVED = 2, 3
BISECTIONS = 5
SEED = 20261121
# of the smallest picture that is not enlarged: phones' shapes, landscape and upright, wide, square, hardly large enough
SHAPES = ((1.6, 1.2), (1.2, 1.6), (2.4, 1.35), (1.0, 1.0), (1.1, 2.0), (3.1, 2.3))
LARGE_EVERY = 8
LARGE = (6.6, 6.2)  # so large that a JPEG decoder may shrink it by two, and hardly larger
QUALITY = 88
Answer = str | list[str]

LARGEST_SIDE = 4096  # pixels; a probe of a learner of huge pictures


def candidates(recipe: Recipe) -> list[bytes]:
    """JPEGs in sizes that suit what `recipe` makes of them; always the same."""
    random = np.random.Generator(np.random.PCG64(SEED))
    pictures = []
    for number in range(CANDIDATES):
        shape = SHAPES[number % len(SHAPES)] if number % LARGE_EVERY else LARGE
        pictures.append(_jpeg(_picture(_size(recipe, shape), random)))
    return pictures


def made_up(size: Size, seed: int) -> Image.Image:
    """A picture of `size`, width and height in pixels, as those that are candidates; always the same."""
    return _picture(size, np.random.Generator(np.random.PCG64(seed)))


def blends(asked: Sequence[tuple[bytes, Answer]], ask: Callable[[bytes], Answer]) -> list[bytes]:
    """Pictures between two of `asked` (the candidates, and the answers) at which the answer is about to change.

    They are found by bisection, so that there is something to doubt also for a learner that is certain of all
    candidates. For one that gives them all the same answer there is nothing between.
    """
    firsts = [*asked[::LARGE_EVERY][:KEPT_LARGE], *asked[1:LARGE_EVERY]]
    found = []
    for number, (picture, success) in enumerate(firsts):
        partners = [other for other, answer in asked if answer != success]
        if partners:
            found.append(_between(picture, success, partners[number % len(partners)], ask))
    return found


def _between(here: bytes, answer: Answer, there: bytes, ask: Callable[[bytes], Answer]) -> bytes:
    """The last blend that still gets the `answer` of `here`."""
    first = Image.open(io.BytesIO(here))
    last = Image.open(io.BytesIO(there)).resize(first.size)
    low, high = 0.0, 1.0
    for _ in range(BISECTIONS):
        share = (low + high) / 2
        is_as_here = ask(_jpeg(Image.blend(first, last, share))) == answer
        low, high = (share, high) if is_as_here else (low, share)
    return _jpeg(Image.blend(first, last, low))


@dataclass(frozen=True)
class Judged:
    """A probe; may a decoder shrink it; its answer's margin and what bfloat16 moves it by, in log-odds."""

    probe: Probe
    is_large: bool
    margin: float
    deviation: float


def most_telling(judged: Sequence[Judged]) -> tuple[Probe, ...]:
    """The probes to keep: those that bfloat16 moves most, large ones first, and the most doubtful, of each label one.

    What moves most sets the guard's bound, and a few pictures in a hundred are moved ten times as far as the others.
    """
    moved = sorted(judged, key=lambda one: one.deviation, reverse=True)
    large = [one for one in moved if one.is_large][:KEPT_LARGE]
    small = [one for one in moved if not one.is_large][:KEPT_MOVED]
    doubtful = sorted(judged, key=lambda one: one.margin)
    of_each_label = {str(one.probe.success): one for one in reversed(doubtful)}.values()
    ranked = (*large, *small, *sorted(of_each_label, key=lambda one: one.margin), *doubtful)
    kept = [one.probe for place, one in enumerate(ranked) if one not in ranked[:place]]
    return tuple(kept[:KEPT])


def _size(recipe: Recipe, shape: tuple[float, float]) -> Size:
    """A picture of this shape, of which one pixel of the result is made of as many as the shape says, or more."""
    side = max(recipe.size or (1, 1))
    scale = recipe.shrinks_by((side, side))
    unit = side / scale if recipe.shrinks_by((2 * side, 2 * side)) > scale else side
    width, height = (min(LARGEST_SIDE, max(8, 2 * round(unit * side / 2))) for side in shape)  # even: padding wants it
    return width, height


def _picture(size: Size, random: np.random.Generator) -> Image.Image:
    """Coloured noise of falling spectrum, behind a few shapes."""
    picture = Image.fromarray(_noise(size, random))
    draw = ImageDraw.Draw(picture)
    for _ in range(random.integers(1, 6)):
        x, y = (int(random.integers(0, length)) for length in size)
        width, height = (int(random.integers(length // 8, length // 2 + 1)) for length in size)
        colour = tuple(int(level) for level in random.integers(0, 256, 3))
        shape = (draw.ellipse, draw.rectangle)[random.integers(2)]
        shape((x - width // 2, y - height // 2, x + width // 2, y + height // 2), fill=colour)
    return picture


def _noise(size: Size, random: np.random.Generator) -> np.ndarray:
    width, height = size
    frequencies = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    frequencies[0, 0] = 1 / max(size)
    falling = random.uniform(1.1, 1.5)
    spectra = np.fft.rfft2(random.normal(size=(4, height, width))) / frequencies**falling
    waves = np.fft.irfft2(spectra, s=(height, width))
    waves /= waves.std(axis=(1, 2), keepdims=True)
    common, colours = waves[0], waves[1:]
    levels = 128 + 45 * common + random.uniform(5, 40) * colours + random.uniform(-40, 40, (3, 1, 1))
    return np.moveaxis(levels.clip(0, 255).astype(np.uint8), 0, 2).copy()


def _jpeg(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()
