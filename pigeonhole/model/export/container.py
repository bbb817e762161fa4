"""What kind of file an export is, and the pickle in it, found without torch and without running anything.

`torch.save` writes a zip since torch 1.6, and a row of pickles followed by raw weights before ("legacy"). The zip has a
checksum for each of its parts; torch does not look at them when it loads, so a flipped bit in a weight goes unnoticed.
"""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from pigeonhole.errors import ModelFileError
from pigeonhole.model.export.pickles import Pickle, Weights, read_pickle
from pigeonhole.model.export.shapes import is_storage_key

HEAD = 64  # bytes looked at to tell what a file is
CHUNK = 1024 * 1024  # bytes
GIT_LFS_MAGIC = b"version https://git-lfs"
ZIP_MAGIC = b"PK\x03\x04"
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a legacy file: torch's MAGIC_NUMBER
LEGACY_PROTOCOL = 1001  # the second
ZIP_ENDS = 22 + 20 + 56  # bytes of the three records a zip64 ends with
PICKLE_START = re.compile(rb"\x80[\x00-\x05]|[(\]}c]")  # PROTO, or what pickles of protocols 0 and 1 begin with
# what torch.save puts beside the pickle, below one folder
ZIP_PARTS = re.compile(r"data/\d+|version|byteorder|\.data/serialization_id|\.format_version|\.storage_alignment")
ELEMENT_BYTES = {
    "Double": 8, "Long": 8, "ComplexFloat": 8, "Float": 4, "Int": 4, "Half": 2, "BFloat16": 2, "Short": 2, "Char": 1,
    "Byte": 1, "Bool": 1, "QInt8": 1, "QUInt8": 1, "QInt32": 4, "ComplexDouble": 16,
}  # fmt: skip


@dataclass(frozen=True)
class Container:
    """A file that `torch.save` wrote, or a bare pickle: its pickle as data, its size in bytes and its SHA-256."""

    kind: Literal["zip", "legacy", "pickle"]
    size: int
    sha256: str
    pickle: Pickle


def check_file(path: Path) -> None:
    """Look at the first bytes only.

    Raises:
        ModelFileError: the file is missing, empty, or visibly something else than an export.
    """
    with opened(path) as file:
        head = file.read(HEAD)
    if not head:
        raise ModelFileError(f"MODEL={path} is empty; export the learner again, or copy it again.")
    if head.startswith(GIT_LFS_MAGIC):
        raise ModelFileError(
            f"MODEL={path} is a Git LFS pointer, not the model itself: run `git lfs install`, then `git lfs pull`."
        )
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise ModelFileError(f"MODEL={path} is a web page; the download stopped at a log-in or an error page.")
    if not (head.startswith(ZIP_MAGIC) or PICKLE_START.match(head)):
        raise ModelFileError(f"MODEL={path} is not what learn.export() writes; it starts with {head[:8]!r}.")


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """`path` open for reading.

    Raises:
        ModelFileError: it cannot be.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError as error:
        raise ModelFileError(f"MODEL={path} is not there; put the file there that learn.export() wrote.") from error
    except IsADirectoryError as error:
        raise ModelFileError(f"MODEL={path} is a folder; name the file that learn.export() wrote.") from error
    except OSError as error:
        raise ModelFileError(f"MODEL={path} cannot be read by this user.") from error
    with file:
        yield file


def read_container(file: IO[bytes], pinned: str | None = None) -> Container:
    """Read an export whole, check what can be checked, and read its pickle as data; `pinned` is its SHA-256, if given.

    Raises:
        ModelFileError: it is another file than the pinned one, damaged, cut off, or not what torch.save writes.
    """
    size, sha256 = _measure(file)
    if pinned and sha256 != pinned.lower():
        raise ModelFileError(f"its SHA-256 is {sha256}, and MODEL_SHA256 says {pinned.lower()}; it was not read.")
    file.seek(0)
    if file.read(len(ZIP_MAGIC)) == ZIP_MAGIC:
        return Container("zip", size, sha256, _read_zip(file))
    file.seek(0)
    if tarfile.is_tarfile(file):  # torch.load unpacks one before anything else
        raise ModelFileError("it is a tar archive, which learn.export() does not write.")
    file.seek(0)
    first = read_pickle(file, partly=True)  # joblib puts raw numbers in the middle of one
    if first.root != LEGACY_MAGIC:
        return Container("pickle", size, sha256, first)
    return Container("legacy", size, sha256, _read_legacy(file, size))


def _measure(file: IO[bytes]) -> tuple[int, str]:
    size, digest = 0, hashlib.sha256()
    while chunk := file.read(CHUNK):
        size += len(chunk)
        digest.update(chunk)
    return size, digest.hexdigest()


def _read_zip(file: IO[bytes]) -> Pickle:
    try:
        with zipfile.ZipFile(file) as archive:
            _check_directory(file, archive)
            name = _name_of_pickle(archive)
            _check_sums(archive)
            stream = io.BytesIO(archive.read(name))
            sizes = {part.filename.rpartition("/")[2]: part.file_size for part in archive.infolist()}
    except (zipfile.BadZipFile, EOFError, NotImplementedError, OSError, ValueError) as error:
        raise ModelFileError(
            "it is a damaged or incomplete zip; copy it again, or export the learner again."
        ) from error
    pickle = read_pickle(stream)
    if stream.read(1):
        raise ModelFileError("its pickle goes on after its end, which no export does; nothing of it was run.")
    for key, length in _storages(pickle).items():
        if sizes.get(key) != length:  # torch would read what lies behind it in memory
            raise ModelFileError(f"it announces {length} bytes of weights {key!r} and holds {sizes.get(key, 0)}.")
    return pickle


def _check_directory(file: IO[bytes], archive: zipfile.ZipFile) -> None:
    """The directory has to lie where its end says it does. Readers differ where it does not, and torch's is another.

    Source: APPNOTE.TXT of the zip format, sections 4.3.14 to 4.3.16 (zip64's end, its locator, the end).
    """
    file.seek(-min(ZIP_ENDS, file.seek(0, io.SEEK_END)), io.SEEK_END)
    ends = file.read()
    offset = int.from_bytes(ends[-6:-2], "little")
    if ends[-42:-38] == b"PK\x06\x07":
        offset = int.from_bytes(ends[-50:-42], "little")
    if ends[-22:-18] != b"PK\x05\x06" or ends[-2:] != b"\0\0" or offset != archive.start_dir:
        raise ModelFileError("its parts do not lie where its directory says; torch.save does not write that.")


def _name_of_pickle(archive: zipfile.ZipFile) -> str:
    parts = archive.infolist()
    folder = parts[0].filename.partition("/")[0] if parts else ""
    names = [part.filename.removeprefix(folder + "/") for part in parts]
    if "constants.pkl" in names or any(name.startswith("code/") for name in names):
        raise ModelFileError(
            "it is a TorchScript archive, which holds no labels; learn.export() in the notebook writes them."
        )
    if "data.pkl" not in names:
        raise ModelFileError("it is a zip that torch did not write; name the file that learn.export() wrote.")
    for name, count in Counter(names).items():
        if count > 1 or not (name == "data.pkl" or ZIP_PARTS.fullmatch(name)):
            raise ModelFileError(f"it holds {name!r}{' twice' * (count > 1)}, which torch.save does not write.")
    if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
        raise ModelFileError("its parts are compressed, which torch.save does not do.")
    return f"{folder}/data.pkl"


def _check_sums(archive: zipfile.ZipFile) -> None:
    """zipfile compares the CRC-32 of a part when it has read the whole of it."""
    for part in archive.infolist():
        try:
            with archive.open(part) as content:
                while content.read(CHUNK):
                    pass
        except zipfile.BadZipFile as error:
            if "CRC" not in str(error):
                raise
            raise ModelFileError(
                f"its part {part.filename!r} does not match its checksum: the file is damaged; copy it again."
            ) from error


def _read_legacy(file: IO[bytes], size: int) -> Pickle:
    """(Magic number,) protocol, system, learner, keys of the weights; then the weights: 8 bytes of length, numbers."""
    protocol, system, learner, keys = (read_pickle(file) for _ in range(4))
    if protocol.root != LEGACY_PROTOCOL or not isinstance(keys.root, list):
        raise ModelFileError("it starts as a file of torch does and goes on as none does.")
    if any(pickle.nodes for pickle in (protocol, system, keys)):
        raise ModelFileError("it holds a pickle where torch.save writes plain numbers; nothing of it was run.")
    expected = file.tell() + sum(8 + length for length in _storages(learner).values())
    if size != expected:
        raise ModelFileError(f"it has {size} bytes where {expected} belong: it is cut off or has been added to.")
    return learner


def _storages(learner: Pickle) -> dict[str, int]:
    """The bytes of each of the weights, by key, as the pickle announces them."""
    found: dict[str, int] = {}
    for node in learner.nodes:
        if isinstance(node, Weights):
            if not is_storage_key(node.key):
                raise ModelFileError("it announces weights of an unknown kind.")
            _, kind, key, _, count, *_ = node.key
            width = ELEMENT_BYTES.get(kind.name.removesuffix("Storage"), 1)  # UntypedStorage counts bytes
            if found.setdefault(key, width * count) != width * count:
                raise ModelFileError(f"it announces weights {key!r} twice, of different sizes.")
    return found
