"""G2: the upload folder is taken away, made read-only or full under a running service, and given back.

CASES.md    here                    what the fast suite holds already
G1                                  tests/intake/test_uploads.py: prepare; tests/test_serving.py: test_refuses_to_start
G2          all of this             tests/intake/test_uploads.py: a full disk
H1                                  tests/intake/test_uploads.py: nothing left by a killed process
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import Server, StartServer, encoded
from tests.faults.in_namespaces import gunicorn_after, inside, needs_namespaces
from tests.faults.watch import Watch
from tests.test_serving import ask, post

SIZE = 300 * 1024  # of the disk
LARGE = encoded(Image.effect_noise((370, 350), 80), "JPEG")  # more than is kept in memory; four fit
HUGE = encoded(Image.effect_noise((1000, 800), 80), "JPEG", quality=90)  # more than the disk

pytestmark = needs_namespaces


@dataclass(frozen=True)
class OnSmallDisk:
    server: Server
    folder: Path
    seen: Path  # the same folder from outside the server's namespace

    def mount(self, options: str) -> None:
        inside(self.server, "mount", "-o", f"remount,{options}", str(self.folder))


@pytest.fixture(scope="module")
def disk(start_server: StartServer, tmp_path_factory: pytest.TempPathFactory) -> OnSmallDisk:
    """A server whose upload folder is a disk of 300 KB."""
    parent = tmp_path_factory.mktemp("disk")
    folder = parent / "uploads"
    mount = f"mount -t tmpfs -o size=1m none {parent} && mkdir {folder} && mount -t tmpfs -o size={SIZE} none {folder}"
    server = start_server(command=gunicorn_after(mount), UPLOADS=str(folder))
    return OnSmallDisk(server, folder, Path(f"/proc/{server.process.pid}/root{folder}"))


def fill(disk: OnSmallDisk) -> None:
    try:
        (disk.seen / "filler").write_bytes(bytes(SIZE))
    except OSError:  # of course
        return


def unfill(disk: OnSmallDisk) -> None:
    (disk.seen / "filler").unlink()


def remove(disk: OnSmallDisk) -> None:
    inside(disk.server, "umount", str(disk.folder))
    inside(disk.server, "rmdir", str(disk.folder))


def give_back(disk: OnSmallDisk) -> None:
    inside(disk.server, "mkdir", str(disk.folder))
    inside(disk.server, "mount", "-t", "tmpfs", "-o", f"size={SIZE}", "none", str(disk.folder))


Change = Callable[[OnSmallDisk], None]
TROUBLES: dict[str, tuple[Change, Change]] = {
    "full": (fill, unfill),
    "read-only": (lambda disk: disk.mount("ro"), lambda disk: disk.mount(f"rw,size={SIZE}")),
    "no inodes": (lambda disk: disk.mount("nr_inodes=1"), lambda disk: disk.mount("nr_inodes=0")),
    "removed": (remove, give_back),
}


@pytest.mark.parametrize(("change", "undo"), TROUBLES.values(), ids=TROUBLES.keys())
def test_trouble_and_back(disk: OnSmallDisk, change: Change, undo: Change) -> None:
    """While uploads cannot be kept they are refused with 503 no_space, and once they can they are answered again."""
    good = post(disk.server, LARGE)
    assert good[0] == 200
    change(disk)
    refused = [post(disk.server, LARGE) for _ in range(5)]
    undo(disk)
    assert {(status, body["code"]) for status, body in refused} == {(503, "no_space")}
    assert post(disk.server, LARGE) == good
    assert list(disk.seen.iterdir()) == []


def test_more_than_the_disk(disk: OnSmallDisk) -> None:
    """An upload that alone is more than the disk is refused, and leaves its room to the next, fifty times."""
    watch = Watch(disk.server.process.pid, disk.seen)
    before = watch.quiet()
    assert len(HUGE) > SIZE
    assert {post(disk.server, HUGE)[1]["code"] for _ in range(50)} == {"no_space"}
    assert post(disk.server, LARGE)[0] == 200
    watch.check(before)
    assert shutil.disk_usage(disk.seen).used == 0


def test_told_when_to_come_again(disk: OnSmallDisk) -> None:
    """The refusal says when to try again."""
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(HUGE)
    answer = ask(disk.server, head + HUGE)
    assert answer.startswith(b"HTTP/1.1 503")
    assert b"\r\nRetry-After: " in answer
