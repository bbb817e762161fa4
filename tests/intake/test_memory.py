"""How much memory a picture takes is told from its header, neither too little nor far too much."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from pigeonhole.intake.memory import OVERHEAD
from pigeonhole.intake.pictures import EXIF_ORIENTATION, open_photo
from tests.conftest import LIMITS, ROOT, encoded

CODE = """
import sys
from pathlib import Path
from pigeonhole.intake.formats import FORMATS
from pigeonhole.intake.pictures import Limits, open_photo

def memory(what):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) * 1024

limits = Limits(25_000_000, 10_000, tuple(FORMATS))
for path in sys.argv[1:]:
    with open(path, "rb") as file:
        photo = open_photo(file, limits)
        Path("/proc/self/clear_refs").write_text("5")
        before = memory("VmRSS")
        photo.decoded()
        print(photo.bytes_needed, memory("VmHWM") - before)
"""
SIZE = (4000, 3000)
FREES_AT_ONCE = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 20)}  # as gunicorn_conf has it
HEIC = ROOT / "tests" / "intake" / "heic"


def made(kind: str, mode: str, turned: bool = False, **options: object) -> Callable[[], bytes]:
    if turned:
        options["exif"] = Image.Exif()
        options["exif"][EXIF_ORIENTATION] = 6  # type: ignore[index]
    return lambda: encoded(Image.new(mode, SIZE, 99), kind, **options)


PICTURES = {
    "JPEG": made("JPEG", "RGB"),
    "JPEG, turned": made("JPEG", "RGB", turned=True),
    "JPEG, progressive": made("JPEG", "RGB", progressive=True),
    "JPEG, progressive 4:4:4": made("JPEG", "RGB", progressive=True, subsampling=0),
    "JPEG, CMYK": made("JPEG", "CMYK"),
    "JPEG, progressive CMYK": made("JPEG", "CMYK", progressive=True),
    "JPEG, grey": made("JPEG", "L"),
    "PNG": made("PNG", "RGB", compress_level=1),
    "PNG, turned": made("PNG", "RGB", turned=True, compress_level=1),
    "PNG, RGBA": made("PNG", "RGBA", turned=True, compress_level=1),
    "PNG, LA": made("PNG", "LA", turned=True, compress_level=1),
    "PNG, palette": made("PNG", "P", compress_level=1),
    "PNG, transparent palette": made("PNG", "P", compress_level=1, transparency=0),
    "PNG, 16-bit grey": made("PNG", "I;16", turned=True, compress_level=1),
    "GIF": made("GIF", "P"),
    "GIF, transparent": made("GIF", "P", transparency=0),
    "WebP": made("WEBP", "RGB", method=0),
    "WebP, RGBA": made("WEBP", "RGBA", turned=True, method=0),
    "WebP, lossless": made("WEBP", "RGBA", method=0, lossless=True, quality=0),
    "BMP": made("BMP", "RGB"),
    "AVIF": made("AVIF", "RGB", speed=10),
    "AVIF, RGBA 4:4:4": made("AVIF", "RGBA", turned=True, speed=10, subsampling="4:4:4"),
    "TIFF": made("TIFF", "RGB", turned=True),
    "TIFF, deflate CMYK": made("TIFF", "CMYK", compression="tiff_adobe_deflate"),
    "HEIC": (HEIC / "12-megapixels.heic").read_bytes,
    "HEIC, 10 bits": (HEIC / "12-megapixels-10-bit.heic").read_bytes,
}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, int]]:
    """What each was said to need, and what it took; one process for all, since each gives all back."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("the peak of a process is not told here")
    folder = tmp_path_factory.mktemp("pictures")
    paths = [folder / re.sub(r"\W", "-", name) for name in PICTURES]
    for path, make in zip(paths, PICTURES.values(), strict=True):
        path.write_bytes(make())
    output = subprocess.check_output(
        [sys.executable, "-c", CODE, *map(str, paths)], cwd=ROOT, env=FREES_AT_ONCE, text=True
    )
    numbers = [tuple(map(int, line.split())) for line in output.splitlines()]
    return dict(zip(PICTURES, numbers, strict=True))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", PICTURES)
def test_bytes_needed(measured: dict[str, tuple[int, int]], name: str) -> None:
    """Decoding twelve million pixels takes no more than is told from the header, and at least half of it."""
    needed, taken = measured[name]
    assert taken <= needed <= 2 * (taken + OVERHEAD)


def test_one_component_at_a_time() -> None:
    """A JPEG that gives its components one after the other holds coefficients as a progressive one does."""
    content = encoded(Image.new("RGB", (800, 600)), "JPEG", subsampling=0)
    together, alone = b"\xff\xda\0\x0c\3\1\0\2\x11\3\x11\0\x3f\0", b"\xff\xda\0\x08\1\1\0\0\x3f\0"
    assert together in content
    needed = [open_photo(io.BytesIO(one), LIMITS).bytes_needed for one in (content, content.replace(together, alone))]
    assert needed == [4 * 480_000 + OVERHEAD, 10 * 480_000 + OVERHEAD]
