"""The folder where downloaded models are kept.

    CACHE/<sha256>/export.pkl           a file that was downloaded; what is compiled from it comes to lie beside it
    CACHE/addresses/<key>.json          what an address gave last: the version it had there, and its SHA-256
    CACHE/addresses/<key>.lock          held by the process that downloads from the address
    CACHE/addresses/<key>-<version>.part    what is there so far; whoever tries next goes on with it

`key` is a hash of the address, which may hold a signature and is never written down.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from pigeonhole.errors import DownloadError
from pigeonhole.model.card import sha256_of_file
from pigeonhole.model.store.addresses import shown

SUFFIXES = (".pkl", ".onnx")

Tell = Callable[[str], object]


@dataclass(frozen=True)
class Known:
    """What an address gave last; `version` is None where the remote has no way of telling one."""

    version: str | None
    sha256: str


class Cache:
    """The folder of downloads. Two processes may use it at once; only `locked` makes one wait."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self._addresses = self.folder / "addresses"
        for needed in (self.folder, self._addresses):
            needed.mkdir(mode=0o700, parents=True, exist_ok=True)

    def holding(self, sha256: str) -> Path | None:
        """The file with this SHA-256, which is computed again."""
        for path in sorted((self.folder / sha256).glob("*")):
            if path.suffix in SUFFIXES and path.is_file() and sha256_of_file(path) == sha256:
                return path
        return None

    def last(self, address: str) -> Path | None:
        """What the address gave last."""
        known = self._known(address)
        return self.holding(known.sha256) if known else None

    def current(self, address: str, version: str | None) -> Path | None:
        """What the address gave last, if it had this version then."""
        known = self._known(address)
        return self.holding(known.sha256) if known and version and known.version == version else None

    @contextmanager
    def locked(self, address: str, tell: Tell) -> Iterator[None]:
        """Let one process at a time download from `address`; the kernel lets go of the lock when a process ends."""
        with self._of(address, ".lock").open("ab") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                tell(f"Another process is downloading {shown(address)}; waiting for it.")
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def part(self, address: str, version: str | None) -> Path:
        """Where a download of this version grows; those of other versions are removed."""
        path = self._of(address, f"-{(version or 'unknown')[:16]}.part")
        for other in self._addresses.glob(f"{_key(address)}-*.part"):
            if other != path:
                other.unlink()
        return path

    def keep(self, part: Path, sha256: str, name: str) -> Path:
        """Give a whole download its place, at once or not at all; the first name of a file remains its name."""
        if there := self.holding(sha256):
            part.unlink()
            return there
        path = self.folder / sha256 / name
        path.parent.mkdir(mode=0o700, exist_ok=True)
        part.replace(path)
        for folder in (path.parent, self.folder):
            sync(folder)
        return path

    def remember(self, address: str, known: Known) -> None:
        with tempfile.NamedTemporaryFile("w", dir=self._addresses, delete=False) as draft:
            json.dump({"address": shown(address), **asdict(known)}, draft)
        Path(draft.name).replace(self._of(address, ".json"))

    def _known(self, address: str) -> Known | None:
        try:
            content = json.loads(self._of(address, ".json").read_text())
            version, sha256 = content["version"], content["sha256"]
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            return None
        return Known(version, sha256) if re.fullmatch("[0-9a-f]{64}", str(sha256)) else None

    def _of(self, address: str, ending: str) -> Path:
        return self._addresses / (_key(address) + ending)


@contextmanager
def cache_trouble(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DownloadError(f"MODEL_CACHE={folder} cannot be used: {error.strerror}.") from error


def expanded(folder: Path) -> Path:
    try:
        return folder.expanduser()
    except RuntimeError:
        raise DownloadError(f"MODEL_CACHE={folder} cannot be used: there is no such home; name a folder.") from None


def _key(address: str) -> str:
    return hashlib.sha256(address.encode()).hexdigest()[:32]


def sync(path: Path) -> None:
    """Have the disk hold what was written to a file or changed in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
