"""G9 and G16: clocks that jump, outputs that are closed or full, a system that is read-only, other locales."""

from __future__ import annotations

import ast
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import GUNICORN, ROOT, Server, StartServer
from tests.faults.in_namespaces import needs_namespaces
from tests.faults.watch import children
from tests.test_serving import JPEG, ask, post

SERVING = ("server", "intake", "web", "model")  # the rooms that answer requests
PHOTO = JPEG
DAY = 86_400


def run(line: str) -> tuple[str, ...]:
    """A command that ends in gunicorn's taking the shell's place."""
    return ("bash", "-c", line.format(gunicorn=f"exec {shlex.join(GUNICORN)}"))


SURROUNDINGS = {
    "stdout closed": ("{gunicorn} >&-", {}),
    "stderr closed": ("{gunicorn} 2>&-", {}),
    "both closed": ("{gunicorn} >&- 2>&-", {}),
    "stdout full": ("{gunicorn} >/dev/full", {}),
    "both full": ("{gunicorn} >/dev/full 2>&1", {}),
    "nobody reads them": ("{gunicorn} > >(true) 2>&1", {}),
    "umask 0": ("umask 0; {gunicorn}", {}),
    "umask 777": ("umask 777; {gunicorn}", {}),
    "locale C": ("{gunicorn}", {"LC_ALL": "C", "PYTHONUTF8": "0"}),
    "locale tr": ("{gunicorn}", {"LC_ALL": "tr_TR.UTF-8", "LANG": "tr_TR.UTF-8"}),
    "time zone": ("{gunicorn}", {"TZ": "Pacific/Apia"}),
    "hash seed": ("{gunicorn}", {"PYTHONHASHSEED": "42"}),
    "optimised": ("{gunicorn}", {"PYTHONOPTIMIZE": "2"}),
    "developer's": ("{gunicorn}", {"PYTHONDEVMODE": "1"}),
}


@pytest.mark.parametrize(("line", "environment"), SURROUNDINGS.values(), ids=SURROUNDINGS.keys())
def test_the_same_anywhere(
    server: Server, start_server: StartServer, uploads: Path, line: str, environment: dict[str, str]
) -> None:
    """Wherever it runs, and whoever reads what it says, its answers are the same."""
    other = start_server(command=run(line), UPLOADS=str(uploads), **environment)
    assert answers(other) == answers(server)
    assert other.stop() == 0


def answers(server: Server) -> list[object]:
    refused = post(server, b"hello")
    return [post(server, PHOTO), refused[0], refused[1]["code"], ask(server, b"GET / nonsense\r\n\r\n")[:12]]


@needs_namespaces
def test_a_read_only_system(server: Server, start_server: StartServer, tmp_path: Path) -> None:
    """With every disk read-only but for the upload folder and shared memory, as in a container, it serves."""
    line = f"mount --bind {tmp_path} {tmp_path} && mount -o remount,bind,ro / && ! touch /tmp/x && {{gunicorn}}"
    other = start_server(command=("unshare", "-m", *run(line)), UPLOADS=str(tmp_path))
    assert post(other, PHOTO) == post(server, PHOTO)
    assert other.stop() == 0


def deadlines_by_the_wall_clock(path: Path) -> Iterator[str]:
    """Calls of what a step of the clock moves."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("time.time", "time.localtime", "datetime.now"):
            yield f"{path}: {ast.unparse(node)}"


def test_no_deadline_follows_the_wall_clock() -> None:
    """What answers requests measures time by the clock that never jumps."""
    found = [
        use
        for room in SERVING
        for path in (ROOT / "pigeonhole" / room).rglob("*.py")
        if path.name != "rates.py"  # `limits` counts by that clock, and what it tells is compared with it
        for use in deadlines_by_the_wall_clock(path)
    ]
    assert found == []
    assert list(deadlines_by_the_wall_clock(Path(__file__))) != []  # time.time, below


@pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler")
@pytest.mark.parametrize("step", [DAY, -DAY], ids=["ahead", "back"])
def test_a_clock_that_jumps(start_server: StartServer, uploads: Path, tmp_path: Path, step: int) -> None:
    """When the clock is set a day ahead or back under a running service, no request times out and no worker dies."""
    skew, library = tmp_path / "skew", tmp_path / "skewed_clock.so"
    skew.write_text("0")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, Path(__file__).with_name("skewed_clock.c")], check=True)
    server = start_server(UPLOADS=str(uploads), LD_PRELOAD=str(library), SKEW_FILE=str(skew))
    before = (post(server, PHOTO), children(server.process.pid))
    skew.write_text(str(step))
    time.sleep(3)  # the master looks after its workers each second
    assert day_of(server) != time.strftime("%d", time.gmtime(time.time()))  # the jump was seen
    assert (post(server, PHOTO), children(server.process.pid)) == before
    assert server.stop() == 0


def day_of(server: Server) -> str:
    """The day that the service puts into its answers."""
    date = re.search(rb"Date: \w+, (\d\d)", ask(server, b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n"))
    assert date is not None
    return date[1].decode()
