"""What is understood of a learner is what it computes; what is not is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pigeonhole.errors import NotCompiled
from pigeonhole.model.learner import LearnerEngine, open_learner
from pigeonhole.model.pipeline import Resample, _batch_steps, _item_steps, understand
from pigeonhole.model.torch_ready import import_torch
from tests.model.learners import export_learner

SIZE = (60, 44)


@pytest.fixture(scope="session")
def fastai() -> Any:
    """fastai's names, as after its star imports, and torch."""
    torch = import_torch()
    import fastai.data.transforms as data
    import fastai.vision.augment as augment

    names = {**vars(augment), "IntToFloatTensor": data.IntToFloatTensor, "Normalize": data.Normalize, "torch": torch}
    return SimpleNamespace(**names)


STATS = ([0.4, 0.5, 0.6], [0.2, 0.25, 0.3])
BATCHES: dict[str, Callable[[Any], list[Any]]] = {
    "nothing else": lambda fa: [],
    "normalize": lambda fa: [fa.Normalize.from_stats(*STATS, cuda=False)],
    "augment": lambda fa: fa.aug_transforms(),
    "augment, normalize": lambda fa: [*fa.aug_transforms(mult=2), fa.Normalize.from_stats(*STATS, cuda=False)],
    "to a size": lambda fa: fa.aug_transforms(size=32),
    "to a much smaller size": lambda fa: fa.aug_transforms(size=20),  # fastai averages areas first
    "to another shape": lambda fa: fa.aug_transforms(size=(32, 24), flip_vert=True),
    "larger": lambda fa: fa.aug_transforms(size=80),
    "presizing": lambda fa: fa.aug_transforms(size=32, min_scale=0.75),
    "corners not aligned": lambda fa: fa.aug_transforms(size=32, align_corners=False),
    "zeros around": lambda fa: fa.aug_transforms(size=70, align_corners=False, pad_mode="zeros"),
    "nearest": lambda fa: fa.aug_transforms(size=33, mode="nearest"),
    "a part": lambda fa: [fa.RandomResizedCropGPU(32, valid_scale=0.7, ratio=(1.5, 2))],
    "each by itself": lambda fa: [fa.Flip(), fa.Rotate(), fa.Zoom(), fa.Warp(), fa.Brightness(), fa.Contrast()],
    "colours": lambda fa: [fa.Hue(), fa.Saturation(), fa.RandomErasing()],
    "dihedral": lambda fa: [fa.Dihedral(), fa.DeterministicDihedral(), fa.DeterministicFlip(size=28)],
}


@pytest.mark.parametrize("name", BATCHES)
def test_batch_transforms(name: str, fastai: Any) -> None:
    """What the steps make of a batch is what fastai's transforms make of it at validation, but for rounding."""
    from fastai.torch_core import TensorImage
    from fasttransform import Pipeline

    torch = fastai.torch
    pictures = torch.randint(
        0, 256, (3, 3, SIZE[1], SIZE[0]), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    transforms = Pipeline([fastai.IntToFloatTensor(), *BATCHES[name](fastai)], split_idx=1)
    expected = transforms(TensorImage(pictures.clone()))
    batch = pictures
    steps = _batch_steps(transforms.fs, 3, SIZE)
    for step in steps:
        batch = step(batch)
    assert type(batch) is torch.Tensor
    assert batch.shape == expected.shape
    assert (batch - expected).abs().max() < 1e-4
    if name in ("nothing else", "augment", "colours"):
        assert not any(isinstance(step, Resample) for step in steps)  # what changes nothing costs nothing


def refusal(of: Callable[[], Any]) -> str:
    with pytest.raises(NotCompiled) as refused:
        of()
    return str(refused.value)


def test_unknown_transforms_are_named(fastai: Any) -> None:
    """A transform that no table knows is named, also one that looks like one of fastai's."""

    class Resize(fastai.Resize):  # type: ignore[misc, name-defined]
        pass

    class Sharpen(fastai.RandTransform):  # type: ignore[misc, name-defined]
        split_idx = None

    first = fastai.IntToFloatTensor()
    from fastai.data.transforms import ToTensor

    assert "test_pipeline.Sharpen is not understood" in refusal(lambda: _batch_steps([first, Sharpen()], 3, SIZE))
    assert "test_pipeline.Resize is not understood" in refusal(lambda: _item_steps([Resize(3), ToTensor()]))
    assert "do not end in a tensor" in refusal(lambda: _item_steps([fastai.Resize(3)]))
    assert "do not end in a tensor" in refusal(lambda: _item_steps([ToTensor(), first]))
    assert "do not begin with IntToFloatTensor" in refusal(lambda: _batch_steps([], 3, SIZE))
    always = fastai.SpaceTfm([], None, split_idx=None)
    always.split_idx = None
    assert "the batch transform SpaceTfm is not" in refusal(lambda: _batch_steps([first, always], 3, SIZE))


@pytest.fixture(scope="module")
def learner(tmp_path_factory: pytest.TempPathFactory) -> LearnerEngine:
    return open_learner(export_learner(tmp_path_factory.mktemp("learner"), "colour"))


def test_what_else_is_not_understood(learner: LearnerEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Callbacks, losses, kinds of Learner and pictures that are not known are named, too."""
    from fastai.callback.core import Callback
    from fastai.learner import Learner
    from torch import nn

    class Twist(Callback):  # type: ignore[misc]
        pass

    class Own(Learner):  # type: ignore[misc]
        pass

    fine = learner.learner
    assert understand(fine, "RGB").activation == "softmax"
    with monkeypatch.context() as patch:
        patch.setattr(fine, "cbs", [*fine.cbs, Twist()])
        assert "its callback Twist" in refusal(lambda: understand(fine, "RGB"))
    with monkeypatch.context() as patch:
        patch.setattr(fine, "loss_func", nn.MSELoss())
        assert "the loss MSELoss" in refusal(lambda: understand(fine, "RGB"))
    with monkeypatch.context() as patch:
        patch.setattr(fine, "__class__", Own)
        assert "it is a Own" in refusal(lambda: understand(fine, "RGB"))
    with monkeypatch.context() as patch:
        patch.setattr(fine.dls.valid.after_item, "fs", fine.dls.valid.after_item.fs[1:])
        assert "bring pictures to no fixed size" in refusal(lambda: understand(fine, "RGB"))
    with monkeypatch.context() as patch:
        patch.setattr(fine.dls.valid_ds.tls[0].tfms, "fs", [*fine.dls.valid_ds.tls[0].tfms.fs, Path.exists])
        assert "of what opens a picture" in refusal(lambda: understand(fine, "RGB"))
    assert "of mode CMYK" in refusal(lambda: understand(fine, "CMYK"))  # type: ignore[arg-type]


def test_what_is_no_resampling(fastai: Any) -> None:
    """A coordinate transform that turns the picture at validation is no map of rows and of columns."""

    class Turned(fastai.AffineCoordTfm):  # type: ignore[misc, name-defined]
        def _get_affine_mat(self, x: Any) -> Any:
            import torch

            turn = torch.tensor([[np.cos(0.5), np.sin(0.5), 0], [-np.sin(0.5), np.cos(0.5), 0]], dtype=torch.float32)
            return turn.expand(x.size(0), 2, 3)

    Turned.__module__, Turned.__name__ = "fastai.vision.augment", "Rotate"
    sentence = refusal(lambda: _batch_steps([fastai.IntToFloatTensor(), Turned(size=30)], 3, SIZE))
    assert "Rotate does not resample rows and columns by themselves" in sentence
