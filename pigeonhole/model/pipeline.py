"""What a learner does to a picture when it predicts, read off its transforms: a recipe, and steps in torch.

fastai runs every transform at validation too; most of them then do nothing, and some do something else than in
training. What each class does stands in the tables here, for fastai 2.8 as installed (an older export is opened as
that). A transform that is in no table is not guessed.

fastai's tensor subclasses get in the way of tracing, so the steps do fastai's arithmetic on plain tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from pigeonhole.errors import NotCompiled
from pigeonhole.model.recipe import CropPad, RandomResizedCrop, RatioResize, Recipe, Resize, Size, Step

if TYPE_CHECKING:
    from fastai.learner import Learner
    from torch import Tensor, nn

VALIDATION = 1  # fastai's number of the set that predictions count to
TRAINING = 0
OPENING = "PILBase.create"
SOFTMAX_LOSSES = (
    "CrossEntropyLossFlat",
    "FocalLossFlat",
    "LabelSmoothingCrossEntropyFlat",
    "LabelSmoothingCrossEntropy",
)
SIGMOID_LOSSES = ("BCEWithLogitsLossFlat",)
OWN_CALLBACKS = ("TrainEvalCallback", "Recorder", "CastToTensor")
ROUNDING = 1e-4  # of pixels from 0 to 1; float32 coordinates are off by about 1e-5 of a pixel
VAL_XTRA_STEP = 8  # pixels; RandomResizedCrop rounds its margin up to it


@dataclass(frozen=True)
class Pipeline:
    """From a picture to probabilities: `recipe`, then `batch` on N×C×H×W, the network, and the activation.

    `threshold` is that of a multi-label learner, None where the labels exclude each other.
    """

    recipe: Recipe
    batch: tuple[BatchStep, ...]
    network: nn.Module
    activation: Literal["softmax", "sigmoid"]
    threshold: float | None

    def on(self, device: str) -> Pipeline:
        """The same on one of torch's devices. The network is moved there, not copied."""
        batch = tuple(_moved(step, device) for step in self.batch)
        return replace(self, batch=batch, network=self.network.to(device))


def understand(learner: Learner, mode: Literal["RGB", "L"]) -> Pipeline:
    """What `learner.predict` computes; `mode` is Pillow's of the pictures it takes.

    Raises:
        NotCompiled: part of it is not understood; the sentence names it.
    """
    from fastai.learner import Learner

    if mode not in ("RGB", "L"):
        raise NotCompiled(f"its pictures are of mode {mode}; RGB and L (grey) are understood.")
    if type(learner) is not Learner:
        raise NotCompiled(f"it is a {type(learner).__name__}, not a plain Learner.")
    if others := [type(callback).__name__ for callback in learner.cbs if not _is_own_callback(callback)]:
        raise NotCompiled(f"its callback {others[0]} may change what the network sees or says.")
    loader = learner.dls.valid
    _check_untransformed(learner.dls.valid_ds.tls[0].tfms.fs, loader.before_batch.fs)
    activation, threshold = _activation(learner.loss_func)
    recipe = Recipe(mode, tuple(_item_steps(loader.after_item.fs)))
    if recipe.size is None:
        raise NotCompiled("its item transforms (" + (str(recipe) or "none") + ") bring pictures to no fixed size.")
    return Pipeline(
        recipe=recipe,
        batch=tuple(_batch_steps(loader.after_batch.fs, recipe.channels, recipe.size)),
        network=learner.model,
        activation=activation,
        threshold=threshold,
    )


def _is_own_callback(callback: Any) -> bool:
    return type(callback).__name__ in OWN_CALLBACKS and type(callback).__module__.startswith("fastai.")


def _check_untransformed(type_transforms: Iterable[Any], before_batch: Iterable[Any]) -> None:
    """A picture is opened, and nothing else is done to it before the item transforms or between them and the batch.

    What comes before the opening finds the file (a column of a table, say); prediction has the picture and skips it.
    """
    names = [getattr(transform, "name", type(transform).__name__) for transform in type_transforms]
    behind = names[names.index(OPENING) + 1 :] if OPENING in names else names
    behind += [getattr(transform, "name", type(transform).__name__) for transform in before_batch]
    if unknown := [name for name in behind if name != "noop"]:
        raise NotCompiled(f"the transform {unknown[0]}, of what opens a picture, is not understood.")


def _activation(loss: Any) -> tuple[Literal["softmax", "sigmoid"], float | None]:
    name = type(loss).__name__
    if type(loss).__module__ == "fastai.losses" and getattr(loss, "axis", -1) in (-1, 1):
        if name in SOFTMAX_LOSSES:
            return "softmax", None
        if name in SIGMOID_LOSSES and 0 < loss.thresh < 1:
            return "sigmoid", float(loss.thresh)
    raise NotCompiled(f"what the loss {name} makes of the network's output is not understood.")


def _item_steps(transforms: Iterable[Any]) -> list[Step]:
    *before, last = [*_acting(transforms)] or [None]
    if _name(last) != "ToTensor":
        raise NotCompiled("its item transforms do not end in a tensor.")
    return [_looked_up(transform, ITEM_STEPS, "item")(transform) for transform in before]


def _batch_steps(transforms: Iterable[Any], channels: int, size: Size) -> list[BatchStep]:
    first, *others = [*_acting(transforms)] or [None]
    if _name(first) != "IntToFloatTensor":
        raise NotCompiled("its batch transforms do not begin with IntToFloatTensor.")
    steps: list[BatchStep] = [_divide(first)]
    for transform in others:
        step = _looked_up(transform, BATCH_STEPS, "batch")(transform, channels, size)
        if isinstance(step, Resample):
            size = step.size
        steps.append(step)
    return [step for step in steps if not (isinstance(step, Resample) and step.changes_nothing)]


def _looked_up(transform: Any, table: dict[str, Callable[..., Any]], kind: str) -> Callable[..., Any]:
    name = _name(transform)
    if name not in table:
        raise NotCompiled(f"the {kind} transform {name} is not understood.")
    return table[name]


def _acting(transforms: Iterable[Any]) -> Iterable[Any]:
    """The transforms that do something at validation: not those that are nothing, or fastai's for training only.

    A coordinate transform such as Flip acts, although it turns nothing: it samples the picture once, which is how
    `aug_transforms(size=…)` resizes. It overwrites its `split_idx`, so that says nothing about it.
    """
    for transform in transforms:
        name = _name(transform)
        is_nothing = name == "Transform" and getattr(transform, "name", "") == "noop"
        for_training = name.isidentifier() and name not in COORDINATES and transform.split_idx == TRAINING
        if not (is_nothing or for_training):
            yield transform


def _name(transform: Any) -> str:
    """The name of fastai's class; one of somebody else's has its module before it, and so is in no table."""
    kind = type(transform)
    of_fastai = kind.__module__.partition(".")[0] in ("fastai", "fasttransform", "fastcore")
    return kind.__name__ if of_fastai else f"{kind.__module__}.{kind.__name__}"


def _size(size: Any) -> Size:
    return int(size[0]), int(size[1])


def _random_resized_crop(transform: Any) -> Step:
    margin = math.ceil(max(*transform.size[:2]) * transform.val_xtra / VAL_XTRA_STEP) * VAL_XTRA_STEP
    size = _size(transform.size)
    return RandomResizedCrop(size, (size[0] + margin, size[1] + margin), int(transform.mode))


ITEM_STEPS: dict[str, Callable[[Any], Step]] = {
    "CropPad": lambda transform: CropPad(_size(transform.size), str(transform.pad_mode)),  # type: ignore[arg-type]
    "OldRandomCrop": lambda transform: CropPad(_size(transform.size), str(transform.pad_mode)),  # type: ignore[arg-type]
    "RandomCrop": lambda transform: CropPad(_size(transform.size)),
    "Resize": lambda transform: Resize(
        _size(transform.size),
        str(transform.method),  # type: ignore[arg-type]
        str(transform.pad_mode),  # type: ignore[arg-type]
        int(transform.mode),
    ),
    "RandomResizedCrop": _random_resized_crop,
    "RatioResize": lambda transform: RatioResize(int(transform.max_sz), int(transform.resamples[0])),
}


@dataclass(frozen=True)
class Divide:
    """`IntToFloatTensor`."""

    by: float

    def __str__(self) -> str:
        return f"divide by {self.by:g}"

    def __call__(self, batch: Tensor) -> Tensor:
        return batch.float() / self.by


@dataclass(frozen=True)
class Normalize:
    """`Normalize`; both tensors are 1×C×1×1."""

    mean: Tensor
    std: Tensor

    def __str__(self) -> str:
        return "normalize"

    def __call__(self, batch: Tensor) -> Tensor:
        return (batch - self.mean) / self.std


@dataclass(frozen=True)
class Resample:
    """A coordinate transform that turns nothing: a linear map of the rows (h×H) and one of the columns (w×W)."""

    rows: Tensor
    columns: Tensor

    def __str__(self) -> str:
        return f"resample to {self.size[0]}x{self.size[1]}"

    @property
    def size(self) -> Size:
        return self.columns.shape[0], self.rows.shape[0]

    @property
    def changes_nothing(self) -> bool:
        """Each pixel stays what and where it is, but for what float32 makes of the coordinates."""
        return all(
            matrix.shape[0] == matrix.shape[1] and (matrix - matrix.new_ones(len(matrix)).diag()).abs().max() < ROUNDING
            for matrix in (self.rows, self.columns)
        )

    def __call__(self, batch: Tensor) -> Tensor:
        return self.rows @ batch @ self.columns.T


BatchStep = Divide | Normalize | Resample


def _moved(step: BatchStep, device: str) -> BatchStep:
    """`step` with its tensors on `device`."""
    import torch

    moved: dict[str, Any] = {name: value.to(device) for name, value in vars(step).items() if torch.is_tensor(value)}
    return replace(step, **moved)


def _divide(transform: Any) -> Divide:
    return Divide(float(transform.div) if transform.div else 1.0)


def _normalize(transform: Any, channels: int, size: Size) -> Normalize:
    mean, std = _plain(transform.mean), _plain(transform.std)
    return Normalize(mean, std)


def _resample(transform: Any, channels: int, size: Size) -> Resample:
    """Read the two linear maps off fastai's own code, by letting pictures through that are white in one row or column.

    Sampling on an upright grid is linear in the picture and separable. What fastai does to get there (shrink first if
    the result is much smaller, crop a ratio, align corners or not) need not be known. One picture of noise is compared.

    Raises:
        NotCompiled: it is no such map.
    """
    import torch
    from fastai.torch_core import TensorImage
    from fastai.vision.augment import RandTransform

    assert isinstance(transform, RandTransform)

    def sampled(pictures: Tensor) -> Tensor:
        return _plain(transform(TensorImage(pictures), split_idx=VALIDATION))

    width, height = size
    rows = [sampled(line.view(1, 1, height, 1).expand(1, 1, height, width)) for line in torch.eye(height)]
    columns = [sampled(line.view(1, 1, 1, width).expand(1, 1, height, width)) for line in torch.eye(width)]
    resample = Resample(
        rows=torch.stack([row[0, 0, :, row.shape[3] // 2] for row in rows], 1),
        columns=torch.stack([column[0, 0, column.shape[2] // 2] for column in columns], 1),
    )
    noise = torch.rand(2, channels, height, width, generator=torch.Generator().manual_seed(0))
    if not torch.allclose(resample(noise), sampled(noise), rtol=0, atol=ROUNDING):
        raise NotCompiled(f"the batch transform {_name(transform)} does not resample rows and columns by themselves.")
    return resample


def _plain(tensor: Any) -> Tensor:
    """A float32 tensor on the CPU that is torch's own, not fastai's."""
    import torch

    return torch.as_tensor(tensor).detach().cpu().float().as_subclass(torch.Tensor)


COORDINATES = (
    "AffineCoordTfm",
    "Flip",
    "Dihedral",
    "Rotate",
    "Zoom",
    "Warp",
    "DeterministicFlip",
    "DeterministicDihedral",
)
BATCH_STEPS: dict[str, Callable[[Any, int, Size], BatchStep]] = {
    **dict.fromkeys((*COORDINATES, "RandomResizedCropGPU"), _resample),
    "Normalize": _normalize,
}
