"""What the README says is so: its commands are run, its tables compared with the code."""

from __future__ import annotations

import importlib
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tomllib
from collections import Counter
from dataclasses import MISSING, fields
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pigeonhole import errors
from pigeonhole.intake.pictures import open_photo
from pigeonhole.model.learner import open_learner
from pigeonhole.model.training import Plan
from pigeonhole.settings import Settings
from pigeonhole.web.examples import WAYS_IN
from pigeonhole.web.metrics import Metrics
from pigeonhole.web.replies import HTTP_CODES
from tests.conftest import EXPORT, LIMITS, ROOT, Server, free_port, picture, wait_until_up
from tests.model.learners import photos
from tests.test_errors import family

README = (ROOT / "README.md").read_text()
REST = README.replace(WAYS_IN.read_text(), "")  # what is shown for each way in, test_shown_ways_in runs
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", REST, re.S) for line in block.splitlines()]
CURLS = [command for command in COMMANDS if command.startswith("curl ")]
TRAIN, DOCTOR, COMPILE, SETTINGS, DOWNLOAD, PREDICT, PLAN = (
    f".venv/bin/python -m pigeonhole {verb}"
    for verb in ("train", "doctor", "compile", "settings", "download", "predict", "plan")
)
ON_RAY = f"{PREDICT} --ray"  # tests/cluster runs it
SECRET = '.venv/bin/python -c "import secrets'
KNOWN = (
    "make serve",
    "make test",
    "make image",  # tests/deploy/test_image.py
    "make push-heroku",  # the same
    "curl ",
    TRAIN,
    DOCTOR,
    COMPILE,
    SETTINGS,
    DOWNLOAD,
    ON_RAY,
    PREDICT,
    PLAN,
    SECRET,
    "tools/environment.sh",
    "docker compose",  # tests/deploy/test_manifests.py
    "docker ",
    "sed ",  # the same, and tests/cluster/test_manifests.py
    "kubectl ",  # the same
    "CATEGORIES=",  # tests/deploy/test_image.py
    "export ",
    ".venv/bin/serve",
    ".venv/bin/python -m benchmarks.cluster",
    ".venv/bin/python -m benchmarks.gpu",  # tests/test_gpu_benchmark.py
)


def run(command: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, shell=True, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, timeout=600
    )


def test_no_command_goes_untested() -> None:
    """Each command of the README is known to a test, here or where it stands in KNOWN, by its number."""
    kinds = [next((kind for kind in KNOWN if command.startswith(kind)), command) for command in COMMANDS]
    assert Counter(kinds) == {
        "make serve": 1,
        "make test": 1,
        "make image": 1,
        "make push-heroku": 1,
        "curl ": 2,
        TRAIN: 1,
        DOCTOR: 1,
        COMPILE: 1,
        SETTINGS: 1,
        DOWNLOAD: 1,
        ON_RAY: 1,
        PREDICT: 1,
        PLAN: 1,
        SECRET: 1,
        "tools/environment.sh": 3,
        "docker compose": 4,
        "docker ": 5,
        "sed ": 2,
        "kubectl ": 2,
        "CATEGORIES=": 1,
        "export ": 1,
        ".venv/bin/serve": 2,
        ".venv/bin/python -m benchmarks.cluster": 1,
        ".venv/bin/python -m benchmarks.gpu": 1,
    }


@pytest.mark.parametrize("command", sorted(set(re.findall(r"`((?:[A-Z]+=\S+ )?make \w+)`", README))))
def test_make_knows(command: str) -> None:
    """What the README tells to make, in passing, make knows how to make."""
    assert run(command.replace("make", "make --dry-run"), ROOT).returncode == 0


def test_help() -> None:
    """`train --help` names every field of a plan, with its default."""
    assert "`.venv/bin/python -m pigeonhole train --help`" in README
    text = " ".join(run(f"{sys.executable} -m pigeonhole train --help", ROOT, COLUMNS="200").stdout.split())
    for field in fields(Plan):
        assert re.search(rf"\b{field.name.replace('_', '-')}\b", text, re.IGNORECASE), field.name
        assert field.default in (None, MISSING, True) or f"(default: {field.default})" in text, field.name


def test_the_demos_figures(clothing: Path) -> None:
    """The figures of the demo are those of the service's own way from a validation photo to a label."""
    engine = open_learner(EXPORT)
    rows = []
    for folder in sorted((clothing / "validation").iterdir()):
        paths = sorted(folder.iterdir())
        answers = [engine.predict(open_photo(io.BytesIO(path.read_bytes()), LIMITS)).success for path in paths]
        rows.append([folder.name, str(answers.count(folder.name)), str(len(paths))])
    assert table("of the 341\nvalidation photos, ") == rows
    right, photos = (sum(int(row[column]) for row in rows) for column in (1, 2))
    assert f"right on {right} of the {photos}\nvalidation photos, {right / photos:.1%}" in README


@pytest.mark.skipif(not (ROOT / ".venv" / "serve").exists(), reason="make has not made .venv here")
def test_make_serve_and_curl(tmp_path: Path) -> None:
    """`make serve` installs nothing a second time, prints the address, answers the curl lines, and stops on Ctrl-C."""
    for name, colour in (("photo.jpg", "red"), ("other.jpg", "blue")):
        (tmp_path / name).write_bytes(picture(colour, (60, 80)))
    port, log = free_port(), tmp_path / "log"
    environment = {**os.environ, "PORT": str(port)}
    with log.open("w") as output:
        process = subprocess.Popen(
            ["env", "--default-signal=INT", "make", "serve"],
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    server = Server(f"http://localhost:{port}", process, log)
    try:
        wait_until_up(server)
        answers = [run(command.replace(":5000", f":{port}"), tmp_path).stdout for command in CURLS]
    finally:
        os.killpg(process.pid, signal.SIGINT)  # what Ctrl-C does: the whole group of the terminal
        status = process.wait(30)
    assert status == -signal.SIGINT  # make itself, as any program that Ctrl-C ends
    with socket.socket() as knock:
        assert knock.connect_ex(("127.0.0.1", port)) != 0  # nobody listens any more
    assert [isinstance(json.loads(answer)["success"], kind) for answer, kind in zip(answers, (str, list), strict=True)]
    printed = log.read_text()
    assert f"curl -F image=@photo.jpg http://localhost:{port}/predict" in printed
    assert "environment.sh" not in printed
    assert "Traceback" not in printed


@pytest.mark.skipif(not (ROOT / ".venv" / "test").exists(), reason="make has not made .venv here")
@pytest.mark.skipif("PIGEONHOLE_INNER" in os.environ, reason="this is the make test that a test runs")
def test_make_test() -> None:
    """`make test` checks style and types and runs pytest (here on one small file of tests)."""
    result = run("make test", ROOT, PYTEST_ADDOPTS="tests/test_errors.py -p no:cacheprovider", PIGEONHOLE_INNER="1")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "2 passed" in result.stdout


def test_train(tmp_path: Path) -> None:
    """The training command works on folders of that shape; here for one epoch on a few small photos."""
    (command,) = [line for line in COMMANDS if " train " in line]
    for folder in re.findall(r"photos/\w+", command):
        photos(tmp_path / folder, each=4)
    shorter = command.replace(".venv/bin/python", sys.executable) + " --epochs 1 --batch-size 4 --size 32"
    result = run(shorter, tmp_path, PYTHONPATH=str(ROOT))
    assert result.returncode == 0, result.stderr
    assert {"export.pkl", "export-confusion.png"} <= {path.name for path in tmp_path.iterdir()}


def test_doctor() -> None:
    """The doctor's command finds the demo servable, and `--json` is for programs."""
    (command,) = [line for line in COMMANDS if line.startswith(DOCTOR)]
    command = command.replace(".venv/bin/python", sys.executable)
    assert "verdict:          it can be served" in run(command, ROOT).stdout
    assert "`--json` is for programs" in README
    assert json.loads(run(f"{command} --json", ROOT).stdout)["servable"]


def test_the_benchmark_is_there() -> None:
    """The benchmark is told of where the README says, with the verb that make knows; test_benchmarks runs it."""
    assert "`make bench`" in README
    assert "make bench" in (ROOT / "benchmarks" / "README.md").read_text()


def test_compile(tmp_path: Path) -> None:
    """The command compiles the demo, proves it on photos of the user's as well, and says so in a table."""
    (command,) = [line for line in COMMANDS if line.startswith(COMPILE)]
    shutil.copy(EXPORT, tmp_path)
    photos(tmp_path / "photos", each=2)
    (tmp_path / "photos" / "notes.txt").write_text("no picture")
    result = run(command.replace(".venv/bin/python", sys.executable), tmp_path, PYTHONPATH=str(ROOT))
    assert result.returncode == 0, result.stderr
    assert re.search(r"^pictures +\d+, of which 6 yours$", result.stdout, re.M)
    assert re.search(r"^same label as learner.predict +(\d+) of \1$", result.stdout, re.M)
    assert (tmp_path / "export.onnx").stat().st_size > 20_000_000


def test_predict(compiled_demo: Path, one_of_each: dict[str, Path], tmp_path: Path) -> None:
    """The command answers all photos of a folder, and with `--true-labels` writes the report."""
    (command,) = [line for line in COMMANDS if line.startswith(PREDICT) and not line.startswith(ON_RAY)]
    for label, photo in one_of_each.items():
        (tmp_path / "photos" / label).mkdir(parents=True)
        shutil.copy(photo, tmp_path / "photos" / label)
    command = command.replace(".venv/bin/python", sys.executable)
    result = run(f"{command} --true-labels", tmp_path, PYTHONPATH=str(ROOT), MODEL=str(compiled_demo))
    assert result.returncode == 0, result.stderr
    rows = [line.split(",") for line in (tmp_path / "answers.csv").read_text().splitlines()]
    assert rows[0] == ["file", "label", "probability"]
    assert [row[0].split("/")[:2] for row in rows[1:]] == [["photos", label] for label in one_of_each]
    right = sum(row[1] == label for row, label in zip(rows[1:], one_of_each, strict=True))
    assert re.search(rf"^all +{right} +10 ", result.stdout, re.M)
    assert "Which class was taken for which" in (tmp_path / "report.html").read_text()


@pytest.mark.skipif(
    not shutil.which("docker") or subprocess.run(["docker", "info"], capture_output=True).returncode != 0,
    reason="no Docker engine here; .ci/run builds and runs the image without one where it can",
)
def test_docker(tmp_path: Path) -> None:
    """The image builds and answers, and says what it is made of."""
    start, listed = (command for command in COMMANDS if re.match("docker run (-p|--rm)", command))
    assert run("make image", ROOT).returncode == 0
    assert "openvino" in run(listed, ROOT).stdout
    port = free_port()
    name = f"pigeonhole-test-{port}"
    start = start.replace("run -p 5000:", f"run --rm -d --name {name} -p {port}:")
    assert run(start, ROOT).returncode == 0
    try:
        assert (
            run(f"curl --retry 30 --retry-all-errors -sf localhost:{port}/ping", ROOT).stdout == '{"success":"pong"}\n'
        )
    finally:
        run(f"docker stop {name}", ROOT)


def test_the_stages_and_folders_that_docker_is_told() -> None:
    """Each stage that the README builds is in the Dockerfile, and what is mounted there is what the stage serves."""
    stages = re.findall(r"(?:--target |TARGET=)([a-z]+)", README)
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert set(stages) == {"learner", "dev"} <= set(re.findall(r"AS (\w+)$", dockerfile, re.M))
    assert "WORKDIR /app" in dockerfile
    assert README.count('-v "$PWD:/app"') == 2


def test_plan() -> None:
    """The command's options are known; what it measures, tests/test_planning.py does."""
    (command,) = [line for line in COMMANDS if line.startswith(PLAN)]
    command = command.replace(".venv/bin/python", sys.executable).replace("--cores 2", "--cores 1000")
    told = run(command, ROOT)
    assert (told.returncode, told.stdout) == (1, "")
    assert "cannot be measured" in told.stderr


def test_ray() -> None:
    """What Ray is told to serve and to call is there."""
    (variables,) = [line for line in COMMANDS if line.startswith("export ")]
    module, _, name = variables.rpartition("=")[2].rpartition(".")
    assert callable(getattr(importlib.import_module(module), name))
    assert "RAY_USAGE_STATS_ENABLED=0" in variables
    files = [line.split()[-1] for line in COMMANDS if line.startswith(".venv/bin/serve")]
    assert len(files) == 2
    assert all((ROOT / file).is_file() for file in files)
    (command,) = [line for line in COMMANDS if "benchmarks.cluster" in line]
    assert run(command.replace(".venv/bin/python", sys.executable) + " --help", ROOT).returncode == 0
    (named,) = [line.partition(" | ")[0] for line in COMMANDS if "ray-service.yaml" in line]
    assert run(named, ROOT).stdout.partition("apiVersion")[2].count("image: REGISTRY/pigeonhole-ray:1") == 2


def test_links() -> None:
    """Links within the README and to files lead somewhere."""
    anchors = {
        re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.*)$", README, re.M)
    }
    links = re.findall(r"\]\((?!https?:)([^)]+)\)", README)
    assert {link[1:] for link in links if link[0] == "#"} <= anchors
    assert all((ROOT / link).exists() for link in links if link[0] != "#")


def table(title: str) -> list[list[str]]:
    """The cells of the first table after the heading or sentence `title`, without its head."""
    rows = README.partition(title)[2].partition("| --- |")[2].partition("\n\n")[0].splitlines()[1:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]


def test_settings_table() -> None:
    """The table of settings is the one that `settings --markdown` prints."""
    (command,) = [line for line in COMMANDS if line.startswith(SETTINGS)]
    command = command.replace(".venv/bin/python", sys.executable)
    assert run(f"{command} --markdown", ROOT).stdout in README


def test_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the command makes is a secret that API_KEYS takes."""
    (command,) = [line for line in COMMANDS if line.startswith(SECRET)]
    secret = run(command.replace(".venv/bin/python", sys.executable), ROOT).stdout.strip()
    monkeypatch.setenv("API_KEYS", f"alice:{secret}")
    assert Settings.load().keys == {f"alice:{secret}"}


def test_download(tmp_path: Path) -> None:
    """The command knows that the example is not there, and puts nothing into the cache; test_store downloads."""
    (command,) = [line for line in COMMANDS if line.startswith(DOWNLOAD)]
    command = command.replace(".venv/bin/python", sys.executable).replace("https://example.com", "http://127.0.0.1:9")
    told = run(command, ROOT, MODEL_CACHE=str(tmp_path))
    assert (told.returncode, told.stdout) == (1, "")
    assert "cannot be reached" in told.stderr


def test_what_more_can_be_installed() -> None:
    """The categories that the README installs are in the lock, and the Dockerfile takes them."""
    categories = re.findall(r"tools/environment\.sh \.venv (?:packages )?(\w+)", README)
    categories += re.findall(r'CATEGORIES="packages (\w+)"', README)
    assert sorted(set(categories)) == ["formats", "ray", "store", "telemetry"]
    assert set(categories) < set(json.loads((ROOT / "Pipfile.lock").read_text()))
    assert "ARG CATEGORIES=packages" in (ROOT / "Dockerfile").read_text()


def test_settings() -> None:
    """The command lists every setting with its value, without what is secret in an address, or says what is wrong."""
    (command,) = [line for line in COMMANDS if line.startswith(SETTINGS)]
    command = command.replace(".venv/bin/python", sys.executable)
    listed = run(command, ROOT, MODEL="https://example.org/x.pkl?signature=SECRET", PORT="8123", FETCH_URLS="yes")
    values = {
        name: rest.split()[0] for name, rest in (line.split(maxsplit=1) for line in listed.stdout.splitlines()[1:])
    }
    assert set(values) == {name.upper() for name in Settings.model_fields}
    assert (values["PORT"], values["FETCH_URLS"]) == ("8123", "1")
    assert "SECRET" not in listed.stdout
    wrong = run(command, ROOT, PORT="http", THREADS="0")
    assert (wrong.returncode, wrong.stderr.count("is not possible")) == (1, 2)


def test_metrics_table() -> None:
    """The table of metrics holds each one of ours, with its labels, and no other."""
    answered = {
        (family.name.removeprefix("pigeonhole_"), *sorted(label for label in family.samples[0].labels if label != "le"))
        for family in text_string_to_metric_families(app_metrics())
        if family.name.startswith("pigeonhole_") and not family.name.endswith("_created")
    }
    told = {
        (*re.findall(r"`pigeonhole_(\w+?)(?:_total)?`", name), *sorted(re.findall(r"`(\w+)`", labels)))
        for name, labels, _ in table("| metric |")
    }
    assert told == answered


def app_metrics() -> str:
    metrics = Metrics()
    metrics.request("/ping", "GET", 200, 0.1)
    return metrics.text({"engine": "compiled"}).decode()


def test_error_table() -> None:
    """The table of errors holds every code that can be answered, under its status."""
    answered = {(str(kind.status), kind.code) for kind in family(errors.PigeonholeError) if "code" in vars(kind)}
    answered |= {(str(status), code) for status, code in HTTP_CODES.items()}
    told = {
        (status, code)
        for statuses, codes in table("Every error is")
        for code in re.findall(r"`(\w+)`", codes)
        for status in re.findall(r"\d{3}", statuses)
    }
    together = {"not_found", "bad_method"}  # one row for 404 and 405
    assert {pair for pair in told if pair[1] not in together} == {pair for pair in answered if pair[1] not in together}
    assert together <= {code for _, code in told}


def test_the_list_of_dependencies() -> None:
    """SECURITY.md lists every package that users get, with the Pipfile's pin."""
    pipfile = tomllib.loads((ROOT / "Pipfile").read_text())
    packages = {
        (name, spec if isinstance(spec, str) else spec["version"])
        for category in ("packages", "formats", "telemetry", "store", "ray", "learner")
        for name, spec in pipfile[category].items()
    }
    listed = re.findall(r"^\| ([\w-]+) \| ([~=*\d.]+) \|", (ROOT / "SECURITY.md").read_text(), re.MULTILINE)
    assert set(listed) == packages
