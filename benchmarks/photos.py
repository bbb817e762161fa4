"""Photos of every size, as JPEG and PNG: real ones enlarged, or made up where there are none.

An enlarged photo lacks the noise of a sensor, which makes a camera's files as large as they are, so some is added.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

Kind = Literal["jpeg", "png"]
CLASSES = ("dress", "hat", "longsleeve", "outwear", "pants", "shirt", "shoes", "shorts", "skirt", "t-shirt")
MEGAPIXELS = (0.25, 0.5, 2.0, 12.0, 24.0)
QUALITY = 90  # of the JPEGs
NOISE = 3.0  # deviation, of 255


def sources(folder: Path, count: int | None = None) -> list[Path]:
    """Photos of `folder/CLASS/`, evenly over all of them."""
    paths = sorted(folder.rglob("*.jpg"))
    step = 1 if count is None else max(1, len(paths) // count)
    return paths[::step][:count]


def made_up(folder: Path, each: int = 40) -> Path:
    """A folder of pictures per class, each class of its own hue and grain; for where the real photos are not."""
    random = np.random.default_rng(7)
    for place, label in enumerate(CLASSES):
        (folder / label).mkdir(parents=True, exist_ok=True)
        for number in range(each):
            grain = 3 + 3 * (place % 4)
            pixels = random.integers(0, 110, (4 * grain, 3 * grain, 3))
            pixels[..., place % 3] += 50 + 10 * place
            picture = Image.fromarray(pixels.astype(np.uint8)).resize((300, 400), Image.Resampling.BICUBIC)
            picture.save(folder / label / f"{number:03}.jpg", quality=QUALITY)
    return folder


def size_of(megapixels: float, upright: bool) -> tuple[int, int]:
    """Width and height, three to four."""
    short = math.floor(math.sqrt(megapixels * 1e6 * 3 / 4))
    long = math.floor(short * 4 / 3)
    return (short, long) if upright else (long, short)


def photo(source: Path, megapixels: float, kind: Kind) -> bytes:
    """`source` at that size, with noise, encoded."""
    with Image.open(source) as opened:
        picture = opened.convert("RGB")
    picture = picture.resize(size_of(megapixels, picture.height >= picture.width), Image.Resampling.BICUBIC)
    random = np.random.default_rng(sum(source.name.encode()))
    noise = random.standard_normal((picture.height, picture.width, 1), np.float32) * NOISE
    pixels = (np.asarray(picture) + noise).clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    options = {"quality": QUALITY} if kind == "jpeg" else {"compress_level": 3}
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def photos(cache: Path, sources: Sequence[Path], megapixels: float, kind: Kind) -> list[Path]:
    """Files of all `sources` at that size, made where they are not in the cache."""
    folder = cache / f"{megapixels:g}-megapixels-{kind}"
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{source.parent.name}-{source.stem}.{kind}" for source in sources]
    for path, source in zip(paths, sources, strict=True):
        if not path.exists():
            draft = path.with_suffix(".draft")
            draft.write_bytes(photo(source, megapixels, kind))
            draft.replace(path)
    return paths
