"""The report on a model's answers to photos of known classes: one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from PIL import Image

from pigeonhole.batch.rows import without_controls
from pigeonhole.batch.scores import Judged, Scores
from pigeonhole.drafts import draft_of
from pigeonhole.errors import FolderError

TEMPLATE = Path(__file__).with_name("report.html.jinja")
MARK = b'<meta name="generator" content="Pigeonhole report">'
HEAD = 512  # bytes in which the mark stands
MISTAKES = 24
SIDE = 224  # pixels of a picture at most; 48 of them stay below 1 MB
QUALITY = 78
MOST_CLASSES = 40  # of a matrix that can be read; of more, the most frequent mistakes are listed
MOST_PAIRS = 60


@dataclass(frozen=True)
class Mistake:
    """A photo that was taken for another class: what the model saw, and where it looked."""

    judged: Judged
    picture: Image.Image | None
    heatmap: Image.Image | None


Show = Callable[[Judged], Mistake]


@dataclass(frozen=True)
class About:
    """Which model was asked, with what; `why_unexplained` is a sentence where no heatmaps can be drawn."""

    model: str
    engine: dict[str, str]
    why_unexplained: str | None
    passed_over: int
    unread: int


def check_report(path: Path) -> None:
    """Look whether a report may be written to `path`, before the work begins.

    Raises:
        FolderError: something else is there, or its folder is not.
    """
    if not os.path.isdir(path.absolute().parent):  # noqa: PTH112 - Path's raises where it may not be looked into
        raise FolderError(f"{path} cannot be written: there is no folder {path.parent}.")
    if not os.path.lexists(path):
        return
    try:
        is_ours = path.is_file() and MARK in _head(path)  # to open a pipe would wait for somebody to write
    except OSError:
        is_ours = False
    if not is_ours:
        raise FolderError(f"{path} is there already and is no report of ours; name another file with --report.")


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(HEAD)


def write_report(path: Path, scores: Scores, about: About, show: Show) -> None:
    """Put the report into `path`, at once or not at all; `show` is asked for the most confident mistakes.

    Raises:
        FolderError: it cannot be written.
    """
    html = render(scores, about, [show(one) for one in scores.mistakes(MISTAKES)], datetime.now(UTC))
    try:
        with draft_of(path) as draft:
            draft.write(html.encode())
    except OSError as error:
        raise FolderError(f"{path} cannot be written: {error.strerror}.") from error


def shrunk(picture: Image.Image) -> Image.Image:
    """`picture`, which is changed, no larger than it is shown."""
    picture.thumbnail((SIDE, SIDE))
    return picture


def render(scores: Scores, about: About, mistakes: Sequence[Mistake], when: datetime) -> str:
    """The report as HTML; whatever is in a name is text."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(percent=_percent, jpeg=_jpeg, shown=without_controls)
    shows_matrix = len(scores.classes) <= MOST_CLASSES
    return environment.from_string(TEMPLATE.read_text("utf-8")).render(
        scores=scores,
        about=about,
        mistakes=mistakes,
        when=when,
        columns=[one for one in scores.classes if one.is_known],
        rows=[one for one in scores.classes if one.photos],
        shows_matrix=shows_matrix,
        pairs=[] if shows_matrix else _pairs(scores),
    )


def _pairs(scores: Scores) -> list[tuple[str, str, int]]:
    """True class, said class and how often, the most frequent mistakes first."""
    wrong = [(true, said, photos) for (true, said), photos in scores.confusion.most_common() if true != said]
    return wrong[:MOST_PAIRS]


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}".replace("%", "\N{NO-BREAK SPACE}%")


def _jpeg(picture: Image.Image) -> str:
    """As a data URI."""
    file = io.BytesIO()
    shrunk(picture.convert("RGB")).save(file, "JPEG", quality=QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
