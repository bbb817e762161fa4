"""Fetch the model from the address that MODEL names, and keep it under its SHA-256.

Nothing is downloaded where the file with the SHA-256 asked for is in the cache, and none is asked of an address whose
version is the one it had last. A download that was cut goes on where it stopped.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from pigeonhole.errors import DownloadError, ModelFileError, Unreachable
from pigeonhole.model.card import sha256_of_file
from pigeonhole.model.store.addresses import check_address, shown
from pigeonhole.model.store.cache import SUFFIXES, Cache, Known, Tell, cache_trouble, expanded, sync
from pigeonhole.model.store.remotes import Count, Read, Remote, remote_at
from pigeonhole.model.store.troubles import NoRanges, muted, translated

CHUNK = 8 * 1024 * 1024  # bytes asked for at a time: what is lost when a connection breaks
MAX_BYTES = 4 * 1024**3  # ten times the largest classifier of timm
PAUSES = (0.5, 1, 3)  # seconds before the next try, as long as nothing comes
ROUNDS = 3  # a file that changes so often while it is downloaded is no release


def fetch(address: str, cache: Path, pinned: str | None = None, tell: Tell | None = None) -> Path:
    """Where the file of `address` lies in the folder `cache`, once it is there; its SHA-256 has to be `pinned`.

    `tell` gets a line at a time, by default on standard error, where a terminal shows a bar as well. When the address
    cannot be reached, what it gave last is served, and a line says so: a restart must not depend on a hub being up.

    Raises:
        DownloadError: the address is none, or gives nothing; or the cache cannot be written.
        ModelFileError: the file is another one than the pinned one; it is not kept.
        PackagesMissing: what such addresses need is not installed.
    """
    tell = tell or _to_stderr
    check_address(address)
    with cache_trouble(cache), muted():
        kept = Cache(expanded(cache))
        if pinned and (path := kept.holding(pinned.lower())):
            return path
        try:
            return _current(address, kept, pinned.lower() if pinned else None, tell)
        except Unreachable as error:
            path = None if pinned else kept.last(address)
            if path is None:
                raise
            tell(f"Warning: {error} What it gave last is served: {path}")
            return path


def _current(address: str, cache: Cache, pinned: str | None, tell: Tell) -> Path:
    remote = remote_at(address)
    with cache.locked(address, tell):  # now another process may have brought it
        here = cache.holding(pinned) if pinned else cache.current(address, remote.version)
        return here or _download(address, remote, cache, pinned, tell)


def _download(address: str, remote: Remote, cache: Cache, pinned: str | None, tell: Tell) -> Path:
    for _ in range(ROUNDS):
        part = cache.part(address, remote.version)
        _fill(part, remote, address, tell)
        before, remote = remote, remote_at(address)
        if remote.version == before.version:
            break
        part.unlink()
        tell(f"{shown(address)} has changed meanwhile.")
    else:
        raise DownloadError(f"MODEL={shown(address)} changes while it is being downloaded.")
    sha256 = sha256_of_file(part)
    if pinned and sha256 != pinned:
        part.unlink()
        raise ModelFileError(
            f"MODEL={shown(address)} has the SHA-256 {sha256}, and MODEL_SHA256 says {pinned}; it was not kept."
        )
    if remote.sha256 not in (None, sha256):
        part.unlink()
        raise DownloadError(f"MODEL={shown(address)} was damaged on the way; it was not kept.")
    path = cache.keep(part, sha256, _harmless(remote.name))
    cache.remember(address, Known(remote.version, sha256))
    tell(f"Downloaded; its SHA-256 is {sha256}")
    return path


def _harmless(name: str) -> str:
    """A remote file's name as a file of ours.

    >>> _harmless("../Birds of Ohio.pkl"), _harmless("download"), _harmless(".onnx")
    ('Birds-of-Ohio.pkl', 'download.pkl', 'export.onnx')
    """
    suffix = next((suffix for suffix in SUFFIXES if name.lower().endswith(suffix)), "")
    stem = PurePosixPath(name[: len(name) - len(suffix)]).name
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-.")[:80]
    return (stem or "export") + (suffix or SUFFIXES[0])


def _fill(part: Path, remote: Remote, address: str, tell: Tell) -> None:
    """Have all of `remote` in `part`: go on with what is there, if it is certain that both belong together."""
    have = part.stat().st_size if remote.read and part.exists() else 0
    needed = (remote.size or 0) - have
    if (remote.size or 0) > MAX_BYTES:
        raise _too_large(address)
    if needed > shutil.disk_usage(part.parent).free:
        folder = part.parent.parent
        raise DownloadError(f"MODEL={shown(address)} has no room in {folder}: it takes {needed / 1e6:.1f} MB more.")
    with _progress(address, remote.size, have, tell) as count:
        try:
            if remote.read is None:
                raise NoRanges
            _fill_by_ranges(part, remote.read, remote.size or 0, address, count)
        except NoRanges:
            _fill_at_once(part, remote, address, count)


def _fill_by_ranges(part: Path, read: Read, size: int, address: str, count: Count) -> None:
    pauses = iter(PAUSES)
    with part.open("ab") as file:
        if file.tell() > size:
            file.truncate(0)
        while (start := file.seek(0, os.SEEK_END)) < size:
            end = min(start + CHUNK, size)
            try:
                with translated(address):
                    content = read(start, end)
                if not 0 < len(content) <= end - start:  # less than was asked for is a server's right
                    raise _cut_off(address)
            except Unreachable:
                if (pause := next(pauses, None)) is None:
                    raise
                time.sleep(pause)
                continue
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # the length has to be true after a power cut, too: the next run goes on there
            count(start + len(content))
            pauses = iter(PAUSES)


def _fill_at_once(part: Path, remote: Remote, address: str, count: Count) -> None:
    for pause in (*PAUSES, None):
        try:
            with translated(address):
                remote.save(part, count)
            if remote.size not in (None, part.stat().st_size):
                raise _cut_off(address)
            sync(part)
            return
        except Unreachable:
            if pause is None:
                raise
            time.sleep(pause)
        except DownloadError:  # too large: nobody goes on with it
            part.unlink(missing_ok=True)
            raise


def _too_large(address: str) -> DownloadError:
    return DownloadError(f"MODEL={shown(address)} is larger than {MAX_BYTES / 1024**3:g} GiB, so it is no classifier.")


def _cut_off(address: str) -> Unreachable:
    return Unreachable(f"MODEL={shown(address)} comes cut off.")


@contextmanager
def _progress(address: str, size: int | None, have: int, tell: Tell) -> Iterator[Count]:
    """Show how far a download is: on a terminal with a bar, else in a line for each tenth."""
    tell(f"Downloading {shown(address)}" + (f", {size / 1e6:.1f} MB" if size else ""))
    if have:
        tell(f"{have / 1e6:.1f} MB are there already.")
    bar = _bar(size, have)
    told = 0

    def count(done: int) -> None:
        nonlocal told
        if done > MAX_BYTES:
            raise _too_large(address)
        if bar is not None:
            bar.n = done
            bar.refresh()
        elif size and told < done * 10 // size < 10:
            told = done * 10 // size
            tell(f"{told * 10:3} %")

    try:
        yield count
    finally:
        if bar is not None:
            bar.close()


def _bar(size: int | None, have: int) -> Any:
    """tqdm's, where there is a terminal and tqdm; huggingface-hub and fastai bring it along."""
    if not sys.stderr.isatty():
        return None
    try:
        from tqdm import tqdm  # type: ignore[import-untyped]
    except ImportError:
        return None

    class Bar(tqdm):
        monitor_interval = 0  # no thread that watches it

    return Bar(total=size, initial=have, unit="B", unit_scale=True)


def _to_stderr(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)
