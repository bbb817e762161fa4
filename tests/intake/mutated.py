"""Damaged pictures without end, the same ones for the same seed: `python -m tests.intake.mutated --seconds 3600`.

Whole files of every type, of a real photo where there is one, are changed as careless programs and attackers change
them. What comes out is a picture or one of our refusals; everything else is a finding, and written to a folder.
"""

from __future__ import annotations

import argparse
import io
import random
import re
import struct
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, ImageOps

from pigeonhole.errors import RequestError
from pigeonhole.intake.formats import FORMATS
from pigeonhole.intake.pictures import Limits, read_picture
from tests.conftest import DATA, ROOT, encoded

LIMITS = Limits(25_000_000, 10_000, tuple(FORMATS))
SLOW = 5.0  # seconds of CPU: more than any whole file within the limits takes
EXTREMES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)


def photo() -> Image.Image:
    """A real one, if the photos are here."""
    found = sorted((DATA / "clothing" / "validation").glob("*/*.jpg"))
    image = Image.open(found[0]) if found else Image.effect_noise((600, 400), 60)
    return ImageOps.fit(image.convert("RGB"), (120, 80))


def originals() -> dict[str, bytes]:
    """Whole files: of the accepted types in all their kinds, and one of each that Pillow can write besides."""
    image = photo()
    alpha, grey, palette = image.convert("RGBA"), image.convert("L"), image.quantize(64)
    alpha.putalpha(grey)
    frames: dict[str, object] = {"save_all": True, "append_images": [alpha.rotate(90), alpha.rotate(180)]}
    exif = Image.Exif()
    exif.update({0x0112: 6, 0x010F: "Maker", 0x9286: "x" * 300})
    deep = Image.frombytes("I;16", (60, 40), grey.resize((120, 40)).tobytes())
    made: dict[str, tuple[Image.Image, str, dict[str, object]]] = {
        "jpeg": (image, "JPEG", {"exif": exif, "icc_profile": b"icc" * 200, "comment": b"hello"}),
        "jpeg-progressive": (image, "JPEG", {"progressive": True, "restart_marker_blocks": 3}),
        "jpeg-cmyk": (image.convert("CMYK"), "JPEG", {}),
        "jpeg-grey": (grey, "JPEG", {}),
        "jpeg-mpo": (image, "MPO", {"save_all": True, "append_images": [image]}),
        "png": (image, "PNG", {"exif": exif, "icc_profile": b"icc" * 200}),
        "png-alpha": (alpha, "PNG", {}),
        "png-palette": (palette, "PNG", {"transparency": 3}),
        "png-deep": (deep, "PNG", {"transparency": 99}),
        "png-1": (image.convert("1"), "PNG", {}),
        "png-animated": (alpha, "PNG", frames),
        "gif": (palette, "GIF", {"transparency": 3, "comment": b"hello"}),
        "gif-animated": (palette, "GIF", {"save_all": True, "append_images": [palette.rotate(90)]}),
        "webp": (image, "WEBP", {"exif": exif}),
        "webp-lossless": (alpha, "WEBP", {"lossless": True}),
        "webp-alpha": (alpha, "WEBP", {}),
        "webp-animated": (alpha, "WEBP", frames),
        "bmp": (image, "BMP", {}),
        "bmp-palette": (palette, "BMP", {}),
        "bmp-1": (image.convert("1"), "BMP", {}),
        "avif": (alpha, "AVIF", {"speed": 10, "exif": exif}),
        **{f"tiff-{one}": (image, "TIFF", {"compression": one}) for one in ("raw", "tiff_lzw", "jpeg", "packbits")},
        **{kind.lower(): (image, kind, {}) for kind in ("ICO", "JPEG2000", "PPM", "TGA", "PCX", "SGI", "DDS", "PDF")},
        "eps": (image, "EPS", {}),
        "icns": (alpha, "ICNS", {}),
    }
    heic = {f"heic-{path.stem}": path.read_bytes() for path in sorted(ROOT.glob("tests/intake/heic/*d*.heic"))}
    return {name: encoded(*one[:2], **one[2]) for name, one in made.items()} | heic


def flipped(at: random.Random, content: bytearray) -> None:
    for _ in range(at.choice((1, 2, 8, 64))):
        content[at.randrange(len(content))] ^= 1 << at.randrange(8)


def cut(at: random.Random, content: bytearray) -> None:
    del content[at.randrange(len(content)) :]


def with_extremes(at: random.Random, content: bytearray) -> None:
    """Numbers that are too large, too small or negative, where numbers are likely: towards the beginning."""
    for _ in range(at.randrange(1, 4)):
        size, order = at.choice("BHHII"), at.choice("<>")
        number = at.choice(EXTREMES) & (256 ** struct.calcsize(size) - 1)
        place = at.randrange(at.choice((32, 128, 1024, len(content))))
        content[place : place + struct.calcsize(size)] = struct.pack(order + size, number)


def with_lengths(at: random.Random, content: bytearray) -> None:
    """Chunks, segments or boxes that are longer or shorter than they say."""
    names = rb"[A-Za-z]{4}|\xff[\xc0-\xfe]|VP8[ LX]|\x21[\xf9\xfe\xff]"
    found = [match.start() for match in re.finditer(names, content)]
    place = max(0, at.choice(found or [8]) + at.choice((-4, 2, 4)))
    content[place : place + 2] = struct.pack(at.choice("<>") + "H", at.choice(EXTREMES) & 0xFFFF)


def moved(at: random.Random, content: bytearray) -> None:
    """A piece once more, somewhere else, many times, or not at all."""
    start = at.randrange(len(content))
    piece = content[start : start + at.choice((4, 16, 256, 4096))]
    if at.random() < 0.3:
        del content[start : start + len(piece)]
    else:
        place = at.randrange(len(content))
        content[place:place] = piece * at.choice((1, 1, 2, 500))


CHANGES: tuple[Callable[[random.Random, bytearray], None], ...] = (flipped, cut, with_extremes, with_lengths, moved)


def sealed(png: bytearray) -> None:
    """Right checksums for a PNG, so that what was changed inside gets past them."""
    place = 8
    while place + 12 <= len(png):
        end = place + 8 + int.from_bytes(png[place : place + 4], "big")
        png[end : end + 4] = zlib.crc32(png[place + 4 : end]).to_bytes(4, "big")
        place = end + 4


def mutated(seed: int, without: Sequence[str] = ()) -> Iterator[tuple[str, bytes]]:
    """Names, which say what was done to which file, and contents; of none whose name begins as one of `without`."""
    files = {name: content for name, content in originals().items() if not name.startswith(tuple(without))}
    at = random.Random(seed)
    for number in range(sys.maxsize):
        name = at.choice(list(files))
        content = bytearray(files[name])
        changes = at.choices(CHANGES, k=at.choice((1, 1, 2, 4)))
        for change in changes:
            change(at, content or bytearray(1))
        if at.random() < 0.1:
            content += files[at.choice(list(files))]
        if name.startswith("png") and at.random() < 0.7:
            sealed(content)
        yield f"{number}-{name}-{'-'.join(change.__name__ for change in changes)}", bytes(content)


@dataclass
class Tally:
    """What came of reading many files."""

    outcomes: Counter[str] = field(default_factory=Counter)
    findings: list[tuple[str, bytes, str]] = field(default_factory=list)
    slowest: tuple[float, str] = (0.0, "")

    def read(self, name: str, content: bytes) -> None:
        began = time.process_time()
        try:
            image = read_picture(io.BytesIO(content), LIMITS)
            outcome = "a picture" if image.mode == "RGB" else f"a picture in {image.mode}"
        except RequestError as error:
            outcome = error.code
        except BaseException as error:  # also pyo3's and the like
            if isinstance(error, KeyboardInterrupt):
                raise
            outcome = repr(error)
        seconds = time.process_time() - began
        self.outcomes[outcome] += 1
        self.slowest = max(self.slowest, (seconds, name))
        if outcome not in ("a picture", *CODES) or seconds > SLOW:
            self.findings.append((name, content, f"{outcome}, {seconds:.2f} s"))


CODES = ("empty_image", "not_an_image", "unsupported_type", "too_many_pixels", "broken_image")


def peak() -> int:
    """Of this process, in MB."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM")), 0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--findings", type=Path, default=Path("findings"), metavar="FOLDER")
    parser.add_argument("--without", nargs="*", default=[], metavar="TYPE", help="such as heic, whose decoder crashes")
    options = parser.parse_args()
    tally, until, before = Tally(), time.monotonic() + options.seconds, peak()
    options.findings.mkdir(exist_ok=True)
    for name, content in mutated(options.seed, options.without):
        (options.findings / "current").write_bytes(content)  # what is left of a crash
        tally.read(name, content)
        if time.monotonic() > until:
            break
    for name, content, what in tally.findings:
        (options.findings / name).write_bytes(content)
        print(f"FOUND {name}: {what}")
    print(f"seed {options.seed}: {sum(tally.outcomes.values())} files, {len(tally.findings)} findings")
    print(*(f"{count:9} {outcome}" for outcome, count in tally.outcomes.most_common()), sep="\n")
    print(f"slowest {tally.slowest[0]:.2f} s of CPU: {tally.slowest[1]}; peak {peak()} MB, {before} MB at the start")
    return 1 if tally.findings else 0


if __name__ == "__main__":
    sys.exit(main())
