"""Seen from outside: what is counted, what is logged, and whether the service is ready; never anything of a photo."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import resource
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import Any

import pytest
from flask.testing import FlaskClient
from prometheus_client.parser import text_string_to_metric_families

from app import create_app
from pigeonhole.model.predictor import Predictor
from pigeonhole.settings import Settings
from pigeonhole.web.log_lines import MOST, JSONLine, Lines, tell_request
from pigeonhole.web.metrics import PHASES, Metrics
from tests.conftest import GUNICORN, ROOT, Colours, Server, StartServer, form, free_port, picture, wait_until_up
from tests.test_serving import JPEG, post

Log = Callable[[], list[dict[str, Any]]]
CANARY = "canary"


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """What the service logs."""
    handler = Lines(io.StringIO())
    handler.setFormatter(JSONLine())
    logger = logging.getLogger("pigeonhole")
    logger.addHandler(handler)
    logger.setLevel("INFO")
    yield handler.stream
    logger.removeHandler(handler)
    logger.setLevel("NOTSET")


@pytest.fixture
def log(stream: io.StringIO) -> Log:
    """The same, line by line."""
    return lambda: [json.loads(line) for line in stream.getvalue().splitlines()]


def counts(text: str, name: str) -> dict[tuple[str, ...], float]:
    """The values of a metric, by its labels' values in order of their names."""
    samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
    return {
        tuple(value for _, value in sorted(sample.labels.items())): sample.value
        for sample in samples
        if sample.name == name
    }


def get(server: Server, path: str, **headers: str) -> str:
    with urllib.request.urlopen(urllib.request.Request(server.url + path, headers=headers), timeout=30) as answer:
        return str(answer.read(), "utf-8")


def test_requests_are_counted(client: FlaskClient) -> None:
    """Requests are counted by method, route and status; what has no route is `none`."""
    for _ in range(2):
        client.post("/predict", data=form((picture(), "x.png")))
    client.post("/predict")
    client.get("/v2/models/pigeonhole")
    client.get("/nowhere")
    assert counts(client.get("/metrics").text, "pigeonhole_requests_total") == {
        ("POST", "/predict", "200"): 2,
        ("POST", "/predict", "400"): 1,
        ("GET", "/v2/models/<name>", "200"): 1,
        ("GET", "none", "404"): 1,
    }


def test_clients_make_no_series(client: FlaskClient) -> None:
    """However many paths and methods clients make up, the number of lines in /metrics stays, and none quotes them."""
    for number in range(30):
        client.open(f"/{CANARY}/{number}?{CANARY}", method=f"{CANARY}{number}", headers={CANARY: CANARY})
    text = client.get("/metrics").text
    assert counts(text, "pigeonhole_requests_total") == {("other", "none", "404"): 30}
    assert CANARY not in text


def test_phases_are_timed(client: FlaskClient) -> None:
    """Each picture is decoded and classified once, or explained; a body is read once, and nothing else has happened."""
    client.post("/predict", data=form((picture(), "x.png"), (picture(), "y.png")))
    client.post("/predict?explain=1", data=form((picture(), "x.png")))
    seen = counts(client.get("/metrics").text, "pigeonhole_phase_seconds_count")
    # each picture waits for a core, and then for memory
    expected = {"read": 2, "turn": 6, "infer": 2, "explain": 1, "receive": 0, "wait": 0, "fetch": 0}
    assert {phase: seen[phase,] for phase in expected} == expected
    assert seen["decode",] == 4  # the engine of the tests decodes a picture again to show it
    assert set(seen) == {(phase,) for phase in PHASES}


def test_a_phase_counts_for_itself() -> None:
    """The time of a phase within another is not counted twice."""
    metrics = Metrics()
    with metrics.phase("infer"), metrics.phase("decode"):
        time.sleep(0.1)
    seconds = counts(metrics.text({}).decode(), "pigeonhole_phase_seconds_sum")
    assert seconds["decode",] >= 0.1 > 0.05 > seconds["infer",]


def test_what_came_before_is_timed(client: FlaskClient, log: Log) -> None:
    """Where the server says when a request began and was there, both times are told, and the line counts from there."""
    now = time.monotonic()
    client.get("/ping", environ_overrides={"pigeonhole.began": now - 3, "pigeonhole.received": now - 1})
    seconds = counts(client.get("/metrics").text, "pigeonhole_phase_seconds_sum")
    assert seconds["receive",] == pytest.approx(2)
    assert 1 <= seconds["wait",] < 2
    assert 3000 <= log()[0]["milliseconds"] < 4000


def test_in_progress(client: FlaskClient) -> None:
    """The request for the metrics is the one in progress, however others ended."""
    client.get("/nowhere")
    text = client.get("/metrics").text
    assert (counts(text, "pigeonhole_in_progress"), counts(text, "pigeonhole_waiting")) == ({(): 1}, {(): 0})


def test_what_runs(server: Server) -> None:
    """The model that answers, the version, the process and its memory are told."""
    assert post(server, JPEG)[0] == 200
    text, about = get(server, "/metrics"), json.loads(get(server, "/ready"))
    assert list(counts(text, "pigeonhole_model_info")) == [("compiled", about["precision"], about["model_sha256"])]
    assert len(counts(text, "pigeonhole_build_info")) == 1
    assert counts(text, "process_resident_memory_bytes")[()] > 50_000_000
    assert sum(counts(text, "pigeonhole_answers_total").values()) >= 1


def test_the_line_of_a_request(client: FlaskClient, log: Log) -> None:
    """A request has one line, with the id that its answer has too."""
    answer = client.post("/predict?top=1", data=form((picture(), "x.png"), (picture(), "y.png")))
    (line,) = log()
    assert line.pop("bytes") > 2 * len(picture())
    assert 0 < line.pop("milliseconds") < 10_000
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", line.pop("time"))
    assert line.pop("request_id") == answer.headers["X-Request-ID"]
    assert line == {"level": "INFO", "method": "POST", "path": "/predict", "status": 200, "pictures": 2}


def test_the_line_of_a_refusal(client: FlaskClient, log: Log) -> None:
    """A refusal's line has its code, and the request id of its body."""
    answer = client.post("/predict", data=form((b"hello", "x.png")))
    (line,) = log()
    assert (line["level"], line["status"], line["code"]) == ("INFO", 415, "not_an_image")
    assert line["request_id"] == answer.json["request_id"]


AWKWARD = {
    "line breaks": {"path": "/x\r\nINFO y\u2028z"},
    "escapes": {"path": '/\x1b[31m\x7f"}{"a":1'},
    "long": {"path": "/" + "ü" * 10_000},
    "not ASCII": {"path": "/\u202e\U0001f426"},
    "method": {"path": "/", "method": '\x1b"\n' + "A" * 10_000},
    "query": {"path": "/predict", "query_string": f"{CANARY}=1&url=http://{CANARY}@x/"},
    "headers": {"path": "/ping", "headers": {name: CANARY for name in ("X-Request-ID", "User-Agent", "Cookie")}},
    "file name": {"path": "/predict", "method": "POST", "data": form((picture(), f"{CANARY}.png"))},
    "field": {"path": "/predict", "method": "POST", "data": form((b"no picture", "x.png"), field=CANARY)},
    "text": {"path": "/predict", "method": "POST", "json": {"image": CANARY}},
}


@pytest.mark.parametrize("asked", AWKWARD.values(), ids=AWKWARD.keys())
def test_awkward_requests(client: FlaskClient, stream: io.StringIO, asked: dict[str, Any]) -> None:
    """Whatever is asked for, it is told in one line of printable ASCII, at most 2 KB, without what is private."""
    client.open(**asked)
    (line,) = stream.getvalue().splitlines(keepends=True)
    assert re.fullmatch(r"[ -~]+\n", line)
    assert len(line) <= MOST
    assert CANARY not in line
    assert json.loads(line)["status"] < 500


def test_request_ids_are_ours(client: FlaskClient) -> None:
    """A client's request id is not taken over."""
    answer = client.get("/ping", headers={"X-Request-ID": CANARY})
    assert re.fullmatch("[0-9a-f]{32}", answer.headers["X-Request-ID"])


def test_refused_before_anything(settings: Settings, log: Log) -> None:
    """Whoever refuses a request first, it has its id and its line."""
    app = create_app(settings, Predictor(Colours))
    app.before_request_funcs.setdefault(None, []).insert(0, lambda: 1 / 0)
    answer = app.test_client().get("/ping")
    assert [line["request_id"] for line in log()] == [answer.json["request_id"]]


class Failing(Colours):
    def predict(self, photo: object) -> Any:
        raise RuntimeError("CUDA error " * 1000 + "at the end")


def test_our_own_trouble(settings: Settings, stream: io.StringIO) -> None:
    """A failure of ours is told with its traceback in the request's one line; where that is too long, its end."""
    create_app(settings, Predictor(Failing)).test_client().post("/predict", data=form((picture(), "x.png")))
    (line,) = stream.getvalue().splitlines()
    assert len(line) < MOST
    told = json.loads(line)
    assert (told["level"], told["status"], told["code"]) == ("ERROR", 503, "model_fault")
    assert told["traceback"].endswith("CUDA error at the end")


def test_what_nobody_foresaw(settings: Settings, log: Log) -> None:
    """An error that nobody thought of is told with where it was, and without its words: they may quote the client."""
    app = create_app(settings, Predictor(Colours))
    app.add_url_rule("/bug/<text>", view_func=lambda text: int(text))
    app.test_client().get(f"/bug/not-{CANARY}")
    (line,) = log()
    assert line["code"] == "service_error"
    assert "test_observe.py" in line["traceback"]
    assert line["traceback"].endswith("ValueError")


def test_lines_without_flask(log: Log) -> None:
    """A server may tell of what it refused before Flask saw it, by the same line."""
    tell_request("0" * 32, "GET", "/\udcff", 408, 10.0, code="slow_upload", bytes=None)
    (line,) = log()
    del line["time"]
    assert line == {
        "level": "INFO", "request_id": "0" * 32, "method": "GET", "path": "/%3F", "status": 408,
        "code": "slow_upload", "milliseconds": 10_000.0,
    }  # fmt: skip


LEVELS = {400: "INFO", 408: "INFO", 501: "INFO", 503: "ERROR"}


@pytest.mark.parametrize(("status", "level"), LEVELS.items())
def test_levels(log: Log, status: int, level: str) -> None:
    """What is our own trouble is told as an error; what is the client's is not."""
    tell_request("0" * 32, "GET", "/", status, 0.1, code="a_code")
    assert [line["level"] for line in log()] == [level]


def test_a_stream_that_is_closed(stream: io.StringIO, client: FlaskClient) -> None:
    """A request is answered, and counted as untold, where the log's stream is closed under it."""
    before = counts(client.get("/metrics").text, "pigeonhole_log_lines_lost")[()]
    stream.close()
    assert client.get("/ping").status_code == 200
    assert counts(client.get("/metrics").text, "pigeonhole_log_lines_lost")[()] == before + 1


def test_other_lines(stream: io.StringIO) -> None:
    """A warning of the service is one line, too, with a traceback inside, and not too long."""
    logging.getLogger("pigeonhole.test").warning("two\nlines " + "\U0001f426" * 5000 + " end\x7f")
    (line,) = stream.getvalue().splitlines()
    assert re.fullmatch(r"[ -~]+", line)
    assert len(line) <= MOST
    assert json.loads(line)["message"].endswith(" end\x7f")


def test_no_room(settings: Settings) -> None:
    """Without the upload folder the service is not ready, on either address, and is again when the folder is back."""
    client = create_app(settings, Predictor(Colours)).test_client()
    settings.uploads.rmdir()
    answers = [client.get(path) for path in ("/ready", "/v2/health/ready", "/v2/models/pigeonhole/ready")]
    assert [(answer.status_code, answer.json["code"]) for answer in answers] == [(503, "no_space")] * 3
    settings.uploads.mkdir()
    assert client.get("/ready").status_code == 200


def test_a_full_disk(client: FlaskClient) -> None:
    """A disk that takes files, but nothing in them, is no room."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        answer = client.get("/ready")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (answer.status_code, answer.json["code"]) == (503, "no_space")


def test_stopping(client: FlaskClient) -> None:
    """A worker that is stopping is not ready, and still answers."""
    stopping = {"pigeonhole.draining": True}
    assert client.get("/ready", environ_overrides=stopping).json["code"] == "not_ready"
    answer = client.post("/predict", data=form((picture(), "x.png")), environ_overrides=stopping)
    assert answer.status_code == 200


SHUT = {
    "full": "exec > /dev/full 2>&1",
    "closed": "exec >&- 2>&-",
    "all closed": "exec <&- >&- 2>&-",
}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("how", SHUT.values(), ids=SHUT.keys())
def test_nobody_takes_the_log(start_server: StartServer, uploads: Path, how: str) -> None:
    """Where nothing can be written to standard output and error, pictures are answered, and the end is a good one."""
    server = start_server(command=["sh", "-c", f'{how}; exec "$0" "$@"', *GUNICORN], UPLOADS=str(uploads))
    assert str(Path(f"/proc/{server.process.pid}/fd/2").readlink()) in ("/dev/full", "/dev/null")  # not another file
    assert [post(server, JPEG)[0] for _ in range(3)] == [200] * 3
    assert post(server, b"hello")[0] == 415
    assert server.stop() == 0
    assert server.log.read_text() == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("to", ["stdout", "stderr"])
def test_nobody_takes_a_sentence(to: str) -> None:
    """What is said at the start and cannot be written stops nothing, nor does it change the exit status."""
    code = f"import sys; from pigeonhole.gunicorn_conf import _say; _say('hello', sys.{to})"
    with Path("/dev/full").open("w") as full:
        assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, **{to: full}).returncode == 0


def test_nobody_reads_the_log(uploads: Path) -> None:
    """A pipe that nobody reads fills up, and nobody waits for it."""
    environment = os.environ | {"PORT": (port := str(free_port())), "UPLOADS": str(uploads)}
    with subprocess.Popen(GUNICORN, cwd=ROOT, env=environment, stdout=DEVNULL, stderr=PIPE, text=True) as process:
        try:
            server = Server(f"http://127.0.0.1:{port}", process, Path(os.devnull))
            wait_until_up(server)
            for _ in range(600):  # lines of 170 bytes; a pipe holds 65,536
                assert get(server, "/ping")
            lost = counts(get(server, "/metrics"), "pigeonhole_log_lines_lost")[()]
            assert server.stop() == 0
        finally:
            process.kill()  # if it waits for the pipe after all
        lines = process.communicate()[1].splitlines()
    assert 100 < lost < 500
    assert 600 - lost <= len(lines) < 610 - lost  # with those of the start
    assert {json.loads(line)["level"] for line in lines} == {"INFO"}
