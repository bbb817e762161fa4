"""`python -m pigeonhole …`: what is done on the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from pigeonhole import __version__
from pigeonhole.errors import PigeonholeError

if TYPE_CHECKING:
    from flask import Flask

DID_NOT_WORK = 1
INTERRUPTED = 130  # what shells report for Ctrl-C


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status is 0 when it worked, 1 when not, 2 for a wrong command line."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except PigeonholeError as error:
        print(error, file=sys.stderr)
        return DID_NOT_WORK
    except KeyboardInterrupt:
        print("\nstopped; nothing was written.", file=sys.stderr)
        return INTERRUPTED
    return 0


def run_locally(create_app: Callable[[], Flask]) -> None:
    """Serve the app on this machine with Flask's own server, as `python app.py` does.

    Exits with status 1 and a sentence when the settings, the folder or the model cannot be used.
    """
    from pigeonhole.intake.uploads import prepare
    from pigeonhole.web.replies import start_logging

    try:
        app = create_app()
        settings = app.config["SETTINGS"]
        start_logging(settings.log_level)
        prepare(settings.uploads)
        app.extensions["predictor"].load()
    except PigeonholeError as error:
        sys.exit(f"Pigeonhole does not start.\n{error}")
    app.run(settings.host, settings.port)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pigeonhole", description="Serve and make fastai image classifiers."
    )
    parser.add_argument("--version", action="version", version=f"Pigeonhole {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_train(commands)
    return parser


def _add_train(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    from pigeonhole.model.training import Plan

    default = {field.name: field.default for field in fields(Plan)}
    train = commands.add_parser(
        "train",
        help="folders of photos in, export.pkl out",
        description="Train an image classifier from scratch on a folder of photos per class, and export it.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = train.add_argument
    add("photos", type=Path, metavar="PHOTOS", help="a folder that holds a folder of photos per class")
    add("--valid", type=Path, metavar="FOLDER", help="photos to validate on; else a fifth of PHOTOS is held back")
    add("-o", "--output", type=Path, metavar="FILE", default=Path("export.pkl"), help="where the learner goes")
    add("--confusion", type=Path, metavar="FILE", help="the confusion matrix as a PNG; else beside the learner")
    add("--arch", default=default["arch"], help="a network of fastai (xresnet…), torchvision or timm, by name")
    add("--width", type=float, default=default["width"], help="of an xresnet's layers, 1 being the paper's")
    add("--size", type=int, default=default["size"], help="side of a picture in training, in pixels")
    add("--predict-size", type=int, default=default["predict_size"], help="side of a picture in prediction, in pixels")
    add("--epochs", type=int, default=default["epochs"], help="times every photo is seen")
    add("--batch-size", type=int, default=default["batch_size"], help="photos in a step")
    add("--lr", type=float, default=default["lr"], help="highest learning rate of the one-cycle schedule")
    add("--weight-decay", type=float, default=default["weight_decay"], help="of AdamW")
    add("--min-scale", type=float, default=default["min_scale"], help="smallest share of a photo that a crop shows")
    add("--mix", choices=("cutmix", "mixup", "none"), default=default["mix"], help="how two photos become one")
    add("--dropout", type=float, default=default["dropout"], help="before the last layer")
    add("--smoothing", type=float, default=default["smoothing"], help="of the labels")
    add("--no-grow", dest="grow", action="store_false", help="full-size pictures from the first epoch on")
    add("--precision", choices=("auto", "bf16", "float32"), default=default["precision"], help="of the forward pass")
    add("--seed", type=int, default=default["seed"], help="of everything random")
    train.set_defaults(run=_train)


def _train(options: argparse.Namespace) -> None:
    from pigeonhole.model import training

    plan = training.Plan(**{field.name: getattr(options, field.name) for field in fields(training.Plan)})
    training.train_and_export(plan, options.output, options.confusion)
