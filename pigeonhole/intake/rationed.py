"""A file that may be read in so many pieces, and hold so many scans, and no more."""

from __future__ import annotations

import os
from typing import IO

AT_LEAST = 4096  # pieces; a phone's JPEG is read in 200
BYTES_A_PIECE = 128  # PNGs with the smallest chunks that programs write have 500 bytes in each, read in three pieces
SCAN = b"\xff\xda"  # what begins a scan of a JPEG; the pixels' own bytes cannot contain it
MOST_SCANS = 100  # programs write up to 14; a thumbnail and what makers put beside it add a few that look like one


class Exhausted(Exception):
    """No program writes a picture like that."""


class Rationed:
    """As much of a file as Pillow's decoders use, for as long as what they read costs what a picture of its size may.

    They read it piece by piece in Python, and a file can consist of nothing but empty pieces: two million segments of
    four bytes before a JPEG's picture take 8 seconds and 270 MB, with the interpreter held for all the other threads.
    Each scan of a JPEG passes over the whole picture again: in 10 MB there is room for 150,000, which take 40 minutes.
    """

    def __init__(self, file: IO[bytes], counts_scans: bool) -> None:
        self._file, self._counts_scans = file, counts_scans
        self._pieces = AT_LEAST + file.seek(0, os.SEEK_END) // BYTES_A_PIECE
        self._scans, self._before = MOST_SCANS, b""
        file.seek(0)
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        self._pieces -= 1
        piece = self._file.read(size)
        if self._counts_scans:
            self._scans -= (self._before + piece).count(SCAN)
            self._before = piece[-1:]
        if min(self._pieces, self._scans) < 0:
            raise Exhausted
        return piece
