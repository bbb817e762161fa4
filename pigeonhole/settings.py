"""What can be set, from the environment: the only place that reads it.

Every setting has a type, bounds and a default; what does not fit is refused at the start, all complaints at once.
The names in the environment are the fields' in capitals: `PORT=8000 make serve`. An empty one counts as not set.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from pigeonhole.errors import SettingsError

MIB = 1024 * 1024
PILLOWS_OWN_PIXEL_LIMIT = 89_478_485  # above it Pillow warns of a decompression bomb; we stay below


class Settings(BaseSettings):
    """The service's settings; `Settings.load()` takes them from the environment."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True)

    model: Annotated[Path, Field(description="the file that `learn.export()` wrote, or that was compiled from it")] = (
        Path("export.pkl")
    )
    model_sha256: Annotated[
        str | None,
        Field(
            pattern="^[0-9a-fA-F]{64}$",
            description="what the SHA-256 of `MODEL` has to be; it is checked before opening",
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
    threads: Annotated[int, Field(ge=1, le=256, description="requests one worker takes in at the same time")] = 8
    uploads: Annotated[Path, Field(description="folder where a photo lies while it is being answered")] = Path("tmp")
    orientation: Annotated[
        Literal["upright", "as-stored"],
        Field(description="`upright` turns photos by their EXIF tag, `as-stored` does as fastai does"),
    ] = "upright"
    max_body_bytes: Annotated[int, Field(ge=1024, le=1024 * MIB, description="largest request")] = 10 * MIB
    max_form_bytes: Annotated[int, Field(ge=1024, le=16 * MIB, description="largest text field of a form")] = 64 * 1024
    max_files: Annotated[int, Field(ge=1, le=1000, description="most files in one request")] = 10
    # phones take 12 to 24 million; on the way 25 million take 97 MB as JPEG, 192 as PNG with alpha, 386 as such a WebP
    max_pixels: Annotated[
        int, Field(ge=1, le=PILLOWS_OWN_PIXEL_LIMIT, description="most pixels of a picture, read from its header")
    ] = 25_000_000
    max_side: Annotated[int, Field(ge=1, le=65_535, description="longest side of a picture in pixels")] = 10_000
    max_decoded: Annotated[
        int, Field(ge=1, le=256, description="most pictures decoded at the same time in one worker; others wait")
    ] = 2
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Field(description="how much is logged, to standard error")
    ] = "info"

    @property
    def allowed_globals(self) -> frozenset[str]:
        return frozenset(re.split(r"[\s,]+", self.allow_pickle_globals)) - {""}

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


def _complaint(error: object) -> str:
    assert isinstance(error, dict)
    name = ".".join(map(str, error["loc"])).upper()
    allowed = re.sub(r"^\w+ should", "must", error["msg"])  # "Input should be a valid integer"
    return f"{name}={error['input']} is not possible: it {allowed}."
