"""Turn hostile bytes into an upright 8-bit RGB picture, or refuse them.

The type is told by the first bytes, never by a name or a header of the client's, and only that one decoder of Pillow is
tried. The number of pixels is bounded from the header, before anything is decoded. Of an animation the first frame is
used.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import IO, Literal, Protocol

import numpy as np
from PIL import Image, ImageFile

from pigeonhole.errors import BrokenImage, EmptyImage, NotAnImage, TooManyPixels, UnsupportedType

ACCEPTED = "JPEG, PNG, GIF, WebP and BMP"
HEAD = 512  # bytes looked at to tell a type

SIGNATURES = {  # of the accepted types, by Pillow's name
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "GIF": rb"GIF8[79]a",
    "WEBP": rb"RIFF....WEBP",
    "BMP": rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\x00{3}",  # the sizes that its second header may have
}
OTHER_SIGNATURES = {  # files that people do send, told apart so that the answer can name what was seen
    "an AVIF picture": rb"....ftypavi[fs]",
    "a HEIC picture, as iPhones take them": rb"....ftyphe[iv]",
    "a HEIF picture": rb"....ftypmif1",
    "a video": rb"....ftyp",
    "a TIFF picture": rb"II\*\x00|MM\x00\*",
    "a JPEG 2000 picture": rb"\x00{3}\x0cjP  ",
    "a JPEG XL picture": rb"\xff\x0a|\x00{3}\x0cJXL ",
    "a Photoshop file": rb"8BPS",
    "an icon": rb"\x00\x00\x01\x00",
    "a PDF": rb"%PDF",
    "a ZIP file": rb"PK\x03\x04",
}

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

TURNS_SIDEWAYS = (TURNS[5], TURNS[6], TURNS[7], TURNS[8])
Orientation = Literal["upright", "as-stored"]

DCT_FACTORS = (2, 4, 8)  # by which libjpeg can shrink a picture while it decodes it

GREY_STEPS = {"L;2": 85, "L;4": 17}  # between two neighbouring levels of two and of four bits, in levels of eight

# Pillow says what it thinks of a file's metadata in warnings, at lengths that the file chooses; nobody reads them here.
warnings.filterwarnings("ignore", module=r"PIL\.")


@dataclass(frozen=True)
class Limits:
    """The largest picture that is decoded, in pixels."""

    pixels: int
    side: int


class Recipe(Protocol):
    """What makes a network's input of a picture."""

    @property
    def channels(self) -> int: ...

    def size_after(self, size: tuple[int, int]) -> tuple[int, int]:
        """Width and height of what is made of a picture of `size`."""

    def apply(self, picture: Image.Image, full: tuple[int, int] | None = None) -> np.ndarray:
        """uint8, height × width × channels, of an RGB `picture`; `full` is its size where decoding shrank it."""


class Photo:
    """A picture of an accepted type whose header is within the limits; decoded, as often as wanted, when asked for.

    Use `open_photo` to get one.
    """

    def __init__(self, file: IO[bytes], limits: Limits, orientation: Orientation) -> None:
        self._file, self._limits, self._orientation = file, limits, orientation
        self._kind = sniff(file)

    @cached_property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, upright."""
        (width, height), turn = self.layout
        return (height, width) if turn in TURNS_SIDEWAYS else (width, height)

    @cached_property
    def layout(self) -> tuple[tuple[int, int], Image.Transpose | None]:
        """The size as stored, and how it has to be turned."""
        with self._opened() as image:
            return image.size, self._turn(image)

    def reduction(self, allows: Callable[[tuple[int, int], int], bool]) -> int:
        """By how much the decoder shrinks it along each side: the largest of 1, 2, 4 and 8 that is allowed.

        `allows` is asked for the size and a factor. Only JPEG's decoder can shrink. Where a factor does not divide a
        side, the last row or column of what is left stands for fewer pixels; a turn would put it first, where nobody
        looks for it, so a photo that is turned is shrunk by divisors only.
        """
        if self._kind != "JPEG":
            return 1
        _, turn = self.layout
        factors = [factor for factor in DCT_FACTORS if turn is None or divides(factor, self.size)]
        return max((factor for factor in factors if allows(self.size, factor)), default=1)

    def decoded(self, reduction: int = 1) -> Image.Image:
        """As 8-bit RGB; transparency lies over white.

        Raises:
            BrokenImage: the bytes do not decode.
        """
        with self._opened() as image:
            if reduction > 1:
                image.draft(None, (max(1, image.width // reduction), max(1, image.height // reduction)))
            stored_as = _raw_mode(image)
            image.load()
            _mend_transparency(image, stored_as)
            turn = self._turn(image)
            return to_rgb(image if turn is None else image.transpose(turn))

    def through(self, recipe: Recipe, reduction: int = 1) -> np.ndarray:
        """What `recipe` makes of it, decoded; raises as `decoded`."""
        return recipe.apply(self.decoded(reduction), self.size if reduction > 1 else None)

    @contextmanager
    def _opened(self) -> Iterator[ImageFile.ImageFile]:
        self._file.seek(0)
        try:
            with Image.open(self._file, formats=[self._kind]) as image:
                _check_size(image, self._limits)
                yield image
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise TooManyPixels(_too_many("far too many", self._limits)) from error
        except (TooManyPixels, MemoryError):
            raise
        except Exception as error:  # Pillow raises OSError, ValueError, SyntaxError, struct.error, IndexError, …
            raise BrokenImage(
                f"the picture starts as {self._kind} but cannot be decoded; it is damaged or incomplete."
            ) from error

    def _turn(self, image: Image.Image) -> Image.Transpose | None:
        if self._orientation == "as-stored":
            return None
        try:
            return TURNS.get(image.getexif().get(EXIF_ORIENTATION, 1))
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
    photo = Photo(file, limits, orientation)
    with photo._opened():
        return photo


def open_probe(file: IO[bytes]) -> Photo:
    """Open a picture of our own, or of whoever compiles: as it is stored, up to the size that Pillow warns of."""
    return open_photo(file, OWN, "as-stored")


def read_picture(file: IO[bytes], limits: Limits, orientation: Orientation = "upright") -> Image.Image:
    """Open and decode at once; raises what `open_photo` and `Photo.decoded` raise."""
    return open_photo(file, limits, orientation).decoded()


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
    if image.mode.startswith("I"):
        return _sixteen_to_eight_bits(image).convert("RGB")
    if image.has_transparency_data:
        picture = image if image.mode == "RGBA" else image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(picture, mask=picture)  # half the memory of alpha_composite, which wants four channels
        return white
    return image if image.mode == "RGB" else image.convert("RGB")


def _match(head: bytes, signatures: dict[str, bytes]) -> str | None:
    return next((name for name, pattern in signatures.items() if re.match(pattern, head, re.DOTALL)), None)


def _check_size(image: Image.Image, limits: Limits) -> None:
    width, height = image.size
    if width * height > limits.pixels or max(width, height) > limits.side:
        raise TooManyPixels(_too_many(f"{width}x{height}", limits))


def _too_many(seen: str, limits: Limits) -> str:
    most = f"{limits.pixels / 1e6:g} million, and {limits.side} on a side"
    return f"the picture has {seen} pixels; at most {most}, are accepted."


def _sixteen_to_eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey as 8-bit grey, what is transparent white; Pillow's convert("RGB") would clip all but the darkest."""
    values = np.asarray(image).astype(np.uint32).clip(0, 65_535)
    grey = ((values * 255 + 32_767) // 65_535).astype(np.uint8)
    if (transparent := image.info.get("transparency")) is not None:
        grey[values == transparent] = 255
    return Image.fromarray(grey)


def _raw_mode(image: ImageFile.ImageFile) -> str:
    """How the pixels lie in the file, as Pillow's decoders call it: "L;4" is grey of four bits."""
    arguments = image.tile[0].args if image.tile else None
    return str(arguments[0] if isinstance(arguments, tuple) else arguments)


def _mend_transparency(image: Image.Image, stored_as: str) -> None:
    """Bring the one transparent colour of a PNG to the eight bits its pixels were brought to; Pillow forgets to."""
    colour = image.info.get("transparency")
    if stored_as in GREY_STEPS and isinstance(colour, int):
        image.info["transparency"] = colour * GREY_STEPS[stored_as]
    elif stored_as == "RGB;16B" and isinstance(colour, tuple):
        image.info["transparency"] = tuple(level >> 8 for level in colour)
