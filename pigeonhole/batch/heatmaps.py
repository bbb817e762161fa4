"""A heatmap for each photo, as PNGs in a folder that mirrors where the photos lie."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

from PIL import Image

from pigeonhole.batch.finding import Found
from pigeonhole.drafts import draft_of
from pigeonhole.errors import FolderError

SUFFIX = ".png"
LONGEST = 255  # bytes of a name, on most disks


def places(found: Sequence[Found]) -> dict[str, Path]:
    """Where the heatmap of each file goes, by its name: a path below the folder, no two the same.

    `photo.jpg` becomes `photo.jpg.png`, since a `photo.png` may lie beside it. Two arguments may hold files of one
    name; the second becomes `photo.jpg-2.png`. A name that the ending would make too long is cut.
    """
    taken = {_folded(folder) for one in found for folder in Path(one.below).parents}
    chosen = {}
    for one in found:
        place = next(place for place in _tries(Path(one.below)) if _folded(place) not in taken)
        taken.add(_folded(place))
        chosen[one.name] = place
    return chosen


def _tries(path: Path) -> Iterator[Path]:
    for number in count(1):
        ending = f"-{number}{SUFFIX}" if number > 1 else SUFFIX
        name = path.name
        while len(os.fsencode(name + ending)) > LONGEST:
            name = name[:-1]
        yield path.with_name(name + ending)


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
        with draft_of(place) as draft:
            heatmap.save(draft, "PNG", compress_level=1)
    except OSError as error:
        raise FolderError(f"{place} cannot be written: {error.strerror}.") from error
