"""Keep an uploaded photo on disk while it is being answered, and not a moment longer.

The file has no name: on Linux it is opened with O_TMPFILE, elsewhere it is unlinked as soon as it is open. So two
uploads cannot meet, no client's name can become a path, and the kernel removes the bytes when the file is closed,
whatever ended the request: an answer, an error, or a killed process.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from pigeonhole.errors import FolderError, NoSpace

PREFIX = ".pigeonhole-upload-"  # seen only where there is no O_TMPFILE, between creating a file and unlinking it


class Upload(io.BufferedRandom):
    """A file that turns the disk's trouble into our error.

    Raises:
        NoSpace: the disk is full, read-only or gone, or does not give back what it took.
    """

    def read(self, size: int | None = -1) -> bytes:
        with _disk_trouble():
            return super().read(size)

    def readinto(self, buffer: Any) -> int:
        with _disk_trouble():
            return super().readinto(buffer)

    def tell(self) -> int:
        with _disk_trouble():
            return super().tell()

    def write(self, data: Any) -> int:
        with _disk_trouble():
            return super().write(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        with _disk_trouble():  # writes what the buffer still holds
            return super().seek(offset, whence)


class Uploads:
    """The uploads of one request: `with Uploads(folder) as uploads: file = uploads.new()`; all are gone afterwards."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: list[Upload] = []

    def new(self) -> Upload:
        """An empty file for one more photo.

        Raises:
            NoSpace: it cannot be created.
        """
        self.files.append(_nameless(self.folder))
        return self.files[-1]

    def close(self) -> None:
        while self.files:
            with suppress(OSError):  # a full disk cannot take what the buffer still holds; the file is closed anyway
                self.files.pop().close()

    def __enter__(self) -> Uploads:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def prepare(folder: Path) -> None:
    """Make sure that uploads can be kept in `folder`, and remove what a killed process may have left there.

    Raises:
        FolderError: it is missing, not a folder, a link to somewhere else, or cannot be written to.
    """
    if folder.is_symlink():
        raise FolderError(f"UPLOADS={folder} is a symbolic link; name the folder itself.")
    if not os.path.isdir(folder):  # noqa: PTH112  Path.is_dir raises for a name that is too long
        raise FolderError(f"UPLOADS={folder} is not there; create the folder, or name another.")
    try:
        check_room(folder)
    except NoSpace as error:
        raise FolderError(f"UPLOADS={folder} cannot be written to by this user.") from error
    for leftover in folder.glob(PREFIX + "*"):
        with suppress(OSError):  # a folder, or another user's in a shared /tmp
            leftover.unlink()


def check_room(folder: Path) -> None:
    """Raises NoSpace if a photo could not be kept in `folder` now; a full disk may still take an empty file."""
    with Uploads(folder) as uploads:
        file = uploads.new()
        file.write(b"\0")
        file.seek(0)


def _nameless(folder: Path) -> Upload:
    with _disk_trouble():
        file = Upload(tempfile.TemporaryFile(buffering=0, prefix=PREFIX, dir=folder))  # noqa: SIM115
        os.fchmod(file.fileno(), 0o600)  # a umask may have left less, and the sandbox opens it anew
        return file


@contextmanager
def _disk_trouble() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise NoSpace("there is no room to receive a photo at the moment; please try again.") from error
