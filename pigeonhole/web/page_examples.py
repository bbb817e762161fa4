"""The pictures that the page offers to try: those of a folder, looked at once at the start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pigeonhole.errors import FolderError, RequestError
from pigeonhole.intake.formats import sniff
from pigeonhole.settings import MIB, Settings

MOST = 12


@dataclass(frozen=True)
class ExamplePicture:
    """A file that is a picture, and its media type."""

    path: Path
    media_type: str


def examples_of(settings: Settings) -> Sequence[ExamplePicture]:
    """The pictures in PAGE_EXAMPLES, in the order of their names; without it, none. Hidden files are passed over.

    Raises:
        FolderError: it is no folder, or holds nothing, too much, or what does not start as a picture.
    """
    folder = settings.page_examples
    if not settings.page or folder is None:
        return ()
    try:
        paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
        if not 1 <= len(paths) <= MOST:
            raise _refusal(folder, f"it holds {len(paths)} files, and 1 to {MOST} pictures are possible")
        return [_example(path, settings) for path in paths]
    except OSError as error:
        raise _refusal(folder, "it is not a folder with files that can be read") from error


def _example(path: Path, settings: Settings) -> ExamplePicture:
    if not path.is_file():
        raise _refusal(path.parent, f"{path.name} is not a file")
    most_bytes = settings.max_body_bytes
    if path.stat().st_size > most_bytes:
        raise _refusal(path.parent, f"{path.name} is larger than {most_bytes / MIB:g} MiB, which is MAX_BODY_BYTES")
    try:
        with path.open("rb") as file:
            return ExamplePicture(path, sniff(file, settings.formats).media_type)
    except RequestError as error:
        raise _refusal(path.parent, f"{path.name}: {str(error).rstrip('.')}") from error


def _refusal(folder: Path, reason: str) -> FolderError:
    return FolderError(f"PAGE_EXAMPLES={folder} is not possible: {reason}.")
