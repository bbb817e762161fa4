"""Recipes that do in a cell what a decoder could be made to do there by a hostile picture."""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image


def crash() -> object:
    return ctypes.string_at(0)


def loop() -> None:
    while True:
        pass


def take_a_gigabyte() -> object:
    return np.ones(1 << 30, np.uint8)


def read_a_file() -> object:
    return Path("/etc/passwd").read_bytes()


def write_a_file() -> object:
    return Path("/tmp/loot").write_bytes(b"x")


def connect() -> object:
    return socket.socket()


def run() -> object:
    return subprocess.run(["/bin/true"])


def fork() -> object:
    return os.fork()


def kill() -> object:
    return os.kill(os.getppid(), 9)


@dataclass(frozen=True)
class Fault:
    """Gives a white pixel if what `does` does was refused with PermissionError, and a black one if it went well."""

    does: Callable[[], object]
    channels: int = 3

    def size_after(self, size: tuple[int, int]) -> tuple[int, int]:
        return 1, 1

    def apply(self, picture: Image.Image, full: tuple[int, int] | None = None) -> np.ndarray:
        try:
            self.does()
        except PermissionError:
            return np.full((1, 1, 3), 255, np.uint8)
        return np.zeros((1, 1, 3), np.uint8)
