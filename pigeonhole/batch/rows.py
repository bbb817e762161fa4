"""What is written for each photo: as a table for people, as CSV, or as JSON Lines."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import IO, Literal, Protocol

DIGITS = 6  # of a probability; the fast way is off by more
BETWEEN = ";"  # the labels of a multi-label model in one cell
WIDEST = 60  # characters of a name that others are aligned with
Kind = Literal["table", "csv", "json"]


class Damaged(ValueError):
    """What is in the file is not what we write."""


@dataclass(frozen=True, slots=True)
class Row:
    """What the model says of a file: `ranked` holds the most probable labels, best first."""

    file: str
    success: str | list[str]
    ranked: tuple[tuple[str, float], ...]

    @property
    def best(self) -> Row:
        """The same without the labels that are less probable than the first."""
        return Row(self.file, self.success, self.ranked[:1])


class Format(Protocol):
    """How rows become bytes; `head` comes first."""

    kind: Kind
    head: bytes

    def encode(self, row: Row) -> bytes: ...

    def decode(self, file: IO[bytes]) -> Iterator[tuple[Row | None, int]]:
        """Each whole record from the start of `file`, the head as None, with the place where it ends.

        Raises:
            Damaged: one is none of ours.
        """


def rounded(ranked: Sequence[tuple[str, float]]) -> tuple[tuple[str, float], ...]:
    """So that a row is the same whether it was just made or is read again."""
    return tuple((label, round(probability, DIGITS)) for label, probability in ranked)


def without_controls(name: str) -> str:
    """`name` on one line of a terminal, whatever is in it."""
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in name)


class Table:
    """`path  label  98.2 %`, for people."""

    kind: Kind = "table"
    head = b""

    def __init__(self, is_multi_label: bool, names: Sequence[str]) -> None:
        self._is_multi_label = is_multi_label
        self._width = max((len(name) for name in names if len(name) <= WIDEST), default=0)

    def encode(self, row: Row) -> bytes:
        cells = [without_controls(row.file).ljust(self._width)]
        if self._is_multi_label:
            cells.append(", ".join(map(without_controls, row.success)) or "(none)")
        cells += [
            f"{without_controls(label)}  {probability:.1%}".replace("%", " %") for label, probability in row.ranked
        ]
        return ("  ".join(cells) + "\n").encode()

    def decode(self, file: IO[bytes]) -> Iterator[tuple[Row | None, int]]:
        raise Damaged("a table is not read again")


class CSV:
    """RFC 4180, with a header; names that are no Unicode come out as the bytes they are."""

    kind: Kind = "csv"

    def __init__(self, is_multi_label: bool, columns: int) -> None:
        self._is_multi_label, self._columns = is_multi_label, columns
        pairs = [("label", "probability"), *((f"label_{n}", f"probability_{n}") for n in range(2, columns + 1))]
        self._header = ["file", *(["success"] if is_multi_label else []), *chain.from_iterable(pairs[:columns])]
        self.head = _record(self._header)

    def encode(self, row: Row) -> bytes:
        success = [BETWEEN.join(row.success)] if self._is_multi_label else []
        cells = chain.from_iterable((label, f"{probability:.{DIGITS}f}") for label, probability in row.ranked)
        return _record([row.file, *success, *cells])

    def decode(self, file: IO[bytes]) -> Iterator[tuple[Row | None, int]]:
        for number, (record, end) in enumerate(_records(file)):
            try:
                (cells,) = csv.reader(io.StringIO(record, newline=""), strict=True)
            except (ValueError, csv.Error) as error:
                raise Damaged(str(error)) from error
            if number == 0 and cells != self._header:
                raise Damaged("another header")
            yield (self._row(cells) if number else None), end

    def _row(self, cells: list[str]) -> Row:
        if len(cells) != len(self._header):
            raise Damaged("another number of cells")
        file, *rest = cells
        success: str | list[str] = (
            [label for label in rest.pop(0).split(BETWEEN) if label] if self._is_multi_label else rest[0]
        )
        try:
            return Row(file, success, tuple(zip(rest[::2], map(float, rest[1::2]), strict=True)))
        except ValueError as error:
            raise Damaged("no probability") from error


def _record(cells: Sequence[str]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerow(cells)
    return text.getvalue().encode(errors="surrogateescape")


def _records(file: IO[bytes]) -> Iterator[tuple[str, int]]:
    """Each record that is whole, with where it ends: quoted cells may hold ends of lines, and quotes come in pairs."""
    record, end = b"", 0
    for line in file:
        record += line
        end += len(line)
        if record.endswith(b"\r\n") and record.count(b'"') % 2 == 0:
            yield record.decode(errors="surrogateescape"), end
            record = b""


class JSONLines:
    """One object a line, with the names that the HTTP API uses; ASCII, so a name that is no Unicode is valid too."""

    kind: Kind = "json"
    head = b""

    def encode(self, row: Row) -> bytes:
        predictions = [{"label": label, "probability": probability} for label, probability in row.ranked]
        return json.dumps({"file": row.file, "success": row.success, "predictions": predictions}).encode() + b"\n"

    def decode(self, file: IO[bytes]) -> Iterator[tuple[Row | None, int]]:
        end = 0
        for line in file:
            end += len(line)
            if line.endswith(b"\n"):
                yield self._row(line), end

    def _row(self, line: bytes) -> Row:
        try:
            said = json.loads(line)
            ranked = tuple((str(one["label"]), float(one["probability"])) for one in said["predictions"])
            return Row(said["file"], said["success"], ranked)
        except (ValueError, KeyError, TypeError) as error:
            raise Damaged("another object") from error
