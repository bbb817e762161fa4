"""export.onnx as a file: an ONNX graph, a card that says what it computes, and a seal over both.

The card and the seal are two last entries of ONNX's own `metadata_props` (ModelProto, field 14), so any ONNX tool reads
the file. Protocol buffers let a repeated field go on at the end of a message: they are appended bytes. The seal has a
fixed length, therefore both are found from the end of the file, without a parser and without OpenVINO:

    graph …  |  entry "pigeonhole.card": JSON  |  entry "pigeonhole.seal": length of the JSON, SHA-256 of all before it
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from pigeonhole.drafts import draft_of
from pigeonhole.errors import CompiledFileError
from pigeonhole.model.recipe import Recipe

FORMAT = 2  # of the card and of what the graph takes and gives; another one is compiled anew
PICTURES, LABEL_WEIGHTS = "pictures", "label_weights"  # what the graph takes, by the names of its inputs
PROBABILITIES, FEATURES, HEATMAP, SEEN = "probabilities", "features", "heatmap", "seen"  # what it may give
CARD, SEAL = "pigeonhole.card", "pigeonhole.seal"
LENGTH_DIGITS = 12
DIGEST_LENGTH = 64  # SHA-256 in hexadecimal
CHUNK = 1 << 20
COMPILE = "run `python -m pigeonhole compile` on the export."


@dataclass(frozen=True)
class Probe:
    """A picture, encoded as it would be uploaded, and what `learner.predict` says of it.

    `probabilities` holds a pair of label and probability for each of the learner's labels, in their order. `grid` is
    where the learner looked for the most probable label (`explain.Explanation.grid`); None if that cannot be told.
    """

    picture: bytes
    success: str | list[str]
    probabilities: tuple[tuple[str, float], ...]
    grid: tuple[tuple[float, ...], ...] | None = None


@dataclass(frozen=True)
class Proof:
    """How the graph compared with `learner.predict`, both in float32. The labels of all pictures were the same."""

    pictures: int
    photos: int  # of these, how many the user named; the others are built in
    largest_difference: float  # of a probability
    largest_grid_difference: float | None = None  # of where it looked, from 0 to 1; None if that is not shown


@dataclass(frozen=True)
class Card:
    """What export.onnx computes, and of which export. `threshold` is that of a multi-label model, else None.

    `source` is the SHA-256 of the export, `notebook` that of the notebook.py beside it, None where there was none.
    `unexplained` says why the graph does not show where it looked; None if it does.
    """

    labels: tuple[str, ...]
    recipe: Recipe
    threshold: float | None
    source: str
    notebook: str | None
    proof: Proof
    probes: tuple[Probe, ...]
    unexplained: str | None = None
    versions: dict[str, str] = field(default_factory=dict)

    def as_json(self) -> str:
        probes = [{**asdict(probe), "picture": base64.b64encode(probe.picture).decode()} for probe in self.probes]
        content = {**asdict(replace(self, recipe=Recipe(), probes=())), "recipe": self.recipe.as_json()}
        return json.dumps({"format": FORMAT, **content, "probes": probes}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Card:
        """The card that `as_json` wrote.

        Raises:
            KeyError, TypeError, ValueError: it is none of this format.
        """
        data: dict[str, Any] = json.loads(text)
        if data.pop("format") != FORMAT:
            raise ValueError("another format")
        probes = [
            Probe(
                base64.b64decode(probe["picture"]),
                probe["success"],
                tuple((str(label), float(probability)) for label, probability in probe["probabilities"]),
                None if probe["grid"] is None else tuple(tuple(map(float, row)) for row in probe["grid"]),
            )
            for probe in data.pop("probes")
        ]
        labels, recipe = tuple(map(str, data.pop("labels"))), Recipe.from_json(data.pop("recipe"))
        return cls(labels=labels, recipe=recipe, proof=Proof(**data.pop("proof")), probes=tuple(probes), **data)


def write_compiled(path: Path, graph: bytes, card: Card) -> None:
    """Put graph, card and seal into `path`, which is replaced at once or not at all.

    Raises:
        CompiledFileError: it cannot be written.
    """
    text = card.as_json().encode()
    body = graph + _entry(CARD, text) + _unsealed(len(text))
    try:
        with draft_of(path, mode=0o644) as draft:  # whoever serves it may be another user
            draft.write(body + hashlib.sha256(body).hexdigest().encode())
    except OSError as error:
        raise CompiledFileError(f"{path} cannot be written: {error.strerror}.") from error


def read_card(path: Path) -> Card:
    """The card of the file in `path`, whose every byte is what it was when it was compiled.

    Raises:
        CompiledFileError: it is damaged, of another format, or not ours.
    """
    try:
        with path.open("rb") as file:
            length = _check_seal(file, path)
            file.seek(-length - SEAL_LENGTH, os.SEEK_END)
            return Card.from_json(file.read(length).decode())
    except OSError as error:
        raise CompiledFileError(f"{path} cannot be read: {error.strerror}; {COMPILE}") from error
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise CompiledFileError(f"{path} was made by another version of Pigeonhole; {COMPILE}") from error


def is_ours(path: Path) -> bool:
    """Does the file end as compiled files do? A damaged one may; a file of somebody else's does not."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        file.seek(max(file.seek(0, os.SEEK_END) - SEAL_LENGTH, 0))
        return SEAL_PATTERN.fullmatch(file.read()) is not None


def sha256_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return sha256_of(file)


def sha256_of(file: IO[bytes], length: int | None = None) -> str:
    """The SHA-256 of what `file` still holds, or of its next `length` bytes, in hexadecimal."""
    digest = hashlib.sha256()
    left = length if length is not None else -1
    while left and (chunk := file.read(CHUNK if left < 0 else min(CHUNK, left))):
        digest.update(chunk)
        left -= len(chunk) if left > 0 else 0
    return digest.hexdigest()


def _check_seal(file: IO[bytes], path: Path) -> int:
    """Return the length of the card in bytes."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - SEAL_LENGTH, 0))
    match = SEAL_PATTERN.fullmatch(file.read())
    if not match:
        raise CompiledFileError(f"{path} is cut off, or was not compiled by Pigeonhole; {COMPILE}")
    file.seek(0)
    if sha256_of(file, size - DIGEST_LENGTH).encode() != match[2]:
        raise CompiledFileError(f"{path} is damaged: its bytes are not those that were compiled; {COMPILE}")
    return int(match[1])


def _unsealed(card_length: int) -> bytes:
    """The seal's entry up to its digest, which covers this as well."""
    digest = "0" * DIGEST_LENGTH
    return _entry(SEAL, f"{card_length:0{LENGTH_DIGITS}} {digest}".encode())[:-DIGEST_LENGTH]


def _entry(key: str, value: bytes) -> bytes:
    """A StringStringEntryProto as an entry of ModelProto.metadata_props (onnx.proto, fields 1 and 2 in field 14)."""
    content = _text(1, key.encode()) + _text(2, value)
    return _text(14, content)


def _text(number: int, content: bytes) -> bytes:
    """A field of wire type 2: its tag, its length, itself (protobuf.dev, "Encoding")."""
    return bytes([number << 3 | 2]) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    low, rest = number & 0x7F, number >> 7
    return bytes([low | 0x80]) + _varint(rest) if rest else bytes([low])


_BEFORE_LENGTH = _unsealed(0)[: -LENGTH_DIGITS - 1]
SEAL_PATTERN = re.compile(re.escape(_BEFORE_LENGTH) + rb"([0-9]{%d}) ([0-9a-f]{%d})" % (LENGTH_DIGITS, DIGEST_LENGTH))
SEAL_LENGTH = len(_unsealed(0)) + DIGEST_LENGTH
