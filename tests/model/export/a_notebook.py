"""What a notebook might define and export; run as a script by test_notebook.py, so that all of it is `__main__`'s.

python a_notebook.py FOLDER: writes KIND.pkl and answers.json, what `learner.predict` said of FOLDER/photo.png.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

from pigeonhole.model.torch_ready import import_torch

import_torch()

import fastai.callback.progress  # noqa: E402, F401
from fastai.callback.core import Callback  # noqa: E402
from fastai.data.block import CategoryBlock, DataBlock  # noqa: E402
from fastai.data.transforms import get_image_files  # noqa: E402
from fastai.learner import Learner  # noqa: E402
from fastai.losses import CrossEntropyLossFlat  # noqa: E402
from fastai.torch_core import set_seed  # noqa: E402
from fastai.vision.augment import RandTransform, Resize  # noqa: E402
from fastai.vision.core import PILImage  # noqa: E402
from fastai.vision.data import ImageBlock  # noqa: E402
from fasttransform.transform import Transform  # noqa: E402
from PIL import ImageOps  # noqa: E402
from torch import nn  # noqa: E402


class Invert(Transform):
    """Works at prediction too."""

    def encodes(self, picture: PILImage):
        return PILImage.create(ImageOps.invert(picture))


class Blot(RandTransform):
    """Works in training only."""

    split_idx = 0

    def encodes(self, picture: PILImage):
        return PILImage.create(ImageOps.posterize(picture, 1))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))

    def forward(self, batch):
        return self.layers(batch * 2)


class Dim(Callback):
    """Changes what the network sees, in prediction too."""

    def before_batch(self):
        self.learn.xb = (self.x * 0.5,)


class Look(Callback):
    """Only looks on."""

    def after_epoch(self):
        self.seen = True


def flipped(picture: PILImage):
    """A function as a transform, which works at prediction too."""
    return PILImage.create(ImageOps.flip(picture))


def label_of(path):
    return path.parent.name


def learner(folder, item_tfms=(), cbs=(), network=None, get_y=label_of):
    set_seed(3, reproducible=True)
    block = DataBlock(blocks=(ImageBlock, CategoryBlock), get_y=get_y, item_tfms=[*item_tfms, Resize(32)])
    dls = block.dataloaders(get_image_files(folder / "photos"), path=folder, bs=4, num_workers=0)
    network = network or Net().layers
    return Learner(dls, network, loss_func=CrossEntropyLossFlat(), cbs=list(cbs), path=folder)


KINDS = {
    "transform": lambda folder: learner(folder, item_tfms=[Invert()]),
    "function": lambda folder: learner(folder, item_tfms=[flipped]),
    "network": lambda folder: learner(folder, network=Net()),
    "callback": lambda folder: learner(folder, cbs=[Dim()]),
    "training-transform": lambda folder: learner(folder, item_tfms=[Blot()]),
    "looking-callback": lambda folder: learner(folder, cbs=[Look()]),
    "lambda": lambda folder: learner(folder, get_y=lambda path: path.parent.name),
}

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    folder = Path(sys.argv[1])
    answers = {}
    for kind, make in KINDS.items():
        learn = make(folder)
        learn.export(f"{kind}.pkl")
        with learn.no_bar():
            label, _, probabilities = learn.predict(folder / "photo.png")
        answers[kind] = [label, probabilities.tolist()]
    (folder / "answers.json").write_text(json.dumps(answers))
