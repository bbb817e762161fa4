"""What can be known of the image without an engine that builds it; .ci/run builds and runs it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pigeonhole import __version__
from tests.conftest import ROOT, Server, StartServer, picture

DOCKERFILE = (ROOT / "Dockerfile").read_text()
LINES = DOCKERFILE.replace("\\\n", "").splitlines()
HEALTH = json.loads(next(line for line in LINES if line.startswith("HEALTHCHECK")).partition(" CMD ")[2])
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PROGRAM = '#!/bin/sh\nprintf "%s\\n" "$(basename "$0") $*" >> "$RECORD"\n'


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder to find programs in, with a docker and a heroku that only record how they are called."""
    folder = tmp_path / "programs"
    folder.mkdir()
    for name in ("docker", "heroku"):
        (folder / name).write_text(PROGRAM)
        (folder / name).chmod(0o755)
    return folder


def tool(programs: Path, *command: str, **environment: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """What came of a command, and the calls that the programs recorded."""
    record = programs / "record"
    record.write_text("")
    variables = {**os.environ, "PATH": f"{programs}:/usr/bin:/bin", "RECORD": str(record), **environment}
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)
    return done, record.read_text().splitlines()


def health(server_port: int, **environment: str) -> int:
    """The exit status of the Dockerfile's health check."""
    command = [sys.executable, *HEALTH[1:]]
    return subprocess.run(command, env={**environment, "PORT": str(server_port)}, capture_output=True).returncode


def port_of(server: Server) -> int:
    return int(server.url.rpartition(":")[2])


@pytest.mark.parametrize("path", ["Dockerfile", "benchmarks/obvious.Dockerfile"])
def test_hadolint(path: str) -> None:
    """hadolint has nothing to say of the Dockerfiles."""
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if hadolint is None:
        pytest.skip("hadolint is not installed")
    done = subprocess.run([hadolint, path], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("", 0)


def test_what_the_builder_is_sent() -> None:
    """The builder is sent what the Dockerfile copies and nothing else: no photos, no git, no environments."""
    first, *rules = (ROOT / ".dockerignore").read_text().split()
    copies = [line.split()[1:-1] for line in LINES if line.startswith("COPY ") and "--from" not in line]
    assert first == "*"
    assert {rule.removeprefix("!") for rule in rules if rule[0] == "!"} == {
        name.replace("p[y]", "py") for names in copies for name in names
    }
    assert [rule for rule in rules if rule[0] != "!"] == ["**/__pycache__"]


def test_one_base() -> None:
    """One line names the base, all stages come of it, and the one that serves is the last."""
    stages = [line.split() for line in LINES if line.startswith("FROM ")]
    names = [stage[3] for stage in stages]
    assert names[0] == "base"
    assert all(stage[1] in names for stage in stages[1:])
    assert names[-1] == "serve"
    assert {"compile", "dev", "learner"} < set(names)


def test_the_label_of_the_version() -> None:
    """The image is labelled with the package's version."""
    assert f'org.opencontainers.image.version="{__version__}"' in DOCKERFILE


def test_slim(programs: Path, tmp_path: Path) -> None:
    """What a CPU service of ONNX files never opens is removed, in whatever version; what it opens stays."""
    gone = ["libopenvino_intel_gpu_plugin.so", "cache.json", "libopenvino_paddle_frontend.so.2641"]
    kept = ["libopenvino.so.2641", "libopenvino_intel_cpu_plugin.so", "libopenvino_onnx_frontend.so.2641"]
    libs, tests = (tmp_path / "lib/python3.11/site-packages" / name for name in ("openvino/libs", "numpy/core/tests"))
    for folder in (libs, tests, tmp_path / "bin"):
        folder.mkdir(parents=True)
    for name in gone + kept:
        (libs / name).touch()
    shutil.copy(programs / "docker", tmp_path / "bin/python")
    done, calls = tool(programs, "tools/slim.sh", str(tmp_path))
    assert (done.returncode, calls) == (0, ["python -m pip uninstall --quiet --yes pip setuptools"])
    assert sorted(path.name for path in libs.iterdir()) == sorted(kept)
    assert not tests.exists()


def test_health(start_server: StartServer, compiled_demo: Path, tmp_path: Path) -> None:
    """The health check asks /ready, whatever keys, hosts and proxies there are, and sees when nothing can be kept."""
    uploads = tmp_path / "photos"
    uploads.mkdir()
    server = start_server(
        MODEL=str(compiled_demo),
        UPLOADS=str(uploads),
        API_KEYS="alice:0123456789abcdef",
        TRUSTED_HOSTS="example.org",
    )
    assert health(port_of(server), http_proxy="http://127.0.0.1:9") == 0
    shutil.rmtree(uploads)
    assert health(port_of(server)) == 1
    assert server.stop() == 0
    assert health(port_of(server)) == 1


def test_uploads(start_server: StartServer, compiled_demo: Path, tmp_path: Path) -> None:
    """The uploads of .ci/run pass with the labels that `predict` gives, and fail with another one."""
    (tmp_path / "kept").mkdir()
    (tmp_path / "photo.png").write_bytes(picture("blue", (60, 80)))
    predict = [sys.executable, "-m", "pigeonhole", "predict", "--csv", str(tmp_path / "photo.png")]
    environment = {**os.environ, "MODEL": str(compiled_demo)}
    labels = subprocess.run(predict, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    server = start_server(MODEL=str(compiled_demo), UPLOADS=str(tmp_path / "kept"))
    for name, content, status in (("right", labels, 0), ("wrong", labels.replace(".png,", ".png,not-"), 1)):
        (tmp_path / name).write_text(content)
        uploads = [sys.executable, ".ci/uploads.py", server.url, str(tmp_path / name), "5", "2"]
        assert subprocess.run(uploads, cwd=ROOT).returncode == status


def test_make_image(programs: Path) -> None:
    """`make image` prints and calls one build, with the arguments that are set, and with the revision as a label."""
    done, calls = tool(programs, "make", "image", "CATEGORIES=packages store")
    assert done.returncode == 0
    (build,) = [call for call in calls if not call.startswith("docker info")]
    assert build.startswith("docker build -t pigeonhole --build-arg CATEGORIES=packages store --label ")
    assert "TARGET" not in build
    assert "+ docker build -t pigeonhole --build-arg 'CATEGORIES=packages store' --label " in done.stderr
    if (ROOT / ".git").exists():
        assert re.search(r"image\.revision=[0-9a-f]{40}(-dirty)? ", build)


def test_make_push_heroku(programs: Path) -> None:
    """`make push-heroku` prints each of its commands and calls them in order; what is set goes along."""
    done, calls = tool(programs, "make", "push-heroku", "APP=my-birds", "ALLOW_PICKLE_GLOBALS=a.b,c.d")
    assert done.returncode == 0
    assert [call for call in calls if not call.startswith("docker info")] == [
        "heroku container:login",
        "heroku container:push web --app my-birds --arg ALLOW_PICKLE_GLOBALS=a.b c.d",
        "heroku container:release web --app my-birds",
    ]
    assert re.findall(r"^\+ .*(heroku \S+)", done.stderr, re.MULTILINE) == [
        f"heroku container:{step}" for step in ("login", "push", "release")
    ]


def test_push_heroku_stops(programs: Path) -> None:
    """A failed push releases nothing."""
    (programs / "heroku").write_text(PROGRAM + "case $1 in container:push) exit 1; esac\n")
    done, calls = tool(programs, "make", "push-heroku", "APP=my-birds")
    assert done.returncode != 0
    assert not [call for call in calls if "release" in call]


@pytest.mark.parametrize(
    ("missing", "app", "sentence"),
    [
        ("", "", "make push-heroku APP=name"),
        ("heroku", "my-birds", "this needs the Heroku CLI"),
        ("docker", "my-birds", "this needs Docker"),
        ("", 'x"; touch pwned; "', "is no name of a Heroku app"),
        ("", "$(touch pwned)", "is no name of a Heroku app"),
        ("", "--help", "is no name of a Heroku app"),
    ],
    ids=["no-app", "no-heroku", "no-docker", "quotes", "substitution", "option"],
)
def test_push_heroku_refuses(programs: Path, missing: str, app: str, sentence: str) -> None:
    """Without an app's name, the Heroku CLI or a Docker engine nothing is called, and a sentence says what lacks."""
    if missing:
        (programs / missing).unlink()
    (programs / "basename").symlink_to(shutil.which("basename") or "")
    done, calls = tool(
        programs, "/bin/bash", "tools/push_heroku.sh", APP=app, PATH=str(programs)
    )  # none of this machine's
    assert (done.returncode, [call for call in calls if "container" in call]) == (1, [])
    assert sentence in done.stderr
    assert not (ROOT / "pwned").exists()


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows(path: Path) -> None:
    """The workflows fit GitHub's schema, may read only, and take actions by their commits."""
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert all(re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", step["uses"]) for step in job["steps"] if "uses" in step)
    check = Path(sys.executable).parent / "check-jsonschema"
    if not check.exists():
        pytest.skip("check-jsonschema is not installed")
    schema = [check, "--builtin-schema", "vendor.github-workflows", path]
    assert subprocess.run(schema, capture_output=True).returncode == 0
