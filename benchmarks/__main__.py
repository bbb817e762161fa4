"""Pigeonhole against its peers, how its cost grows, and where its time goes.

    python -m benchmarks all [--quick] [--out FOLDER]                    all that follows: `make bench`
    python -m benchmarks [--quick] [--peers NAME ...] [--out FOLDER]     the contest: 50 minutes
    python -m benchmarks growth [--quick] [--out FOLDER] [WHAT ...]      labels, model size, cores, hours up
    python -m benchmarks phases [--quick] [--out FOLDER]                 each phase of a request beside its floor
    python -m benchmarks report [--out FOLDER]                           the contest's tables and plots anew

The first time, an environment is installed for each peer (15 GB in all) and a learner is trained, which may
take an hour. Everything listens on this machine's loopback, and ends by itself. benchmarks/README.md tells what is
measured, and how.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine, preparing
from benchmarks.contest import USUAL, Plan, ceiling, contest, cores_of
from benchmarks.environments import HERE, install, installed_mb, versions
from benchmarks.report import markdown, plots
from benchmarks.servers import EVERYONE, Peer

RESULTS = HERE / "results"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [peer.key for peer in EVERYONE]
    parser.add_argument(
        "what", nargs="*", default=["contest"], help="all, contest (default), growth and its kinds, phases, report"
    )
    parser.add_argument("--quick", action="store_true", help="one short round: whether everything works")
    parser.add_argument("--full", action="store_true", help="every server with every size and longer, for a night")
    parser.add_argument("--peers", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FOLDER", help="where the results go")
    parser.add_argument("--photos", type=Path, metavar="FOLDER", help="folder with train/CLASS and validation/CLASS")
    parser.add_argument("--model", type=Path, metavar="FILE", help="contest and phases: an export.pkl of yours")
    parser.add_argument("--rounds", type=int, help="of the contest (default 5) or of growth (default 3)")
    parser.add_argument("--hours", type=float, default=2.0, help="of growth hours")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the server that runs is ended, too
    what, *kinds = options.what
    if what == "all" and not kinds:
        for each in ("contest", "phases", "growth"):
            main([each, *(argument for argument in arguments or sys.argv[1:] if argument != "all")])
    elif what == "contest" and not kinds:
        plan = Plan.quick() if options.quick else Plan.full() if options.full else Plan()
        if options.rounds:
            plan = dataclasses.replace(plan, rounds=options.rounds)
        chosen = [peer for peer in EVERYONE if peer.key in options.peers]
        run_contest(plan, chosen, options.model, options.photos, options.out)
    elif what == "phases" and not kinds:
        from benchmarks.phases import run_phases

        run_phases(options.quick, options.model, options.photos, options.out)
    elif what == "report" and not kinds:
        show(json.loads((options.out / "results.json").read_text()), options.out)
    elif what == "growth":
        from benchmarks.growth import run_growth

        run_growth(kinds, options.quick, options.photos, options.out, options.rounds or 3, options.hours)
    else:
        parser.error(f"{' '.join(options.what)} cannot be measured")


def run_contest(plan: Plan, peers: Sequence[Peer], model: Path | None, photos: Path | None, out: Path) -> None:
    environments, missing = installed(peers)
    peers = [peer for peer in peers if peer.environment.name in environments]
    tell("preparing the learner, the photos, and what learner.predict says of them")
    learner = preparing.chosen(model, photos)
    answers = preparing.photos_of(plan, learner, photos)
    servers, load = cores_of()
    results: dict[str, Any] = {
        "about": machine.about(),
        "plan": dataclasses.asdict(plan),
        "cores": {"servers": servers, "load": load},
        "model": {"says": learner.says, "sha256": learner.sha256},
        "photos_mb": {
            f"{megapixels:g} {kind}": [round(path.stat().st_size / 1e6, 3) for path in paths]
            for (megapixels, kind), paths in answers.by_size.items()
        },
        "generator": ceiling(answers.by_size[USUAL]),
        "not_installed": missing,
        "versions": {name: versions(folder) for name, folder in environments.items()},
        "servers": {
            peer.key: {
                "title": peer.title,
                "command": peer.command,
                "environ": peer.environ,
                "installed_mb": installed_mb(environments[peer.environment.name]),
                "rounds": [],
            }
            for peer in peers
        },
    }

    def keep(rounds: dict[str, list[dict[str, Any]]]) -> None:
        for key, measured in rounds.items():
            results["servers"][key]["rounds"] = measured
        write_json(out / "results.json", results)

    tell(f"{len(peers)} servers, {plan.rounds} rounds: about {plan.hours([peer.key for peer in peers]):.1f} hours")
    contest(plan, peers, learner.export, answers, tell, keep)
    results["about"]["ended"] = machine.now()
    write_json(out / "results.json", results)
    show(results, out)


def installed(peers: Sequence[Peer]) -> tuple[dict[str, Path], list[str]]:
    """The environments by name, and the titles of peers whose packages could not be installed here."""
    environments, missing = {}, []
    for peer in peers:
        try:
            environments[peer.environment.name] = install(peer.framework, peer.needs)
        except subprocess.CalledProcessError as error:
            tell(f"{peer.title} is left out: {error}")
            missing.append(peer.title)
    return environments, missing


def show(results: dict[str, Any], out: Path) -> None:
    (out / "results.md").write_text(markdown(results))
    plots(results, out)
    print((out / "results.md").read_text())


def tell(sentence: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {sentence}", file=sys.stderr, flush=True)


def write_json(path: Path, content: Any) -> None:
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(content, indent=1) + "\n")
    draft.replace(path)


if __name__ == "__main__":
    main()
