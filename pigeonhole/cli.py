"""`python -m pigeonhole …`: what is done on the command line."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from pigeonhole import __version__
from pigeonhole.batch.command import DID_NOT_WORK
from pigeonhole.batch.stopping import KILLED
from pigeonhole.errors import FolderError, PigeonholeError, RequestError
from pigeonhole.intake.formats import BY_DEFAULT, listed, sniff
from pigeonhole.intake.pictures import open_probe
from pigeonhole.settings import Settings, hush_ray

if TYPE_CHECKING:
    from pigeonhole.batch.command import Answerer
    from pigeonhole.batch.rows import Kind
    from pigeonhole.model.predictor import Predictor

INTERRUPTED = KILLED + signal.SIGINT


def main(arguments: Sequence[str] | None = None, predictor: Predictor | None = None) -> int:
    """Run one command; the exit status is 0 when it worked, 1 when not, 2 for a wrong command line.

    `predictor` is asked instead of the model that the settings name.
    """
    options = _parser().parse_args(arguments, argparse.Namespace(predictor=predictor, names_model=False))
    try:
        return int(options.run(options) or 0)
    except PigeonholeError as error:
        print(str(error).removeprefix("MODEL=" if options.names_model else ""), file=sys.stderr)
        return DID_NOT_WORK
    except KeyboardInterrupt:
        print("\nstopped; what was not finished is not written.", file=sys.stderr)
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pigeonhole", description="Serve and make fastai image classifiers."
    )
    parser.add_argument("--version", action="version", version=f"Pigeonhole {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_predict(commands)
    _add_doctor(commands)
    _add_compile(commands)
    _add_download(commands)
    _add_train(commands)
    _add_plan(commands)
    _add_settings(commands)
    return parser


def _add_predict(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    predict = commands.add_parser(
        "predict",
        help="what is on the photos of whole folders",
        description="Classify photos with the model that the service serves; the settings count here too. What is "
        "clearly no picture is passed over in folders. What cannot be read is reported and skipped, and then the exit "
        "status is 1. With -o, the same command goes on after an interruption where it was.",
    )
    add = predict.add_argument
    add("paths", nargs="+", type=_path, metavar="PATH", help="photos, and folders of photos, with those in them")
    add("--top", type=_top, default=1, metavar="N", help="the N most probable labels of each, or `all`; by default 1")
    form = predict.add_mutually_exclusive_group()
    form.add_argument(
        "--csv",
        dest="kind",
        action="store_const",
        const="csv",
        help="columns file, label, probability, and label_2, probability_2 and so on for --top; of a multi-label model "
        "also success, the labels over its threshold with `;` between them, since those are none to many",
    )
    form.add_argument(
        "--json",
        dest="kind",
        action="store_const",
        const="json",
        help="JSON Lines: an object a photo with file, and success and predictions as `POST /predict` has them",
    )
    add("-o", "--output", type=Path, metavar="FILE", help="where it goes, .csv or .jsonl; else to standard output")
    add("--explain", type=Path, metavar="FOLDER", help="put a picture of where the model looked there, for each photo")
    add("--true-labels", action="store_true", help="the folder of a photo is its class: print the accuracy, and report")
    add("--report", type=Path, metavar="FILE", help="where the report of --true-labels goes; by default report.html")
    add(
        "--ray",
        action="store_true",
        help="on the machines of the Ray cluster that RAY_ADDRESS names, else on this one; photos, model and "
        "--explain's folder lie under the same paths on all of them",
    )
    predict.set_defaults(run=_predict, refuse=predict.error)


def _path(text: str) -> Path:
    """What is named; an empty variable of a script would be this folder, and all in it."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty")
    return Path(text)


def _top(text: str) -> int | None:
    """A number of labels, or None for all."""
    return None if text == "all" else int(_between(int, 1, 1_000_000)(text))


def _predict(options: argparse.Namespace) -> int:
    from pigeonhole.batch.command import Job, predict
    from pigeonhole.batch.stopping import Stop
    from pigeonhole.intake.pictures import Limits
    from pigeonhole.model.store.addresses import shown

    if options.report and not options.true_labels:
        options.refuse("--report goes with --true-labels")
    report = (options.report or Path("report.html")) if options.true_labels else None
    if clash := _clash(options.output, report, options.explain):
        options.refuse(clash)
    settings = Settings.load()
    job = Job(
        options.paths,
        Limits(settings.max_pixels, settings.max_side, settings.formats),
        settings.orientation,
        shown(settings.model),
        settings.max_decoded,
        _kind(options),
        options.top,
        options.output,
        options.explain,
        report,
    )
    with ExitStack() as stack:
        elsewhere = stack.enter_context(_on_ray(settings)) if options.ray else None
        stop = stack.enter_context(Stop.listening())
        try:
            return predict(options.predictor or _predictor(settings), job, stop, elsewhere)
        except KeyboardInterrupt:
            print("\nstopped.", file=sys.stderr)
            return stop.status


def _on_ray(settings: Settings) -> AbstractContextManager[Answerer]:
    from pigeonhole.cluster.bulk import on_ray
    from pigeonhole.wiring import model_of

    address = hush_ray()  # before Ray is imported
    return on_ray(address, model_of(settings), settings.max_decoded)


def _clash(output: Path | None, report: Path | None, heatmaps: Path | None) -> str | None:
    """Why these cannot all be written, if one would take another's place."""
    named = {name: Path(os.path.realpath(path)) for name, path in (("-o", output), ("--report", report)) if path}
    if len(set(named.values())) < len(named):
        return f"-o and --report are both {output}; name another file with --report"
    folder = Path(os.path.realpath(heatmaps)) if heatmaps else None
    for name, path in named.items():
        if folder and (path == folder or (path.is_relative_to(folder) and path.suffix.lower() == ".png")):
            return f"{name} would lie where a heatmap of --explain may go; name another file with {name}"
    return None


def _kind(options: argparse.Namespace) -> Kind:
    """The format that was asked for, or that the ending of the output names."""
    endings: dict[str, Kind] = {".csv": "csv", ".jsonl": "json"}
    named = endings.get(options.output.suffix.lower()) if options.output else None
    if options.kind and named and options.kind != named:
        options.refuse(f"--{options.kind} does not go with the ending of {options.output}")
    kind: Kind | None = options.kind or named
    if options.output and not kind:
        options.refuse(f"{options.output} ends neither in .csv nor in .jsonl; say --csv or --json")
    return kind or "table"


def _predictor(settings: Settings) -> Predictor:
    """Of the model that the settings name, which is compiled first where the service would do so."""
    from pigeonhole.model.choosing import check_model, compile_if_stale, open_engine
    from pigeonhole.model.predictor import Predictor
    from pigeonhole.wiring import model_of

    model = model_of(settings.model_copy(update={"workers": 1}))  # this process has all cores
    check_model(model)
    compile_if_stale(model, lambda sentence: print(sentence, file=sys.stderr, flush=True), sys.stderr)
    return Predictor(lambda: open_engine(model, open_probe))


def _add_doctor(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    doctor = commands.add_parser(
        "doctor",
        help="what is in an export, and whether it can be served",
        description="Look into an export without running anything of it: what it is, what it holds, whether and how it "
        "can be served; exit status 0 if it can be, else 1. MODEL_SHA256 and ALLOW_PICKLE_GLOBALS count here too.",
    )
    doctor.add_argument("file", type=Path, metavar="FILE", help="what learn.export() wrote")
    doctor.add_argument("--json", action="store_true", help="for programs")
    doctor.set_defaults(run=_doctor, names_model=True)  # on the command line, so a sentence needs no "MODEL="


def _doctor(options: argparse.Namespace) -> int:
    from pigeonhole.model.doctor import as_text, diagnose

    settings = Settings.load()
    diagnosis = diagnose(options.file, settings.model_sha256, settings.allowed_globals)
    print(json.dumps(diagnosis.as_json(), indent=2) if options.json else as_text(diagnosis))
    return 0 if diagnosis.servable else DID_NOT_WORK


def _add_compile(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    compile_ = commands.add_parser(
        "compile",
        help="export.pkl in, export.onnx out, proven",
        description="Compile a learner, so that it is served without torch and fastai, and prove that the result "
        "answers what learner.predict answers. Without that proof nothing is written, and the exit status is 1. "
        "MODEL_SHA256 and ALLOW_PICKLE_GLOBALS count here too.",
    )
    compile_.add_argument("export", type=Path, metavar="EXPORT", help="what learn.export() wrote")
    compile_.add_argument("-o", "--output", type=Path, metavar="FILE", help="where it goes; else beside it, as .onnx")
    compile_.add_argument(
        "--probes",
        type=Path,
        metavar="FOLDER",
        help="photos of yours to prove it on as well, in this folder and those in it; the file holds none of them",
    )
    compile_.set_defaults(run=_compile, names_model=True)


def _compile(options: argparse.Namespace) -> None:
    from pigeonhole.model.choosing import compiled_beside
    from pigeonhole.model.compiler import as_table, compile_export

    settings = Settings.load()
    output = options.output or compiled_beside(options.export)
    began = time.monotonic()
    card = compile_export(
        options.export,
        output,
        open_probe,
        photos=_photos(options.probes) if options.probes else (),
        sha256=settings.model_sha256,
        allowed=settings.allowed_globals,
        tell=lambda step: print(f"{time.monotonic() - began:6.1f} s  {step}", flush=True),
    )
    print(as_table(card, output))


def _photos(folder: Path) -> list[Path]:
    """The pictures in `folder` and below; other files are passed over.

    Raises:
        FolderError: there is none, or one cannot be read.
    """
    try:
        if not folder.is_dir():
            raise FolderError(f"{folder} is not a folder.")
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
    except OSError as error:  # a folder on the way may not be entered, or a name is too long
        raise FolderError(f"{folder} cannot be read: {error.strerror}.") from error
    photos = []
    for path in paths:
        try:
            with suppress(RequestError), path.open("rb") as file:
                sniff(file)
                photos.append(path)
        except OSError as error:
            raise FolderError(f"{path} cannot be read: {error.strerror}.") from error
    if not photos:
        raise FolderError(f"there is no picture in {folder}; accepted are {listed(BY_DEFAULT)}.")
    return photos


def _add_download(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    download = commands.add_parser(
        "download",
        help="the model from an address into the cache",
        description="Download a model, if it is not in the cache, and print where it lies there. MODEL_SHA256 and "
        "MODEL_CACHE count here too.",
    )
    download.add_argument("address", nargs="?", metavar="ADDRESS", help="as MODEL takes it; by default MODEL itself")
    download.set_defaults(run=_download)


def _download(options: argparse.Namespace) -> None:
    from pigeonhole.wiring import downloaded

    settings = Settings.load()
    if options.address:
        options.names_model = True
        settings = settings.model_copy(update={"model": options.address})
    print(downloaded(settings))


def _add_plan(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    plan = commands.add_parser(
        "plan",
        help="with which settings the service fits a box",
        description="Run the service here, some 20 seconds for each number of workers that is tried, with made-up "
        "photos as its load, and say with how many workers, threads and waiting places, and with pictures of how many "
        "pixels, it fits so much memory and so many cores, and how much it answers then. What is printed can be the "
        "--env-file of `docker run`. If it does not fit, the exit status is 1. MAX_DECODED, MAX_PIXELS and "
        "the settings that are not printed count here too.",
    )
    add = plan.add_argument
    add("--memory", type=_memory, metavar="SIZE", help="like 512m or 1g; by default what may be used here")
    add("--cores", type=_between(int, 1, 1024), metavar="N", help="at most those here, which is the default")
    plan.set_defaults(run=_plan)


def _memory(text: str) -> int:
    """Bytes, of a size as `docker run --memory` takes it."""
    found = re.fullmatch(r"([1-9][0-9]{0,14})([bkmg]?)b?", text.strip().lower())
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no size like 512m or 1g")
    return int(found[1]) << {"": 0, "b": 0, "k": 10, "m": 20, "g": 30}[found[2]]


def _plan(options: argparse.Namespace) -> None:
    from pigeonhole.planning import plan
    from pigeonhole.sizing import Box

    for number in (signal.SIGTERM, signal.SIGHUP):  # the service that is measured must not outlive this
        signal.signal(number, lambda number, frame: sys.exit(KILLED + number))
    here = Box.here()
    box = Box(options.memory or here.memory, int(options.cores or here.cores))
    print(plan(box, Settings.load(), lambda step: print(step, file=sys.stderr, flush=True)))


def _add_settings(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    settings = commands.add_parser(
        "settings",
        help="every setting: its value, its default, its meaning",
        description="List what can be set through the environment, with what is set now. Secrets in addresses are left "
        "out.",
    )
    settings.add_argument("--markdown", action="store_true", help="as the README has it, without the values")
    settings.set_defaults(run=_settings)


def _settings(options: argparse.Namespace) -> None:
    from pigeonhole.model.store.addresses import shown

    listed = Settings.load().listed(mask=shown)
    if options.markdown:
        print("| name | default | meaning |\n| --- | --- | --- |")
        for one in listed:
            print(f"| `{one.name}` | {f'`{one.default}`' if one.default else ''} | {one.meaning} |")
        return
    rows = [
        ("NAME", "VALUE", "DEFAULT", "MEANING"),
        *((one.name, one.value, one.default, one.meaning) for one in listed),
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        print("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]))


def _add_train(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    from pigeonhole.model.training import Plan

    train = commands.add_parser(
        "train",
        help="folders of photos in, export.pkl out",
        description="Train an image classifier from scratch on a folder of photos per class, and export it.",
        formatter_class=_ShowDefaults,
    )
    add = train.add_argument
    add("photos", type=Path, metavar="PHOTOS", help="a folder that holds a folder of photos per class")
    add("--valid", type=Path, metavar="FOLDER", help="photos to validate on; else a fifth of PHOTOS is held back")
    add("-o", "--output", type=Path, metavar="FILE", default=Path("export.pkl"), help="where the learner goes")
    add("--confusion", type=Path, metavar="FILE", help="the confusion matrix as a PNG; else beside the learner")
    add("--arch", help="a network of fastai (xresnet…), torchvision or timm, by name")
    add("--width", type=_between(float, 0.01, 8), help="of an xresnet's layers, 1 being the paper's; by default a half")
    add("--size", type=_between(int, 16, 1024), help="side of a picture in pixels")
    add("--epochs", type=_between(int, 1, 10_000), help="times every photo is seen")
    add("--batch-size", type=_between(int, 2, 4096), help="photos in a step")
    add("--lr", type=_between(float, 1e-6, 10), help="highest learning rate of the one-cycle schedule")
    add("--weight-decay", type=_between(float, 0, 1), help="of AdamW")
    add("--min-scale", type=_between(float, 0.01, 1), help="smallest share of a photo that a crop shows")
    add("--mix", choices=("cutmix", "mixup", "none"), help="how two photos become one")
    add("--dropout", type=_between(float, 0, 0.95), help="before the last layer")
    add("--smoothing", type=_between(float, 0, 0.95), help="of the labels")
    add("--grow", action=argparse.BooleanOptionalAction, help="smaller pictures at first")
    add("--precision", choices=("auto", "bf16", "float32"), help="of the forward pass")
    add("--seed", type=_between(int, 0, 2**32 - 1), help="of everything random")
    train.set_defaults(run=_train, **{field.name: field.default for field in fields(Plan) if field.name != "photos"})


class _ShowDefaults(argparse.ArgumentDefaultsHelpFormatter):
    """Add its default to each option's help, where it has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def _between(kind: type[int] | type[float], low: float, high: float) -> Callable[[str], float]:
    """An argument that is a number of `kind` from `low` to `high`."""

    def number(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {low:g} to {high:g}")
        return value

    return number


def _train(options: argparse.Namespace) -> None:
    from pigeonhole.model import training

    plan = training.Plan(**{field.name: getattr(options, field.name) for field in fields(training.Plan)})
    training.train_and_export(plan, options.output, options.confusion)
