"""A file that is there whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def draft_of(path: Path, mode: int | None = None) -> Iterator[IO[bytes]]:
    """A stream whose content replaces `path` at the end; after any exception it is as if nothing had been written.

    The permissions are `mode`, or by default those that the umask leaves any new file.

    Raises:
        OSError: it cannot be written.
    """
    place = path.absolute().with_name(f".draft-{secrets.token_hex(8)}")  # short: `path` may have the longest of names
    with place.open("xb") as draft:  # tempfile's would be 0600, and the umask cannot be read without setting it
        try:
            yield draft
            draft.flush()
            if mode is not None:
                os.fchmod(draft.fileno(), mode)
            place.replace(path)
        except BaseException:
            place.unlink(missing_ok=True)
            raise
