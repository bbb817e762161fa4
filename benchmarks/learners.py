"""The learners that the benchmark serves, made here, since no pretrained weights come along: ResNet-34 and others.

A learner whose weights are random gives nearly the same probability to every label. Its answers would turn on the last
bit, which no server of the contest could be blamed for, and the guard of ours would compute most photos twice. So it is
trained for a while, from a fixed seed: all of it on small pictures, then its head at full size, until it is sure of
what it was trained on. How far its answers are decided, and how many of ours were computed twice, the results tell.

How much work a forward pass is does not depend on the weights, so those that are only timed (`untrained`) are not
trained. Random layers magnify what rounding does, ten times as much as trained ones, and the guard would compute all of
their answers twice or find no fast way; so what normalizes gets the statistics of photos, the last layer says little,
and one label gets a bias. Their answers are decided, as those of a trained learner are, though always the same.
"""

from __future__ import annotations

import argparse
import json
import pickle
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from pigeonhole.model.torch_ready import import_torch

SIDE = 224  # pixels, of what the network sees
BATCH = 64
SEED = 42


@dataclass(frozen=True)
class Stage:
    """So many epochs on pictures of so many pixels a side; `rate` is the highest learning rate."""

    side: int
    epochs: int
    rate: float


STAGES = (Stage(112, 20, 2e-3), Stage(SIDE, 3, 3e-4))  # most of it on pictures with a quarter of the pixels
# log-odds: enough for the guard, and so few that probes are doubtful, without which there is no fast way
DECIDED = 1.5
SAYS_LITTLE = 0.03  # times its weights
CALIBRATED_ON = 256  # photos


def trained(photos: Path, output: Path, arch: str = "resnet34", stages: Sequence[Stage] = STAGES) -> None:
    """Train `arch` on `photos/CLASS/*.jpg`, on the GPU where there is one, and export it as a notebook would.

    What it predicts with is fastai's plain `Resize`, which people who serve a model by hand can write in a few lines.
    """
    torch = import_torch()
    from fastai.data.transforms import get_image_files
    from fastai.torch_core import set_seed

    set_seed(SEED, reproducible=True)
    files = sorted(get_image_files(photos))
    learn = _learner(_loaders(files[:: max(1, len(files) // 64)], sorted({path.parent.name for path in files})), arch)
    pictures = _pictures(files)
    labels = torch.tensor([learn.dls.vocab.o2i[path.parent.name] for path in files])
    learn.model.to(learn.dls.device, memory_format=torch.channels_last)
    for stage in stages:
        fit(learn.model, pictures, labels, stage)
    learn.model.to("cpu", memory_format=torch.contiguous_format)
    _export(learn, output)


def fit(network: Any, pictures: Any, labels: Any, stage: Stage) -> None:
    """Train on uint8 `pictures`, N×3×224×224, shrunk to the stage's side, mirrored and moved a little.

    One cycle of the learning rate (Smith, arXiv:1708.07120), AdamW (arXiv:1711.05101), bfloat16 in the forward pass.
    """
    import torch
    from torch.nn.functional import cross_entropy, interpolate

    device = next(network.parameters()).device
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.05)
    steps = stage.epochs * (len(labels) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, stage.rate, total_steps=steps)
    margin = stage.side // 8
    network.train()
    for epoch in range(stage.epochs):
        losses = []
        for chosen in torch.randperm(len(labels)).split(BATCH)[: len(labels) // BATCH]:
            batch = _normalized(pictures[chosen].to(device))
            batch = interpolate(batch, size=stage.side + margin, mode="bilinear", antialias=True)
            top, left = torch.randint(margin + 1, (2,)).tolist()
            batch = batch[..., top : top + stage.side, left : left + stage.side]
            batch = (batch.flip(-1) if torch.rand(()) < 0.5 else batch).contiguous(memory_format=torch.channels_last)
            with torch.autocast(device.type, torch.bfloat16):
                answers = network(batch)
            loss = cross_entropy(answers.float(), labels[chosen].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
        print(
            f"{stage.side} pixels, epoch {epoch + 1} of {stage.epochs}: loss {torch.stack(losses).mean():.3f}",
            file=sys.stderr,
        )
    network.eval()


def _pictures(paths: Sequence[Path]) -> Any:
    """uint8, N×3×224×224."""
    import torch

    return torch.stack([torch.from_numpy(_square(path)) for path in paths]).permute(0, 3, 1, 2)


def _normalized(batch: Any) -> Any:
    """What a network of ImageNet's statistics sees of a uint8 `batch`, in float32, on the same device."""
    import torch
    from fastai.vision.core import imagenet_stats

    mean, deviation = (torch.tensor(values, device=batch.device).view(1, 3, 1, 1) for values in imagenet_stats)
    return (batch.float() / 255 - mean) / deviation


def _square(path: Path) -> Any:
    with Image.open(path) as picture:
        return np.array(ImageOps.fit(picture.convert("RGB"), (SIDE, SIDE), Image.Resampling.BILINEAR))


def untrained(photos: Path, output: Path, arch: str, labels: int = 0) -> None:
    """Export `arch` with random weights, for the classes of `photos` and as many more labels as make it `labels`.

    Its batch normalizations get the mean statistics of photos; without them, numbers grow from layer to layer.
    """
    import_torch()
    import torch
    from fastai.data.transforms import get_image_files
    from fastai.torch_core import set_seed

    set_seed(SEED, reproducible=True)
    files = sorted(get_image_files(photos))
    classes = sorted({path.parent.name for path in files})
    classes += [f"label {number}" for number in range(len(classes), labels)]
    learn = _learner(_loaders(files[:: max(1, len(files) // 64)], classes), arch)
    _calibrate(learn.model, files[:: max(1, len(files) // CALIBRATED_ON)])
    last = [layer for layer in learn.model.modules() if isinstance(layer, torch.nn.Linear)][-1]
    bias = torch.zeros(last.out_features)
    bias[0] = DECIDED
    last.bias, last.weight = torch.nn.Parameter(bias), torch.nn.Parameter(last.weight.detach() * SAYS_LITTLE)
    _export(learn, output)


def _calibrate(network: Any, paths: Sequence[Path]) -> None:
    import torch

    network.eval()
    for layer in network.modules():
        if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
            layer.reset_running_stats()
            layer.momentum = None  # the mean of all batches
            layer.train()
    with torch.inference_mode():
        for batch in _pictures(paths).split(BATCH):
            network(_normalized(batch))
    network.eval()


def references(export: Path, photos: Sequence[Path]) -> list[tuple[str, float]]:
    """What `learner.predict` says of each photo, and its margin: best probability less the second."""
    import_torch()
    import fastai.callback.progress  # noqa: F401  gives the Learner its no_bar
    import torch
    from fastai.learner import load_learner
    from fastai.vision.core import PILImage

    torch.set_num_threads(2)
    learn = load_learner(export)
    answers = []
    with learn.no_bar():
        for photo in photos:
            label, _, probabilities = learn.predict(PILImage.create(photo.read_bytes()))
            best, second = probabilities.topk(2).values.tolist()
            answers.append((str(label), best - second))
    return answers


def _loaders(files: Sequence[Path], classes: Sequence[str]) -> Any:
    from fastai.data.block import CategoryBlock, DataBlock
    from fastai.data.transforms import Normalize, RandomSplitter, parent_label
    from fastai.vision.augment import Resize
    from fastai.vision.core import imagenet_stats
    from fastai.vision.data import ImageBlock

    block = DataBlock(
        blocks=(ImageBlock, CategoryBlock(vocab=list(classes))),
        get_y=parent_label,
        splitter=RandomSplitter(0.1, seed=SEED),
        item_tfms=Resize(SIDE),
        batch_tfms=[Normalize.from_stats(*imagenet_stats)],
    )
    return block.dataloaders(files, path=Path(), bs=64, num_workers=0)


def _learner(loaders: Any, arch: str) -> Any:
    import torchvision
    from fastai.vision.learner import vision_learner

    known = arch in torchvision.models.list_models(module=torchvision.models)
    network = getattr(torchvision.models, arch) if known and arch.startswith("resnet") else arch  # else timm's
    return vision_learner(loaders, network, pretrained=False, normalize=False)


def _export(learn: Any, output: Path) -> None:
    """With names only, no bytecode: what any Python of fastai 2.8 opens."""
    learn.path = learn.dls.path = Path()
    output.parent.mkdir(parents=True, exist_ok=True)
    learn.export(output.absolute(), pickle_module=pickle)


def main(arguments: Sequence[str]) -> None:
    """In a process of its own: torch takes half a gigabyte, which the benchmark's process has no use for."""
    parser = argparse.ArgumentParser(prog="benchmarks.learners")
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("trained", "untrained"):
        command = commands.add_parser(name)
        command.add_argument("photos", type=Path)
        command.add_argument("output", type=Path)
        command.add_argument("--arch", default="resnet34")
    commands.choices["untrained"].add_argument("--labels", type=int, default=0)
    command = commands.add_parser("references", help="photos' paths come on standard input, one a line")
    command.add_argument("export", type=Path)
    options = parser.parse_args(arguments)
    if options.command == "trained":
        trained(options.photos, options.output, options.arch)
    elif options.command == "untrained":
        untrained(options.photos, options.output, options.arch, options.labels)
    else:
        print(json.dumps(references(options.export, list(map(Path, sys.stdin.read().splitlines())))))


if __name__ == "__main__":
    main(sys.argv[1:])
