"""Decode pictures in confined processes of their own, so that a decoder's fault is the end of one request, not of all.

A photo opened here reads like one of `pictures`, but its bytes meet a decoder in a **cell**, a process that can neither
open files nor connect nor run anything; see `confinement`. A cell that crashes, or takes too long and is killed, costs
the picture it had a 422; the next picture gets another cell. `cells` is the other side.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from pigeonhole.errors import BrokenImage, Overloaded
from pigeonhole.intake.cells import (
    HEADER,
    MOST_SAID,
    NO_TURN,
    NOT_TOLD,
    OK,
    PACKET,
    READY,
    REFUSALS,
    TURN,
    Decoding,
    Opening,
    Request,
    Turning,
    Whole,
)
from pigeonhole.intake.formats import BY_DEFAULT
from pigeonhole.intake.pictures import TURNS_SIDEWAYS, Header, Limits, Orientation, Photo, Recipe

SECONDS = 10  # to decode a picture; the slowest of 25 million pixels takes 2
BYTES_A_PIXEL = 24  # that decoding takes at most; see `memory`
ALWAYS = 64 << 20  # bytes that a cell may take whatever the picture
START = 30  # seconds to wait for a cell; it takes 3 milliseconds, and the first one 200
NURSERY = "from pigeonhole.intake.cells import main; main"
ROOT = Path(__file__).resolve().parents[2]

log = logging.getLogger(__name__)


class Sandbox:
    """Opens photos in cells; as many are kept as there were callers at once. The first one starts the nursery.

    `modules` are those that recipes are unpickled with; `formats` are the types that cells can decode.
    """

    def __init__(self, modules: Sequence[str], formats: Sequence[str] = BY_DEFAULT, seconds: float = SECONDS) -> None:
        self._modules, self._formats, self._seconds = modules, formats, seconds
        self._nursery: Nursery | None = None
        self._ordering = threading.Lock()  # guards the nursery, which is asked for one cell at a time
        self._idle: dict[int, deque[Cell]] = defaultdict(deque)  # by the memory they may take; cells without a picture

    @contextmanager
    def opened(
        self, file: IO[bytes], limits: Limits, orientation: Orientation, keeps_memory: bool = True
    ) -> Iterator[Photo]:
        """A Photo of `file`, good until the block ends; both raise what `open_photo` and its Photo raise.

        The cell `keeps_memory` for the next picture, up to `machine.KEPT` bytes, if this one took no more than that.

        Raises:
            Overloaded: no cell can be had.
        """
        memory = limits.pixels * BYTES_A_PIXEL + ALWAYS
        cell = self._idle_cell(memory) or self._new_cell_or_refuse(memory)
        try:
            yield ConfinedPhoto(cell, file, limits, orientation, keeps_memory)
        finally:
            if cell.has_let_go():
                self._idle[memory].append(cell)
            else:
                cell.kill()

    @cached_property
    def works(self) -> bool:
        """Can cells be had on this machine?"""
        try:
            self._new_cell(ALWAYS).kill()
        except OSError as error:
            log.warning("no confined process can be had here: %s", error)
            return False
        return True

    def close(self) -> None:
        """End the cells that have no picture, and the nursery."""
        for cells in self._idle.values():
            while cells:
                cells.pop().kill()
        if self._nursery:
            self._nursery.close()

    def _idle_cell(self, memory: int) -> Cell | None:
        with suppress(IndexError):
            while not (cell := self._idle[memory].pop()).is_waiting():
                cell.kill()
            return cell
        return None

    def _new_cell_or_refuse(self, memory: int) -> Cell:
        try:
            return self._new_cell(memory)
        except OSError as error:
            raise Overloaded("no picture can be decoded at the moment; please try again.") from error

    def _new_cell(self, memory: int) -> Cell:
        with self._ordering:
            if self._nursery:
                with suppress(ConnectionError):
                    return self._nursery.cell(memory, self._seconds)
                self._nursery.close()  # it is gone, and all its cells
            self._nursery = Nursery(self._modules, self._formats)
            return self._nursery.cell(memory, self._seconds)


class ConfinedPhoto(Photo):
    """A Photo that a cell decodes. What the cell says is believed only as far as it cannot harm."""

    def __init__(
        self, cell: Cell, file: IO[bytes], limits: Limits, orientation: Orientation, keeps_memory: bool
    ) -> None:
        self._cell, self._keeps_memory = cell, keeps_memory
        super().__init__(file, limits, orientation)

    def _read_header(self) -> Header:
        descriptor = os.open(f"/proc/self/fd/{self._file.fileno()}", os.O_RDONLY)  # the cell reads, from the start
        try:
            said = self._cell.asked(Opening(self._limits, self._orientation, self._keeps_memory), [descriptor])
        finally:
            os.close(descriptor)
        with self._cell.believed():
            _, width, height, bytes_needed, turn = HEADER.unpack(said)
            if not (0 < width <= self._limits.side and 0 < height <= self._limits.pixels // width):
                raise ValueError("no such picture is opened")
            return Header((width, height), bytes_needed, None if turn == NOT_TOLD else (_turn_numbered(turn),))

    def _find_turn(self) -> Image.Transpose | None:
        return self._turn_in(self._cell.asked(Turning()))

    def decoded(self, reduction: int = 1) -> Image.Image:
        return Image.fromarray(self.through(Whole(reduction), reduction))

    def through(self, recipe: Recipe, reduction: int = 1) -> np.ndarray:
        return self._cell.pixels(Decoding(recipe, reduction), lambda said: self._size_after(recipe, said))

    def _size_after(self, recipe: Recipe, said: bytes) -> tuple[int, int, int]:
        """The shape of what `recipe` makes of the picture, turned as the cell says; the rest it has no say in."""
        (width, height), turn = self._header.size, self._turn_in(said)
        width, height = recipe.size_after((height, width) if turn in TURNS_SIDEWAYS else (width, height))
        return height, width, recipe.channels

    def _turn_in(self, said: bytes) -> Image.Transpose | None:
        with self._cell.believed():
            _, turn = TURN.unpack(said)
            return _turn_numbered(turn)


def _turn_numbered(number: int) -> Image.Transpose | None:
    return None if number == NO_TURN else Image.Transpose(number - 1)


class Cell:
    """A process that decodes one picture after another; used by one caller at a time."""

    def __init__(self, line: socket.socket, handle: int, seconds: float) -> None:
        self._line, self._handle, self._seconds = line, handle, seconds

    def asked(self, request: Request, files: Sequence[int] = ()) -> bytes:
        """What it says to `request`.

        Raises:
            RequestError: it refuses the picture, or fails at it.
        """
        return self._said(request, files, time.monotonic() + self._seconds)

    def pixels(self, request: Decoding, shape: Callable[[bytes], tuple[int, int, int]]) -> np.ndarray:
        """uint8, of the `shape` that what it says first stands for; raises as `asked`."""
        deadline = time.monotonic() + self._seconds
        said = self._said(request, (), deadline)
        with self.believed():
            pixels = np.empty(shape(said), np.uint8)
            self._receive(pixels.data.cast("B"), deadline)
        return pixels

    def _said(self, request: Request, files: Sequence[int], deadline: float) -> bytes:
        with self.believed():
            socket.send_fds(self._line, [pickle.dumps(request)], files)
            said = self._received(MOST_SAID, deadline)
            refusal = None if said[0] == OK else REFUSALS[said[0] - 1](said[1:].decode())
        if refusal:
            raise refusal
        return said

    @contextmanager
    def believed(self) -> Iterator[None]:
        """Whatever goes wrong in the block is the cell's doing, by the picture it has; it is killed."""
        try:
            yield
        except Exception as error:
            self.kill()
            late = isinstance(error, TimeoutError)
            why = "takes too long to decode" if late else "makes its decoder fail; it is damaged or was made to harm"
            raise BrokenImage(f"the picture {why}.") from error

    def has_let_go(self) -> bool:
        """Tell it to let go of the picture; False if it is dead."""
        try:
            return self._line.send(pickle.dumps(None)) > 0
        except OSError:
            return False

    def is_waiting(self) -> bool:
        """Is it alive, and silent as it should be?"""
        self._line.settimeout(0)
        try:
            self._line.recv(1)
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False

    def kill(self) -> None:
        if self._line.fileno() < 0:
            return  # it is dead already
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._handle, signal.SIGKILL)
        self._line.close()
        os.close(self._handle)

    def _receive(self, view: memoryview, deadline: float) -> None:
        while view:
            packet = self._received(PACKET, deadline)
            view[: len(packet)] = packet
            view = view[len(packet) :]

    def _received(self, most: int, deadline: float) -> bytes:
        self._line.settimeout(max(0.001, deadline - time.monotonic()))
        if packet := self._line.recv(most):
            return packet
        raise EOFError("the cell is dead")


class Nursery:
    """The process that cells are forked from."""

    def __init__(self, modules: Sequence[str], formats: Sequence[str]) -> None:
        self._orders, theirs = _line()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-s", "-c", f"{NURSERY}({theirs.fileno()}, {[*modules]}, {[*formats]})"],
                env={"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"},  # what has threads cannot be forked
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # a traceback may quote what was in a photo
            )
        self._orders.settimeout(START)

    def cell(self, memory: int, seconds: float) -> Cell:
        """A new one.

        Raises:
            ConnectionError: the nursery is gone.
            OSError: a cell cannot be had at the moment.
        """
        ours, theirs = _line()
        ours.settimeout(START)
        with ExitStack() as unless_it_is_ready:
            unless_it_is_ready.callback(ours.close)
            with theirs:
                handles = self._ordered(str(memory).encode(), theirs.fileno())
            if not handles:
                raise OSError("the system has no more processes or descriptors.")
            cell = Cell(ours, handles[0], seconds)
            unless_it_is_ready.callback(cell.kill)
            if ours.recv(len(READY)) != READY:
                raise OSError("the kernel does not confine it.")
            unless_it_is_ready.pop_all()
        return cell

    def close(self) -> None:
        self._orders.close()
        self._process.kill()
        self._process.wait()

    def _ordered(self, order: bytes, line: int) -> list[int]:
        """The new cell's handle, if there is one."""
        try:
            socket.send_fds(self._orders, [order], [line])
            said, handles, _, _ = socket.recv_fds(self._orders, len(READY), 1)
        except TimeoutError as error:  # what it says later would be taken for an answer to the next order
            raise ConnectionError("the nursery does not answer.") from error
        if not said:
            raise ConnectionError("the nursery is gone.")
        return handles


def _line() -> tuple[socket.socket, socket.socket]:
    """Two ends of a connection that keeps messages apart."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
