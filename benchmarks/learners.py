"""The learners that the benchmark serves, made here, since no pretrained weights come along: ResNet-34 and others.

A learner whose weights are random gives nearly the same probability to every label. Its answers would turn on the last
bit, which no server of the contest could be blamed for, and the guard of ours would compute most photos twice. So it is
trained for a while, from a fixed seed: all of it on small pictures, then its head at full size, until it is sure of
what it was trained on. How far its answers are decided, and how many of ours were computed twice, the results tell.

How much work an answer is does not depend on the weights, so those that are only timed (`untrained`) are not trained.
One of their labels gets a bias: their answers are decided, as those of a trained learner are, though always the same.
"""

from __future__ import annotations

import argparse
import json
import pickle
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pigeonhole.model.torch_ready import import_torch
from pigeonhole.model.training import cpu_autocast

SIDE = 224  # pixels, of what the network sees
SMALL_SIDE = 112  # of what it is trained on first: a quarter of the work
EPOCHS = 12  # minutes each, on two cores; after 3 of 64 pixels, 86 % of the photos were computed twice
SETTLING = 20  # batches of full size that batch normalization needs, whose averages depend on the size
HEAD_EPOCHS = 40  # of features that are computed once: seconds
SEED = 42
DECIDED = 20.0  # log-odds; random weights give a few between labels


def trained(photos: Path, output: Path, arch: str = "resnet34", epochs: int = EPOCHS) -> None:
    """Train `arch` on `photos/CLASS/*.jpg` as a notebook of fastai's would, and export it."""
    import_torch()
    import fastai.callback.progress  # noqa: F401  gives the Learner its no_bar
    import fastai.callback.schedule  # noqa: F401  and its fit_one_cycle
    import torch
    from fastai.data.transforms import get_image_files
    from fastai.torch_core import set_seed

    set_seed(SEED, reproducible=True)
    files = sorted(get_image_files(photos))
    learn = _learner(_loaders(files, SMALL_SIDE), arch)
    learn.model.to(memory_format=torch.channels_last)
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(epochs, 3e-3, cbs=[cpu_autocast()])
    learn.model.to(memory_format=torch.contiguous_format)
    learn.dls = _loaders(files, SIDE)
    fit_head(learn.model, learn.dls.train)
    _export(learn, output)


def fit_head(network: Any, photos: Any) -> None:
    """Train the head of a fastai network on photos of full size, whose features its body computes once."""
    import torch
    from torch.nn.functional import cross_entropy

    body, (pool, flatten, *rest) = network[0], network[1]
    head = torch.nn.Sequential(*rest)
    seen = []
    with torch.no_grad():
        body.train()
        for _, (pictures, _) in zip(range(SETTLING), photos, strict=False):
            body(pictures)
        body.eval()
        for pictures, labels in photos:
            seen.append((flatten(pool(body(pictures))).as_subclass(torch.Tensor), labels.as_subclass(torch.Tensor)))
    head.train()
    optimizer = torch.optim.AdamW(head.parameters(), 1e-3)
    for _ in range(HEAD_EPOCHS):
        for features, labels in seen:
            cross_entropy(head(features), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
    network.eval()


def untrained(photos: Path, output: Path, arch: str, labels: int = 0) -> None:
    """Export `arch` with random weights, for the classes of `photos` and as many more labels as make it `labels`."""
    import_torch()
    import torch
    from fastai.data.transforms import get_image_files
    from fastai.torch_core import set_seed

    set_seed(SEED, reproducible=True)
    files = sorted(get_image_files(photos))
    learn = _learner(_loaders(files[:: max(1, len(files) // 64)], SIDE, labels), arch)
    last = [layer for layer in learn.model.modules() if isinstance(layer, torch.nn.Linear)][-1]
    bias = torch.zeros(last.out_features)
    bias[0] = DECIDED
    last.bias = torch.nn.Parameter(bias)
    _export(learn, output)


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


def _loaders(files: Sequence[Path], side: int, labels: int = 0) -> Any:
    from fastai.data.block import CategoryBlock, DataBlock
    from fastai.data.transforms import Normalize, RandomSplitter, parent_label
    from fastai.vision.augment import Resize
    from fastai.vision.core import imagenet_stats
    from fastai.vision.data import ImageBlock

    classes = sorted({path.parent.name for path in files})
    classes += [f"label {number}" for number in range(len(classes), labels)]
    block = DataBlock(
        blocks=(ImageBlock, CategoryBlock(vocab=classes)),
        get_y=parent_label,
        splitter=RandomSplitter(0.1, seed=SEED),
        item_tfms=Resize(side),
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
    commands.choices["trained"].add_argument("--epochs", type=int, default=EPOCHS)
    commands.choices["untrained"].add_argument("--labels", type=int, default=0)
    command = commands.add_parser("references", help="photos' paths come on standard input, one a line")
    command.add_argument("export", type=Path)
    options = parser.parse_args(arguments)
    if options.command == "trained":
        trained(options.photos, options.output, options.arch, options.epochs)
    elif options.command == "untrained":
        untrained(options.photos, options.output, options.arch, options.labels)
    else:
        print(json.dumps(references(options.export, list(map(Path, sys.stdin.read().splitlines())))))


if __name__ == "__main__":
    main(sys.argv[1:])
