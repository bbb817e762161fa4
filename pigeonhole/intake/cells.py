"""The processes that decode pictures: a nursery that is asked for cells, and cells, which are confined and decode.

The nursery loads Pillow and numpy once and never sees a picture; cells are forked from it, so that one costs
milliseconds and shares its memory. It ends when its socket is closed at the other end, and the cells with it.

What is sent to a cell is pickled, since it comes from us; what it answers is not, since it may be lying:

    an Opening, and the picture's file with it  ->  OK, what its header tells | a refusal
    a Turning                                   ->  OK, the turn | a refusal
    a Decoding                                  ->  OK, the turn, then uint8 pixels in packets | a refusal
    None: let go of the picture                 ->  nothing
"""

from __future__ import annotations

import importlib
import io
import os
import pickle
import signal
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from struct import Struct
from typing import IO

import numpy as np
from PIL import Image

from pigeonhole.errors import BrokenImage, RequestError, TooManyPixels, UnsupportedType
from pigeonhole.intake.confinement import confine
from pigeonhole.intake.formats import FORMATS
from pigeonhole.intake.pictures import EXIF_ORIENTATION, Limits, Orientation, Photo, Recipe, open_photo
from pigeonhole.machine import KEPT, give_memory_back, reuse_memory, trim_memory

MOST_ASKED = 1 << 16  # bytes of a request, pickled; a recipe takes a thousand
PACKET = 1 << 16  # bytes; a socket holds three such
MOST_SAID = 1_000  # bytes of a refusal's sentence
OK, READY, BUSY = 0, b"ready", b"busy"
REFUSALS: tuple[type[RequestError], ...] = (
    BrokenImage,
    TooManyPixels,
    UnsupportedType,
)  # by a refusal's first byte, counted from 1
HEADER = Struct("<BIIQB")  # width and height as stored, the bytes needed, the turn
TURN = Struct("<BB")
NO_TURN, NOT_TOLD = 0, 255  # else the turn is Pillow's number for it, plus 1


@dataclass(frozen=True)
class Opening:
    """With `keeps_memory`, what a small picture takes is kept for the next one, up to `KEPT` bytes."""

    limits: Limits
    orientation: Orientation
    keeps_memory: bool


@dataclass(frozen=True)
class Turning:
    """How has the picture to be turned?"""


@dataclass(frozen=True)
class Decoding:
    recipe: Recipe
    reduction: int


Request = Opening | Turning | Decoding


@dataclass(frozen=True)
class Whole:
    """The recipe that leaves a picture as it is, decoded at a `reduction`."""

    reduction: int
    channels: int = 3

    def size_after(self, size: tuple[int, int]) -> tuple[int, int]:
        return -(-size[0] // self.reduction), -(-size[1] // self.reduction)

    def apply(self, picture: Image.Image, full: tuple[int, int] | None = None) -> np.ndarray:
        return np.asarray(picture)


def main(descriptor: int, modules: Sequence[str], formats: Sequence[str]) -> None:
    """The nursery: for each socket that comes, fork a cell to answer on it, and send back a handle to the cell."""
    for everybodys in (signal.SIGINT, signal.SIGTERM):  # a terminal and Heroku tell all; the server ends us in its time
        signal.signal(everybodys, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for cells
    load_all(modules, formats)
    orders = socket.socket(fileno=descriptor)
    own = os.getpid()
    while True:
        order, sockets, _, _ = socket.recv_fds(orders, MOST_ASKED, 1)
        if not order:
            return
        try:
            if (cell := os.fork()) == 0:
                orders.close()
                answer_on(socket.socket(fileno=sockets[0]), int(order), own, threads="heic" in formats)
            handle = os.pidfd_open(cell)
        except OSError:  # the system has no more processes or descriptors at the moment
            orders.send(BUSY)
        else:
            socket.send_fds(orders, [READY], [handle])
            os.close(handle)
        for line in sockets:
            os.close(line)


def load_all(modules: Sequence[str], formats: Sequence[str]) -> None:
    """What would otherwise be loaded when it is first needed, which a cell cannot."""
    for module in modules:
        importlib.import_module(module)
    limits = Limits(256, 16, tuple(formats))
    Image.preinit()
    for kind in {FORMATS[name].pillow for name in formats} & set(Image.SAVE):
        file, exif = io.BytesIO(), Image.Exif()
        exif[EXIF_ORIENTATION] = 6  # what reads it is loaded late, too
        Image.new("RGB", (16, 16)).save(file, kind, exif=exif)
        open_photo(file, limits).decoded()


def answer_on(asked: socket.socket, memory: int, parent: int, threads: bool) -> None:
    """A cell's life; HEIC's decoder hangs without `threads`."""
    try:
        give_memory_back()
        confine(memory, parent, threads)
        asked.send(READY)
        while True:
            _answer_for_a_picture(asked)
    finally:
        os._exit(1)


def _answer_for_a_picture(asked: socket.socket) -> None:
    with ExitStack() as until_let_go:
        photo: Photo | None = None
        while (request := _received(asked, until_let_go)) is not None:
            try:
                photo = _answered(asked, *request, photo)
            except REFUSALS as refusal:
                _refuse(asked, refusal)
            except MemoryError:
                _refuse(asked, BrokenImage("decoding the picture takes more memory than any picture should."))
    del photo
    reuse_memory(overwrites=False)  # until it is known how large the next one is


def _received(asked: socket.socket, until_let_go: ExitStack) -> tuple[Request, IO[bytes] | None] | None:
    message, descriptors, _, _ = socket.recv_fds(asked, MOST_ASKED, 1)
    if not message:
        os._exit(0)
    files = [until_let_go.enter_context(os.fdopen(descriptor, "rb")) for descriptor in descriptors]
    request = pickle.loads(message)
    return None if request is None else (request, files[0] if files else None)


def _answered(asked: socket.socket, request: Request, file: IO[bytes] | None, photo: Photo | None) -> Photo | None:
    if isinstance(request, Opening):
        assert file is not None
        photo = open_photo(file, request.limits, request.orientation)
        if request.keeps_memory and photo.bytes_needed <= KEPT:
            reuse_memory(overwrites=True)
        else:  # what was kept is not counted beside it
            give_memory_back()
            trim_memory()
        asked.send(_header_of(photo))
    elif isinstance(request, Turning) and photo is not None:
        asked.send(_turn_of(photo))
    elif isinstance(request, Decoding) and photo is not None:
        pixels = np.ascontiguousarray(photo.through(request.recipe, request.reduction)).data.cast("B")
        asked.send(_turn_of(photo))
        for begin in range(0, len(pixels), PACKET):
            asked.send(pixels[begin : begin + PACKET])
    return photo


def _header_of(photo: Photo) -> bytes:
    header = photo.header
    turn = NOT_TOLD if header.turn is None else _number(*header.turn)
    return HEADER.pack(OK, *header.size, header.bytes_needed, turn)


def _turn_of(photo: Photo) -> bytes:
    return TURN.pack(OK, _number(photo.turn))


def _number(turn: Image.Transpose | None) -> int:
    return NO_TURN if turn is None else turn + 1


def _refuse(asked: socket.socket, refusal: RequestError) -> None:
    asked.send(bytes([1 + REFUSALS.index(type(refusal))]) + str(refusal).encode()[:MOST_SAID])
