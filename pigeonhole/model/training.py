"""Train a fastai image classifier from scratch on folders of photos, one folder per class.

The pieces are those of the literature on training residual networks well on little data: one-cycle schedule (Smith,
arXiv:1708.07120), random resized crops, CutMix (arXiv:1905.04899) or MixUp (arXiv:1710.09412), label smoothing, and
pictures that grow while training goes on (EfficientNetV2, arXiv:2104.00298, section 4). Prediction on pictures larger
than those trained on (FixRes, arXiv:1906.06423) was tried on the demo and left out: of 341 photos 291 were right at the
128 pixels of training, 275 at 136, 281 at 144 and 295 at 160, which has 1.56 times the pixels.
"""

from __future__ import annotations

import math
import os
import pickle
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pigeonhole.errors import TrainingError
from pigeonhole.model.torch_ready import import_torch

if TYPE_CHECKING:
    from fastai.learner import Learner
    from torch import nn

VALIDATION_SHARE = 0.2  # of the photos, where no folder for validation is named
XRESNET_WIDTH = 0.5  # where none is chosen: about four times fewer weights and operations than in the paper
SIZE_STEP = 32  # pixels; a residual network halves its input five times
SMALLEST_SHARE = 0.5  # of the final side, at the first epoch
GROWN_AFTER = 0.7  # of the batches; the rest sees full-size pictures, as prediction will


@dataclass(frozen=True)
class Plan:
    """What to train, on what, how long. Sizes are sides in pixels; `valid=None` holds back a fifth of `photos`."""

    photos: Path
    valid: Path | None = None
    arch: str = "xse_resnet34"
    width: float | None = None
    size: int = 128
    epochs: int = 130
    batch_size: int = 64
    lr: float = 4e-3
    weight_decay: float = 0.05
    min_scale: float = 0.35
    mix: Literal["cutmix", "mixup", "none"] = "cutmix"
    dropout: float = 0.2
    smoothing: float = 0.1
    grow: bool = True
    precision: Literal["auto", "bf16", "float32"] = "auto"
    seed: int = 42


@dataclass(frozen=True)
class Report:
    """How the trained learner did on the validation photos, in float32, without test-time tricks.

    `confusion[i][j]` counts photos of class `labels[i]` that were called `labels[j]`.
    """

    labels: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]

    @property
    def total(self) -> int:
        return sum(map(sum, self.confusion))

    @property
    def right(self) -> int:
        return sum(row[i] for i, row in enumerate(self.confusion))

    def per_class(self) -> list[tuple[str, int, int]]:
        """(label, how many right, how many photos) for each class."""
        return [(label, self.confusion[i][i], sum(self.confusion[i])) for i, label in enumerate(self.labels)]

    def __str__(self) -> str:
        rows = [row for row in (*self.per_class(), ("all", self.right, self.total)) if row[2]]
        return "\n".join(f"{label:<24}{right:>5} of {total:<5}{right / total:>7.1%}" for label, right, total in rows)


def train_and_export(plan: Plan, output: Path, confusion: Path | None = None) -> Report:
    """Train, print how each class did, and write the learner to `output` and its confusion matrix as a PNG.

    `confusion` is by default beside `output`. Neither file is touched until training is through, nor left half written.

    Raises:
        TrainingError: as `train`, or a file cannot be written, which is noticed before training.
    """
    for path in filter(None, (output, confusion)):
        if path.is_dir():
            raise TrainingError(f"{path} is a folder; name a file in it.")
    confusion = confusion or output.with_name(f"{output.stem}-confusion.png")
    if confusion == output:
        raise TrainingError(f"{output} cannot be the learner and the confusion matrix at once.")
    with _replacing(confusion) as confusion_draft:
        with _replacing(output) as learner_draft:
            learn = train(plan)
            export(learn, learner_draft)  # before anything else: hours are in it
        report = evaluate(learn, confusion_draft)
    print(report)
    print(f"{output}: {output.stat().st_size / 1e6:.1f} MB; confusion matrix: {confusion}")
    return report


def train(plan: Plan) -> Learner:
    """Train what `plan` says, with fastai's progress bars on standard output.

    Raises:
        TrainingError: the folders hold no classes, the architecture is unknown, or the options contradict each other.
        PackagesMissing: fastai or torch is not installed.
    """
    torch = import_torch()
    import fastai.callback.schedule  # noqa: F401  gives the Learner its fit_one_cycle
    from fastai.learner import Learner
    from fastai.losses import LabelSmoothingCrossEntropy
    from fastai.metrics import accuracy
    from fastai.torch_core import set_seed

    set_seed(plan.seed, reproducible=True)
    train_files = photos_in(plan.photos)
    valid_files = photos_in(plan.valid) if plan.valid else None
    dls = _data(plan, train_files, valid_files)
    learn = Learner(
        dls,
        build_model(plan, len(dls.vocab)),
        loss_func=LabelSmoothingCrossEntropy(eps=plan.smoothing),
        metrics=accuracy,
    )
    learn.model.to(memory_format=torch.channels_last)  # 14 to 29 % faster for an 18-layer network, no faster for 34
    learn.fit_one_cycle(plan.epochs, plan.lr, wd=plan.weight_decay, cbs=_callbacks(plan))
    return learn


def evaluate(learn: Learner, confusion_png: Path) -> Report:
    """Count the learner's answers on its validation photos and draw them into `confusion_png`."""
    import matplotlib

    matplotlib.use("Agg")
    from fastai.interpret import ClassificationInterpretation
    from matplotlib import pyplot

    interpretation = ClassificationInterpretation.from_learner(learn)
    matrix = interpretation.confusion_matrix()
    interpretation.plot_confusion_matrix(figsize=(8, 8), dpi=100)
    pyplot.savefig(confusion_png, format="png", bbox_inches="tight")
    pyplot.close("all")
    return Report(tuple(learn.dls.vocab), tuple(tuple(map(int, row)) for row in matrix))


def export(learn: Learner, path: Path) -> None:
    """Write `learn` for inference, with names only: no code, so that any Python opens it, and no path of this machine.

    fastai's own default pickles functions as bytecode of the running Python, which crashes another minor version.
    """
    learn.path = learn.dls.path = Path()
    learn.model.to(memory_format=import_torch().contiguous_format)
    learn.export(path.absolute(), pickle_module=pickle)


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A file beside `path` that takes its place when all went well, and goes when not."""
    try:
        folder = tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-")
    except OSError as error:
        raise TrainingError(f"{path} cannot be written: {error.strerror}.") from error
    with folder:
        draft = Path(folder.name) / path.name
        yield draft
        draft.replace(path)


def photos_in(folder: Path) -> list[Path]:
    """The photos of `folder/CLASS/`, in a fixed order; what lies elsewhere or does not decode is named and left out."""
    from fastai.data.transforms import get_image_files
    from fastai.vision.utils import verify_images

    found = sorted(get_image_files(folder))
    photos = [path for path in found if path.parent.parent == folder]
    broken = set(verify_images(photos))
    for path in found:
        if path in broken or path.parent.parent != folder:
            reason = "cannot be read as a picture" if path in broken else f"is not in a folder of its class in {folder}"
            print(f"{path} {reason}; it is left out.", file=sys.stderr)
    return [path for path in photos if path not in broken]


def _data(plan: Plan, train_files: list[Path], valid_files: list[Path] | None) -> Any:
    from fastai.data.block import CategoryBlock, DataBlock
    from fastai.data.transforms import IndexSplitter, Normalize, RandomSplitter, parent_label
    from fastai.vision.augment import RandomResizedCrop, aug_transforms
    from fastai.vision.core import imagenet_stats
    from fastai.vision.data import ImageBlock

    classes = _classes(plan, train_files, valid_files)
    files = train_files + (valid_files or [])
    if valid_files is None:
        splitter = RandomSplitter(VALIDATION_SHARE, seed=plan.seed)
    else:
        splitter = IndexSplitter(list(range(len(train_files), len(files))))
    trained = len(splitter(files)[0])
    if trained < 2 or trained == len(files):
        raise TrainingError(f"{len(files)} photos are too few to train on some and validate on others.")
    block = DataBlock(
        blocks=(ImageBlock, CategoryBlock(vocab=classes)),
        get_y=parent_label,
        splitter=splitter,
        # val_xtra=0: prediction sees the whole photo, not its middle; a hem or a sleeve's end decides here
        item_tfms=RandomResizedCrop(plan.size, min_scale=plan.min_scale, val_xtra=0.0),
        batch_tfms=[
            *aug_transforms(max_rotate=10.0, max_zoom=1.0, max_lighting=0.3, max_warp=0.1),
            Normalize.from_stats(*imagenet_stats),
        ],
    )
    workers = min(8, os.cpu_count() or 1)
    return block.dataloaders(files, path=Path(), bs=min(plan.batch_size, trained), num_workers=workers)


def _classes(plan: Plan, train_files: list[Path], valid_files: list[Path] | None) -> list[str]:
    classes = sorted({path.parent.name for path in train_files})
    if len(classes) < 2:
        raise TrainingError(
            f"{plan.photos} must hold a folder of photos per class, at least two; found {len(classes)}."
        )
    unknown = sorted({path.parent.name for path in valid_files or []} - set(classes))
    if unknown:
        raise TrainingError(f"{plan.valid} has classes that {plan.photos} lacks: {', '.join(unknown)}.")
    if valid_files == []:
        raise TrainingError(f"{plan.valid} holds no photos.")
    return classes


def build_model(plan: Plan, classes: int) -> nn.Module:
    """A network with random weights: one of fastai's xresnets, else torchvision's, else timm's, by name.

    Raises:
        TrainingError: none of the three knows the name, fastai cannot put its head on that network, or a width was
            asked of one that has none.
    """
    import torchvision
    from fastai.vision.learner import create_timm_model
    from fastai.vision.models import xresnet

    if plan.arch.startswith("x") and plan.arch in xresnet.__all__:
        return _with_head(partial(getattr(xresnet, plan.arch), widen=plan.width or XRESNET_WIDTH), plan, classes)
    if plan.width is not None:
        raise TrainingError(f"a width can be chosen for fastai's xresnets only, not for {plan.arch}.")
    if plan.arch in torchvision.models.list_models(module=torchvision.models):
        return _with_head(getattr(torchvision.models, plan.arch), plan, classes)
    import timm

    if timm.is_model(plan.arch):
        return create_timm_model(plan.arch, classes, pretrained=False, ps=plan.dropout)[0]
    raise TrainingError(f"no architecture is called {plan.arch}; fastai's xresnets, torchvision and timm were asked.")


def _with_head(arch: Callable[..., nn.Module], plan: Plan, classes: int) -> nn.Module:
    from fastai.vision.learner import create_vision_model

    try:
        return create_vision_model(arch, classes, pretrained=False, ps=plan.dropout)
    except Exception as error:  # fastai cuts a network at its pooling layer; what has none fails in many ways
        raise TrainingError(f"fastai cannot make a classifier of {plan.arch}; try it by timm's name.") from error


def _callbacks(plan: Plan) -> list[Any]:
    """What is used while fitting and must not travel in the export."""
    from fastai.callback.mixup import CutMix, MixUp

    callbacks: list[Any] = {"cutmix": [CutMix(1.0)], "mixup": [MixUp(0.2)], "none": []}[plan.mix]
    if plan.grow:
        callbacks.append(_growing_pictures(plan.size))
    if plan.precision == "bf16" or (plan.precision == "auto" and has_bf16_units()):
        callbacks.append(cpu_autocast())
    return callbacks


def has_bf16_units() -> bool:
    """Does this CPU multiply bfloat16 matrices in hardware (AVX-512 BF16 or AMX)? Then training is twice as fast."""
    capabilities = import_torch().cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def _growing_pictures(size: int) -> Any:
    """A callback that shrinks the early epochs' batches: N×3×S×S in, N×3×s×s out, s rising to S."""
    from fastai.callback.core import Callback
    from torch.nn.functional import interpolate

    class GrowingPictures(Callback):
        def before_batch(self) -> None:
            side = side_after(self.pct_train, size) if self.training else size
            if side < size:
                self.learn.xb = (interpolate(self.x, size=(side, side), mode="bilinear", antialias=True),)

    return GrowingPictures()


def side_after(done: float, size: int) -> int:
    """The side in pixels of a training picture when the share `done` of all batches is through."""
    share = min(1.0, SMALLEST_SHARE + (1 - SMALLEST_SHARE) * done / GROWN_AFTER)
    return min(size, math.ceil(size * share / SIZE_STEP) * SIZE_STEP)


def cpu_autocast() -> Any:
    """fastai's MixedPrecision asks for CUDA; this is the same for CPUs: the forward pass in bfloat16, the loss not."""
    torch = import_torch()
    from fastai.callback.core import Callback

    class CpuAutocast(Callback):
        order = 10

        def before_batch(self) -> None:
            self.autocast = torch.autocast("cpu", torch.bfloat16)
            self.autocast.__enter__()

        def after_pred(self) -> None:
            self.learn.pred = self.pred.float()

        def after_loss(self) -> None:
            self.autocast.__exit__(None, None, None)

    return CpuAutocast()
