"""How the cost of an answer grows: with the labels, the model, the cores, and the hours that a server is up.

With clients and megapixels it grows as the contest's own tables and plots show.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import machine, preparing
from benchmarks.contest import USUAL, Photos, Plan, cores_of, measure
from benchmarks.environments import ROOT, install
from benchmarks.figures import Figure, rounded
from benchmarks.preparing import CACHE
from benchmarks.report import COLUMNS, figure_of, line_plot, table
from benchmarks.servers import EVERYONE, NotStarted, Peer

COMPARED = ("pigeonhole", "flask-learner", "fastapi-openvino")
MODELS = ("resnet18", "resnet34", "resnet50", "convnext_tiny")
LABELS = (10, 1_000, 10_000)
MINUTE = 60.0  # seconds, between two looks at a server that is up for hours
SHOWN = ("8 clients, answers a second", "1 client, p50, ms", "8 clients, MB", "first answer, s")


@dataclass(frozen=True)
class Step:
    """One place along the axis of a plot: what is measured there, and on how many of the cores."""

    place: float
    name: str
    export: Path
    cores: int


def run_growth(kinds: Sequence[str], quick: bool, photos: Path | None, out: Path, rounds: int, hours: float) -> None:
    known: dict[str, Callable[[bool, Path | None], list[Step]]] = {"labels": _labels, "model": _models, "cores": _cores}
    unknown = set(kinds) - {*known, "hours"}
    if unknown:
        raise SystemExit(f"{', '.join(sorted(unknown))}: there are {', '.join(known)} and hours.")
    peers = [peer for peer in EVERYONE if peer.key in COMPARED]
    for peer in peers:
        install(peer.framework, peer.needs)
    for kind in kinds or (*known, "hours"):
        results = (
            _hours(quick, photos, hours)
            if kind == "hours"
            else _steps(kind, known[kind](quick, photos), peers, _plan(quick, rounds), photos)
        )
        results = {"about": machine.about(), "kind": kind, **results}
        (out / f"growth-{kind}.json").write_text(json.dumps(results, indent=1) + "\n")
        (out / f"growth-{kind}.md").write_text(markdown(results))
        plot(results, out)
        print((out / f"growth-{kind}.md").read_text())


def _plan(quick: bool, rounds: int = 1) -> Plan:
    both: dict[str, Any] = {
        "clients": (1, 8),
        "closely": None,
        "megapixels": (USUAL[0],),
        "kinds": ("jpeg",),
        "answers": 8,
    }
    return Plan(1, 1.5, 0.5, 0.5, photos=4, **both) if quick else Plan(rounds, **both)


def _steps(kind: str, steps: Sequence[Step], peers: Sequence[Peer], plan: Plan, photos: Path | None) -> dict[str, Any]:
    """Rounds over all steps and servers, in turns."""
    answers = {step.export: _photos(plan, step.export, photos) for step in steps}
    measured: dict[str, list[list[dict[str, Any]]]] = {peer.key: [[] for _ in steps] for peer in peers}
    for _ in range(plan.rounds):
        for number, step in enumerate(steps):
            for peer in peers:
                print(f"{kind}: {step.name}, {peer.title}", file=sys.stderr, flush=True)
                try:
                    cores = cores_of()[0][: step.cores]
                    one = measure(plan, peer, step.export, answers[step.export], answers=True, cores=cores)
                except NotStarted as error:
                    one = {"not_started": str(error)}
                measured[peer.key][number].append(one)
    return {
        "steps": [
            {
                "place": step.place,
                "name": step.name,
                "cores": step.cores,
                "file_mb": step.export.with_suffix(".onnx").stat().st_size / 1e6,
            }
            for step in steps
        ],
        "servers": {peer.key: {"title": peer.title, "steps": measured[peer.key]} for peer in peers},
    }


def _labels(quick: bool, photos: Path | None) -> list[Step]:
    wanted, cores = LABELS[:2] if quick else LABELS, len(cores_of()[0])
    return [Step(number, f"{number} labels", _untrained("resnet34", photos, number), cores) for number in wanted]


def _models(quick: bool, photos: Path | None) -> list[Step]:
    """Along the axis are the operations of one picture, in billions."""
    steps = []
    for name in MODELS[:1] if quick else MODELS:
        export = _untrained(name, photos)
        command = [sys.executable, "-m", "benchmarks.peak", export, "1"]
        done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
        steps.append(Step(json.loads(done.stdout)["operations"] / 1e9, name, export, len(cores_of()[0])))
    return sorted(steps, key=lambda step: step.place)


def _cores(quick: bool, photos: Path | None) -> list[Step]:
    export = preparing.resnet34(photos).export
    return [Step(number, f"{number} cores", export, number) for number in range(1, len(cores_of()[0]) + 1)]


def _untrained(arch: str, photos: Path | None, labels: int | None = None) -> Path:
    """An export with random weights, compiled; made once. It has `labels`, or those of the photos."""
    folder, _ = preparing.folder_of_photos(photos)
    export = CACHE / f"untrained-{arch}{f'-{labels}' if labels else ''}.pkl"
    if not export.exists():
        options = ["--labels", str(labels)] if labels else []
        preparing.learners("untrained", str(folder / "train"), str(export), "--arch", arch, *options)
    return preparing.prepared(export, folder / "validation", shown=4).export


def _photos(plan: Plan, export: Path, photos: Path | None) -> Photos:
    learner = preparing.prepared(export, preparing.folder_of_photos(photos)[0] / "validation", shown=4)
    return preparing.photos_of(plan, learner, photos)


def _hours(quick: bool, photos: Path | None, hours: float) -> dict[str, Any]:
    """Ours, up for hours with two clients that never rest: memory, pace and the slowest answers, minute by minute."""
    from benchmarks.contest import asked
    from benchmarks.load import Job, multipart
    from benchmarks.servers import running

    learner = preparing.resnet34(photos)
    plan = _plan(quick)
    pictures = preparing.photos_of(plan, learner, photos)
    minute, seconds = (2.0, 10.0) if quick else (MINUTE, hours * 3600)
    servers, load = cores_of()
    paths = pictures.by_size[USUAL]
    files = []
    for path in paths:
        files.append(CACHE / f"{path.name}.request")
        files[-1].write_bytes(multipart(path.read_bytes()))
    looks: list[dict[str, Any]] = []
    with running(EVERYONE[0], learner.export, paths[0].read_bytes(), servers) as server:
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            job = Job(server.port, list(map(str, files)), [pictures.labels[path] for path in paths], 2, minute)
            cell = asked(job, load, server)
            looks.append({"hours": (time.monotonic() - began) / 3600, "memory_mb": server.memory_mb(), **cell})
    for file in files:
        file.unlink()
    return {"looks": looks, "seconds": seconds}


def markdown(results: dict[str, Any]) -> str:
    about = results["about"]
    head = (
        f"# Growth with {results['kind']}, measured on {about['date'][:10]}\n\n{about['processor']}, load average "
        f"{rounded(about['load'][0])} at the end.\n\n"
    )
    if results["kind"] == "hours":
        looks = results["looks"]
        picked = looks[:: max(1, len(looks) // 12)]
        names = ("hours", "memory_mb", "per_second", "p50", "p99", "wrong")
        rows = [[*(rounded(look[name]) for name in names), str(sum(look["errors"].values()))] for look in picked]
        return (
            head
            + table(["hours", "memory, MB", "answers a second", "p50, ms", "p99, ms", "wrong", "errors"], rows)
            + "\n"
        )
    rows = []
    for number, step in enumerate(results["steps"]):
        for server in results["servers"].values():
            figures = [figure_of(server["steps"][number], COLUMNS[name]) for name in SHOWN]
            rows.append([step["name"], server["title"], *(str(figure) if figure else "–" for figure in figures)])
    return head + table([results["kind"], "server", *SHOWN], rows) + "\n"


def plot(results: dict[str, Any], out: Path) -> None:
    kind = results["kind"]
    if kind == "hours":
        hours = [look["hours"] for look in results["looks"]]
        for name, title in {"memory_mb": "memory in MB", "per_second": "answers a second", "p99": "p99 in ms"}.items():
            lines = {"Pigeonhole": [Figure.of([look[name]]) for look in results["looks"]]}
            line_plot(out / f"growth-hours-{name}", hours, lines, "hours up", title, along_scale="linear")
        return
    along = [step["place"] for step in results["steps"]]
    x = {"labels": "labels", "model": "billion operations a picture", "cores": "cores"}[kind]
    for place, name in enumerate(SHOWN):
        lines = {
            server["title"]: [figure_of(rounds, COLUMNS[name]) for rounds in server["steps"]]
            for server in results["servers"].values()
        }
        line_plot(out / f"growth-{kind}-{('rate', 'p50', 'memory', 'start')[place]}", along, lines, x, name)
