"""What all servers get: one learner, its compiled file, and photos with the answers of `learner.predict`."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.contest import LARGE, USUAL, Photos, Plan
from benchmarks.environments import HERE, ROOT
from benchmarks.figures import percentile, rounded
from benchmarks.learners import STAGES
from benchmarks.photos import made_up, photos, sources
from pigeonhole.model.card import read_card

CACHE = HERE / ".cache"
REAL = ROOT.parent / "shared" / "data" / "clothing"  # where this project is developed
OTHER_PHOTOS = 12  # of others than the usual size
LARGE_PHOTOS = 4  # of 24 megapixels, which have 45 MB as PNG


@dataclass(frozen=True)
class Prepared:
    """An export.pkl, beside which lie its .onnx and its .labels; `says` describes it in a sentence."""

    export: Path
    sha256: str
    says: str


def folder_of_photos(photos: Path | None) -> tuple[Path, bool]:
    """A folder with train/ and validation/, and whether its photos are real."""
    if photos or REAL.is_dir():
        return photos or REAL, True
    folder = CACHE / "made-up"
    if not (folder / "validation").is_dir():
        made_up(folder / "train", each=100)
        made_up(folder / "validation", each=20)
    return folder, False


def resnet34(photos: Path | None) -> Prepared:
    """A full-width ResNet-34, trained for a while; made once for each way of training it."""
    folder, real = folder_of_photos(photos)
    way = "-".join(f"{stage.epochs}x{stage.side}" for stage in STAGES)
    export = CACHE / f"resnet34-{way}{'' if real else '-made-up'}.pkl"
    if not export.exists():
        learners("trained", str(folder / "train"), str(export))
    return prepared(export, folder / "validation")


def prepared(export: Path, validation: Path, shown: int = 100) -> Prepared:
    """Compile the learner and note its labels, where that was not done; `shown` photos tell how good it is."""
    if not _is_younger(export.with_suffix(".onnx"), export):
        subprocess.run([sys.executable, "-m", "pigeonhole", "compile", export], cwd=ROOT, check=True, stdout=sys.stderr)
    labels = export.with_suffix(".labels")
    if not _is_younger(labels, export):
        labels.write_text("\n".join(read_card(export.with_suffix(".onnx")).labels))
    looked_at = sources(validation, shown)
    answers = references(export, looked_at)
    margins = [margin for _, margin in answers.values()]
    right = sum(label == path.parent.name for path, (label, _) in answers.items())
    says = (
        f"The model: {export.stem}, {len(labels.read_text().splitlines())} labels. `learner.predict` is "
        f"right on {right} of {len(looked_at)} validation photos; the probability of its answer is over the second "
        f"label's by {rounded(percentile(margins, 0.5))} in the median and by less than 0.02 for "
        f"{sum(margin < 0.02 for margin in margins)} of them."
    )
    return Prepared(export, _sha256(export), says)


def chosen(export: Path | None, photos: Path | None) -> Prepared:
    """A learner of the user's, whose item transform has to be a `Resize` that crops, or else our ResNet-34."""
    if export is None:
        return resnet34(photos)
    copy = CACHE / f"own-{_sha256(export)[:16]}.pkl"
    if not copy.exists():
        CACHE.mkdir(exist_ok=True)
        shutil.copy(export, copy)
    return prepared(copy, folder_of_photos(photos)[0] / "validation")


def photos_of(plan: Plan, learner: Prepared, folder: Path | None) -> Photos:
    """Photos of all sizes that the plan names, and the labels that `learner.predict` gives them."""
    validation = folder_of_photos(folder)[0] / "validation"
    by_size = {}
    for kind in plan.kinds:
        for megapixels in plan.megapixels:
            usual = (megapixels, kind) == USUAL
            count = plan.photos if usual else min(plan.photos, LARGE_PHOTOS if megapixels > LARGE[0] else OTHER_PHOTOS)
            by_size[megapixels, str(kind)] = photos(CACHE, sources(validation, count), megapixels, kind)
    answers = photos(CACHE, sources(validation, plan.answers), USUAL[0], "jpeg")
    everything = sorted({*answers, *(path for some in by_size.values() for path in some)})
    labels = {path: label for path, (label, _) in references(learner.export, everything).items()}
    return Photos(by_size, answers, labels)


def references(export: Path, paths: Sequence[Path]) -> dict[Path, tuple[str, float]]:
    """What `learner.predict` says of each photo, and the margin; asked once for each export and photo, then kept."""
    file = CACHE / f"references-{_sha256(export)[:16]}.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    keys = {path: _sha256(path) for path in paths}
    missing = [path for path, key in keys.items() if key not in known]
    if missing:
        answers = json.loads(learners("references", str(export), standard_input="\n".join(map(str, missing))))
        known |= {keys[path]: answer for path, answer in zip(missing, answers, strict=True)}
        CACHE.mkdir(exist_ok=True)
        file.write_text(json.dumps(known))
    return {path: (known[key][0], known[key][1]) for path, key in keys.items()}


def learners(*arguments: str, standard_input: str = "") -> str:
    command = [sys.executable, "-m", "benchmarks.learners", *arguments]
    done = subprocess.run(command, cwd=ROOT, check=True, input=standard_input, stdout=subprocess.PIPE, text=True)
    return done.stdout


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _is_younger(path: Path, than: Path) -> bool:
    return path.exists() and path.stat().st_mtime >= than.stat().st_mtime
