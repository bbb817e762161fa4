"""Turn hostile bytes into an upright 8-bit RGB picture, or refuse them.

The type is told by the first bytes, never by a name or a header of the client's, and only that one decoder of Pillow is
tried. The number of pixels is bounded from the header, before anything is decoded. Of an animation the first frame is
used.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import IO, Literal

import numpy as np
from PIL import Image

from pigeonhole.errors import BrokenImage, EmptyImage, NotAnImage, TooManyPixels, UnsupportedType

ACCEPTED = "JPEG, PNG, GIF, WebP and BMP"
HEAD = 512  # bytes looked at to tell a type

SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (0, b"GIF87a", "GIF"),
    (0, b"GIF89a", "GIF"),
    (8, b"WEBP", "WEBP"),  # after RIFF and a length
    (0, b"BM", "BMP"),
)

# Files people do send, told apart so that the answer can name what was seen.
OTHER_SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (4, b"ftypavif", "an AVIF picture"),
    (4, b"ftypavis", "an AVIF picture"),
    (4, b"ftyphei", "a HEIC picture, as iPhones take them"),
    (4, b"ftyphev", "a HEIC picture, as iPhones take them"),
    (4, b"ftypmif1", "a HEIF picture"),
    (4, b"ftyp", "a video"),
    (0, b"II*\x00", "a TIFF picture"),
    (0, b"MM\x00*", "a TIFF picture"),
    (0, b"\x00\x00\x00\x0cjP  ", "a JPEG 2000 picture"),
    (0, b"\xff\x0a", "a JPEG XL picture"),
    (0, b"\x00\x00\x00\x0cJXL ", "a JPEG XL picture"),
    (0, b"8BPS", "a Photoshop file"),
    (0, b"\x00\x00\x01\x00", "an icon"),
    (0, b"%PDF", "a PDF"),
    (0, b"PK\x03\x04", "a ZIP file"),
)

EXIF_ORIENTATION = 0x0112  # TIFF 6.0, section 8; values 1 to 8
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Pillow warns from 89 million pixels and refuses from twice that; here the warning is a refusal too.
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


@dataclass(frozen=True)
class Limits:
    """The largest picture that is decoded, in pixels."""

    pixels: int = 25_000_000
    side: int = 10_000


def read_picture(
    file: IO[bytes], limits: Limits | None = None, orientation: Literal["upright", "as-stored"] = "upright"
) -> Image.Image:
    """Decode `file`, a seekable stream, into a Pillow picture of mode RGB; transparency lies over white.

    Raises:
        EmptyImage: there are no bytes.
        NotAnImage, UnsupportedType: the first bytes are not those of an accepted type.
        TooManyPixels: the header announces more than `limits`.
        BrokenImage: the bytes do not decode.
    """
    kind = sniff(file)
    try:
        with Image.open(file, formats=[kind]) as image:
            _check_size(image, limits or Limits())
            image.load()
            return to_rgb(_turned(image) if orientation == "upright" else image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooManyPixels(_too_many("far more", limits or Limits())) from error
    except (TooManyPixels, MemoryError):
        raise
    except Exception as error:  # Pillow raises OSError, ValueError, SyntaxError, struct.error, IndexError, …
        raise BrokenImage(
            f"the picture starts as {kind} but cannot be decoded; it is damaged or incomplete."
        ) from error


def sniff(file: IO[bytes]) -> str:
    """Pillow's name of the accepted type that `file` starts as; `file` is at its start afterwards.

    Raises:
        EmptyImage, NotAnImage, UnsupportedType: as in `read_picture`.
    """
    file.seek(0)
    head = file.read(HEAD)
    file.seek(0)
    if not head:
        raise EmptyImage("the file is empty.")
    if kind := _match(head, SIGNATURES):
        return kind
    if other := _match(head, OTHER_SIGNATURES):
        raise UnsupportedType(f"the file is {other}; accepted are {ACCEPTED}.")
    raise NotAnImage(f"the file is not a picture; accepted are {ACCEPTED}.")


def to_rgb(image: Image.Image) -> Image.Image:
    """`image` of any mode of the accepted types as 8-bit RGB, what is transparent over white."""
    if image.mode.startswith("I"):  # 16-bit grey; convert("RGB") would clip it to white
        return _sixteen_to_eight_bits(image).convert("RGB")
    if image.has_transparency_data:
        picture = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return image.convert("RGB")


def _match(head: bytes, signatures: tuple[tuple[int, bytes, str], ...]) -> str | None:
    return next((name for at, magic, name in signatures if head.startswith(magic, at)), None)


def _check_size(image: Image.Image, limits: Limits) -> None:
    width, height = image.size
    if width * height > limits.pixels or max(width, height) > limits.side:
        raise TooManyPixels(_too_many(f"{width}x{height} pixels", limits))


def _too_many(seen: str, limits: Limits) -> str:
    return f"the picture has {seen}; at most {limits.pixels / 1e6:g} million and {limits.side} a side are accepted."


def _turned(image: Image.Image) -> Image.Image:
    try:
        turn = TURNS.get(image.getexif().get(EXIF_ORIENTATION, 1))
    except Exception:  # a picture is not refused for its metadata; Pillow raises half a dozen kinds for broken EXIF
        return image
    return image if turn is None else image.transpose(turn)


def _sixteen_to_eight_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.uint32).clip(0, 65_535)
    return Image.fromarray(((values * 255 + 32_767) // 65_535).astype(np.uint8))
