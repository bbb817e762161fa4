"""The keys that clients are known by; no secret is kept, only what SHA-256 makes of it."""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pigeonhole.errors import BadKey, NoKey, SettingsError
from pigeonhole.settings import KEY, Settings

CHECKED_EVERY = 1  # second; how soon a changed file counts
HOW_TO_SEND = "send it as `Authorization: Bearer KEY` or as `X-API-Key: KEY`."

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Key:
    """A client's name, and the SHA-256 of its secret; a name may have several."""

    name: str
    digest: bytes

    @classmethod
    def parsed(cls, text: str) -> Key:
        """Of `name:secret` or `name:sha256=HEX`; raises ValueError, which does not say what was read."""
        if not re.fullmatch(KEY, text):
            raise ValueError("not a key")
        name, _, secret = text.partition(":")
        hashed = re.fullmatch("sha256=([0-9a-fA-F]{64})", secret)
        return cls(name, bytes.fromhex(hashed[1]) if hashed else _digest(secret))


class Keys:
    """All that are accepted: some that stay, and those of a file, which is read again when it changes.

    Raises:
        SettingsError: the file cannot be read, or a line of it is no key.
    """

    def __init__(self, fixed: Sequence[Key], file: Path | None = None) -> None:
        self._fixed, self._file = fixed, file
        self._lock = threading.Lock()  # guards what is known of the file: one thread at a time looks
        self._looked = time.monotonic()
        self._version = _version_of(file) if file else None
        self._filed = _keys_in(file) if file else ()

    def check(self, secret: str | None) -> str:
        """The name of the client whose key it is.

        Raises:
            NoKey, BadKey: as they say.
        """
        if not secret:
            raise NoKey("a key is needed here; " + HOW_TO_SEND)
        name = self.name_of(secret)
        if name is None:
            raise BadKey("the key is not one that is accepted here.")
        return name

    def name_of(self, secret: str) -> str | None:
        """The same, or None; it takes as long for every secret."""
        sent = _digest(secret)
        found = [key.name for key in self._current() if hmac.compare_digest(key.digest, sent)]
        return found[0] if found else None

    def _current(self) -> Iterable[Key]:
        if self._file and time.monotonic() - self._looked >= CHECKED_EVERY and self._lock.acquire(blocking=False):
            try:
                self._looked = time.monotonic()
                self._look_again(self._file)
            finally:
                self._lock.release()
        return (*self._fixed, *self._filed)

    def _look_again(self, file: Path) -> None:
        """Take the keys of a changed file; where it turned bad, those of before stay, and the log says so once."""
        version = _version_of(file)
        if version == self._version:
            return
        self._version = version
        try:
            self._filed = _keys_in(file)
            log.info("API_KEYS_FILE was read again: %d keys.", len(self._filed))
        except SettingsError as error:
            log.warning("%s The keys of before still count.", error)


def keys_of(settings: Settings) -> Keys | None:
    """Those that API_KEYS and API_KEYS_FILE name; None if everybody may call.

    Raises:
        SettingsError: as `Keys`.
    """
    if not settings.has_keys:
        return None
    return Keys([Key.parsed(text) for text in settings.keys], settings.api_keys_file)


def _keys_in(file: Path) -> Sequence[Key]:
    try:
        lines = file.read_text("utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise SettingsError(f"API_KEYS_FILE={file} cannot be read.") from error
    keys = []
    for number, line in enumerate(lines, 1):
        if text := re.sub(r"(^|\s)#.*", "", line).strip():
            try:
                keys.append(Key.parsed(text))
            except ValueError as error:
                raise SettingsError(
                    f"API_KEYS_FILE={file} is not possible: line {number} is neither `name:secret`, of 16 characters "
                    "or more, nor `name:sha256=HEX`."
                ) from error
    if not keys:
        raise SettingsError(f"API_KEYS_FILE={file} holds no key.")
    return keys


def _version_of(file: Path) -> tuple[int, ...] | None:
    try:
        about = file.stat()
    except OSError:
        return None
    return about.st_mtime_ns, about.st_ino, about.st_size


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()
