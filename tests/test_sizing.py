"""The memory of a box is divided so that what is held and what may come never exceed it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pigeonhole.errors import TooLittleMemory
from pigeonhole.settings import MIB, Settings
from pigeonhole.sizing import COPIES, Box, Held, MeasuredRoom, Shape, check_memory, divide

DEMO = Held(master=38 * MIB, worker=142 * MIB)
DEFAULTS = Shape(workers=1, threads=8, decoding=None, is_sandboxed=True, body=10 * MIB, bodies_in_memory=True)


def box(megabytes: int, cores: int = 2) -> Box:
    return Box(megabytes * MIB, cores)


@pytest.mark.parametrize("shape", [DEFAULTS, replace(DEFAULTS, workers=2), replace(DEFAULTS, is_sandboxed=False)])
@pytest.mark.parametrize("memory", [256, 300, 512, 1024, 4096])
@pytest.mark.parametrize("in_memory", [True, False], ids=["tmpfs", "disk"])
def test_all_together_fits(shape: Shape, memory: int, in_memory: bool) -> None:
    """What is held, pictures at their most and bodies with the pictures out of them are no more than there is."""
    shape = replace(shape, bodies_in_memory=in_memory)
    try:
        room = divide(box(memory), DEMO, shape)
    except TooLittleMemory:
        assert memory <= 300
        return
    taken = room.pictures + (COPIES * room.bodies if in_memory else 0)
    assert room.held + shape.workers * taken <= memory * MIB
    assert room.held > DEMO.master + shape.workers * DEMO.worker


def test_bodies_on_a_disk_take_no_memory() -> None:
    """Where uploads lie on a disk, pictures get what they would take."""
    on_disk = divide(box(512), DEMO, replace(DEFAULTS, bodies_in_memory=False))
    assert on_disk.pictures == 2 * divide(box(512), DEMO, DEFAULTS).pictures
    assert on_disk.bodies == 16 * DEFAULTS.body


@pytest.mark.parametrize(
    ("memory", "wanted", "decoding"),
    [(512, None, 4), (370, None, 2), (300, None, 1), (512, 5, 5), (330, 3, 3)],
    ids=["room", "little room", "no room", "asked", "asked without room"],
)
def test_pictures_decoded_at_once(memory: int, wanted: int | None, decoding: int) -> None:
    """Two a core, or fewer where a phone's photo would have no room beside them; what is set counts."""
    assert divide(box(memory), DEMO, replace(DEFAULTS, decoding=wanted)).decoding == decoding


def test_pictures_in_hand_for_a_gpu() -> None:
    """With a GPU, every thread may have a picture in hand, so that batches form; a phone's photo still has room."""
    on_gpu = replace(DEFAULTS, threads=64, is_on_gpu=True)
    assert divide(box(16_000), DEMO, on_gpu).decoding == 64
    assert divide(box(1000), DEMO, on_gpu).decoding == 2
    assert divide(box(16_000), DEMO, replace(on_gpu, decoding=3)).decoding == 3


def test_too_little() -> None:
    """Where there is no room, the sentence says how much it takes, and so much is enough."""
    with pytest.raises(TooLittleMemory, match=r"there are 230 MB .* takes (\d+) MB at least") as refusal:
        divide(box(230, cores=1), DEMO, DEFAULTS)
    needed = int(str(refusal.value).partition("takes ")[2].split()[0])
    assert divide(box(needed, cores=1), DEMO, DEFAULTS).pictures >= 8 * MIB
    with pytest.raises(TooLittleMemory):
        divide(box(needed - 1, cores=1), DEMO, DEFAULTS)


@pytest.mark.parametrize(("memory", "workers", "fits"), [(160, 1, True), (150, 1, False), (160, 2, False)])
def test_before_loading(memory: int, workers: int, fits: bool) -> None:
    """A model that cannot be loaded at all is refused before that is tried."""
    shape = replace(DEFAULTS, workers=workers)
    if fits:
        check_memory(box(memory), 23 * MIB, shape)
    else:
        with pytest.raises(TooLittleMemory, match="fewer WORKERS" if workers > 1 else "least; PRECISION"):
            check_memory(box(memory), 23 * MIB, shape)


def test_here(uploads: Path) -> None:
    """Of this process it is what the machine leaves, and it is measured once."""
    here = MeasuredRoom(Settings(uploads=uploads, max_decoded=3))
    assert here.room is here.room
    assert here.room.decoding == 3
    assert 0 < here.room.pictures < Box.here().memory - Held.here().worker
    assert str(here.room).startswith(f"{here.room.held // MIB} MB are held in all")
