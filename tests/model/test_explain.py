"""A heatmap as numbers becomes colours over the picture."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

from pigeonhole.model.explain import Explanation, as_picture, normalized


def explanation(*rows: tuple[float, ...], size: tuple[int, int] = (30, 20)) -> Explanation:
    return Explanation("cat", Image.new("RGB", size, (100, 100, 100)), np.array(rows, np.float32))


def test_heat_covers_the_picture() -> None:
    """The grid's cells are spread over the whole picture, and what lies between them is in between."""
    heat = explanation((1, 0), (0, 0)).heat()
    assert heat.shape == (20, 30)
    assert (heat[0, 0], heat[-1, -1], heat[0, -1]) == (1, 0, 0)
    assert 0 < heat[10, 14] < heat[5, 7] < 1


def test_colours() -> None:
    """Half over the picture lie Turbo's colours, as its author published them; at its ends it is darker."""
    overlay = explanation((0, 0.5, 1), size=(96, 3)).overlay()
    assert (overlay.mode, overlay.size) == ("RGB", (96, 3))
    published = {32: (40, 188, 235), 48: (164, 252, 60), 63: (251, 127, 33)}  # a quarter, a half, three quarters
    for x, colour in published.items():
        assert np.abs(np.subtract(overlay.getpixel((x, 1)), [(level + 100) / 2 for level in colour])).max() <= 9
    assert max(overlay.getpixel((0, 1))) < 90


def test_nothing_to_show() -> None:
    """Where nothing speaks for the label the picture stays as it is."""
    nothing = explanation((0, 0), (0, 0))
    assert np.array_equal(nothing.overlay(), nothing.seen)


@pytest.mark.parametrize(
    ("heatmap", "grid"),
    [
        ([[1, 2], [4, -3]], [[0.25, 0.5], [1, 0]]),
        ([[0, 0], [0, 0]], [[0, 0], [0, 0]]),
        ([[-1, -2], [-4, -3]], [[0, 0], [0, 0]]),
        ([[1e-7, -2], [-4, -3]], [[0, 0], [0, 0]]),
        ([[math.nan, 1], [2, 3]], [[0, 0], [0, 0]]),
    ],
    ids=["for and against", "nothing", "all against", "a rounding error", "no number"],
)
def test_normalized(heatmap: list[list[float]], grid: list[list[float]]) -> None:
    """The largest value becomes 1, and what speaks against the label 0."""
    values = normalized(np.array(heatmap, np.float32))
    assert values.dtype == np.float32
    assert values.tolist() == grid


def test_grey() -> None:
    """What a network of grey pictures saw is shown as RGB."""
    picture = as_picture(np.full((4, 6, 1), 7, np.uint8))
    assert (picture.mode, picture.size, picture.getpixel((0, 0))) == ("RGB", (6, 4), (7, 7, 7))
