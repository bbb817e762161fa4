"""Which files a command line means: those it names, and all below the folders it names."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from typing import IO

from pigeonhole.errors import EmptyImage, NotAnImage, RequestError
from pigeonhole.intake.formats import sniff

PICTURE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".webp", ".bmp")
)  # of others, their content tells


@dataclass(frozen=True, slots=True)
class Found:
    """A file that may be a photo; there may be a million of them, so it holds strings and no paths.

    `name` is what it was named, or begins with what its folder was named. `below` is the rest of it behind that folder.
    """

    name: str
    below: str
    is_named: bool

    @property
    def path(self) -> Path:
        return Path(self.name)

    @property
    def folder(self) -> str:
        """The name of the folder it lies in, as it was named: a link to a folder may have a better name than that."""
        return Path(os.path.abspath(self.name)).parent.name  # noqa: PTH100


class PassedOver(Exception):
    """A file in a folder that is clearly no picture, and was not named."""


Tell = Callable[[str, str], object]  # of a path, in a sentence


def find(paths: Iterable[Path], apart: Path | None, lost: Tell, passed: Tell) -> list[Found]:
    """The files of `paths`, each once, in that order; those of a folder sorted, without what is below `apart`.

    `lost` hears of folders that cannot be listed, `passed` of links to folders: they are not followed, so that none
    leads round in a circle.
    """
    # os.path's questions are answered with no where a folder on the way may not be looked into; Path's raise
    found: dict[str, Found] = {}
    for path in paths:
        is_folder = os.path.isdir(path)  # noqa: PTH112
        for one in _below(path, apart, lost, passed) if is_folder else [Found(str(path), path.name, True)]:
            found.setdefault(one.name, one)
    return list(found.values())


def _below(top: Path, apart: Path | None, lost: Tell, passed: Tell) -> list[Found]:
    def cannot(error: OSError) -> None:
        lost(str(error.filename), f"the folder cannot be listed: {error.strerror}.")

    left_out = os.path.realpath(apart) if apart else None
    files: list[Path] = []
    for here, folders, names in os.walk(top, onerror=cannot):
        for folder in list(folders):
            path = Path(here, folder)
            if os.path.islink(path):  # noqa: PTH114
                passed(str(path), "a link to a folder is not followed; it can be named as well.")
            elif os.path.realpath(path) == left_out:
                folders.remove(folder)
        files += (Path(here, name) for name in names)
    return [Found(str(path), str(path.relative_to(top)), False) for path in sorted(files)]


@contextmanager
def opened(found: Found) -> Iterator[IO[bytes]]:
    """The file, if it is to be looked at.

    Raises:
        PassedOver: it was not named, and is clearly no picture: neither its content nor its name says so.
        OSError: it cannot be opened.
    """
    if not S_ISREG(found.path.stat().st_mode):  # opening a pipe would wait for whoever writes to it
        if found.is_named:
            raise NotAnImage("it is not a file.")
        raise PassedOver
    with found.path.open("rb") as file:
        if not (found.is_named or _claims_to_be_a_picture(found.path)):
            _pass_over_others(file)
        yield file


def _claims_to_be_a_picture(path: Path) -> bool:
    """By its name; a hidden file claims nothing (macOS leaves a `._photo.jpg` beside each photo on foreign disks)."""
    return path.suffix.lower() in PICTURE_SUFFIXES and not path.name.startswith(".")


def _pass_over_others(file: IO[bytes]) -> None:
    try:
        sniff(file)
    except (NotAnImage, EmptyImage) as error:
        raise PassedOver from error
    except RequestError:  # a picture of another type, a video: whoever put it there may have wanted an answer
        return
