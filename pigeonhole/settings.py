"""What can be set, from the environment: the only place that reads it.

Every setting has a type, bounds and a default; what does not fit is refused at the start, all complaints at once.
The names in the environment are the fields' in capitals: `PORT=8000 make serve`. An empty one counts as not set.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict

from pigeonhole.errors import SettingsError

MIB = 1024 * 1024
FORMATS = ("jpeg", "png", "gif", "webp", "bmp", "avif", "heic", "tiff")
FORMAT = f"({'|'.join(FORMATS)})"
NO_CONTROL = r"[^\x00-\x1f\x7f]"
COLLECTOR = r"^(https?://\S+)?$"
ORIGIN = r"https?://[a-zA-Z0-9.-]+(:[0-9]{1,5})?"
NAME = r"\.?[a-zA-Z0-9-]+(\.[a-zA-Z0-9-]+)*"
# a name, and a digest or printable ASCII, without the comma that stands between keys
KEY = r"[\w.-]{1,64}:(sha256=[0-9a-fA-F]{64}|(?!sha256=)[!-+\--~]{16,256})"
# what may hold a password
ADDRESSES = {"model", "rate_limit_storage", "otel_exporter_otlp_endpoint", "otel_exporter_otlp_traces_endpoint"}
PILLOWS_OWN_PIXEL_LIMIT = 89_478_485  # above it Pillow warns of a decompression bomb; we stay below


@dataclass(frozen=True)
class Listed:
    """A setting as people read it."""

    name: str
    value: str
    default: str
    meaning: str


def _is_keys(keys: SecretStr) -> SecretStr:
    if not re.fullmatch(rf"({KEY}(\s*,\s*{KEY})*)?", keys.get_secret_value().strip()):
        raise ValueError
    return keys


def _is_rate(rate: str | None) -> str | None:
    if rate is not None:
        from limits import parse_many  # takes 3 MB

        if not all(limit.amount for limit in parse_many(rate)):
            raise ValueError
    return rate


class Settings(BaseSettings):
    """The service's settings; `Settings.load()` takes them from the environment."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True)

    model: Annotated[
        str,
        Field(
            min_length=1,
            description="the file that `learn.export()` wrote, or that was compiled from it: a path, or an `https://`, "
            "`s3://`, `gs://`, `hf://`, `runs:/` or `models:/` address to download it from",
        ),
    ] = "export.pkl"
    model_cache: Annotated[Path, Field(description="folder where downloaded models are kept, by their SHA-256")] = Path(
        "~/.cache/pigeonhole"
    )
    model_name: Annotated[
        str, Field(pattern=r"^[\w.-]{1,100}$", description="what Open Inference Protocol clients call the model")
    ] = "pigeonhole"
    model_sha256: Annotated[
        str | None,
        Field(
            pattern="^[0-9a-fA-F]{64}$",
            description="the SHA-256 that `MODEL` has to have; it is checked before opening",
        ),
    ] = None
    allow_pickle_globals: Annotated[
        str,
        Field(
            pattern=r"^[\w.,\s]*$",
            description="names like `package.module.name`, by commas, that the file may import and call as well",
        ),
    ] = ""
    engine: Annotated[
        Literal["auto", "compiled", "learner"],
        Field(
            description="`compiled` answers with export.onnx, `learner` with `learner.predict`; "
            "`auto` compiles once, and takes the learner where that does not work"
        ),
    ] = "auto"
    device: Annotated[
        Literal["cpu", "cuda", "mps"],
        Field(
            description="`cuda` or `mps` computes on a GPU of NVIDIA's or Apple's with PyTorch, which has to be there "
            "with the export; `cpu` with OpenVINO"
        ),
    ] = "cpu"
    precision: Annotated[
        Literal["auto", "exact"],
        Field(
            description="`exact` decodes whole photos and computes in float32; `auto` only where a faster way could "
            "give another label"
        ),
    ] = "auto"
    host: Annotated[str, Field(description="address to listen on; `0.0.0.0` lets other machines in")] = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65535, description="port to listen on")] = 5000
    workers: Annotated[int, Field(ge=1, le=64, description="processes, each with a model of its own")] = 1
    threads: Annotated[int, Field(ge=1, le=256, description="requests one worker answers at the same time")] = 8
    uploads: Annotated[Path, Field(description="folder where a photo lies while it is being answered")] = Path("tmp")
    orientation: Annotated[
        Literal["upright", "as-stored"],
        Field(description="`upright` turns photos by their EXIF tag, `as-stored` does as fastai does"),
    ] = "upright"
    receive_seconds: Annotated[
        float, Field(gt=0, le=600, description="seconds in which a request has to come, head and body")
    ] = 10
    answer_seconds: Annotated[
        float,
        Field(gt=0, le=600, description="seconds after which a request that still waits for its turn is refused"),
    ] = 20
    max_waiting: Annotated[
        int, Field(ge=0, le=10_000, description="most requests that wait for one of the `THREADS`; others are refused")
    ] = 64
    max_connections: Annotated[
        int, Field(ge=8, le=60_000, description="most connections of one worker; beyond it idle ones are closed")
    ] = 2000
    max_body_bytes: Annotated[
        int,
        Field(
            ge=1024,
            le=1024 * MIB,
            description="largest request, or picture fetched; less where there is no memory for it",
        ),
    ] = 10 * MIB
    max_form_bytes: Annotated[int, Field(ge=1024, le=16 * MIB, description="largest text field of a form")] = 64 * 1024
    max_files: Annotated[int, Field(ge=1, le=1000, description="most files in one request")] = 10
    image_formats: Annotated[
        str,
        Field(
            pattern=rf"^{FORMAT}([,\s]+{FORMAT})*$",
            description="types of picture that are accepted, by commas; `avif`, `heic` and `tiff` can be added",
        ),
    ] = "jpeg,png,gif,webp,bmp"
    # phones take 12 to 24 million; `intake.memory` has what decoding takes for each
    max_pixels: Annotated[
        int, Field(ge=1, le=PILLOWS_OWN_PIXEL_LIMIT, description="most pixels of a picture, read from its header")
    ] = 25_000_000
    max_side: Annotated[int, Field(ge=1, le=65_535, description="longest side of a picture in pixels")] = 10_000
    memory: Annotated[
        int | None,
        Field(
            ge=64,
            le=1 << 24,
            description="MiB of memory that the service counts on; by default what its container, or the machine, has",
        ),
    ] = None
    max_decoded: Annotated[
        int | None,
        Field(
            ge=1,
            le=256,
            description="most pictures one worker has in hand at the same time; by default two for each core, with a "
            "GPU as many as `THREADS`, or fewer where there is no memory for them",
        ),
    ] = None
    sandbox: Annotated[
        Literal["auto", "on", "off"],
        Field(
            description="`on` decodes pictures in processes that can do nothing else, `off` in the one that serves; "
            "`auto` is `on` where the system can do it, which Linux can"
        ),
    ] = "auto"
    fetch_urls: Annotated[bool, Field(description="`1` lets clients name a picture by its address on the web")] = False
    max_fetches: Annotated[
        int,
        Field(
            ge=1,
            le=256,
            description="most pictures fetched at once in a worker, at most `THREADS` less one; others are refused",
        ),
    ] = 4
    cors_origins: Annotated[
        str,
        Field(
            pattern=rf"^(\*|({ORIGIN}([,\s]+{ORIGIN})*)?)$",
            description="origins like `https://example.com`, by commas, whose pages may call the service; `*` for all",
        ),
    ] = ""
    api_keys: Annotated[
        SecretStr,
        AfterValidator(_is_keys),
        Field(
            description="keys that clients have to send, `name:secret` by commas, a secret of 16 printable characters "
            "or more, or `name:sha256=HEX`; without any, everybody may call"
        ),
    ] = SecretStr("")
    api_keys_file: Annotated[
        Path | None,
        Field(description="file with such keys, one a line, which is read again when it changes; `#` begins a comment"),
    ] = None
    rate_limit: Annotated[
        str | None,
        AfterValidator(_is_rate),
        Field(
            description="how many requests with pictures may come from one key, or without keys from one address: "
            "`60/minute`, or several like `5/second; 1000/day`"
        ),
    ] = None
    rate_limit_storage: Annotated[
        str | None,
        Field(
            pattern=r"^(rediss?://|redis\+unix:///)\S+$",
            repr=False,  # there may be a password in it
            description="where they are counted, `redis://HOST:6379`; without it each worker counts for itself",
        ),
    ] = None
    trusted_proxies: Annotated[
        int,
        Field(
            ge=0,
            le=16,
            description="proxies in front, `1` on Heroku, whose `X-Forwarded-For` and `X-Forwarded-Proto` are believed",
        ),
    ] = 0
    trusted_hosts: Annotated[
        str,
        Field(
            pattern=rf"^({NAME}([,\s]+{NAME})*)?$",
            description="names that the service may be called by, by commas; `.example.com` is it and what is below; "
            "without any, every name",
        ),
    ] = ""
    page: Annotated[bool, Field(description="`0` turns the page at `/` off")] = True
    page_title: Annotated[
        str,
        Field(
            pattern=f"^{NO_CONTROL}{{1,100}}$", description="what the page is called, a line of at most 100 characters"
        ),
    ] = "What is on this picture?"
    page_description: Annotated[
        str,
        Field(
            pattern=f"^{NO_CONTROL}{{1,500}}$", description="what it says below that, a line of at most 500 characters"
        ),
    ] = "Drop in a photo and see what the model says it is, and where it looked."
    page_colour: Annotated[
        str,
        Field(
            pattern="^#[0-9a-fA-F]{6}$",
            description="the page's colour, like `#0b6e5f`; text and lines of it are made darker or lighter until they "
            "can be read",
        ),
    ] = "#0b6e5f"
    page_examples: Annotated[
        Path | None, Field(description="folder of at most 12 pictures that the page offers to try, in order of names")
    ] = None
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        BeforeValidator(str.lower),
        Field(description="how much is logged, to standard error"),
    ] = "info"
    otel_exporter_otlp_endpoint: Annotated[
        str,
        Field(
            pattern=COLLECTOR,
            description="address of the OpenTelemetry collector that gets traces, like `http://localhost:4318`",
        ),
    ] = ""
    otel_exporter_otlp_traces_endpoint: Annotated[
        str,
        Field(
            pattern=COLLECTOR,
            description="the same for traces alone, with its path, like `http://localhost:4318/v1/traces`",
        ),
    ] = ""

    @property
    def traces_endpoint(self) -> str:
        """Where traces are sent; empty for nowhere."""
        base = self.otel_exporter_otlp_endpoint
        return self.otel_exporter_otlp_traces_endpoint or (base and base.rstrip("/") + "/v1/traces")

    @property
    def origins(self) -> frozenset[str]:
        return _by_commas(self.cors_origins)

    @property
    def hosts(self) -> frozenset[str]:
        return _by_commas(self.trusted_hosts.lower())

    @property
    def keys(self) -> frozenset[str]:
        return _by_commas(self.api_keys.get_secret_value())

    @property
    def has_keys(self) -> bool:
        return bool(self.keys or self.api_keys_file)

    @property
    def formats(self) -> tuple[str, ...]:
        return tuple(name for name in FORMATS if name in _by_commas(self.image_formats))

    @property
    def allowed_globals(self) -> frozenset[str]:
        return _by_commas(self.allow_pickle_globals)

    @classmethod
    def load(cls) -> Settings:
        """The settings of this process's environment.

        Raises:
            SettingsError: some do not fit; the sentence has a line for each, with the value and what is allowed.
        """
        try:
            return cls()
        except ValidationError as error:
            raise SettingsError("\n".join(map(_complaint, error.errors()))) from error

    def listed(self, mask: Callable[[str], str] = str) -> list[Listed]:
        """Every setting in the order of its declaration; `mask` hides what is secret in addresses."""
        return [
            Listed(
                name=name.upper(),
                value=(mask if name in ADDRESSES else str)(_as_text(getattr(self, name))),
                default=_as_text(field.default),
                meaning=field.description or "",
            )
            for name, field in type(self).model_fields.items()
        ]

    def with_model(self, path: Path) -> Settings:
        """The settings with the file `path` as MODEL, also for the processes that this one starts."""
        os.environ["MODEL"] = str(path)
        return self.load()


def environment_with(**changes: str) -> dict[str, str]:
    """The environment for a process of ours, with other settings."""
    return {**os.environ, **changes}


def hush_downloaders() -> None:
    """Ask the packages that download models for no telemetry, no words of their own and no minutes of trying again.

    They look at the environment when they are imported. What is set there already stays, but for the telemetry.
    """
    os.environ.update(DO_NOT_TRACK="true", MLFLOW_DISABLE_TELEMETRY="true", HF_HUB_DISABLE_TELEMETRY="1")
    for name, value in {
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_LOGGING_LEVEL": "CRITICAL",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
    }.items():
        os.environ.setdefault(name, value)


def hush_ray() -> str | None:
    """Ask Ray for no statistics of its use and no words of its own; the address of a cluster, if one is named.

    It looks at the environment when it is imported. What is set there already stays, but for the statistics.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else it warns of what it will do one day
    return os.environ.get("RAY_ADDRESS")


def _by_commas(text: str) -> frozenset[str]:
    return frozenset(re.split(r"[\s,]+", text)) - {""}


def _as_text(value: object) -> str:
    """As it would be written in the environment."""
    return str(int(value)) if isinstance(value, bool) else "" if value is None else str(value)


def _complaint(error: ErrorDetails) -> str:
    name = str(error["loc"][0])
    seen = "…" if name in ADDRESSES | {"api_keys"} else error["input"]  # the terminal may be a log
    # pydantic says "Input should be a valid integer, unable to parse string as an integer"
    allowed = re.sub(r"^\w+ should (be )?|, unable to parse.*", "", error["msg"])
    if error["type"] in ("string_pattern_mismatch", "value_error"):
        allowed = Settings.model_fields[name].description or ""
    return f"{name.upper()}={seen} is not possible: it must be {allowed}."
