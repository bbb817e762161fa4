"""How the memory of a box is divided: what the service holds anyway, and what that leaves for pictures and bodies.

The kernel takes back what it can read again from a file, so what counts is anonymous memory, and of mapped files the
part that is in use all the time. With the demo (ResNet-34, half as wide) and two cores that is, in MB: gunicorn's
master 38, a worker with its model 142, what cells are forked from 18, a cell 10, an answering thread up to 1; and
of 75 MB of mapped libraries 20. In control groups of 512, 256 and 224 MiB the sum was 226 MB under load, and what was
left over for mapped files made no difference until it was less than 10.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from pigeonhole.errors import TooLittleMemory
from pigeonhole.machine import KEPT, anonymous_memory, is_in_memory, usable_cores, usable_memory
from pigeonhole.settings import MIB, Settings

FILES = 24 * MIB  # of mapped libraries, and what the kernel itself needs for sockets and pages
NURSERY = 18 * MIB  # the process that decoding processes are forked from
CELL = 10 * MIB  # one of these, beside what it keeps for the next picture, which is `machine.KEPT`
THREAD = 1 * MIB  # that answers: its buffers, and what the network computes in
BODIES = 16  # times the largest body, where they lie on a disk: all that are received, wait or are answered
COPIES = 2  # of a body that is a form: itself, and the pictures out of it
A_CORE = 2  # pictures in hand, so that it has one to compute while others are decoded, handed over or answered
LEAST = 8 * MIB  # for pictures: a JPEG of 1.8 million pixels
A_PHOTO = 48 * MIB  # a JPEG of 12 million pixels, as phones take them
JPEG, TURNED, WEBP = 4, 8, 12  # bytes a pixel; see `intake.memory`
WITHOUT_MODEL = 130 * MIB  # the least that master, worker and nursery were ever seen to hold, OpenVINO loaded


@dataclass(frozen=True)
class Box:
    """`memory` in bytes."""

    memory: int
    cores: int

    @classmethod
    def here(cls, memory: int | None = None) -> Box:
        """That of this process; of its memory no more than the setting `memory`, in MiB."""
        usable = usable_memory()
        return cls(min(usable, memory * MIB) if memory else usable, usable_cores())


@dataclass(frozen=True)
class Held:
    """Anonymous memory with no request at hand, the model loaded, in bytes; `worker` is that of each."""

    master: int
    worker: int

    @classmethod
    def here(cls) -> Held:
        """Seen from a worker."""
        return cls(anonymous_memory(os.getppid()), anonymous_memory(os.getpid()))


@dataclass(frozen=True)
class Shape:
    """What is known of the service before it is measured; `decoding` is how many pictures a worker decodes at once."""

    workers: int
    threads: int
    decoding: int | None  # None for two a core, with a GPU one a thread, or fewer where they would have no room
    is_sandboxed: bool
    body: int  # bytes of the largest one
    bodies_in_memory: bool
    is_on_gpu: bool = False  # where pictures are computed many at once, by threads that wait

    @classmethod
    def of(cls, settings: Settings) -> Shape:
        return cls(
            workers=settings.workers,
            threads=settings.threads,
            decoding=settings.max_decoded,
            is_sandboxed=settings.sandbox != "off",
            body=settings.max_body_bytes,
            bodies_in_memory=is_in_memory(settings.uploads),
            is_on_gpu=settings.device != "cpu",
        )


@dataclass(frozen=True)
class Room:
    """What one worker has for requests, in bytes.

    `pictures` may be taken by decoding at once, `bodies` by bodies that are here, and `decoding` pictures are decoded
    at the same time. `held` is what all processes hold anyway.
    """

    pictures: int
    bodies: int
    decoding: int
    held: int

    def __str__(self) -> str:
        held, pictures, bodies = (size // MIB for size in (self.held, self.pictures, self.bodies))
        return (
            f"{held} MB are held in all; each worker has {pictures} for pictures, {self.decoding} at a time, "
            f"and takes bodies of {bodies} at once"
        )

    @property
    def cells_keep_memory(self) -> bool:
        """Is there room for it?"""
        return _cells_keep_memory(self.decoding)

    def pixels(self, bytes_a_pixel: int = JPEG) -> int:
        """Of the largest picture that there is memory for, if nothing else is decoded meanwhile."""
        return (self.pictures - MIB) // bytes_a_pixel


def divide(box: Box, held: Held, shape: Shape) -> Room:
    """The room that `box` has.

    Raises:
        TooLittleMemory: there is none.
    """
    rooms = [_room(box, held, replace(shape, decoding=decoding)) for decoding in _decoding(box, shape)]
    room = next((room for room in rooms if room.pictures >= A_PHOTO), rooms[-1])
    if room.pictures < LEAST:
        needed = box.memory + (LEAST - room.pictures) * (2 if shape.bodies_in_memory else 1) * shape.workers
        raise TooLittleMemory(_too_little(box, needed, shape))
    return room


def check_memory(box: Box, model_file: int, shape: Shape) -> None:
    """Raise TooLittleMemory where a model of so many bytes cannot be loaded, before the kernel ends the attempt."""
    needed = WITHOUT_MODEL + shape.workers * model_file
    if box.memory < needed:
        raise TooLittleMemory(_too_little(box, needed, shape))


def _decoding(box: Box, shape: Shape) -> Iterator[int]:
    """How many pictures a worker may have in hand at once, best first."""
    if shape.decoding is not None:
        yield shape.decoding
        return
    keep_cores_busy = max(box.cores, A_CORE * box.cores // shape.workers)
    # a picture keeps its turn until it is answered, so a batch can have no more than there are turns
    yield max(shape.threads, keep_cores_busy) if shape.is_on_gpu else keep_cores_busy
    yield from sorted({box.cores, 1}, reverse=True)


def _cells_keep_memory(decoding: int) -> bool:
    """Where only one picture at a time has room, there is none for what cells could keep."""
    return decoding > 1


def _room(box: Box, held: Held, shape: Shape) -> Room:
    assert shape.decoding is not None
    decoding = shape.decoding
    kept = KEPT if _cells_keep_memory(decoding) else 0
    cells = NURSERY + decoding * (CELL + kept) if shape.is_sandboxed else 0
    total = held.master + FILES + shape.workers * (held.worker + cells + shape.threads * THREAD)
    free = (box.memory - total) // shape.workers
    if not shape.bodies_in_memory:
        return Room(free, BODIES * shape.body, decoding, total)
    return Room(free // 2, min(BODIES * shape.body, free // 2 // COPIES), decoding, total)


def _too_little(box: Box, needed: int, shape: Shape) -> str:
    fewer = "fewer WORKERS, " if shape.workers > 1 else ""
    fewer += "a smaller MAX_DECODED, " if (shape.decoding or 1) > 1 else ""
    fewer += "fewer THREADS, " if shape.threads > Settings.model_fields["threads"].default else ""
    return (
        f"there are {box.memory // MIB} MB of memory here, and to serve this model takes {-(-needed // MIB)} MB at "
        f"least; {fewer}PRECISION=exact and a smaller network take less."
    )


class MeasuredRoom:
    """The Room of this process, measured when it is first asked for; by then the model should be loaded."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    @cached_property
    def room(self) -> Room:
        """Raises TooLittleMemory as `divide`."""
        return divide(Box.here(self._settings.memory), Held.here(), Shape.of(self._settings))
