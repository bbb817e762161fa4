"""Small fastai learners, untrained, of the kinds that people export."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pigeonhole.model.torch_ready import import_torch


def photos(folder: Path, classes: tuple[str, ...] = ("cat", "dog", "owl"), each: int = 8) -> Path:
    """A folder of noisy pictures per class, each class of its own colour."""
    random = np.random.default_rng(5)
    for place, label in enumerate(classes):
        (folder / label).mkdir(parents=True)
        for number in range(each):
            pixels = random.integers(0, 120, (48, 40, 3))
            pixels[..., place % 3] += 120
            Image.fromarray(pixels.astype(np.uint8)).save(folder / label / f"{number}.jpg", quality=95)
    return folder


def export_learner(folder: Path, kind: str) -> Path:
    """Export an untrained learner of `kind` (a key of KINDS) into `folder` as a notebook would."""
    torch = import_torch()
    from fastai.data.block import DataBlock
    from fastai.data.transforms import get_image_files
    from fastai.learner import Learner
    from fastai.torch_core import set_seed
    from fastai.vision.augment import Resize
    from fastai.vision.core import PILImage, PILImageBW

    target, get_y, loss, outputs = KINDS[kind]()
    set_seed(3, reproducible=True)
    image = PILImageBW if kind == "grey" else PILImage
    from fastai.vision.data import ImageBlock

    targets = target if isinstance(target, tuple) else (target,)
    block = DataBlock(blocks=(ImageBlock(image), *targets), get_y=get_y, n_inp=1, item_tfms=Resize(32))
    dls = block.dataloaders(get_image_files(photos(folder / "photos")), path=folder, bs=4, num_workers=0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1 if kind == "grey" else 3, 8, 3, stride=2),
        torch.nn.AdaptiveAvgPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(32, outputs),
    )
    learn = Learner(dls, model, loss_func=loss, path=folder)
    learn.export("export.pkl")
    return folder / "export.pkl"


def _label(path: Path) -> str:
    return path.parent.name


def _label_and_animal(path: Path) -> list:  # fastai asks isinstance of what is announced here
    return [path.parent.name, "animal"]


def _is_cat(path: Path) -> bool:
    return path.parent.name == "cat"


def _weight(path: Path) -> float:
    return float(path.stem)


def _single(get_y: Callable[[Path], Any] = _label, outputs: int = 3) -> Any:
    from fastai.losses import CrossEntropyLossFlat
    from fastai.vision.data import CategoryBlock

    return CategoryBlock, get_y, CrossEntropyLossFlat(), outputs


def _multi() -> Any:
    from fastai.losses import BCEWithLogitsLossFlat
    from fastai.vision.data import MultiCategoryBlock

    return MultiCategoryBlock, _label_and_animal, BCEWithLogitsLossFlat(thresh=0.4), 4


def _regression() -> Any:
    from fastai.data.block import RegressionBlock
    from fastai.losses import MSELossFlat

    return RegressionBlock, _weight, MSELossFlat(), 1


def _mask(path: Path) -> Any:
    from fastai.vision.core import PILMask

    return PILMask.create(np.zeros((48, 40), np.uint8))


def _points(path: Path) -> Any:
    from fastai.torch_core import tensor

    return tensor([[1.0, 2.0]])


def _boxes(path: Path) -> list:
    return [[1.0, 2.0, 30.0, 40.0]]


def _box_labels(path: Path) -> list:
    return [path.parent.name]


def _segmentation() -> Any:
    from fastai.losses import CrossEntropyLossFlat
    from fastai.vision.data import MaskBlock

    return MaskBlock(codes=["no", "yes"]), _mask, CrossEntropyLossFlat(axis=1), 2


def _keypoints() -> Any:
    from fastai.losses import MSELossFlat
    from fastai.vision.data import PointBlock

    return PointBlock, _points, MSELossFlat(), 2


def _detection() -> Any:
    from fastai.losses import MSELossFlat
    from fastai.vision.data import BBoxBlock, BBoxLblBlock

    return (BBoxBlock, BBoxLblBlock), [_boxes, _box_labels], MSELossFlat(), 4


KINDS: dict[str, Callable[[], Any]] = {
    "segmentation": _segmentation,
    "points": _keypoints,
    "boxes": _detection,
    "colour": _single,
    "grey": _single,
    "is_cat": lambda: _single(_is_cat, 2),
    "multi-label": _multi,
    "regression": _regression,
}
