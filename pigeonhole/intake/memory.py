"""How much memory decoding a picture takes at its peak, told from its header alone.

Measured at 12 million pixels, each picture in a process of its own. The bytes of a pixel at the worst moment:

    JPEG    4 as it is, 8 where it has to be turned, 5 in grey, 8 in CMYK; progressive 7 (4:2:0) to 10 (4:4:4), CMYK 12
    PNG     4 in RGB, 8 turned or with transparency, 5 in grey or with a palette, 7 in grey of 16 bits
    GIF     5, 8 with transparency
    WebP    12, and the file twice: its decoder holds two canvases for animations, and there is no other in Pillow
    BMP     4, 5 with a palette
    AVIF    9 to 12 in 8 bits: the planes, and RGB three times
    HEIC    6 to 12, in 10 bits 8 to 20: the planes in up to 16 bits, and RGB twice
    TIFF    4 in RGB, 8 turned, with transparency or in CMYK, 5 in grey, 7 in grey of 16 bits
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import IO, cast

from PIL import ImageFile

OVERHEAD = 1 << 20  # what a decoder needs whatever the size: tables, rows, pieces of the file
A_PIXEL = {"WEBP": 12, "AVIF": 16}  # bytes, whatever the mode
OF_HEIC = {8: (10, 13), 420: (10, 16), 444: (16, 21)}  # in 8 bits; in more, by how colours lie; with transparency
COPIES = {"WEBP": 2, "AVIF": 2, "HEIF": 2, "TIFF": 1}  # of the file, which these decoders do not read piece by piece
STORED = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16L": 2, "I;16B": 2}  # bytes of a pixel in Pillow; of other modes 4


def bytes_to_decode(image: ImageFile.ImageFile, may_be_turned: bool, file_size: int) -> int:
    """An upper estimate for `image`, opened and not loaded, on its whole way to upright RGB."""
    kind, (width, height) = str(image.format), image.size
    return round(width * height * _a_pixel(image, may_be_turned)) + COPIES.get(kind, 0) * file_size + OVERHEAD


def _a_pixel(image: ImageFile.ImageFile, may_be_turned: bool) -> float:
    """Bytes."""
    if image.format in A_PIXEL:
        return A_PIXEL[image.format]
    if image.format == "HEIF":
        kind = 8 if image.info["bit_depth"] <= 8 else image.info.get("chroma", 444)
        return OF_HEIC.get(kind, OF_HEIC[444])[image.mode in ("RGBA", "RGBa")]
    stored = STORED.get(image.mode, 4)
    return max(stored + _coefficients(image), 2 * stored if may_be_turned else 0, _converting(image, stored))


def _converting(image: ImageFile.ImageFile, stored: int) -> int:
    """Bytes of a pixel on the way from its mode to RGB; one step gives back what it read before the next begins."""
    if image.mode.startswith("I"):
        return stored + 4 + 1  # as 32 bits, and in grey of eight
    if image.has_transparency_data or image.format == "PNG":  # whose transparency may stand behind its pixels
        return 8  # RGBA, and what lies over white
    return 4 if image.mode == "RGB" else stored + 4


def _coefficients(image: ImageFile.ImageFile) -> float:
    """Bytes of a pixel that a JPEG of several scans holds until the last: two for each coefficient."""
    if image.format not in ("JPEG", "MPO") or _is_in_one_scan(image):
        return 0
    sampled = [across * down for _, across, down, _ in cast(Sequence[tuple[int, int, int, int]], image.layer)]  # type: ignore[attr-defined]
    return 2 * sum(sampled) / max(sampled)


def _is_in_one_scan(image: ImageFile.ImageFile) -> bool:
    """Whether it is not progressive, and its first scan, whose header was read last, is of all components."""
    file, components = cast(IO[bytes], image.fp), len(image.layer)  # type: ignore[attr-defined]
    length = 6 + 2 * components
    if image.info.get("progressive") or image.format == "MPO":
        return False
    file.seek(file.tell() - length)
    return file.read(2) == length.to_bytes(2, "big")
