"""MODEL may be an address: what comes from there is whole, is kept by its SHA-256, and is fetched once."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import random
import resource
import stat
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pigeonhole.errors import DownloadError
from pigeonhole.model.store.addresses import check_address, is_address, shown
from tests.conftest import ROOT, StartServer, free_port, picture, wait_until_up
from tests.model.remotes import MLflow, Web, mlflow, s3, sent, serving
from tests.test_serving import post

SMALL = random.Random(0).randbytes(100_000)
LARGE = random.Random(1).randbytes(20_000_000)  # three pieces of eight MiB, or less
PIECE = 8 * 1024 * 1024
OTHER = random.Random(2).randbytes(20_000_000)
DOWNLOAD = (sys.executable, "-m", "pigeonhole", "download")

# runs the command for several addresses in one process: what it takes to import mlflow is paid once
SEVERAL = """
import contextlib, io, json, sys
from pigeonhole.cli import main
ended = []
for address in sys.argv[1:]:
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as error:
        status = main(["download", address])
    ended.append([status, out.getvalue(), error.getvalue()])
print(json.dumps(ended))
"""

# runs the command, and says which hosts were looked up or connected to
LISTENING = """
import json, sys
hosts = set()

def listen(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        hosts.add(arguments[1][0] if event == "socket.connect" else arguments[0])

sys.addaudithook(listen)
from pigeonhole.cli import main
main()
print(json.dumps(sorted(hosts)))
"""


@dataclass(frozen=True)
class Ended:
    """How a download ended: its exit status and what it wrote."""

    status: int
    out: str
    told: str

    @property
    def path(self) -> Path:
        assert self.status == 0, self.told
        return Path(self.out.removesuffix("\n"))

    @property
    def refusal(self) -> str:
        """The last line, of a download that did not work."""
        assert (self.status, self.out) == (1, "")
        assert "Traceback" not in self.told
        return self.told.splitlines()[-1]


@pytest.fixture
def web() -> Iterator[Web]:
    with serving() as web:
        yield web


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where downloads of this test go."""
    monkeypatch.setenv("MODEL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def download(*address: str, **environment: str) -> Ended:
    done = subprocess.run(
        [*DOWNLOAD, *address], cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def downloads(*addresses: str, **environment: str) -> list[Ended]:
    """Several, one after the other."""
    command = [sys.executable, "-c", SEVERAL, *addresses]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return [Ended(*ended) for ended in json.loads(done.stdout)]


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def parts(cache: Path) -> list[Path]:
    return list((cache / "addresses").glob("*.part"))


def growing(cache: Path, atleast: int = 1) -> None:
    """Wait until a download has begun."""
    deadline = time.monotonic() + 20
    while sum(part.stat().st_size for part in parts(cache)) < atleast:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_once(web: Web, cache: Path) -> None:
    """A file is downloaded once, to where its SHA-256 says; only its path goes to standard output."""
    web.put("/a/export.pkl", SMALL)
    ended = download(web.url + "/a/export.pkl")
    assert ended.out == f"{cache}/{sha256(SMALL)}/export.pkl\n"
    assert ended.path.read_bytes() == SMALL
    assert ended.told.splitlines() == [
        f"Downloading {web.url}/a/export.pkl, 0.1 MB",
        f"Downloaded; its SHA-256 is {sha256(SMALL)}",
    ]
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    assert parts(cache) == []
    web.seen.clear()
    assert download(web.url + "/a/export.pkl") == Ended(0, ended.out, "")
    assert web.seen == ["HEAD /a/export.pkl "]


def test_changed(web: Web, cache: Path) -> None:
    """Another file at the same address is downloaded, and so is one that nothing tells the version of."""
    web.put("/export.pkl", SMALL)
    download(web.url + "/export.pkl")
    web.put("/export.pkl", SMALL[::-1])
    assert download(web.url + "/export.pkl").path.read_bytes() == SMALL[::-1]
    web.put("/export.pkl", SMALL, etag=None)
    for _ in range(2):
        assert download(web.url + "/export.pkl").path.read_bytes() == SMALL
    assert web.got() == ["0-99999", "0-99999", "", ""]


def test_pinned(web: Web, cache: Path) -> None:
    """With MODEL_SHA256, nobody is asked for a file in the cache, unless it is not what it was any more."""
    web.put("/export.pkl", SMALL)
    path = download(web.url + "/export.pkl").path
    web.seen.clear()
    assert download(web.url + "/elsewhere.pkl", MODEL_SHA256=sha256(SMALL).upper()) == Ended(0, f"{path}\n", "")
    assert web.seen == []
    path.write_bytes(SMALL[:-1])
    assert download(web.url + "/export.pkl", MODEL_SHA256=sha256(SMALL)).path.read_bytes() == SMALL
    path.write_bytes(SMALL[:-1])
    assert download(web.url + "/export.pkl").path.read_bytes() == SMALL
    assert web.got() == ["0-99999", "0-99999"]


def test_another_file_than_the_pinned_one(web: Web, cache: Path) -> None:
    """What has another SHA-256 than MODEL_SHA256 says is refused and not kept."""
    web.put("/export.pkl", SMALL)
    ended = download(web.url + "/export.pkl", MODEL_SHA256="0" * 64)
    assert ended.refusal == (
        f"{web.url}/export.pkl has the SHA-256 {sha256(SMALL)}, and MODEL_SHA256 says {'0' * 64}; it was not kept."
    )
    assert [path for path in cache.rglob("*") if path.is_file() and path.stat().st_size] == []


def test_nobody_there(cache: Path) -> None:
    """Where an address cannot be reached, what it gave last is served, with a warning; but not against a pin."""
    with serving() as web:
        web.put("/export.pkl", SMALL)
        path = download(web.url + "/export.pkl").path
        web.put("/export.pkl", LARGE, cuts=[PIECE, *[0] * 5])
        cut = download(web.url + "/export.pkl")
    for ended, reason in ((cut, "the connection broke"), (download(web.url + "/export.pkl"), "nobody answers there")):
        assert ended.path == path
        warning = ended.told.splitlines()[-1]
        assert warning.startswith(f"Warning: MODEL={web.url}/export.pkl cannot be reached: {reason}")
        assert warning.endswith(f". What it gave last is served: {path}")
    ended = download(web.url + "/export.pkl", MODEL_SHA256="0" * 64)
    assert ended.refusal == f"{web.url}/export.pkl cannot be reached: nobody answers there."


def test_removed(web: Web, cache: Path) -> None:
    """What was taken away from its address is not served from the cache."""
    page = web.put("/export.pkl", SMALL)
    download(web.url + "/export.pkl")
    page.status = 404
    assert download(web.url + "/export.pkl").refusal == f"{web.url}/export.pkl is not there."


def test_cut(web: Web, cache: Path) -> None:
    """A download that is cut goes on where it was, in the same run."""
    web.put("/export.pkl", LARGE, cuts=[PIECE, 1_000_000])
    assert download(web.url + "/export.pkl").path.read_bytes() == LARGE
    first, second, third = "0-8388607", "8388608-16777215", "16777216-19999999"
    assert web.got() == [first, second, second, third]


def test_small_parts(web: Web, cache: Path) -> None:
    """A server that gives less than it is asked for is asked again from there."""
    web.put("/export.pkl", LARGE, cap=5_000_000)
    assert download(web.url + "/export.pkl").path.read_bytes() == LARGE
    assert [part.partition("-")[0] for part in web.got()] == ["0", "5000000", "10000000", "15000000"]


@pytest.mark.parametrize("changed", [False, True], ids=["the-same", "changed"])
def test_killed(web: Web, cache: Path, changed: bool) -> None:
    """After a killed download the next one goes on where it was, or starts again if the file has changed."""
    page = web.put("/export.pkl", LARGE, pause=0.05)
    with subprocess.Popen([*DOWNLOAD, web.url + "/export.pkl"], cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        growing(cache, PIECE)
        process.kill()
    page.pause = 0
    if changed:
        web.put("/export.pkl", OTHER)
    ended = download(web.url + "/export.pkl")
    assert ended.path.read_bytes() == (OTHER if changed else LARGE)
    assert web.got().count("0-8388607") == 1 + changed
    assert ("8.4 MB are there already." in ended.told.splitlines()) is not changed
    assert parts(cache) == []


def test_changed_meanwhile(web: Web, cache: Path) -> None:
    """A file that changes while it is downloaded does not become one of two halves."""
    web.put("/export.pkl", LARGE, pause=0.05)
    command = [*DOWNLOAD, web.url + "/export.pkl"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        growing(cache)
        web.put("/export.pkl", OTHER)
        out, told = process.communicate()
    assert Path(out.strip()).read_bytes() == OTHER
    assert f"{web.url}/export.pkl has changed meanwhile." in told.splitlines()


BARE = {
    "ranges-ignored": {"ranges": False},
    "ranges-ignored-and-cut": {"ranges": False, "cuts": [PIECE + 1, 1_000_000]},
    "ranges-refused": {"headers": {"Accept-Ranges": "none"}},
    "no-version": {"etag": None, "cuts": [1_000_000]},
    "no-length": {"length": None},
    "another-range": {"headers": {"Content-Range": "bytes 5-9/10"}, "ranges": False, "partial": True},
}


def test_in_one_go(web: Web, cache: Path) -> None:
    """From a server that gives no parts, or nothing to tell whether they belong together, a file comes in one go."""
    for name, options in BARE.items():
        web.put(f"/{name}.pkl", LARGE + name.encode(), **options)
    ended = downloads(*(f"{web.url}/{name}.pkl" for name in BARE))
    assert [one.path.read_bytes() for one in ended] == [LARGE + name.encode() for name in BARE]
    last = {line.split()[1]: line for line in web.seen if line.startswith("GET")}
    assert list(last.values()) == [f"GET /{name}.pkl " for name in BARE]


def test_refusals(web: Web, cache: Path) -> None:
    """Whatever goes wrong is one clear sentence."""
    web.put("/403.pkl", SMALL, status=403)
    web.put("/400.pkl", SMALL, status=400)
    web.put("/503.pkl", SMALL, status=503)
    web.put("/gzip.pkl", SMALL, headers={"Content-Encoding": "gzip"})
    web.put("/away.pkl", b"", status=302, headers={"Location": "http://example.com/x.pkl"})
    web.put("/huge.pkl", SMALL, length=5 * 1024**3)
    web.put("/nowhere.pkl", b"", status=302, headers={"Location": "/nowhere.pkl"})
    expected = {
        f"{web.url}/404.pkl": "{} is not there.",
        f"{web.url}/403.pkl": "{} may not be read, or is not there; no credentials are sent to it; a signed address "
        "works.",
        f"{web.url}/400.pkl": "{} is refused with status 400.",
        f"{web.url}/503.pkl": "{} cannot be reached: the answer has status 503.",
        f"{web.url}/gzip.pkl": "MODEL leads to a server that compresses what it sends, unasked.",
        f"{web.url}/away.pkl": "MODEL leads to an address that is not encrypted, so it is not downloaded.",
        f"{web.url}/huge.pkl": "{} is larger than 4 GiB, so it is no classifier.",
        f"{web.url}/nowhere.pkl": "{} cannot be reached: the connection broke (TooManyRedirects).",
        f"http://127.0.0.1:{free_port()}/x.pkl": "{} cannot be reached: nobody answers there.",
        "https://no-such-host.invalid/x.pkl": "{} cannot be reached: its name is not known.",
        f"https{web.url[4:]}/404.pkl": "{} cannot be reached: the connection broke (SSLError).",
        "export.pkl": "{} is no address that a model can come from; those begin with https, s3, gs, hf, runs, models. "
        "A file of this machine is named by its path.",
    }
    ended = downloads(*expected)
    assert [one.refusal for one in ended] == [sentence.format(address) for address, sentence in expected.items()]
    assert [path.name for path in cache.rglob("*") if path.is_file() and path.stat().st_size] == []


def test_no_room(web: Web, cache: Path, tmp_path: Path) -> None:
    """A disk that takes no more, and a cache that is none, are named."""
    web.put("/export.pkl", LARGE)
    command = [*DOWNLOAD, web.url + "/export.pkl"]
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))  # noqa: E731
    full = subprocess.run(command, cwd=ROOT, preexec_fn=limit, capture_output=True, text=True)
    assert (
        Ended(full.returncode, full.stdout, full.stderr).refusal
        == f"MODEL_CACHE={cache} cannot be used: File too large."
    )
    file = tmp_path / "file"
    file.touch()
    ended = download(web.url + "/export.pkl", MODEL_CACHE=str(file))
    assert ended.refusal == f"MODEL_CACHE={file} cannot be used: File exists."
    ended = download(web.url + "/export.pkl", MODEL_CACHE="~no-such-user/cache")
    assert ended.refusal == "MODEL_CACHE=~no-such-user/cache cannot be used: there is no such home; name a folder."


BOUNDS = {
    "announced": ("MAX_BYTES = 99_999", {}, "{} is larger than 9.31313e-05 GiB, so it is no classifier."),
    "untold": ("MAX_BYTES = 99_999", {"length": None}, "{} is larger than 9.31313e-05 GiB, so it is no classifier."),
    "room": ("shutil.disk_usage = lambda _: Namespace(free=9)", {}, "{} has no room in {}: it takes 0.1 MB more."),
    "shorter": ("PAUSES = (0,)", {"length": 100_001, "ranges": False}, "{} comes cut off."),
    "nothing": ("PAUSES = (0,)", {"cap": 0}, "{} comes cut off."),
}


@pytest.mark.parametrize(("bound", "options", "sentence"), BOUNDS.values(), ids=BOUNDS.keys())
def test_bounds(web: Web, cache: Path, bound: str, options: dict[str, object], sentence: str) -> None:
    """A file that is too large, has no room, or is shorter than announced, is refused; the bounds are lower here."""
    web.put("/export.pkl", SMALL, **options)
    code = "import sys; from argparse import Namespace; from pigeonhole import cli"
    code = f"{code}; from pigeonhole.model.store import fetching; fetching.{bound}; sys.exit(cli.main())"
    command = [sys.executable, "-c", code, "download", web.url + "/export.pkl"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    told = Ended(done.returncode, done.stdout, done.stderr)
    assert told.refusal == sentence.format(web.url + "/export.pkl", cache)
    assert bool(parts(cache)) is ("PAUSES" in bound)  # what may go on another time


ADDRESSES = {
    "https://example.com/export.pkl": None,
    "http://localhost:8000/export.pkl": None,
    "http://127.0.0.5/export.pkl": None,
    "http://[::1]:80/export.pkl": None,
    "s3://bucket/a b/export.pkl": None,
    "hf://me/birds@v1/export.pkl": None,
    "runs:/0123abc/model/export.pkl": None,
    "models:/birds/12": None,
    "models:/birds@champion": None,
    "models:/m-0123abc": None,
    "http://example.com/export.pkl": "is not encrypted",
    "http://127.0.0.1.example.com/export.pkl": "is not encrypted",
    "http://10.0.0.1/export.pkl": "is not encrypted",
    "https://me:secret@example.com/export.pkl": "holds a password",
    "https://token@example.com/export.pkl": "holds a password",
    "https://example.com": "names no file",
    "https:///export.pkl": "names no file",
    "https://[::1/export.pkl": "names no file",
    "s3://bucket/": "names no file",
    "runs:/0123abc": "looks like runs:/ID/path/export.pkl",
    "models:/birds/Production": "looks like models:/NAME/VERSION",
    "ftp://example.com/export.pkl": "no address that a model can come from",
    "file:///etc/passwd": "no address that a model can come from",
    "export.pkl": "no address that a model can come from",
}


@pytest.mark.parametrize(("address", "complaint"), ADDRESSES.items(), ids=ADDRESSES.keys())
def test_addresses(address: str, complaint: str | None) -> None:
    """What is visibly no address is refused before anybody is asked."""
    if complaint is None:
        check_address(address)
    else:
        with pytest.raises(DownloadError, match=complaint) as refusal:
            check_address(address)
        assert "secret" not in str(refusal.value)


@pytest.mark.parametrize(
    "path", ["export.pkl", "./a/export.pkl", "/a/export.pkl", "C:/export.pkl", "~/export.pkl", "a:b"]
)
def test_paths(path: str) -> None:
    """A path is no address."""
    assert not is_address(path)


@pytest.mark.parametrize(
    ("address", "seen"),
    [
        ("https://example.com/a.pkl?X-Amz-Signature=secret#secret", "https://example.com/a.pkl?…"),
        ("https://me:secret@example.com/a.pkl", "https://…@example.com/a.pkl"),
        ("https://secret@example.com/me@here.pkl", "https://…@example.com/me@here.pkl"),
        ("s3://a\x1b[2J/b\n.pkl", "s3://a…[2J/b….pkl"),
        ("models:/birds@champion", "models:/birds@champion"),
    ],
)
def test_shown(address: str, seen: str) -> None:
    """An address is shown without passwords, signatures and what moves a cursor."""
    assert shown(address) == seen


def test_signatures_stay_secret(web: Web, cache: Path) -> None:
    """The query of an address is sent, and nothing else is done with it: no line and no file holds it."""
    web.put("/export.pkl", SMALL, cuts=[5])
    address = web.url + "/export.pkl?X-Amz-Signature=5ec2e7%2Fx&a=b%20c"
    ended = downloads(address, address.replace("export", "no"), address.replace("http:", "https:"))
    assert ended[0].path.read_bytes() == SMALL
    assert web.queries[0] == "X-Amz-Signature=5ec2e7%2Fx&a=b%20c"
    assert "5ec2e7" not in str(ended)
    assert not [
        path
        for path in cache.rglob("*")
        if "5ec2e7" in str(path) or (path.is_file() and b"5ec2e7" in path.read_bytes())
    ]


def test_two_at_once(web: Web, cache: Path) -> None:
    """Of two processes that want the same file, one downloads it, the other waits, and both get it."""
    web.put("/export.pkl", LARGE, pause=0.05)
    command = [*DOWNLOAD, web.url + "/export.pkl"]
    both = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    ended = [process.communicate() for process in both]
    assert {out for out, _ in ended} == {f"{cache}/{sha256(LARGE)}/export.pkl\n"}
    assert Path(ended[0][0].strip()).read_bytes() == LARGE
    assert sum("Another process is downloading" in told for _, told in ended) == 1
    assert len(web.got()) == 3


def test_terminal(web: Web, cache: Path) -> None:
    """A terminal shows a bar; standard output holds the path alone all the same."""
    web.put("/export.pkl", LARGE)
    ours, its = pty.openpty()
    termios.tcsetwinsize(its, (24, 80))
    with subprocess.Popen(
        [*DOWNLOAD, web.url + "/export.pkl"], cwd=ROOT, stdout=subprocess.PIPE, stderr=its, text=True
    ) as process:
        os.close(its)
        seen = b"".join(iter(lambda: _read(ours), b"")).decode()
        out, _ = process.communicate()
    os.close(ours)
    assert out == f"{cache}/{sha256(LARGE)}/export.pkl\n"
    assert "100%|" in seen
    assert "40 %" not in seen


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65_536)
    except OSError:  # Linux says so when the other end is closed
        return b""


@pytest.mark.parametrize("missing", ["fsspec", "s3fs", "gcsfs", "huggingface_hub", "mlflow"])
def test_packages_missing(missing: str, cache: Path) -> None:
    """Without the package that an address needs, the sentence says what installs it."""
    address = {"s3fs": "s3://a/b", "gcsfs": "gs://a/b", "huggingface_hub": "hf://a/b/c", "mlflow": "models:/a/1"}
    code = f"import sys; sys.modules[{missing!r}] = None; from pigeonhole.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "download", address.get(missing, "https://example.com/x.pkl")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    told = Ended(done.returncode, done.stdout, done.stderr).refusal
    assert told.endswith(f" needs {missing}, which is not installed; `tools/environment.sh .venv store` installs it.")


# Stores and hubs


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What the environment has to say for moto's S3, which holds models/a/birds.pkl."""
    with s3(tmp_path_factory.mktemp("s3")) as address:
        sent("PUT", address + "/models/a/birds.pkl", LARGE)
        yield {
            "AWS_ENDPOINT_URL": address,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }


def test_s3(bucket: dict[str, str], cache: Path) -> None:
    """s3:// reads from S3 with the credentials of the environment, once."""
    first, again, missing, folder = downloads(
        "s3://models/a/birds.pkl", "s3://models/a/birds.pkl", "s3://models/no.pkl", "s3://models/a", **bucket
    )
    assert first.path == again.path == cache / sha256(LARGE) / "birds.pkl"
    assert first.path.read_bytes() == LARGE
    assert (first.told.count("Downloading"), again.told) == (1, "")
    assert missing.refusal == "s3://models/no.pkl is not there."
    assert folder.refusal == "s3://models/a is a folder; name the file in it."
    nobody = download("s3://models/a/birds.pkl", **{**bucket, "AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""})
    assert nobody.refusal.endswith("AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, say who asks.")


def test_gs(web: Web, cache: Path) -> None:
    """gs:// reads from Google's storage, once."""
    web.put_object("models", "a/birds.pkl", LARGE)
    first, again, missing = downloads(
        *("gs://models/a/birds.pkl", "gs://models/a/birds.pkl", "gs://models/no.pkl"),
        STORAGE_EMULATOR_HOST=web.url,
        NO_GCE_CHECK="true",
    )
    assert first.path == again.path == cache / sha256(LARGE) / "birds.pkl"
    assert first.path.read_bytes() == LARGE
    assert (first.told.count("Downloading"), again.told) == (1, "")
    assert missing.refusal == "gs://models/no.pkl is not there."


def test_hf(web: Web, cache: Path) -> None:
    """hf:// reads from a model hub, once, and what comes has to have the SHA-256 that the hub says."""
    page = web.put_in_hub("me/birds", "export.pkl", LARGE)
    page.cuts = [PIECE, 1_000_000]
    web.put_in_hub("me/others", "export.pkl", LARGE, sha256="0" * 64)
    first, again, missing, absent, damaged = downloads(
        *("hf://me/birds/export.pkl", "hf://me/birds/export.pkl", "hf://me/birds/no.pkl", "hf://me/no/export.pkl"),
        "hf://me/others/export.pkl",
        HF_ENDPOINT=web.url,
    )
    assert first.path == again.path == cache / sha256(LARGE) / "export.pkl"
    assert first.path.read_bytes() == LARGE
    assert (first.told.count("Downloading"), again.told) == (1, "")
    assert [web.got().count(part) for part in ("0-8388607", "8388608-16777215")] == [2, 3]  # of two files, one cut
    assert missing.refusal == "hf://me/birds/no.pkl is not there."
    assert absent.refusal == "hf://me/no/export.pkl is not there."
    assert damaged.refusal == "hf://me/others/export.pkl was damaged on the way; it was not kept."


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MLflow]:
    with mlflow(tmp_path_factory.mktemp("mlflow")) as registry:
        yield registry


def test_mlflow(registry: MLflow, cache: Path) -> None:
    """A run's artifact and a registered model, a file or a folder with one, come from MLflow's own server, once."""
    run, place = registry.run()
    for path, content in {
        "e.pkl": SMALL,
        "model/MLmodel": b"x",
        "model/data/birds.onnx": LARGE,
        "old/model.fastai": OTHER,
    }.items():
        registry.put(f"{place}/{path}", content)
    logged, itself = registry.logged_model()
    registry.put(f"{itself}/birds.pkl", SMALL)
    registry.ask("registered-models/create", name="birds")
    expected = {
        f"runs:/{run}/e.pkl": ("e.pkl", SMALL),
        f"runs:/{run}/model": ("birds.onnx", LARGE),
        "models:/birds/" + registry.register("birds", f"runs:/{run}/e.pkl", run_id=run): ("e.pkl", SMALL),
        "models:/birds/" + registry.register("birds", f"{place}/model", run_id=run): ("birds.onnx", LARGE),
        "models:/birds/" + registry.register("birds", f"runs:/{run}/old", run_id=run): ("model.fastai.pkl", OTHER),
        "models:/birds@champion": ("model.fastai.pkl", OTHER),
        f"models:/{logged}": ("e.pkl", SMALL),
        "models:/birds/" + registry.register("birds", itself, model_id=logged): ("e.pkl", SMALL),
    }
    registry.ask("registered-models/alias", name="birds", alias="champion", version="3")
    ended = downloads(*expected, *expected, MLFLOW_TRACKING_URI=registry.address)
    first, again = ended[: len(expected)], ended[len(expected) :]
    assert [one.path for one in first] == [cache / sha256(content) / name for name, content in expected.values()]
    assert [one.path.read_bytes() for one in first] == [content for _, content in expected.values()]
    assert [one.path for one in again] == [one.path for one in first]
    assert {one.told for one in again} == {""}


def test_mlflow_refusals(registry: MLflow, cache: Path) -> None:
    """What is not there, or is not one model, is said; and so is a server that nobody named."""
    run, place = registry.run()
    for path in ("two/a.pkl", "two/b.pkl", "none/MLmodel"):
        registry.put(f"{place}/{path}", SMALL)
    registry.ask("registered-models/create", name="owls")
    number = registry.register("owls", f"{place}/two", run_id=run)
    expected = {
        f"models:/owls/{number}": "{} holds 2 models, so name one by runs:/ID/path; there is a.pkl, b.pkl.",
        f"runs:/{run}/none": "{} holds no .pkl and no .onnx, so name one by runs:/ID/path; there is MLmodel.",
        f"runs:/{run}/no.pkl": "{} is not there.",
        f"runs:/{'0' * 32}/e.pkl": "{} is not there.",
        "models:/owls/9": "{} is not there.",
        "models:/owls@champion": "{} is not there: the model has no such alias.",
    }
    ended = downloads(*expected, MLFLOW_TRACKING_URI=registry.address)
    assert [one.refusal for one in ended] == [sentence.format(address) for address, sentence in expected.items()]
    unnamed = download("models:/owls/1", MLFLOW_TRACKING_URI="")
    assert unnamed.refusal == "models:/owls/1 needs to know the MLflow server: MLFLOW_TRACKING_URI is its address."


def test_mlflow_on_s3(registry: MLflow, bucket: dict[str, str], cache: Path) -> None:
    """Artifacts that MLflow keeps in S3 are read from there, by parts, at MLflow's own endpoint for it."""
    run, _ = registry.run("s3://models/mlflow")
    sent("PUT", f"{bucket['AWS_ENDPOINT_URL']}/models/mlflow/{run}/artifacts/model/birds.pkl", LARGE)
    endpoint = {"MLFLOW_S3_ENDPOINT_URL": bucket["AWS_ENDPOINT_URL"], "AWS_ENDPOINT_URL": ""}
    registry.ask("registered-models/create", name="gulls")
    ended = downloads(
        f"runs:/{run}/model/birds.pkl",
        f"runs:/{run}/model",
        "models:/gulls/" + registry.register("gulls", f"runs:/{run}/model", run_id=run),
        **{**bucket, **endpoint, "MLFLOW_TRACKING_URI": registry.address},
    )
    assert [one.path.read_bytes() == LARGE for one in ended] == [True] * 3
    assert [" 40 %" in one.told.splitlines() for one in ended] == [True] * 3


def test_no_telemetry(registry: MLflow, cache: Path) -> None:
    """Nobody but the server that was named hears of a download."""
    run, place = registry.run()
    registry.put(f"{place}/e.pkl", SMALL)
    done = subprocess.run(
        [sys.executable, "-c", LISTENING, "download", f"runs:/{run}/e.pkl"],
        cwd=ROOT,
        env={**os.environ, "MLFLOW_TRACKING_URI": registry.address},
        capture_output=True,
        text=True,
    )
    path, hosts = done.stdout.splitlines()
    assert Path(path).read_bytes() == SMALL
    assert json.loads(hosts) == ["127.0.0.1"]


# The whole service


def test_served(
    web: Web, cache: Path, compiled: Callable[[str], Path], start_server: StartServer, uploads: Path
) -> None:
    """With an address as MODEL, gunicorn downloads the model, whatever breaks on the way, and serves it."""
    web.put("/export.onnx", compiled("plain").read_bytes(), cuts=[1000], pause=0.2)
    server = start_server(MODEL=f"{web.url}/export.onnx?key=5ec2e7", WORKERS="2", UPLOADS=str(uploads), wait=False)
    while not web.got():
        time.sleep(0.01)
    assert not [path for path in Path("/proc").glob("[0-9]*/cmdline") if "5ec2e7" in path.read_text()]
    wait_until_up(server)
    status, answer = post(server, picture())
    assert status == 200, answer
    assert server.stop() == 0
    log = server.log.read_text()
    assert f"Pigeonhole serves {cache}/" in log
    assert "5ec2e7" not in log
    assert len(web.got("HEAD")) == 2  # before and after the download; the workers ask nobody


def test_not_served(web: Web, cache: Path, start_server: StartServer, uploads: Path) -> None:
    """Where MODEL is another file than MODEL_SHA256 says, nothing is started, and the reason is said."""
    web.put("/export.pkl", SMALL)
    server = start_server(MODEL=f"{web.url}/export.pkl", MODEL_SHA256="0" * 64, UPLOADS=str(uploads), wait=False)
    assert server.process.wait(30) == 1
    assert server.log.read_text().splitlines()[-3:] == [
        f"MODEL={web.url}/export.pkl has the SHA-256 {sha256(SMALL)}, "
        f"and MODEL_SHA256 says {'0' * 64}; it was not kept.",
        "Pigeonhole does not start.",
        "MODEL was not downloaded; the reason stands above.",
    ]


def test_other_servers(web: Web, cache: Path, compiled: Callable[[str], Path], uploads: Path) -> None:
    """Any other server downloads the model when it is first needed, in its own process."""
    web.put("/export.onnx", compiled("plain").read_bytes())
    code = "from app import create_app; print(create_app().test_client().get('/ready').json['success'])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "MODEL": web.url + "/export.onnx", "UPLOADS": str(uploads)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "ready\n"), done.stderr
