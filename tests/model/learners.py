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


def export_as_people_do(folder: Path, kind: str) -> Path:
    """Export an untrained learner whose data came by one of fastai's factories (a key of FACTORIES)."""
    torch = import_torch()
    from fastai.learner import Learner
    from fastai.torch_core import set_seed

    set_seed(3, reproducible=True)
    dls, options = FACTORIES[kind](photos(folder / "photos"))
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    model.append(torch.nn.Linear(8, dls.c))
    learn = Learner(dls, model, path=folder, **options)
    learn.export("export.pkl")
    return folder / "export.pkl"


def _loaders(factory: str, folder: Path, *arguments: Any, **options: Any) -> Any:
    from fastai.vision.augment import Resize
    from fastai.vision.data import ImageDataLoaders

    options = {"item_tfms": Resize(32), "bs": 4, "num_workers": 0, "seed": 1, **options}
    return getattr(ImageDataLoaders, factory)(folder, *arguments, **options)


def _of_files(make: Callable[[Path, list[Path]], Any]) -> Callable[[Path], Any]:
    return lambda folder: (make(folder, sorted(folder.rglob("*.jpg"))), {})


def _table(folder: Path, files: list[Path]) -> Any:
    import pandas

    rows = [(str(path.relative_to(folder)), path.parent.name) for path in files]
    table = pandas.DataFrame(rows, columns=["name", "label"])
    import fastai.vision.data

    options = {"item_tfms": fastai.vision.augment.Resize(32), "bs": 4, "num_workers": 0}
    return fastai.vision.data.ImageDataLoaders.from_df(table, folder, **options)


def _with_loss(name: str, **options: Any) -> Callable[[Path], Any]:
    def make(folder: Path) -> Any:
        import fastai.losses

        return _loaders("from_folder", folder, valid_pct=0.2), {"loss_func": getattr(fastai.losses, name)(**options)}

    return make


def _with_transforms(folder: Path) -> Any:
    from fastai.vision.augment import Hue, Saturation, aug_transforms

    return _loaders("from_folder", folder, valid_pct=0.2, batch_tfms=[*aug_transforms(), Hue(), Saturation()]), {}


def _with_mixup(folder: Path) -> Any:
    from fastai.callback.mixup import MixUp

    return _loaders("from_folder", folder, valid_pct=0.2), {"cbs": [MixUp()]}


FACTORIES: dict[str, Callable[[Path], Any]] = {
    "from_folder": lambda folder: (_loaders("from_folder", folder, valid_pct=0.2), {}),
    "from_name_re": _of_files(lambda folder, files: _loaders("from_path_re", folder, files, r"/(\w+)/\d+.jpg$")),
    "from_path_func": _of_files(lambda folder, files: _loaders("from_path_func", folder, files, _label)),
    "a lambda": _of_files(
        lambda folder, files: _loaders("from_path_func", folder, files, lambda path: path.parent.name)
    ),
    "from_df": _of_files(_table),
    "from_lists": _of_files(
        lambda folder, files: _loaders(
            "from_lists", folder, files, list(np.array([path.parent.name for path in files]))
        )
    ),
    "integers": _of_files(
        lambda folder, files: _loaders(
            "from_lists", folder, files, [len(path.parent.name) + int(path.stem) % 2 for path in files]
        )
    ),
    "focal loss": _with_loss("FocalLossFlat"),
    "smoothed labels": _with_loss("LabelSmoothingCrossEntropyFlat"),
    "hue and saturation": _with_transforms,
    "mixup": _with_mixup,
}
