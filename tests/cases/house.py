"""The server under watch: runs a case, and tells whether what has to hold after every case does hold."""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.cases.case import Case, outcome_of
from tests.cases.messages import CANARY, PNG, get, post
from tests.cases.wire import Answer, Line, Talk
from tests.conftest import ROOT, Server
from tests.faults.watch import descendants

SETTLED = 2  # seconds that descriptors and threads have to go back in
PING = 0.25  # seconds
LAZY = 8  # threads of the pool that had nothing to do while it was warmed up; more than that leak
DEADLINE = 20  # seconds for an answer
LONGEST_LINE = 2048  # bytes of a log line
MOST_GROWTH = 150 << 20  # bytes of memory above what it was when warm: two pictures in hand, and glibc's shares
TICKS = os.sysconf("SC_CLK_TCK")
REQUEST_ID = re.compile(r"[0-9a-f]{32}")
# a path, a traceback, a class, a module, an address in memory, a version
INSIDES = re.compile(
    r"Traceback|\bFile \"|\.py\b|(?<!\w)/(home|root|tmp|usr|etc|var|proc|work|app)/"
    r"|(?i:werkzeug|gunicorn|flask|pillow|\bPIL\b|openvino|pydantic|numpy|python)"
    r"|\b[A-Z]\w+(Error|Exception|Warning)\b|\b0x[0-9a-f]{6,}|\b\d+\.\d+\.\d+"
)


@dataclass(frozen=True)
class Heard:
    """What came of a case: a finished line for each of its sends."""

    lines: Sequence[Line]
    outcome: str
    cpu: float
    log: Sequence[str]  # what was logged meanwhile

    @property
    def answers(self) -> list[Answer]:
        return [answer for line in self.lines for answer in line.answers if not answer.is_interim]


class House:
    """A server with one worker, which nobody else talks to; warm, so that what it holds is known."""

    def __init__(self, server: Server, uploads: Path) -> None:
        self.port = int(server.url.rpartition(":")[2])
        self.uploads, self._log = uploads, server.log
        self._worker = worker_of(server)
        self._warm_up()
        self._files, self._threads = self._open_files(), self._count_threads() + LAZY
        self._memory = self._resident()
        self._around = self._surroundings()
        self._read_to = 0
        self._canary = self.canary()
        self.label = str(self._canary.json["success"])

    def hear(self, case: Case) -> Heard:
        """Let the case talk, on one connection after the other."""
        self.new_lines()
        began = self._cpu()
        lines = [self.talk(case, send) for send in case.sends]
        cpu = self._cpu() - began
        return self.heard(lines, cpu, self._logged_for(lines))

    def talk(self, case: Case, send: bytes | Talk) -> Line:
        with Line(self.port, case.patience) as line:
            send(line) if callable(send) else line.send(send)
            line.listen(case.fewest_answers)
            return line

    def heard(self, lines: Sequence[Line], cpu: float, log: Sequence[str]) -> Heard:
        outcomes = dict.fromkeys(outcome_of(line, self.label) for line in lines)
        return Heard(lines, " / ".join(outcomes), cpu, log)

    def check(self, case: Case, heard: Heard) -> None:
        """The outcome is as expected, in time, and everything holds that has to."""
        for line in heard.lines:
            assert case.accepts(outcome_of(line, self.label)), heard.outcome
            assert line.took < DEADLINE
        assert case.cpu is None or heard.cpu <= case.cpu
        for answer in heard.answers:
            check_answer(answer)
        check_log(heard)
        self.check_house()

    def check_house(self) -> None:
        """Nothing is left, nothing is held, and others are served as ever."""
        assert list(self.uploads.iterdir()) == []
        assert self._surroundings() == self._around
        assert soon(lambda: self._open_files() <= self._files and self._count_threads() <= self._threads), (
            f"{self._open_files()} files of {self._files}, {self._count_threads()} threads of {self._threads}"
        )
        assert self._resident() < self._memory + MOST_GROWTH
        assert min(self.ping() for _ in range(3)) < PING
        assert self.canary().body == self._canary.body

    def ask(self, data: bytes) -> Answer:
        with Line(self.port) as line:
            line.send(data)
            line.listen()
            return line.answers[0]

    def ping(self) -> float:
        """How many seconds it takes, with its connection."""
        began = time.monotonic()
        assert self.ask(get(b"/ping")).status == 200
        return time.monotonic() - began

    def canary(self) -> Answer:
        return self.ask(post(CANARY, PNG, to=b"/predict?top=all"))

    def _warm_up(self) -> None:
        """All its threads at work once."""
        with ThreadPoolExecutor(32) as pool:
            list(pool.map(lambda _: self.canary(), range(64)))
        time.sleep(0.3)

    def _logged_for(self, lines: Sequence[Line]) -> list[str]:
        """What is logged until there is a line for each answer; a moment later than the answer will do."""
        wanted = sum("x-request-id" in answer.headers for line in lines for answer in line.answers)
        log: list[str] = []
        soon(lambda: log.extend(self.new_lines()) or len(log) >= wanted, seconds=1)
        return log

    def nameless(self) -> set[Path]:
        """The open files of the worker that no folder knows."""
        return {path for path in Path(f"/proc/{self._worker}/fd").iterdir() if _is_nameless(path)}

    def new_lines(self) -> list[str]:
        """What was logged since this was asked last."""
        with self._log.open("rb") as log:
            log.seek(self._read_to)
            whole = log.read().rpartition(b"\n")[0]
        self._read_to += len(whole) + bool(whole)
        return whole.decode("utf-8", "backslashreplace").split("\n") if whole else []

    def _surroundings(self) -> set[str]:
        """What lies beside the upload folder and in ours; hidden things there are tools' of who works on it."""
        paths = [*self.uploads.parent.iterdir(), *ROOT.glob("[!.]*"), *(ROOT / "tmp").iterdir()]
        return {str(path) for path in paths}

    def _open_files(self) -> int:
        return len(os.listdir(f"/proc/{self._worker}/fd"))  # noqa: PTH208

    def _count_threads(self) -> int:
        return len(os.listdir(f"/proc/{self._worker}/task"))  # noqa: PTH208

    def _resident(self) -> int:
        pages = int(Path(f"/proc/{self._worker}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def _cpu(self) -> float:
        """Seconds that the worker and the processes which decode for it have computed."""
        stats = [Path(f"/proc/{pid}/stat").read_text() for pid in (self._worker, *descendants(self._worker))]
        return sum(int(ticks) for stat in stats for ticks in stat.rpartition(")")[2].split()[11:13]) / TICKS


def worker_of(server: Server) -> int:
    master = server.process.pid
    return int(Path(f"/proc/{master}/task/{master}/children").read_text().split()[0])


def _is_nameless(path: Path) -> bool:
    try:
        status = path.stat()
    except OSError:  # it is closed by now
        return False
    return stat.S_ISREG(status.st_mode) and status.st_nlink == 0


def check_answer(answer: Answer) -> None:
    """JSON in our shape, not to be kept or guessed at, and nothing in it of how the service is made."""
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"
    assert REQUEST_ID.fullmatch(answer.headers["x-request-id"])
    assert not [name for name in answer.headers if name.startswith("access-control-")]
    assert (answer.status == 405) <= ("allow" in answer.headers)
    assert (answer.status in (429, 503)) <= ("retry-after" in answer.headers)
    if answer.body:
        assert answer.headers["content-type"] == "application/json"
    if answer.body and answer.status >= 400:
        assert sorted(answer.json) == ["code", "error", "request_id"]
        assert answer.json["request_id"] == answer.headers["x-request-id"]
        check_insides(answer)


def check_log(heard: Heard) -> None:
    """One line for each answer and no other, none too long, or with anything that is not to be printed."""
    ids = [answer.headers["x-request-id"] for answer in heard.answers]
    assert [sum(id in line for line in heard.log) for id in ids] == [1] * len(ids), heard.log
    assert len(heard.log) <= max(len(ids), len(heard.lines)), heard.log
    for line in heard.log:
        assert line.isprintable(), line
        assert len(line.encode()) <= LONGEST_LINE, line


def check_insides(answer: Answer) -> None:
    shown = [answer.body.decode(), *(value for name, value in answer.headers.items() if name != "server")]
    assert [found for text in shown if (found := INSIDES.search(text))] == []


def soon(holds: Callable[[], object], seconds: float = SETTLED) -> bool:
    """Whether it holds within that time."""
    deadline = time.monotonic() + seconds
    while not (held := holds()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return bool(held)
