"""Which types of picture there are: how their files begin, what decodes them, and what people call them.

The first five are accepted unless told otherwise: fuzzers have gone through their decoders for years. Those of AVIF,
HEIC and TIFF are larger and younger, or older and odder, so they have to be asked for by name.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from typing import IO, Any

from pigeonhole.errors import EmptyImage, NotAnImage, PackagesMissing, UnsupportedType

HEAD = 512  # bytes looked at to tell a type


@dataclass(frozen=True)
class Format:
    """A type of picture: what people, Pillow and browsers call it, the module that decodes it, how its files begin."""

    name: str
    pillow: str
    media_type: str
    module: str
    signature: bytes
    seen: str  # in the sentence that refuses it where it is not accepted


# "mif1" leaves open what a HEIF file holds; the brands that follow it, of four bytes each, tell
HEIF_HOLDING = rb"....ftypmif1.{4}(?:.{4}){0,16}?"
BMP = rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\x00{3}"  # the sizes that its second header may have
HEIC_SEEN = "a HEIC picture, as iPhones take them"
FORMATS = {  # by their names in IMAGE_FORMATS
    "jpeg": Format("JPEG", "JPEG", "image/jpeg", "PIL.JpegImagePlugin", rb"\xff\xd8\xff", "a JPEG picture"),
    "png": Format("PNG", "PNG", "image/png", "PIL.PngImagePlugin", rb"\x89PNG\r\n\x1a\n", "a PNG picture"),
    "gif": Format("GIF", "GIF", "image/gif", "PIL.GifImagePlugin", rb"GIF8[79]a", "a GIF picture"),
    "webp": Format("WebP", "WEBP", "image/webp", "PIL.WebPImagePlugin", rb"RIFF....WEBP", "a WebP picture"),
    "bmp": Format("BMP", "BMP", "image/bmp", "PIL.BmpImagePlugin", BMP, "a BMP picture"),
    "avif": Format(
        "AVIF",
        "AVIF",
        "image/avif",
        "PIL.AvifImagePlugin",
        rb"....ftypavi[fs]|" + HEIF_HOLDING + rb"avi[fs]",
        "an AVIF picture",
    ),
    "heic": Format(
        "HEIC", "HEIF", "image/heic", "pi_heif", rb"....ftyphei[cx]|" + HEIF_HOLDING + rb"hei[cx]", HEIC_SEEN
    ),
    "tiff": Format("TIFF", "TIFF", "image/tiff", "PIL.TiffImagePlugin", rb"II\*\x00|MM\x00\*", "a TIFF picture"),
}
BY_DEFAULT = ("jpeg", "png", "gif", "webp", "bmp")
OTHER_SIGNATURES = {  # files that people do send, told apart so that the answer can name what was seen
    "a HEIF picture": rb"....ftyp(he[iv].|mif1|msf1)",
    "a video": rb"....ftyp",
    "a JPEG 2000 picture": rb"\x00{3}\x0cjP  ",
    "a JPEG XL picture": rb"\xff\x0a|\x00{3}\x0cJXL ",
    "a Photoshop file": rb"8BPS",
    "an icon": rb"\x00\x00\x01\x00",
    "a PDF": rb"%PDF",
    "a ZIP file": rb"PK\x03\x04",
}


def load_decoders(names: Sequence[str]) -> None:
    """Load what decodes these types and nothing else; Pillow would load all that it has for the first WebP.

    Raises:
        PackagesMissing: HEIC is among them, and what decodes it is not installed.
    """
    for name in names:
        try:
            decoder: Any = import_module(FORMATS[name].module)
        except ImportError as error:
            raise PackagesMissing(
                f"IMAGE_FORMATS names {name}, which needs {FORMATS[name].module}, and that is not installed; "
                "`tools/environment.sh .venv packages formats` installs it."
            ) from error
        if name == "tiff":
            _hush_libtiff()
        if name == "avif":
            decoder.DEFAULT_MAX_THREADS = 1  # the one that asks, as with the other types
        if name == "heic":  # the same, and the picture alone: no thumbnails, depth maps and the like
            decoder.register_heif_opener(decode_threads=1, thumbnails=False, depth_images=False, aux_images=False)


def _hush_libtiff() -> None:
    """It tells of errors on standard error, among the lines of our log, with what stands in the file."""
    with suppress(AttributeError, OSError):  # it is built into Pillow in another way
        ctypes.CDLL(import_module("PIL._imaging").__file__).TIFFSetErrorHandler(None)


def sniff(file: IO[bytes], accepted: Sequence[str] = BY_DEFAULT) -> Format:
    """The type that `file` starts as; `file` is at its start afterwards.

    Raises:
        EmptyImage: there are no bytes.
        NotAnImage, UnsupportedType: the first bytes are not those of an accepted type.
    """
    file.seek(0)
    head = file.read(HEAD)
    file.seek(0)
    if not head:
        raise EmptyImage("the file is empty.")
    for name, format in FORMATS.items():
        if _begins(head, format.signature):
            if name in accepted:
                return format
            raise UnsupportedType(f"the file is {format.seen}; accepted are {listed(accepted)}.")
    for seen, signature in OTHER_SIGNATURES.items():
        if _begins(head, signature):
            raise UnsupportedType(f"the file is {seen}; accepted are {listed(accepted)}.")
    raise NotAnImage(f"the file is not a picture; accepted are {listed(accepted)}.")


def listed(names: Sequence[str]) -> str:
    """As a sentence names them: `JPEG, PNG, GIF, WebP and BMP`."""
    *others, last = (FORMATS[name].name for name in names)
    return f"{', '.join(others)} and {last}" if others else last


def _begins(head: bytes, signature: bytes) -> bool:
    return re.match(signature, head, re.DOTALL) is not None
