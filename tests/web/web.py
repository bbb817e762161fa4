"""A web for tests: what is at which address, and what was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import IO

from pigeonhole.errors import URLFailed


@dataclass
class Web:
    """Takes the place of a `Fetcher`; whatever it does not have cannot be fetched."""

    files: Mapping[str, bytes]
    asked: list[str] = field(default_factory=list)

    def fetch(self, url: str, into: IO[bytes]) -> None:
        self.asked.append(url)
        if url not in self.files:
            raise URLFailed("nothing is there.")
        into.write(self.files[url])
