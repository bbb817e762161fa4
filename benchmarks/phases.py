"""Where the time of one request goes, beside the floor of each phase: what this machine could not do faster.

What is above 1.3 times its floor is what to look at next. The service's own figures are those of `GET /metrics`.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks import machine, preparing
from benchmarks.contest import LARGE, USUAL, Plan, asked, cores_of, empty_server
from benchmarks.environments import ROOT, install
from benchmarks.figures import rounded
from benchmarks.load import Job, multipart
from benchmarks.report import table
from benchmarks.servers import EVERYONE, running
from pigeonhole.intake.pictures import open_probe
from pigeonhole.model.card import read_card
from pigeonhole.model.recipe import Recipe

ALARM = 1.3  # times its floor
SAMPLE = re.compile(r'^pigeonhole_phase_seconds_sum\{phase="(\w+)"\} (\S+)$', re.M)
FRAMES = re.compile(r"Decompress +--> Frame rate: +([\d.]+) fps")


def run_phases(quick: bool, model: Path | None, photos: Path | None, out: Path) -> None:
    ours = EVERYONE[0]
    install(ours.framework, ours.needs)
    learner = preparing.chosen(model, photos)
    plan = Plan(kinds=("jpeg",), megapixels=(USUAL[0], LARGE[0]), photos=12, answers=1)
    pictures = preparing.photos_of(plan, learner, photos)
    servers, load = cores_of()
    arithmetic = _python("benchmarks.peak", str(learner.export), str(len(servers)))
    requests = 30 if quick else 300
    recipe = read_card(learner.export.with_suffix(".onnx")).recipe
    results: dict[str, Any] = {"about": machine.about(), "arithmetic": arithmetic, "sizes": {}}
    with running(ours, learner.export, pictures.answers[0].read_bytes(), servers) as server:
        precision = _precision(server.port)
        for (megapixels, _), paths in pictures.by_size.items():
            files = _as_requests(paths, out)
            job = Job(server.port, files, [pictures.labels[path] for path in paths], 1, 0, requests, requests)
            asked(Job(**{**job.__dict__, "at_least": 5, "at_most": 5}), load)  # warms up
            before = _phases(server.port)
            cell = asked(job, load, server)
            after = _phases(server.port)
            seconds = {name: after[name] - before[name] for name in after}  # a photo computed twice has two phases
            seen = {name: 1000 * spent / cell["answers"] for name, spent in seconds.items() if spent}
            with empty_server(servers) as port:
                empty = asked(Job(port, files, ["pong"] * len(files), 1, 0, requests, requests), load)
            results["sizes"][f"{megapixels:g}"] = {
                "client_p50_ms": cell["p50"],
                "client_mean_ms": cell["mean"],
                "answers": cell["answers"],
                "phases_ms": seen,
                "floors": _floors(paths, recipe, arithmetic, precision, empty["mean"], quick),
            }
            for file in files:
                Path(file).unlink()
    results["precision"] = precision
    (out / "phases.json").write_text(json.dumps(results, indent=1) + "\n")
    (out / "phases.md").write_text(markdown(results))
    print((out / "phases.md").read_text())


def _floors(
    paths: Sequence[Path], recipe: Recipe, arithmetic: dict[str, float], precision: str, http: float, quick: bool
) -> dict[str, Any]:
    photos = [open_probe(io.BytesIO(path.read_bytes())) for path in paths]
    scales = [photo.reduction(recipe.allows_shrinking) for photo in photos]
    decoding = [_decoding(path, scale, quick) for path, scale in zip(paths, scales, strict=True)]
    return {
        "scale": scales[0],
        "decoder": "tjbench" if shutil.which("tjbench") else "Pillow",
        "decode_ms": statistics.mean(decoding),
        "resize_ms": statistics.mean(
            _milliseconds(lambda p=photo, s=scale: p.through(recipe, s))
            - _milliseconds(lambda p=photo, s=scale: p.decoded(s))
            for photo, scale in zip(photos, scales, strict=True)
        ),
        "infer_ms": 1000 * arithmetic["operations"] / arithmetic[precision],
        "infer_float32_ms": 1000 * arithmetic["operations"] / arithmetic["float32"],
        "infer_bfloat16_ms": 1000 * arithmetic["operations"] / arithmetic["bfloat16"],
        "http_ms": http,
    }


def _decoding(path: Path, scale: int, quick: bool) -> float:
    """Milliseconds of libjpeg-turbo alone: its own benchmark where it is installed, else Pillow's copy of it."""
    if shutil.which("tjbench"):
        seconds = ("-benchtime", "0.3", "-warmup", "0.1") if quick else ("-benchtime", "2", "-warmup", "0.5")
        command = ["tjbench", path, "-nowrite", "-scale", f"1/{scale}", *seconds]
        (frames,) = FRAMES.findall(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        return 1000 / float(frames)

    def decode() -> None:
        with Image.open(path) as picture:
            picture.draft(None, (picture.width // scale, picture.height // scale))
            picture.load()

    return _milliseconds(decode)


def _milliseconds(what: Callable[[], object], times: int = 9) -> float:
    """The median."""
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        what()
        taken.append((time.perf_counter() - began) * 1000)
    return statistics.median(taken)


def rows_of(size: dict[str, Any]) -> list[tuple[str, float, float]]:
    """(phase, milliseconds, floor) of one size; what is neither decoding nor inference is the way there and back."""
    phases, floors = size["phases_ms"], size["floors"]
    decode, infer = phases.get("decode", 0.0), phases.get("infer", 0.0)
    rest = size["client_mean_ms"] - decode - infer
    return [
        ("decode and resize", decode, floors["decode_ms"] + floors["resize_ms"]),
        ("infer", infer, floors["infer_ms"]),
        ("all else: HTTP, the form, waiting", rest, floors["http_ms"]),
    ]


def markdown(results: dict[str, Any]) -> str:
    about, arithmetic = results["about"], results["arithmetic"]
    parts = [
        f"# Phases, measured on {about['date'][:10]}",
        f"{about['processor']}, load average {rounded(about['load'][0])} before. The network has "
        f"{rounded(arithmetic['operations'] / 1e9)} billion operations; the machine does "
        f"{rounded(arithmetic['float32'] / 1e9)} billion a second in float32 and "
        f"{rounded(arithmetic['bfloat16'] / 1e9)} in bfloat16. The service computes in {results['precision']}.",
    ]
    for name, size in results["sizes"].items():
        floors = size["floors"]
        rows = [
            [phase, rounded(seen), rounded(floor), rounded(seen / floor), "**look**" if seen > ALARM * floor else ""]
            for phase, seen, floor in rows_of(size)
        ]
        parts.append(
            f"## {name} megapixels\n\nOne client, {rounded(size['client_mean_ms'])} ms in the mean, p50 "
            f"{rounded(size['client_p50_ms'])}. Decoded at "
            f"1/{floors['scale']}; the decoder's floor is that of {floors['decoder']}.\n\n"
            + table(["phase", "ms", "floor, ms", "times", ""], rows)
            + "\n\nThe service's own phases in ms: "
            + ", ".join(f"{phase} {rounded(seen)}" for phase, seen in size["phases_ms"].items())
            + "."
        )
    return "\n\n".join(parts) + "\n"


def _phases(port: int) -> dict[str, float]:
    """Seconds in each phase since the start."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as response:
        return {phase: float(seconds) for phase, seconds in SAMPLE.findall(response.read().decode())}


def _precision(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready") as response:
        return str(json.load(response)["precision"])


def _as_requests(paths: Sequence[Path], folder: Path) -> list[str]:
    files = []
    for path in paths:
        files.append(folder / f"{path.name}.request")
        files[-1].write_bytes(multipart(path.read_bytes()))
    return list(map(str, files))


def _python(*arguments: str) -> Any:
    done = subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)
