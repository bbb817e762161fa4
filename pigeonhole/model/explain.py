"""Where the model looked: a Grad-CAM heatmap as numbers and laid over the picture, drawn without torch.

Grad-CAM (Selvaraju et al. 2017, "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization",
sections 3 and 3.1) weighs each channel of the last convolutional features A by the mean of the gradient of a label's
score with respect to it, and keeps what speaks for the label: ReLU(sum_k mean_ij(dy/dA_kij) A_k). The score y is the
network's output before softmax or sigmoid.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image

OPACITY = 0.5  # of the colours over the picture
LEVELS = 256
NOISE = 1e-4  # of the largest value of a heatmap: what float32 makes of a nothing
TURBO = (  # red, green, blue by powers of the heat: Anton Mikhailov 2019, "Turbo, An Improved Rainbow Colormap"
    (0.13572138, 4.61539260, -42.66032258, 132.13108234, -152.94239396, 59.28637943),
    (0.09140261, 2.19418839, 4.84296658, -14.18503333, 4.27729857, 2.82956604),
    (0.10667330, 12.64194608, -60.58204836, 110.36276771, -89.90310912, 27.34824973),
)


@dataclass(frozen=True)
class Explanation:
    """Where the model looked to say `label`.

    `seen` is the picture as the network got it: 8-bit RGB, cut and resized. `grid` is float32, rows × columns of the
    network's last convolutional features, over all of `seen`: from 0, which says nothing for the label, to 1, where the
    most was said; all 0 where nothing speaks for it.
    """

    label: str
    seen: Image.Image
    grid: np.ndarray

    def heat(self) -> np.ndarray:
        """The grid enlarged to the size of `seen`, height × width, 0 to 1, bilinearly."""
        enlarged = Image.fromarray(self.grid).resize(self.seen.size, Image.Resampling.BILINEAR)
        return np.asarray(enlarged).clip(0, 1)

    def overlay(self) -> Image.Image:
        """`seen` under the colours of the heat, blue to red; as it is where nothing speaks for the label."""
        if not self.grid.any():
            return self.seen
        colours = Image.fromarray(_turbo()[np.rint(self.heat() * (LEVELS - 1)).astype(np.uint8)])
        return Image.blend(self.seen, colours, OPACITY)


def normalized(heatmap: np.ndarray) -> np.ndarray:
    """What in `heatmap` speaks for the label, with 1 as its largest value, as float32.

    All 0 where nothing does: next to what speaks against it, the largest value is a rounding error.
    """
    positive = np.maximum(heatmap, 0)
    largest = positive.max()
    return np.asarray(
        positive / largest if largest > NOISE * np.abs(heatmap).max() else np.zeros_like(heatmap), np.float32
    )


def as_picture(pixels: np.ndarray) -> Image.Image:
    """uint8 `pixels`, height × width × channels (3, or 1 of grey), as RGB."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).convert("RGB")


@cache
def _turbo() -> np.ndarray:
    """uint8, 256 × 3."""
    powers = np.linspace(0, 1, LEVELS)[:, None] ** np.arange(6)
    return np.rint((powers @ np.transpose(TURBO)).clip(0, 1) * 255).astype(np.uint8)
