"""What eight clients at once can make the service hold in memory, with the most expensive JSON there is."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from pigeonhole.settings import MIB
from tests.conftest import Server

# a character beyond the BMP makes each of the others take four bytes in memory
EXPENSIVE = ('{"x":"😀\\u0041' + "A" * (10 * MIB - 100) + '","image":"AAAA"}').encode()


def peak(worker: int) -> int:
    """The most that the process has held since its marks were cleared, in MB."""
    lines = Path(f"/proc/{worker}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) // 1000


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of a process is not told here")
def test_expensive_json(server: Server) -> None:
    """Eight times 10 MiB of it take less than 200 MB beside the model: one at a time is read."""
    worker = int(subprocess.check_output(["pgrep", "-P", str(server.process.pid)]).split()[0])
    Path(f"/proc/{worker}/clear_refs").write_text("5")
    before = peak(worker)

    def send(number: int) -> int:
        headers = {"Content-Type": "application/json"}
        return requests.post(f"{server.url}/predict", data=EXPENSIVE, headers=headers, timeout=60).status_code

    with ThreadPoolExecutor(8) as clients:
        assert set(clients.map(send, range(8))) == {415}
    assert peak(worker) - before < 200
