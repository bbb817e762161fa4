"""`python -m pigeonhole predict`: files in, a row for each, and a report where their classes are known."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from pigeonhole.batch import heatmaps
from pigeonhole.batch.answering import Answer, Answering
from pigeonhole.batch.finding import Found, find
from pigeonhole.batch.output import Output, finished, is_unfinished, standard_output, to_file, to_stdout
from pigeonhole.batch.pool import in_order
from pigeonhole.batch.progress import Progress, is_seen
from pigeonhole.batch.report import About, Mistake, check_report, shrunk, write_report
from pigeonhole.batch.rows import CSV, Format, JSONLines, Kind, Row, Table, without_controls
from pigeonhole.batch.scores import Judged, Scores, as_table
from pigeonhole.batch.stopping import Stop
from pigeonhole.errors import FolderError, ModelFault, NotAvailable, RequestError
from pigeonhole.intake.pictures import Limits, Orientation, open_photo
from pigeonhole.machine import usable_cores
from pigeonhole.model.predictor import Engine, Predictor, Shown

WORKED, DID_NOT_WORK = 0, 1
ONE_MORE = 1  # thread than cores, for what waits for a disk; with more, two cores answered no more photos a second
BLANK = (64, 48)  # pixels of a picture that shows of which kind the answers are


@dataclass(frozen=True)
class Job:
    """What the command line asks for. `top` is None for every label; `report` is there where classes are known."""

    paths: Sequence[Path]
    limits: Limits
    orientation: Orientation
    model: str  # as people read it
    max_decoded: int | None  # photos in hand at once; None for as many as keep all cores busy
    kind: Kind = "table"
    top: int | None = 1
    output: Path | None = None
    heatmaps: Path | None = None
    report: Path | None = None


@dataclass
class Tally:
    """What became of the files; `left` are those that nothing became of yet."""

    left: int = 0
    answered: int = 0
    unread: int = 0
    passed_over: int = 0


Answers = Generator[tuple[Found, Answer], None, None]
Answerer = Callable[[Answering, Iterable[Found]], Answers]  # all of them in their order, as `Answering` answers


def predict(predictor: Predictor, job: Job, stop: Stop, elsewhere: Answerer | None = None) -> int:
    """Do `job`; the exit status is 0, 1 if a file was not answered, or that of a signal that stopped it.

    `elsewhere` answers in the place of threads of this process.

    Raises:
        FolderError: there is nothing to do, or a file to be written is in the way.
        NotAvailable: this model does not do what is asked for.
        StartError, ServiceError: the model cannot be opened.
    """
    tally = Tally()
    found = _found(job, tally)
    if job.report:
        check_report(job.report)
    engine = predictor.load()
    is_multi_label = isinstance(predictor.predict(Shown(Image.new("RGB", BLANK))).success, list)
    if job.report and is_multi_label:
        raise NotAvailable("--true-labels is for models that give one label; this one gives several.")
    if job.heatmaps:
        predictor.check_explainable()
        heatmaps.prepare(job.heatmaps, goes_on=job.output is not None and is_unfinished(job.output))
    format = _format(job, engine, is_multi_label, found)
    with stop.gently(), _output(job, engine, format) as output:
        rows = _Run(predictor, job, stop, tally, output, elsewhere).all(found)
    if tally.left:
        return stop.status
    if tally.passed_over == len(found):
        raise FolderError("there is no picture in what was named.")
    scores = _judged([(one, rows[one.name]) for one in found if one.name in rows], engine) if job.report else None
    if job.report and scores:
        about = About(job.model, engine.about, engine.why_unexplained, tally.passed_over, tally.unread)
        write_report(job.report, scores, about, _shows(predictor, job, engine))
        print(f"the report is {job.report}", file=sys.stderr)
    if job.output:
        finished(job.output)
    if scores:
        _print_accuracy(scores, job)
    elif job.report:
        older = f"; {job.report} is of an earlier run" if job.report.exists() else ""
        print(f"no photo was answered, so there is no report{older}.", file=sys.stderr)
    return DID_NOT_WORK if tally.unread else WORKED


def _found(job: Job, tally: Tally) -> list[Found]:
    def passed(name: str, sentence: str) -> None:
        print(f"{without_controls(name)}: {sentence}", file=sys.stderr)

    def lost(name: str, sentence: str) -> None:
        passed(name, sentence)
        tally.unread += 1

    found = find(job.paths, job.heatmaps, lost, passed)
    if not found:
        raise FolderError("there is no file in what was named.")
    return found


def _format(job: Job, engine: Engine, is_multi_label: bool, found: Sequence[Found]) -> Format:
    if job.kind == "json":
        return JSONLines()
    if job.kind == "csv":
        return CSV(is_multi_label, min(job.top or len(engine.labels), len(engine.labels)))
    return Table(is_multi_label, [without_controls(one.name) for one in found])


def _output(job: Job, engine: Engine, format: Format) -> AbstractContextManager[Output]:
    """Where rows go; a file remembers all that its rows depend on."""
    if job.output is None:
        return to_stdout(format)
    options = {
        "PATH": json.dumps([str(path) for path in job.paths]),
        "format": format.kind,
        "--top": "all" if job.top is None else str(job.top),
        "--explain": str(job.heatmaps.resolve()) if job.heatmaps else "nothing",
        "ORIENTATION": job.orientation,
        "MAX_PIXELS": str(job.limits.pixels),
        "MAX_SIDE": str(job.limits.side),
        "IMAGE_FORMATS": ",".join(job.limits.formats),
    }
    return to_file(
        job.output, format, {**{f"model ({what})": value for what, value in engine.about.items()}, **options}
    )


@dataclass
class _Run:
    """From files to rows."""

    predictor: Predictor
    job: Job
    stop: Stop
    tally: Tally
    output: Output
    elsewhere: Answerer | None

    def all(self, found: Sequence[Found]) -> dict[str, Row]:
        """Answer what is not answered yet. Where they are to be judged, the rows of all files, by their names."""
        done = self.output.done
        left = [one for one in found if one.name not in done]
        self.tally.left = len(left)
        began = time.monotonic()
        with (
            Progress(len(found), len(found) - len(left), is_seen(self.job.output is None)) as progress,
            closing(self._answers(found, self.stop.until_asked(left))) as answers,
        ):
            if len(left) < len(found):
                progress.say(f"{len(found) - len(left)} of {len(found)} files are done already.")
            for one, answer in answers:
                self._take(one, answer, progress)
        self._tell(len(found), time.monotonic() - began)
        return done

    def _answers(self, found: Sequence[Found], left: Iterable[Found]) -> Answers:
        job = self.job
        folder = job.heatmaps
        places = {name: folder / place for name, place in heatmaps.places(found).items()} if folder else None
        answering = Answering(self.predictor, job.limits, job.orientation, job.top, places)
        if self.elsewhere:
            return self._elsewhere(self.elsewhere(answering, left))
        threads = min(filter(None, (usable_cores() + ONE_MORE, job.max_decoded)))
        return in_order(answering, left, threads)

    def _elsewhere(self, answers: Answers) -> Answers:
        """There everything is in hand from the start, so that what is not answered yet is let go when asked to stop."""
        with closing(answers):
            yield from self.stop.until_asked(answers)

    def _take(self, one: Found, answer: Answer, progress: Progress) -> None:
        if isinstance(answer, Row):
            self.output.add(answer)
            self.tally.answered += 1
            if self.job.report:
                self.output.done[one.name] = answer.best
        elif answer is None:
            self.tally.passed_over += 1
        else:
            self.tally.unread += 1
            progress.say(f"{without_controls(one.name)}: {answer}")
        self.tally.left -= 1
        progress.step()

    def _tell(self, files: int, seconds: float) -> None:
        answered = self.tally.answered
        photos = "1 photo" if answered == 1 else f"{answered} photos"
        parts = [f"{photos} in {seconds:.1f} s, {answered / max(seconds, 1e-9):.0f} a second"]
        if self.tally.unread:
            parts.append(f"{self.tally.unread} skipped")
        if self.tally.passed_over:
            parts.append(f"other files passed over: {self.tally.passed_over}")
        print("; ".join(parts) + ".", file=sys.stderr)
        if self.tally.left:
            how = "run the same command again to go on" if self.job.output else "with -o FILE it could be resumed"
            print(f"stopped before all {files} files were done; {how}.", file=sys.stderr)


def _judged(rows: Sequence[tuple[Found, Row]], engine: Engine) -> Scores | None:
    """How right the rows are; None where there is none."""
    judged = [Judged(one.name, one.folder, str(row.success), row.ranked[0][1]) for one, row in rows]
    if not judged:
        return None
    scores = Scores(judged, engine.labels)
    for one in scores.unknown:
        print(f"the model knows no label {one.label!r}; its photos ({one.photos}) count as wrong.", file=sys.stderr)
    return scores


def _print_accuracy(scores: Scores, job: Job) -> None:
    """Of each class; what programs read on standard output stays rows alone."""
    if job.output is None and job.kind != "table":
        print(as_table(scores), file=sys.stderr)
        return
    with standard_output():
        sys.stdout.buffer.write(as_table(scores).encode() + b"\n")  # UTF-8 like rows, whatever the terminal says
        sys.stdout.buffer.flush()


def _shows(predictor: Predictor, job: Job, engine: Engine) -> Callable[[Judged], Mistake]:
    def show(judged: Judged) -> Mistake:
        try:
            with Path(judged.file).open("rb") as file:
                photo = open_photo(file, job.limits, job.orientation)
                if engine.why_unexplained is not None:
                    return Mistake(judged, shrunk(photo.decoded()), None)
                _, explanation = predictor.explain(photo, judged.said)
                return Mistake(judged, explanation.seen, explanation.overlay())
        except (OSError, RequestError, ModelFault):  # it was there a moment ago
            return Mistake(judged, None, None)

    return show
