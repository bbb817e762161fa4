"""Nothing is kept, nothing is told: of a photo, of its sender, of how the service is made (H)."""

from __future__ import annotations

import base64
import io
import os
import shutil
import signal
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from PIL import Image

from app import create_app
from pigeonhole.errors import ModelFileError
from pigeonhole.intake.uploads import PREFIX
from pigeonhole.model.predictor import Photo, Prediction, Predictor
from pigeonhole.settings import Settings
from tests.cases.case import Case, as_params, case
from tests.cases.conftest import Holds
from tests.cases.house import House, check_answer, soon, worker_of
from tests.cases.messages import CANARY, FORM, JSON, LAST, PNG, form, get, message, named, part, post
from tests.cases.wire import Answer, Line
from tests.conftest import GUNICORN, Colours, Server, StartServer, encoded, picture
from tests.conftest import form as client_form

CLIENTS = 50
HALF = message(b"POST /predict", [FORM, b"Content-Length: 9000000"], form(part(CANARY.ljust(5_000_000, b"\0")))[:-9])
PLACES = (b"/x.png", b"/tmp/x.png", b"/uploads/x.png", b"/predict/x.png", b"/page/x.png", b"/static/x.png", b"/photo/1")


def port_of(server: Server) -> int:
    return int(server.url.rpartition(":")[2])


def lines_of(server: Server) -> int:
    """In its log, but for pings: while it starts it is asked whether it is up."""
    return sum(b"/ping" not in line for line in server.log.read_bytes().splitlines())


def ask(server: Server, data: bytes) -> Answer:
    with Line(port_of(server)) as line:
        line.send(data)
        line.listen()
        return line.answers[0]


def test_a_power_cut(start_server: StartServer, uploads: Path, tmp_path: Path) -> None:
    """H1: a server killed amid uploads leaves no file; what another left is swept; links lead nowhere."""
    server = start_server(UPLOADS=str(uploads))
    worker = worker_of(server)
    with Line(port_of(server)) as line:
        line.send(HALF)
        for process in (server.process.pid, worker):
            os.kill(process, signal.SIGKILL)
        server.process.wait()
        assert soon(lambda: not Path(f"/proc/{worker}").exists())
    assert list(uploads.iterdir()) == []
    (uploads / f"{PREFIX}left").write_bytes(CANARY)
    (tmp_path / "mine").write_bytes(CANARY)
    (uploads / f"{PREFIX}link").symlink_to(tmp_path / "mine")
    again = start_server(UPLOADS=str(uploads))
    assert list(uploads.iterdir()) == []
    assert ask(again, named(b"x.png")).status == 200
    assert (tmp_path / "mine").read_bytes() == CANARY
    assert again.stop() == 0


def test_files_of_an_upload(house: House) -> None:
    """H1: a photo that is being received lies in a file without a name, in our folder, for nobody else to read."""
    gunicorns = house.nameless()
    with Line(house.port) as line:
        line.send(HALF)
        assert soon(lambda: house.nameless() > gunicorns)
        for path in house.nameless() - gunicorns:
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert path.readlink().is_relative_to(house.uploads)
    assert soon(lambda: house.nameless() == gunicorns)


def test_no_upload_has_an_address(house: House) -> None:
    """H2: no URL leads to a photo, while it is answered or afterwards."""
    with Line(house.port) as line:
        line.send(HALF)
        during = {house.ask(get(path)).status for path in PLACES}
    assert house.ask(named(b"x.png")).status == 200
    assert during | {house.ask(get(path)).status for path in PLACES} == {404}


class Crashing(Colours):
    """An engine that says too much when it dies."""

    def predict(self, photo: Photo) -> Prediction:
        raise RuntimeError("Error in /srv/models/secret.py of openvino 2026.4.0 at 0xdeadbeef")


def not_there() -> Colours:
    raise ModelFileError("MODEL=/srv/models/secret.onnx is not there.")


def not_readable() -> Colours:
    raise PermissionError("/srv/models/secret.onnx")


TROUBLES: dict[str, tuple[Callable[[], Colours], str]] = {
    "H3 the engine crashes": (Crashing, "model_fault"),
    "H3 the model is not there": (not_there, "not_ready"),
    "H3 what nobody foresaw": (not_readable, "service_error"),
    "H3 the folder is gone": (Colours, "no_space"),
}


@pytest.mark.parametrize(("load", "code"), TROUBLES.values(), ids=TROUBLES)
def test_our_own_trouble(settings: Settings, uploads: Path, load: Callable[[], Colours], code: str) -> None:
    """Of what goes wrong here a client hears a code, a sentence and a request id."""
    client = create_app(settings, Predictor(load)).test_client()
    if code == "no_space":
        shutil.rmtree(uploads)
    answer = answer_of(client, data=client_form((picture(), "x.png")))
    uploads.mkdir(exist_ok=True)
    assert (answer.status, answer.code) == (503, code)
    check_answer(answer)


def answer_of(client: FlaskClient, **options: Any) -> Answer:
    response = client.post("/predict", **options)
    return Answer(response.status_code, {name.lower(): value for name, value in response.headers}, response.data)


def test_server_header(house: House) -> None:
    """H3: no answer says what serves it."""
    assert "server" not in house.ask(get(b"/ping")).headers


SECRETS = (
    b"Jane Doe",
    b"secret",
    b"hunter2",
    b"GPS",
    base64.b64encode(CANARY)[:40],
    b"JFIF",
    b"IHDR",
    b"Bearer",
    b"sid=",
)


def test_nothing_is_logged(start_server: StartServer, uploads: Path) -> None:
    """H4: at its most talkative the log has a line a request, and nothing of a photo, a name, a query or a password."""
    exif = Image.Exif()
    exif[0x013B] = "Jane Doe"  # the artist
    exif.get_ifd(0x8825)[29] = "secret place"  # GPS
    photo = encoded(Image.open(io.BytesIO(CANARY)), "JPEG", exif=exif)
    server = start_server(UPLOADS=str(uploads), LOG_LEVEL="debug")
    before = lines_of(server)
    requests = [
        named(b"secret name.jpg", photo),
        named(b"secret name.jpg", photo[:-99]),
        post(
            b'{"image": "%b"}' % base64.b64encode(CANARY), JSON, b"Authorization: Bearer hunter2", b"Cookie: sid=secret"
        ),
        get(b"/predict?url=https://jane:hunter2@example.org/secret.png?sid=secret"),
        get(b"/predict?key=hunter2&url="),
        post(b'{"image": "secret', JSON),
        message(b"POST /predict", [PNG, LAST], CANARY + b"\r\nsecret"),
    ]
    assert [ask(server, each).status // 100 for each in requests] == [2, 4, 2, 4, 4, 4, 4]
    assert server.stop() == 0
    log = server.log.read_bytes()
    assert [secret for secret in SECRETS if secret in log] == []
    assert lines_of(server) - before == len(requests)


FORGED = {
    "CR LF": b"x%0d%0aINFO%20forged%20POST%20/predict%20200",
    "ANSI": b"%1b[2J%1b[31mred",
    "JSON": b"%22,%22status%22:200,%22x%22:%22",
    "separators": b"%e2%80%a8a%c2%85b%e2%80%aec",
    "10 KB": b"x" * 3_900,  # as much of it as a URL may hold
    "NUL and DEL": b"%00%7f%ff",
    "format strings": b"%25s%25n{0}%25(x)s",
}
VALUES = [
    *(case("H5", f"a path: {kind}", get(b"/" + value), "404 not_found") for kind, value in FORGED.items()),
    *(case("H5", f"a query: {kind}", get(b"/predict?top=" + value), "400") for kind, value in FORGED.items()),
    case("H5", "a method of 200 letters", message(b"X" * 200 + b" /predict"), "405 or 400"),
    case("H5", "a User-Agent of 7 KB", get(b"/ping", b"User-Agent: " + b"x" * 7_000), "200 pong"),
    case("H5", "a User-Agent of JSON", get(b"/ping", b'User-Agent: ","status":500,"x":"\\u0000'), "200 pong"),
    case(
        "H5", "a Referer above ASCII", get(b"/ping", "Referer: https://example.org/\u202e\u2028".encode()), "200 pong"
    ),
    case("H5", "a Content-Type of JSON", post(CANARY, b'Content-Type: ","x":"/\x09'), "415 bad_content_type"),
    case("H5", "a Content-Type of 7 KB", post(CANARY, b"Content-Type: x/" + b"y" * 7_000), "415 bad_content_type"),
    case(
        "H5",
        "a field named in ANSI",
        post(form(part(b"x", b'form-data; name="\x1b[2J"; filename="x"')), FORM),
        "400 no_image",
    ),
    case(
        "H5",
        "a field named in 10 KB",
        post(form(part(b"x", b'form-data; name="%b"; filename="x"' % (b"y" * 10_240))), FORM),
        "400 no_image",
    ),
    case("H5", "a label in ANSI", post(CANARY, PNG, to=b"/predict?explain_label=%1b[2J%0a"), "400 bad_parameter"),
]


@pytest.mark.parametrize("case", as_params(VALUES))
def test_forged_lines(case: Case, holds: Holds) -> None:
    """Whatever a client writes, it is one line in the log, and not one that the client wrote."""
    holds(case)


def test_nobody_gets_anothers_answer(house: House, request: pytest.FixtureRequest) -> None:
    """H6: 50 clients at once, each with a picture of its own, get each their own answer."""
    colours = [(5 * number, 255 - 5 * number, 40 * number % 256) for number in range(CLIENTS)]
    uploads = [post(encoded(Image.new("RGB", (64, 64), colour)), PNG, to=b"/predict?top=all") for colour in colours]
    own = [house.ask(upload).body for upload in uploads]
    assert len(set(own)) == CLIENTS
    with ThreadPoolExecutor(CLIENTS) as pool:
        trials = range(request.config.getoption("--trials"))
        answers = list(pool.map(lambda trial: house.ask(uploads[trial % CLIENTS]), trials))
    served = [(trial, answer.body) for trial, answer in enumerate(answers) if answer.status == 200]
    assert [trial for trial, body in served if body != own[trial % CLIENTS]] == []
    assert {answer.code for answer in answers if answer.status != 200} <= {"overloaded"}
    assert len(served) > len(answers) / 2


@pytest.fixture(scope="module")
def debugged(start_server: StartServer, tmp_path_factory: pytest.TempPathFactory) -> Server:
    """A server whose surroundings ask for debugging, and for dumps of whatever crashes."""
    allow_dumps = ("bash", "-c", 'ulimit -Sc hard; exec "$@"', "-", *GUNICORN)
    folder = tmp_path_factory.mktemp("debugged-uploads")
    return start_server(command=allow_dumps, UPLOADS=str(folder), FLASK_DEBUG="1", PYTHONDEVMODE="1")


def test_no_debugger(debugged: Server) -> None:
    """H7: debug switches of Flask and Python bring no debugger, and no further words in the log."""
    before = lines_of(debugged)
    debugger = b"/nowhere?__debugger__=yes&cmd=resource&f=style.css"
    asked = [get(b"/console"), get(debugger), named(b"x.png", b"hello"), named(b"x.png")]
    assert [ask(debugged, each).status for each in asked] == [404, 404, 415, 200]
    assert lines_of(debugged) - before == len(asked)


def test_no_dump(debugged: Server) -> None:
    """H7: a worker that crashes leaves no dump of its memory, which may hold a photo."""
    limits = Path(f"/proc/{worker_of(debugged)}/limits").read_text()
    assert limits.partition("Max core file size")[2].split()[0] == "0"


def test_policy(house: House) -> None:
    """H8: an answer of the API may not be shown as a page that does anything."""
    for data in (get(b"/ping"), get(b"/nowhere"), named(b"x.png"), get(b"/metrics")):
        assert "default-src 'none'" in house.ask(data).headers["content-security-policy"]


def test_metrics_know_nobody(house: House) -> None:
    """H8: what a client writes is nowhere in the metrics, and neither are labels."""
    for data in (
        named(b"marker.png"),
        get(b"/marker?marker=marker"),
        message(b"MARKER /predict"),
        get(b"/ping", b"X: marker"),
    ):
        house.ask(data)
    metrics = house.ask(get(b"/metrics"))
    assert metrics.status == 200
    assert [word for word in (b"marker", b"MARKER", house.label.encode()) if word in metrics.body] == []
