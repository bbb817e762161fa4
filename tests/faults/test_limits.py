"""G5, G10 and G14: memory and descriptors run out under a running service, and clients leave in the middle.

CASES.md    here                            what the fast suite holds already
G5          test_no_memory, test_killed_for_memory    tests/web/test_memory.py: expensive JSON
G10         test_no_descriptors             tests/server/test_worker.py: few descriptors from the start
G11                                         tests/server/test_worker.py: crowds, half requests, slow readers
G14         test_clients_that_leave
"""

from __future__ import annotations

import asyncio
import os
import resource
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import Server, StartServer, encoded, wait_until_up
from tests.faults.hostile import BIG, leaves
from tests.faults.watch import Bounds, Watch, processor_seconds
from tests.server.test_worker import crowd, seconds_to_ping
from tests.test_serving import JPEG, post

MB = 1_000_000
CGROUP = Path("/sys/fs/cgroup/memory")
LARGE = encoded(Image.new("RGB", (5000, 4900), "red"), "PNG")  # 73 MB as RGB
DISCONNECTS = 500
POOLS = 10  # threads, which are made when they are first needed: 8 answer, 2 are for pings


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("uploads")


@pytest.fixture(scope="module")
def server(start_server: StartServer, folder: Path) -> Server:
    server = start_server(UPLOADS=str(folder), LOG_LEVEL="error")
    with ThreadPoolExecutor(8) as pool:  # as many processes decode from here on as ever will
        list(pool.map(lambda _: post(server, LARGE), range(16)))
    return server


@pytest.fixture
def watch(server: Server, folder: Path) -> Watch:
    return Watch(server.process.pid, folder)


@contextmanager
def limited(pid: int, kind: int, value: int) -> Iterator[None]:
    """The process may have no more than `value` of it for now."""
    before = resource.prlimit(pid, kind)
    resource.prlimit(pid, kind, (value, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, kind, before)


def address_space(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()


@pytest.mark.parametrize("sandbox", ["auto", "off"])
@pytest.mark.parametrize("room", [0, 4, 30, 70], ids="{} MB".format)
def test_no_memory(start_server: StartServer, uploads: Path, room: int, sandbox: str) -> None:
    """Where there is no memory for a picture, that request is refused, and the same worker answers the next."""
    server = start_server(UPLOADS=str(uploads), SANDBOX=sandbox)
    watch = Watch(server.process.pid, uploads)
    good, workers = post(server, LARGE), watch.workers
    assert good[0] == 200
    with limited(workers[0], resource.RLIMIT_AS, address_space(workers[0]) + room * MB):
        refused = [post(server, LARGE) for _ in range(5)]
    assert {status for status, _ in refused} <= {200, 503}
    if not room and sandbox == "off":  # else the worker itself needs next to none
        assert {status for status, _ in refused} == {503}
    assert (post(server, LARGE), watch.workers) == (good, workers)


def cgroup_or_skip() -> Path:
    try:
        group = CGROUP / f"pigeonhole-{os.getpid()}"
        group.mkdir()
    except OSError:
        pytest.skip("may make no control group here")
    return group


def test_killed_for_memory(start_server: StartServer, uploads: Path) -> None:
    """A worker that the system kills for its memory is replaced, and the service goes on."""
    group = cgroup_or_skip()
    server = start_server(UPLOADS=str(uploads), SANDBOX="off")  # with it, a process that decodes is killed first
    try:
        (worker,) = Watch(server.process.pid, uploads).workers
        post(server, JPEG)  # what memory there is, is asked once; told 20 MB, it would refuse the large picture
        (group / "cgroup.procs").write_text(str(worker))
        (group / "memory.limit_in_bytes").write_text(str(20 * MB))  # less than it has
        with pytest.raises(OSError):  # noqa: PT011  whatever a closed socket is called
            list(post(server, LARGE) for _ in range(3))
        wait_until_up(server)
        assert post(server, LARGE)[0] == 200
        assert Watch(server.process.pid, uploads).workers != [worker]
        assert server.stop() == 0
    finally:
        time.sleep(0.5)
        group.rmdir()


def test_no_descriptors(server: Server, watch: Watch) -> None:
    """When descriptors run out nobody is kept for ever, no core is kept busy, and all is well once there are some."""
    before, (worker,) = watch.quiet(), watch.workers
    used = len(list(Path(f"/proc/{worker}/fd").iterdir()))
    with limited(worker, resource.RLIMIT_NOFILE, used + 5), crowd(server, 100, b"GET /pi"):
        computed, began = processor_seconds(worker), time.monotonic()
        time.sleep(3)
        share = (processor_seconds(worker) - computed) / (time.monotonic() - began)
    assert share < 0.3  # of a core
    assert seconds_to_ping(server) < 1
    assert (post(server, JPEG)[0], watch.workers) == (200, [worker])
    watch.check(before, patience=15)


def test_clients_that_leave(server: Server, watch: Watch) -> None:
    """500 clients in a row that leave while their picture is worked for leave nothing, and no flood of errors."""
    post(server, JPEG)
    before, log = watch.quiet(), server.log.read_text()
    port = int(server.url.rpartition(":")[2])

    async def leave() -> None:
        for number in range(DISCONNECTS):
            await leaves(BIG, number % 5 / 100)(port)

    asyncio.run(leave())
    assert post(server, JPEG)[0] == 200
    watch.check(before, Bounds(threads=POOLS))
    assert server.log.read_text().removeprefix(log).count("\n") < 10
