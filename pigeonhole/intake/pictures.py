"""Turn hostile bytes into an upright 8-bit RGB picture, or refuse them.

The type is told by the first bytes, never by a name or a header of the client's, and only that one decoder is tried.
The number of pixels is bounded from the header, before anything is decoded, and the memory that decoding will take is
told from it. Of an animation the first frame is used.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Literal, Protocol, cast

import numpy as np
from PIL import Image, ImageFile

from pigeonhole.errors import BrokenImage, PigeonholeError, TooManyPixels, UnsupportedType
from pigeonhole.intake.formats import BY_DEFAULT, load_decoders, sniff
from pigeonhole.intake.memory import bytes_to_decode
from pigeonhole.intake.pixels import instead_of, pixels_of, to_rgb
from pigeonhole.intake.rationed import Rationed

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
TURN_BEHIND_PIXELS = ("PNG", "TIFF")  # what may tell it there
TURNS_SIDEWAYS = (TURNS[5], TURNS[6], TURNS[7], TURNS[8])
Turn = tuple[Image.Transpose | None]
Orientation = Literal["upright", "as-stored"]

DCT_FACTORS = (2, 4, 8)  # by which libjpeg can shrink a picture while it decodes it

BMP_RUN_LENGTHS = (1, 2)  # Pillow decodes these in Python: 10 KB keep the interpreter from other threads for 3 s
TIFF_COMPRESSIONS = ("raw", "tiff_lzw", "jpeg", "tiff_adobe_deflate", "tiff_deflate")  # cameras' and Photoshop's

# Pillow says what it thinks of a file's metadata in warnings, at lengths that the file chooses; nobody reads them here.
warnings.filterwarnings("ignore", module=r"PIL\.")


@dataclass(frozen=True)
class Limits:
    """The largest picture that is decoded, in pixels, and the types, by their names in IMAGE_FORMATS.

    Raises:
        PackagesMissing: what decodes one of them is not installed.
    """

    pixels: int
    side: int
    formats: tuple[str, ...] = BY_DEFAULT

    def __post_init__(self) -> None:
        load_decoders(self.formats)


class Recipe(Protocol):
    """What makes a network's input of a picture."""

    @property
    def channels(self) -> int: ...

    def size_after(self, size: tuple[int, int]) -> tuple[int, int]:
        """Width and height of what is made of a picture of `size`."""

    def apply(self, picture: Image.Image, full: tuple[int, int] | None = None) -> np.ndarray:
        """uint8, height × width × channels, of an RGB `picture`; `full` is its size where decoding shrank it."""


@dataclass(frozen=True)
class Header:
    """What a picture's header tells: width and height as stored, and how many bytes decoding it takes at most.

    `turn` is how it has to be turned, in a tuple; without one, the header does not tell.
    """

    size: tuple[int, int]
    bytes_needed: int
    turn: Turn | None


class Photo:
    """A picture of an accepted type whose header is within the limits; decoded, as often as wanted, when asked for.

    Use `open_photo` to get one.
    """

    def __init__(self, file: IO[bytes], limits: Limits, orientation: Orientation) -> None:
        self._file, self._limits, self._orientation = file, limits, orientation
        self._format = sniff(file, limits.formats)
        self._header = self._read_header()
        self._turn = self._header.turn  # as soon as it is known

    @property
    def header(self) -> Header:
        return self._header

    @property
    def bytes_needed(self) -> int:
        """The most memory that decoding it whole takes at any moment, beside the upload, as its header tells."""
        return self._header.bytes_needed

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, upright."""
        width, height = self._header.size
        return (height, width) if self.turn in TURNS_SIDEWAYS else (width, height)

    def reduction(self, allows: Callable[[tuple[int, int], int], bool]) -> int:
        """By how much the decoder shrinks it along each side: the largest of 1, 2, 4 and 8 that is allowed.

        `allows` is asked for the size and a factor. Only JPEG's decoder can shrink. Where a factor does not divide a
        side, the last row or column of what is left stands for fewer pixels; a turn would put it first, where nobody
        looks for it, so a photo that is turned is shrunk by divisors only.
        """
        if self._format.pillow != "JPEG":
            return 1
        turn = self.turn
        factors = [factor for factor in DCT_FACTORS if turn is None or divides(factor, self.size)]
        return max((factor for factor in factors if allows(self.size, factor)), default=1)

    def decoded(self, reduction: int = 1) -> Image.Image:
        """As 8-bit RGB; transparency lies over white.

        Raises:
            BrokenImage: the bytes do not decode.
        """
        with self._opened() as opened:
            if reduction > 1:
                opened.draft(None, (max(1, opened.width // reduction), max(1, opened.height // reduction)))
            image = pixels_of(opened)
            turn = self._turn_of(opened)
            self._turn = (turn,)
            return to_rgb(image if turn is None else instead_of(image, image.transpose(turn)))

    def through(self, recipe: Recipe, reduction: int = 1) -> np.ndarray:
        """What `recipe` makes of it, decoded; raises as `decoded`."""
        return recipe.apply(self.decoded(reduction), self.size if reduction > 1 else None)

    @contextmanager
    def _opened(self) -> Iterator[ImageFile.ImageFile]:
        try:
            file = cast(IO[bytes], Rationed(self._file, counts_scans=self._format.pillow == "JPEG"))
            with Image.open(file, formats=[self._format.pillow]) as image:
                _check_size(image, self._limits)
                _check_compression(image)
                yield image
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise TooManyPixels(_too_many("far too many", self._limits)) from error
        except (PigeonholeError, MemoryError):
            raise
        except Exception as error:  # Pillow raises OSError, ValueError, SyntaxError, struct.error, IndexError, …
            raise BrokenImage(
                f"the picture starts as {self._format.name} but cannot be decoded; it is damaged or incomplete."
            ) from error

    def _read_header(self) -> Header:
        file_size = self._file.seek(0, os.SEEK_END)
        with self._opened() as image:
            turn = None if image.format in TURN_BEHIND_PIXELS else (self._turn_of(image),)
            return Header(image.size, bytes_to_decode(image, turn != (None,), file_size), turn)

    @property  # a cached one would lock all photos while one of them looks
    def turn(self) -> Image.Transpose | None:
        """How it has to be turned to be upright. Of a PNG this may be told behind its pixels, and they are decoded."""
        if self._turn is None:
            self._turn = (self._find_turn(),)
        return self._turn[0]

    def _find_turn(self) -> Image.Transpose | None:
        with self._opened() as image:
            return self._turn_of(image)

    def _turn_of(self, image: Image.Image) -> Image.Transpose | None:
        if self._orientation == "as-stored" or image.format == "TIFF":  # which Pillow turns by itself
            return None
        try:
            return TURNS.get(image.getexif().get(EXIF_ORIENTATION, 1))
        except PigeonholeError:  # the disk's trouble
            raise
        except Exception:  # a picture is not refused for its metadata; Pillow raises half a dozen kinds for broken EXIF
            return None


OWN = Limits(pixels=89_478_485, side=65_500)  # for pictures of our own: Pillow's and JPEG's largest


def divides(factor: int, size: tuple[int, int]) -> bool:
    return size[0] % factor == 0 == size[1] % factor


def open_photo(file: IO[bytes], limits: Limits, orientation: Orientation = "upright") -> Photo:
    """Look at the head of `file`, a seekable stream that stays open as long as the Photo is used.

    Raises:
        EmptyImage: there are no bytes.
        NotAnImage, UnsupportedType: the first bytes are not those of an accepted type.
        TooManyPixels: the header announces more than `limits`.
        BrokenImage: there is no header.
    """
    return Photo(file, limits, orientation)


def open_probe(file: IO[bytes]) -> Photo:
    """Open a picture of our own, or of whoever compiles: as it is stored, up to the size that Pillow warns of."""
    return open_photo(file, OWN, "as-stored")


def read_picture(file: IO[bytes], limits: Limits, orientation: Orientation = "upright") -> Image.Image:
    """Open and decode at once; raises what `open_photo` and `Photo.decoded` raise."""
    return open_photo(file, limits, orientation).decoded()


def _check_size(image: Image.Image, limits: Limits) -> None:
    width, height = image.size
    if width * height > limits.pixels or max(width, height) > limits.side:
        raise TooManyPixels(_too_many(f"{width}x{height}", limits))


def _too_many(seen: str, limits: Limits) -> str:
    most = f"{limits.pixels / 1e6:g} million, and {limits.side} on a side"
    return f"the picture has {seen} pixels; at most {most}, are accepted."


def _check_compression(image: Image.Image) -> None:
    """Raises UnsupportedType for what its type allows, nobody uses, and is costly or hazardous to decode."""
    compression = image.info.get("compression")
    if image.format == "BMP" and compression in BMP_RUN_LENGTHS:
        raise UnsupportedType("the BMP picture is compressed, as hardly any is; save it as PNG.")
    if image.format == "TIFF" and compression not in TIFF_COMPRESSIONS:
        raise UnsupportedType(
            "the TIFF picture is compressed in a rare way; uncompressed, LZW, ZIP and JPEG are accepted."
        )
