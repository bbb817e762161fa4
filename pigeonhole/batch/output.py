"""Where rows go: to standard output, or into a file that can be gone on with after any interruption.

Beside an unfinished FILE lies `.FILE.pigeonhole`, which says by which model and options it is made. It is gone when the
file is finished: CSV has no comments, and whoever reads the result should find nothing in it but rows.

Each row is written whole as soon as its turn comes, so that a killed process loses only what it had in hand. What a
full disk or a power cut left of a last row is cut off before going on.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import IO

from pigeonhole.batch.rows import Damaged, Format, Row
from pigeonhole.errors import FolderError

MadeBy = dict[str, str]
Guard = Callable[[], AbstractContextManager[None]]  # around what may fail, to say what could not be written


class Output:
    """Rows that are there already, by file and without all labels but the best, and a way to add one."""

    def __init__(self, format: Format, stream: IO[bytes] | io.FileIO, done: dict[str, Row], guard: Guard) -> None:
        self._format, self._stream, self.done, self._guard = format, stream, done, guard

    def add(self, row: Row) -> None:
        self.write(self._format.encode(row))

    def write(self, record: bytes) -> None:
        with self._guard():
            rest = memoryview(record)
            while rest:  # an unbuffered file may take a part, where the disk fills up
                rest = rest[self._stream.write(rest) :]
            self._stream.flush()


@contextmanager
def to_stdout(format: Format) -> Iterator[Output]:
    """Writing raises FolderError if nobody reads it any more, or the disk that it goes to is full."""
    output = Output(format, sys.stdout.buffer, {}, standard_output)
    output.write(format.head)
    yield output


@contextmanager
def standard_output() -> Iterator[None]:
    """Around what writes to it; raises FolderError if that fails."""
    try:
        yield
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # where the interpreter flushes it once more
        raise FolderError(f"standard output cannot be written: {error.strerror}.") from error


def beside(path: Path) -> Path:
    """Where it is said what an unfinished file is made by."""
    return path.with_name(f".{path.name}.pigeonhole")


@contextmanager
def to_file(path: Path, format: Format, made_by: MadeBy) -> Iterator[Output]:
    """Begin `path`, or go on with it where the same model and options began it. `finished` ends it.

    Raises:
        FolderError: it is there and was begun by others, is finished, or was changed; or it cannot be written.
    """
    guard = partial(_writing, path)
    with guard():
        file = path.open("x+b" if _check_unfinished(path, made_by) else "r+b", buffering=0)
    try:
        with guard():
            _lock(file, path)
            done = _read_again(file, path, format)
        output = Output(format, file, done, guard)
        if file.tell() == 0:
            output.write(format.head)
        yield output
    finally:
        with guard():
            file.close()


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise FolderError(f"{path} cannot be written: {error.strerror}.") from error


def is_unfinished(path: Path) -> bool:
    return os.path.lexists(path) and os.path.lexists(beside(path))


def finished(path: Path) -> None:
    beside(path).unlink(missing_ok=True)


def _check_unfinished(path: Path, made_by: MadeBy) -> bool:
    """Note what makes `path` if it is new, else compare; whether it is new."""
    note = beside(path)
    if not os.path.lexists(path):
        note.write_text(json.dumps(made_by))
        return True
    if not (path.is_file() and note.is_file()):
        raise FolderError(f"{path} is there already, and is not overwritten; move it away or name another file.")
    try:
        before = dict(json.loads(note.read_text()))
    except ValueError as error:
        raise FolderError(f"{note} is damaged, so {path} is not gone on with; remove both to begin again.") from error
    for what in sorted(before.keys() | made_by.keys()):
        old, new = before.get(what, "nothing"), made_by.get(what, "nothing")
        if old != new:
            raise FolderError(f"{path} was begun with another {what}, {old} and not {new}; it is not gone on with.")
    return False


def _lock(file: io.FileIO, path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # let go by the system however this process ends
    except BlockingIOError as error:
        raise FolderError(f"{path} is being written by another process.") from error


def _read_again(file: io.FileIO, path: Path, format: Format) -> dict[str, Row]:
    """The whole rows in `file`, which is cut and placed behind the last one."""
    done, whole = {}, 0
    try:
        for row, end in format.decode(io.BufferedReader(io.FileIO(file.fileno(), closefd=False))):
            if row is not None:
                done[row.file] = row.best
            whole = end
    except Damaged as error:
        raise FolderError(f"{path} was changed since it was begun; it is not gone on with.") from error
    file.truncate(whole)
    file.seek(whole)
    return done
