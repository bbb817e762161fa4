"""G15: let the first, second, ... call of a kind to the system fail while a picture is answered, until none is left.

strace attaches to the worker and lets its kernel calls fail, in each of its threads by itself.
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import Server, StartServer, encoded
from tests.faults.watch import Bounds, Watch
from tests.test_serving import post

# more bytes than are kept in memory or read at once, and of a size for which memory is asked for anew
PICTURE = encoded(Image.effect_noise((1500, 1000), 80), "JPEG", quality=30)
MOST = 60  # calls of a kind
POOLS = 10  # threads, which are made when they are first needed
ANSWERED_OR_CLOSED = {200, 400, 408, 422, 503, None}
CALLS = {
    "open": "openat:error=EMFILE",
    "write": "write,pwrite64,writev:error=ENOSPC",
    "read": "read,pread64:error=EIO",
    "seek": "lseek:error=EIO",
    "stat": "fstat,newfstatat,statx:error=EIO",
    "memory": "mmap,brk,mremap:error=ENOMEM",
    "accept": "accept4:error=EMFILE",
    "receive": "recvfrom:error=ECONNRESET",
    "send": "sendto:error=ECONNRESET",
    "poll": "epoll_ctl:error=ENOMEM",
}


def _can_trace() -> bool:
    try:
        return subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True).returncode == 0
    except OSError:
        return False


pytestmark = pytest.mark.skipif(not _can_trace(), reason="needs strace, and the right to trace")


@contextmanager
def failing(pid: int, calls: str, number: int, log: Path) -> Iterator[None]:
    """In the process, let the `number`th of `calls` fail; `log` has what happened."""
    command = ["strace", "-f", "-p", str(pid), "-o", str(log), "-e", f"inject={calls}:when={number}"]
    log.unlink(missing_ok=True)
    tracer = subprocess.Popen([*command, "-e", f"trace={calls.split(':')[0]}"], stderr=subprocess.PIPE, text=True)
    assert tracer.stderr is not None
    assert "attached" in tracer.stderr.readline()
    try:
        yield
    finally:
        tracer.send_signal(signal.SIGINT)  # it lets go
        tracer.communicate(timeout=30)


def status_of(server: Server) -> int | None:
    """None where the connection was closed."""
    try:
        return post(server, PICTURE)[0]
    except (OSError, ValueError):
        return None


@pytest.mark.parametrize("kind", CALLS)
def test_the_nth_call_fails(start_server: StartServer, uploads: Path, tmp_path: Path, kind: str) -> None:
    """Whichever fails, the client is told or disconnected, nothing is left, and the next one is answered."""
    calls, sandbox = CALLS[kind], "off" if kind == "memory" else "auto"  # the worker asks for none where others decode
    server = start_server(UPLOADS=str(uploads), LOG_LEVEL="error", SANDBOX=sandbox)
    good = post(server, PICTURE)
    watch = Watch(server.process.pid, uploads)
    before, workers = watch.quiet(), watch.workers
    log = tmp_path / "calls"
    for number in range(1, MOST):
        with failing(workers[0], calls, number, log):
            assert status_of(server) in ANSWERED_OR_CLOSED
        assert post(server, PICTURE) == good
        if "(INJECTED)" not in log.read_text():
            break
    assert 1 < number < MOST - 1  # it did fail, until all had
    assert watch.workers == workers
    watch.check(before, Bounds(threads=POOLS))
    assert server.stop() == 0
