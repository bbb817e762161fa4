"""The service in boxes of 512 and 256 MB, with the numbers that `plan` says, stays inside whatever it is sent."""

from __future__ import annotations

import asyncio
import io
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from pigeonhole.planning import Plan, plan
from pigeonhole.settings import MIB, Settings
from pigeonhole.sizing import Box
from tests.conftest import GUNICORN, Server, StartServer, encoded
from tests.faults.clients import BROKEN, Client
from tests.faults.clients import post as post_of
from tests.faults.watch import children
from tests.test_serving import JPEG, post

CGROUP = Path("/sys/fs/cgroup/memory")  # version 1; elsewhere these tests are skipped
JOIN = "import os, sys; open(sys.argv[1], 'w').write(str(os.getpid())); os.execv(sys.argv[2], sys.argv[2:])"
SECONDS = 20
CLIENTS = 24
BIG = 2  # the place of a picture of 9 MB
LOST = -2
HALF_SENT = 40  # clients that stop in the middle of a body of nearly 10 MB


@dataclass(frozen=True)
class Boxed:
    server: Server
    group: Path

    def peak(self) -> int:
        return int((self.group / "memory.max_usage_in_bytes").read_text())

    def killed(self) -> int:
        return int((self.group / "memory.oom_control").read_text().split()[-1])


def command(group: Path) -> list[str]:
    return [sys.executable, "-c", JOIN, str(group / "cgroup.procs"), sys.executable, *GUNICORN[1:]]


@pytest.fixture
def group() -> Iterator[Path]:
    group = CGROUP / f"pigeonhole-box-{os.getpid()}"
    try:
        group.mkdir()
    except OSError:
        pytest.skip("may make no control group here")
    yield group
    for _ in range(50):  # until the last process has gone
        try:
            return group.rmdir()
        except OSError:
            time.sleep(0.1)


@pytest.fixture
def in_memory() -> Iterator[Path]:
    """A folder whose files count as memory, as in a container's tmpfs."""
    folder = Path(f"/dev/shm/pigeonhole-{os.getpid()}")
    folder.mkdir()
    yield folder
    folder.rmdir()


def limit(group: Path, memory: int) -> None:
    (group / "memory.limit_in_bytes").write_text(str(memory))
    swap = group / "memory.memsw.limit_in_bytes"
    if swap.exists():
        swap.write_text(str(memory))


def pictures() -> list[bytes]:
    """Of all sizes, some of many bytes: noise."""
    noise = Image.frombytes("RGB", (1900, 1600), random.Random(1).randbytes(1900 * 1600 * 3))
    turned = Image.Exif()
    turned[0x0112] = 6
    large = Image.new("RGB", (4000, 3000), "blue")
    jpeg = io.BytesIO()
    large.save(jpeg, "JPEG", exif=turned)
    return [
        JPEG,
        JPEG,
        encoded(noise, "PNG"),  # 9.1 MB
        encoded(Image.new("RGB", (5000, 4900), "red"), "PNG"),
        encoded(large, "WEBP"),
        encoded(large, "JPEG", progressive=True),
        jpeg.getvalue(),
    ]


async def asked(port: int) -> Counter[int]:
    """What becomes of many clients with such pictures, while others stop in the middle."""
    sent, until = [post_of(picture) for picture in pictures()], time.monotonic() + SECONDS
    begun = sent[BIG][:-100_000]
    statuses: Counter[int] = Counter()

    async def client(number: int) -> None:
        one, turn = Client(port), 0
        while time.monotonic() < until:
            reply = await one.ask(sent[(number + turn) % len(sent)])
            statuses[LOST if reply.is_lost else reply.status] += 1
            turn += 1
        await one.close()

    async def stops() -> None:
        while time.monotonic() < until:
            with suppress(OSError):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                with closing(writer):
                    writer.write(begun)
                    await reader.read(1000)  # until it is refused
            await asyncio.sleep(0.1)

    await asyncio.gather(*(client(number) for number in range(CLIENTS)), *(stops() for _ in range(HALF_SENT)))
    return statuses


@pytest.fixture(scope="module", params=[512, 256], ids="{} MB".format)
def planned(request: pytest.FixtureRequest) -> Plan:
    return plan(Box(request.param * MIB, 2), Settings(uploads=Path("/dev/shm")))


def test_stays_inside(planned: Plan, start_server: StartServer, group: Path, in_memory: Path) -> None:
    """Large bodies, large pictures and clients that stop take no more than there is; others are answered as ever."""
    limit(group, planned.box.memory)
    settings = {name: str(value) for name, value in planned.settings.items()}
    server = start_server(command=command(group), UPLOADS=str(in_memory), LOG_LEVEL="error", **settings)
    boxed, good, workers = Boxed(server, group), post(server, JPEG), children(server.process.pid)
    statuses = asyncio.run(asked(int(server.url.rpartition(":")[2])))
    print(planned.box.memory // MIB, "MB: peak", boxed.peak() // MIB, "MB;", dict(statuses), "\n", planned)
    assert set(statuses) <= {200, 413, 422, 503, BROKEN}  # broken: refused while it was still sent
    assert statuses[200] > SECONDS
    assert (boxed.killed(), children(server.process.pid)) == (0, workers)
    assert post(server, JPEG) == good
    assert server.stop() == 0
    assert "a connection failed" not in server.log.read_text()


@pytest.mark.parametrize("memory", [170, 120], ids="{} MB".format)
def test_too_little(start_server: StartServer, group: Path, memory: int) -> None:
    """Where the model cannot be loaded, the service ends with a sentence, instead of trying for ever."""
    limit(group, memory * MIB)
    server = start_server(command=command(group), wait=False)
    assert server.process.wait(60) != 0
    assert f"{memory} MB of memory" in server.log.read_text()
