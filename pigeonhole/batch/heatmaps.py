"""A heatmap for each photo, as PNGs in a folder that mirrors where the photos lie."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from itertools import count
from pathlib import Path

from PIL import Image

from pigeonhole.batch.finding import Found
from pigeonhole.errors import FolderError

SUFFIX = ".png"


def places(found: Sequence[Found]) -> dict[str, Path]:
    """Where the heatmap of each file goes, by its name: a path below the folder, no two the same.

    `photo.jpg` becomes `photo.jpg.png`, since a `photo.png` may lie beside it. Two arguments may hold files of one
    name; the second becomes `photo.jpg-2.png`.
    """
    taken = {_folded(folder) for one in found for folder in Path(one.below).parents}
    chosen = {}
    for one in found:
        tries = (Path(f"{one.below}{f'-{number}' if number > 1 else ''}{SUFFIX}") for number in count(1))
        place = next(place for place in tries if _folded(place) not in taken)
        taken.add(_folded(place))
        chosen[one.name] = place
    return chosen


def _folded(path: Path) -> str:
    return str(path).casefold()  # some disks take A.png and a.png for one


def prepare(folder: Path, goes_on: bool) -> None:
    """Make `folder`; only a run that goes on may find something in it.

    Raises:
        FolderError: it cannot be made, or holds something.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not goes_on and next(folder.iterdir(), None):
            raise FolderError(f"{folder} is not empty, and nothing in it is overwritten; name another folder.")
    except OSError as error:
        raise FolderError(f"{folder} cannot be used: {error.strerror}.") from error


def save(heatmap: Image.Image, place: Path) -> None:
    """As a PNG that is there whole or not at all.

    Raises:
        FolderError: it cannot be written.
    """
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=place.parent, prefix=".heatmap-", delete=False) as draft:
            try:
                heatmap.save(draft, "PNG", compress_level=1)
                os.fchmod(draft.fileno(), 0o644)
                Path(draft.name).replace(place)
            except BaseException:
                Path(draft.name).unlink()
                raise
    except OSError as error:
        raise FolderError(f"{place} cannot be written: {error.strerror}.") from error
