"""What a GPU does for a learner: `learner.predict` on it, the batches of DEVICE=cuda, plain batches as their ceiling.

    python -m benchmarks.gpu [--device cuda] [--arch resnet34] [EXPORT.pkl] PHOTOS_FOLDER

Without an export, a learner of random weights is made for the photos. All get pictures that are decoded already, and
TorchNetwork and the plain batches such as are cut and resized, too: what the processor does to a photo is measured
elsewhere. It ends within 100 seconds on a fast card, and needs only fastai, torch, torchvision, numpy and Pillow.

Answers are compared with those of `learner.predict` on the same device in full float32. On an NVIDIA card, a notebook
has cuDNN round what it convolves to 10 bits (TF32), so it is asked once as it is, and once without. (Of random weights
the probabilities tell little, as all are nearly 0 or 1; the log-odds tell what they come from.)
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.figures import rounded
from pigeonhole.model.engine import log_odds
from pigeonhole.model.learner import open_learner
from pigeonhole.model.pipeline import Pipeline, understand
from pigeonhole.model.predictor import Shown
from pigeonhole.model.torch_network import TorchNetwork, check_device
from pigeonhole.model.torch_ready import import_torch

PHOTOS = 100  # that are asked about, spread over those there are
ENDINGS = (".jpg", ".jpeg", ".png")
WARM = 5  # pictures before the clock runs
THREADS = (1, 8, 32, 64)
BATCHES = (1, 8, 32, 128)
PRECISIONS = ("float32", "bfloat16")
SECONDS = 2.0  # for each measurement
COLUMNS = ("who", "at once", "pictures a second", "median ms", "pictures a batch", "same label")
COLUMNS += ("largest difference", "in log-odds")


@dataclass
class Row:
    """What one way to answer did. Differences are of probabilities and, in log-odds, of what decides the answer."""

    who: str
    at_once: int
    per_second: float = 0.0
    median_ms: float | None = None  # from asking to the answer
    pictures_a_batch: float | None = None
    same_label: int | None = None
    largest_difference: float | None = None
    largest_log_odds: float | None = None
    failed: str | None = None


@dataclass
class Bench:
    """The pictures, the learner's answers to compare with, and the rows so far."""

    device: Any
    export: Path
    pictures: Sequence[Image.Image]
    seconds: float
    rows: list[Row] = field(default_factory=list)
    threshold: float | None = None
    reference: np.ndarray | None = None

    def add(self, row: Row, measure: Callable[[Row], np.ndarray | None]) -> np.ndarray | None:
        """Measure and keep `row`, also where it fails: the card may be lent for this one run. Return the answers."""
        say(f"{row.who}, {row.at_once} at once")
        self.rows.append(row)
        try:
            answers = measure(row)
            self.compare(row, answers)
            return answers
        except Exception as error:
            traceback.print_exc()
            row.failed = f"{type(error).__name__}: {error}"
            return None

    def compare(self, row: Row, answers: np.ndarray | None) -> None:
        if self.reference is None or answers is None:
            return
        pairs = [
            [log_odds(said, self.threshold) for said in pair] for pair in zip(answers, self.reference, strict=True)
        ]
        row.same_label = sum(_decided(a, self.threshold) == _decided(b, self.threshold) for a, b in pairs)
        row.largest_difference = float(np.abs(answers - self.reference).max())
        row.largest_log_odds = float(max(np.abs(_centred(a, b, self.threshold)).max() for a, b in pairs))


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.gpu", description=__doc__.partition("\n")[0])
    parser.add_argument("export", type=Path, nargs="?", metavar="EXPORT.pkl")
    parser.add_argument("photos", type=Path, metavar="PHOTOS_FOLDER")
    parser.add_argument("--device", choices=("cuda", "mps", "cpu"), default="cuda")
    parser.add_argument("--arch", default="resnet34", help="of the learner that is made without an export")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for each measurement")
    options = parser.parse_args(arguments)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        export = options.export or _untrained(options.photos, Path(folder) / "export.pkl", options.arch)
        bench = Bench(options.device, export, _pictures(options.photos), options.seconds)
        measure(bench)
    results = {
        "about": about(options.device),
        "learner": options.export.name if options.export else f"{options.arch} with random weights",
        "pictures": len(bench.pictures),
        "seconds": round(time.monotonic() - began, 1),
        "rows": [vars(row) for row in bench.rows],
    }
    print(json.dumps(results, indent=2))
    print(markdown(results))


def measure(bench: Bench) -> None:
    engine = open_learner(bench.export)
    pipeline = understand(engine.learner, engine.mode)
    bench.threshold = pipeline.threshold
    notebook = Row("learner.predict, as a notebook has it", 1)
    answers = bench.add(notebook, partial(_by_fastai, bench))
    check_device(bench.device)  # and no TF32 from here on
    bench.reference = bench.add(Row("learner.predict in full float32", 1), partial(_by_fastai, bench))
    bench.compare(notebook, answers)
    bench.add(Row("ENGINE=learner", 1), partial(_by_our_learner, bench))
    pixels = [pipeline.recipe.apply(picture) for picture in bench.pictures]
    for precision in PRECISIONS:
        _by_network(bench, pipeline, precision, pixels)


def _by_fastai(bench: Bench, row: Row) -> np.ndarray:
    """What fastai's own `learner.predict` says of each picture, one after the other, without its progress bar."""
    import fastai.callback.progress  # noqa: F401  gives the Learner its no_bar
    from fastai.learner import load_learner
    from fastai.vision.core import PILImage

    learn = load_learner(bench.export, cpu=bench.device == "cpu")
    learn.dls.to(bench.device)  # where it was exported, it may have had another one
    learn.model.to(bench.device)
    items = [PILImage(picture) for picture in bench.pictures]
    with learn.no_bar(), learn.no_logging():
        return _timed(row, items, lambda item: learn.predict(item)[2].tolist())


def _by_our_learner(bench: Bench, row: Row) -> np.ndarray:
    engine = open_learner(bench.export, device=bench.device)
    photos = [Shown(picture) for picture in bench.pictures]
    return _timed(row, photos, lambda photo: engine.predict(photo).probabilities)


def _timed(row: Row, things: Sequence[Any], ask: Callable[[Any], Sequence[float]]) -> np.ndarray:
    for thing in things[:WARM]:
        ask(thing)
    answers, times = [], []
    for thing in things:
        began = time.perf_counter()
        answers.append(ask(thing))
        times.append(time.perf_counter() - began)
    row.per_second, row.median_ms = len(times) / sum(times), 1000 * statistics.median(times)
    return np.array(answers, np.float32)


def _by_network(bench: Bench, pipeline: Pipeline, precision: Any, pixels: Sequence[np.ndarray]) -> None:
    """TorchNetwork with so many threads asking at once, and its module with batches that are on the device already."""
    say(f"making the network in {precision}")
    network = TorchNetwork(pipeline, bench.device, precision)
    for threads in THREADS:
        row = Row(f"TorchNetwork {precision}", threads)
        bench.add(row, partial(_by_threads, bench.seconds, network, pixels))
    network.close()
    for size in BATCHES:
        row = Row(f"plain batches {precision}", size, pictures_a_batch=size)
        bench.add(row, partial(_by_batches, bench, network.module, pixels))


def _by_threads(seconds: float, network: TorchNetwork, pixels: Sequence[np.ndarray], row: Row) -> np.ndarray:
    """Each thread asks again when it has its answer."""
    with ThreadPoolExecutor(row.at_once) as pool:
        answers = np.array(list(pool.map(network, pixels)))
        passes: list[int] = []
        counting = network.module.register_forward_pre_hook(lambda module, given: passes.append(1))
        began = time.perf_counter()
        asking = [
            pool.submit(_ask_until, began + seconds, network, pixels[at :: row.at_once] or pixels)
            for at in range(row.at_once)
        ]
        times = [one for asked in asking for one in asked.result()]
        took = time.perf_counter() - began
        counting.remove()
    row.per_second, row.median_ms = len(times) / took, 1000 * statistics.median(times)
    row.pictures_a_batch = len(times) / len(passes)
    return answers


def _ask_until(ending: float, network: TorchNetwork, pixels: Sequence[np.ndarray]) -> list[float]:
    """How many seconds each answer took."""
    times = []
    for picture in cycle(pixels):
        began = time.perf_counter()
        if began > ending:
            break
        network(picture)
        times.append(time.perf_counter() - began)
    return times


def _by_batches(bench: Bench, module: Any, pixels: Sequence[np.ndarray], row: Row) -> None:
    import torch

    batch = torch.from_numpy(np.stack([pixels[place % len(pixels)] for place in range(row.at_once)])).to(bench.device)
    with torch.inference_mode():
        for _ in range(WARM):
            module(batch)
        _wait_for(bench.device)
        passes, began = 0, time.perf_counter()
        while time.perf_counter() - began < bench.seconds:
            module(batch)
            passes += 1
            if passes % WARM == 0:  # else the queue of what the card is asked to do grows without bounds
                _wait_for(bench.device)
        _wait_for(bench.device)
        seconds = time.perf_counter() - began
    row.per_second = passes * row.at_once / seconds


def _wait_for(device: str) -> None:
    import torch

    if device != "cpu":
        getattr(torch, device).synchronize()


def _decided(values: np.ndarray, threshold: float | None) -> list[int]:
    """The places of the labels that log-odds decide for."""
    return [int(values.argmax())] if threshold is None else np.flatnonzero(values > 0).tolist()


def _centred(values: np.ndarray, others: np.ndarray, threshold: float | None) -> np.ndarray:
    """How two answers differ in log-odds; of labels that exclude each other, in their distances from the best one."""
    if threshold is not None:
        return values - others
    best = int(others.argmax())
    return (values - values[best]) - (others - others[best])


def _pictures(folder: Path) -> list[Image.Image]:
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS)
    if not paths:
        sys.exit(f"{folder} holds no photos ({', '.join(ENDINGS)}).")
    return [Image.open(path).convert("RGB") for path in paths[:: max(1, len(paths) // PHOTOS)][:PHOTOS]]


def _untrained(photos: Path, output: Path, arch: str) -> Path:
    from benchmarks.learners import untrained

    say(f"making a {arch} of random weights")
    untrained(photos, output, arch)
    import_torch().backends.cudnn.deterministic = False  # which a fixed seed asks for, and a notebook does not have
    return output


def about(device: str) -> dict[str, Any]:
    torch = import_torch()
    is_cuda = device == "cuda"
    return {
        "device": torch.cuda.get_device_name() if is_cuda else device,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if is_cuda else None,
        "memory_mb": torch.cuda.max_memory_allocated() // 10**6 if is_cuda else None,
        "python": sys.version.partition(" ")[0],
    }


def markdown(results: dict[str, Any]) -> str:
    on = f"{results['about']['device']}, PyTorch {results['about']['torch']}"
    lines = [f"{results['learner']} on {on}, {results['pictures']} pictures:", ""]
    rows = [list(COLUMNS), ["---"] * len(COLUMNS), *(_cells(row, results["pictures"]) for row in results["rows"])]
    return "\n".join([*lines, *(f"| {' | '.join(cells)} |" for cells in rows)])


def _cells(row: dict[str, Any], pictures: int) -> list[str]:
    if row["failed"]:
        return [row["who"], str(row["at_once"]), f"failed: {row['failed'].splitlines()[0]}", *[""] * (len(COLUMNS) - 3)]
    formats = {
        "per_second": rounded,
        "median_ms": rounded,
        "pictures_a_batch": "{:.1f}".format,
        "same_label": f"{{}} of {pictures}".format,
        "largest_difference": "{:.1g}".format,
        "largest_log_odds": "{:.1g}".format,
    }
    told = ["" if row[name] is None else write(row[name]) for name, write in formats.items()]
    return [row["who"], str(row["at_once"]), *told]


def say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
