"""Files somewhere else, as fsspec and MLflow know them: what they are, and how to get their bytes."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import string
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol
from urllib.parse import quote, unquote, urlsplit

from pigeonhole.errors import DownloadError, Unreachable
from pigeonhole.model.store.addresses import REGISTERED, RUN, is_safe, shown
from pigeonhole.model.store.cache import SUFFIXES
from pigeonhole.model.store.troubles import NoRanges, translated

DIRECT = ("s3", "gs", "hf", "https")  # where MLflow would need a package for each, and downloads in one go
LEARNERS = (".pkl", ".fastai")  # the second is what MLflow's own flavour called what learn.export() wrote
CHUNK = 1024 * 1024  # bytes that are read at a time of a file that comes in one stream
PAUSE = 0.5  # seconds before an http server is asked once more; other packages try again by themselves
MAX_NAMES = 10  # of a folder, in a sentence
CONNECT_SECONDS, READ_SECONDS = 15, 60
# what tells one version of a file from the next, as fsspec's backends call it
VERSION_MARKS = ("ETag", "etag", "VersionId", "generation", "md5Hash", "blob_id", "xet_hash", "mtime", "Last-Modified")

Count = Callable[[int], None]  # is told how many bytes of a file are there


class Read(Protocol):
    def __call__(self, start: int, end: int) -> bytes: ...


@dataclass(frozen=True)
class Remote:
    """A file somewhere else, as it is now; what is not known of it is None.

    `read` gives the bytes from `start` to before `end`, and is None where the file only comes whole, or nothing tells
    how long it is or whether two parts are of one version. `save` puts the whole of it into a path. Both raise what the
    package behind them raises.
    """

    name: str
    version: str | None
    size: int | None
    sha256: str | None
    read: Read | None
    save: Callable[[Path, Count], None]


def remote_at(address: str) -> Remote:
    """What is at `address`, without its bytes.

    Raises:
        DownloadError, PackagesMissing: as `fetch`.
    """
    for pause in (*((PAUSE,) if address.startswith("http") else ()), None):
        try:
            with translated(address):
                return _of_mlflow(address) if address.startswith(("runs:", "models:")) else _of_fsspec(address)
        except Unreachable:
            if pause is None:
                raise
            time.sleep(pause)
    raise AssertionError("the last try returns or raises")


def _of_fsspec(address: str, **options: Any) -> Remote:
    files, path = _file_system(address, **options)
    info = files.info(path)
    if info["type"] == "directory":
        raise DownloadError(f"MODEL={shown(address)} is a folder; name the file in it.")
    marks = {key: str(info[key]) for key in VERSION_MARKS if info.get(key)}
    # HfFileSystem reads ahead unless told, and so everything twice
    unread = {} if files.async_impl else {"cache_type": "none"}

    def read(start: int, end: int) -> bytes:
        return files.cat_file(path, start=start, end=end, **unread)

    def save(target: Path, count: Count) -> None:
        with files.open(path, "rb", block_size=0) as source, target.open("wb") as file:
            while chunk := source.read(CHUNK):
                file.write(chunk)
                count(file.tell())

    return Remote(
        name=unquote(PurePosixPath(urlsplit(address).path).name),
        version=_hash(path, info["size"], marks) if marks else None,
        size=info["size"],
        sha256=info["lfs"].sha256 if info.get("lfs") else None,
        read=read if marks and info["size"] is not None and info.get("partial") is not False else None,
        save=save,
    )


def _file_system(address: str, **options: Any) -> tuple[Any, str]:
    """What fsspec reads `address` with, and what it calls it there; nothing that it learns is kept for the next one."""
    import fsspec  # type: ignore[import-untyped]

    scheme = address.partition(":")[0]
    if scheme in ("http", "https"):
        address = quote(address.partition("#")[0], safe=string.punctuation)
        options |= {"encoded": True, "client_kwargs": _http_options()}
    if scheme == "s3":
        timeouts = {"connect_timeout": CONNECT_SECONDS, "read_timeout": READ_SECONDS}
        options["config_kwargs"] = {**timeouts, "retries": {"max_attempts": 2}}
    return fsspec.filesystem(scheme, skip_instance_cache=True, **options), address


def _http_options() -> dict[str, Any]:
    """How aiohttp asks: for the bytes as they are, through the proxies of the environment, under the eyes of `_watch`.

    Its own five minutes for all of a download are too few.
    """
    import aiohttp

    return {
        "headers": {"Accept-Encoding": "identity"},
        "auto_decompress": False,
        "middlewares": (_watch,),
        "timeout": aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS),
        "trust_env": True,
    }


async def _watch(request: Any, handler: Any) -> Any:
    """Look at each step of a redirect before it is taken, and at each answer before it is read.

    fsspec takes whatever comes for the part it asked for.
    """
    if not is_safe(request.url.scheme, request.url.host or ""):
        raise DownloadError("MODEL leads to an address that is not encrypted, so it is not downloaded.")
    response = await handler(request)
    asked = re.fullmatch(r"bytes=(\d+)-\d+", request.headers.get("Range", ""))
    given = response.headers.get("Content-Range", "")
    if response.headers.get("Content-Encoding", "identity") != "identity":
        response.close()
        raise DownloadError("MODEL leads to a server that compresses what it sends, unasked.")
    if asked and (response.status == 200 or (response.status == 206 and not given.startswith(f"bytes {asked[1]}-"))):
        response.close()
        raise NoRanges
    return response


def _of_mlflow(address: str) -> Remote:
    """A file of an MLflow run or of a registered model, wherever its bytes are."""
    from mlflow import environment_variables
    from mlflow.store.artifact import artifact_repository_registry

    place, mark = _place(address)
    variables: Any = environment_variables  # typed in parts
    repository: Any = artifact_repository_registry.get_artifact_repository
    scheme = place.partition(":")[0]
    options = {"endpoint_url": variables.MLFLOW_S3_ENDPOINT_URL.get()} if scheme == "s3" else {}
    if PurePosixPath(place).suffix not in SUFFIXES:
        names = _found(place, **options) if scheme in DIRECT else _artifacts(repository(place))
        place += "".join(f"/{name}" for name in _the_model(address, names))
    if scheme in DIRECT:
        return _of_fsspec(place, **options)
    folder, _, name = place.rpartition("/")
    files = repository(folder)
    sizes = {file.path: file.file_size for file in files.list_artifacts() if not file.is_dir}
    if name not in sizes:
        raise FileNotFoundError(name)

    def save(target: Path, count: Count) -> None:
        draft = target.with_suffix(".draft")  # a folder: MLflow itself says how the file in it is called
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        Path(files.download_artifacts(name, dst_path=str(draft))).replace(target)
        shutil.rmtree(draft)
        count(target.stat().st_size)

    version = _hash(place, sizes[name], mark) if mark else None
    return Remote(name, version, sizes[name], sha256=None, read=None, save=save)


def _place(address: str) -> tuple[str, str | None]:
    """Where the bytes of a run's artifact or of a registered model are, and what changes when they do.

    MLflow keeps no checksum of an artifact. What is registered does not change, nor does a run that has ended.
    """
    import mlflow

    flow: Any = mlflow  # typed in parts
    if not flow.is_tracking_uri_set():
        raise DownloadError(f"MODEL={address} needs to know the MLflow server: MLFLOW_TRACKING_URI is its address.")
    client = flow.MlflowClient()
    if run := RUN.fullmatch(address):
        info = client.get_run(run[1]).info
        return f"{info.artifact_uri.rstrip('/')}/{run[2]}", f"{run[1]} {info.end_time}" if info.end_time else None
    registered = REGISTERED.fullmatch(address)
    assert registered
    if registered["model"]:
        return client.get_logged_model(registered["model"]).artifact_location, registered["model"]
    name, number = registered["name"], registered["version"]
    if registered["alias"]:
        number = client.get_model_version_by_alias(name, registered["alias"]).version
    version = client.get_model_version(name, number)
    # download_artifacts of models:/… gives an empty folder where a version is a single file (MLflow 3.17)
    place = client.get_model_version_download_uri(name, number)
    if (RUN if place.startswith("runs:") else REGISTERED).fullmatch(place):
        place, _ = _place(place)
    return place, f"{name} {number} {version.creation_timestamp}"


def _found(place: str, **options: Any) -> list[str]:
    """The files below a folder that fsspec reads, as seen from there."""
    files, path = _file_system(place, **options)
    above = files._strip_protocol(path).rstrip("/") + "/"
    return [name.removeprefix(above) for name in files.find(path) if name.startswith(above)]


def _artifacts(files: Any, folder: str | None = None) -> list[str]:
    """The files below a folder of artifacts, as seen from its root."""
    found: list[str] = []
    for file in files.list_artifacts(folder):
        found += _artifacts(files, file.path) if file.is_dir else [file.path]
    return found


def _the_model(address: str, names: Sequence[str]) -> list[str]:
    """Of the files in a folder, the one that is a model; none if it is no folder.

    Raises:
        DownloadError: there is no model in it, or more than one.
    """
    for suffixes in (LEARNERS, SUFFIXES):
        models = [name for name in names if PurePosixPath(name).suffix in suffixes]
        if len(models) == 1:
            return models
    if not names:
        return []
    listed = ", ".join(sorted(names)[:MAX_NAMES]) + (", …" if len(names) > MAX_NAMES else "")
    seen = f"{len(models)} models" if models else "no .pkl and no .onnx"
    raise DownloadError(f"MODEL={shown(address)} holds {seen}, so name one by runs:/ID/path; there is {listed}.")


def _hash(*marks: object) -> str:
    return hashlib.sha256(json.dumps(marks, sort_keys=True).encode()).hexdigest()
