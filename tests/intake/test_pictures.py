"""Hostile bytes in, an upright RGB picture out."""

from __future__ import annotations

import io
import struct
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageFile

from pigeonhole.errors import (
    BrokenImage,
    EmptyImage,
    NotAnImage,
    PackagesMissing,
    RequestError,
    TooManyPixels,
    UnsupportedType,
)
from pigeonhole.intake.formats import BY_DEFAULT
from pigeonhole.intake.pictures import EXIF_ORIENTATION, Limits, open_photo, read_picture
from tests.conftest import LIMITS, ROOT, encoded, png_of_size, raw_png

# Darker towards the right, so that no turn of it looks the same, and with every channel in use.
RAMP = np.dstack([np.tile(np.linspace(250, 20, 24), (16, 1)), np.full((16, 24), 90), np.full((16, 24), 30)]).astype(
    np.uint8
)
ORIGINAL = Image.fromarray(RAMP)


def read(content: bytes, limits: Limits = LIMITS, **options: object) -> Image.Image:
    return read_picture(io.BytesIO(content), limits, **options)


def difference(one: Image.Image, other: Image.Image) -> int:
    assert one.mode == other.mode == "RGB"
    return int(np.abs(np.asarray(one).astype(int) - np.asarray(other)).max())


@pytest.mark.parametrize(("kind", "tolerance"), [("PNG", 0), ("BMP", 0), ("JPEG", 12), ("WEBP", 20), ("GIF", 12)])
def test_accepted_types(kind: str, tolerance: int) -> None:
    """Each of the five types comes out as the picture that went in."""
    assert difference(read(encoded(ORIGINAL, kind)), ORIGINAL) <= tolerance


def as_cmyk() -> bytes:
    return encoded(ORIGINAL.convert("CMYK"), "JPEG", quality=95)


def as_palette_with_a_transparent_entry() -> bytes:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 200, 30, 30])
    image.putpixel((0, 0), 0)
    return encoded(image, transparency=0)


def as_sixteen_bit_grey() -> bytes:
    return encoded(Image.fromarray(RAMP[..., 0].astype(np.uint16) * 257))


def test_cmyk() -> None:
    """A CMYK JPEG looks as its RGB original does."""
    assert difference(read(as_cmyk()), ORIGINAL) <= 12


def test_palette_with_transparency() -> None:
    """A transparent palette entry is white, the others keep their colour."""
    picture = read(as_palette_with_a_transparent_entry())
    assert (picture.getpixel((0, 0)), picture.getpixel((3, 3))) == ((255, 255, 255), (200, 30, 30))


def test_sixteen_bit_grey() -> None:
    """16-bit grey keeps its shades instead of turning white."""
    assert difference(read(as_sixteen_bit_grey()), Image.fromarray(RAMP[..., 0]).convert("RGB")) == 0


def test_sixteen_bit_rgb() -> None:
    """16-bit RGB is taken at its upper eight bits."""
    rows = b"".join(b"\0" + (row.astype(">u2") * 257).tobytes() for row in RAMP)
    content = raw_png(24, 16, bits=16, rows=rows)
    assert difference(read(content), ORIGINAL) == 0


TRANSPARENT = {  # PNG colour type, bits, the transparent colour as tRNS, a row of two pixels: that colour and another
    "grey of 2 bits": (0, 2, b"\0\1", b"\x60", (170, 170, 170)),
    "grey of 4 bits": (0, 4, b"\0\5", b"\x5a", (170, 170, 170)),
    "grey of 8 bits": (0, 8, b"\0\x50", b"\x50\xaa", (170, 170, 170)),
    "grey of 16 bits": (0, 16, b"\x50\x01", b"\x50\x01\xaa\xaa", (170, 170, 170)),
    "rgb of 8 bits": (2, 8, b"\0\x50\0\1\0\2", b"\x50\1\2\xaa\xab\xac", (170, 171, 172)),
    "rgb of 16 bits": (2, 16, b"\x50\x01\1\1\2\2", b"\x50\x01\1\1\2\2\xaa\0\xab\0\xac\0", (170, 171, 172)),
}


@pytest.mark.parametrize(("colour_type", "bits", "key", "row", "other"), TRANSPARENT.values(), ids=TRANSPARENT.keys())
def test_one_transparent_colour(colour_type: int, bits: int, key: bytes, row: bytes, other: tuple[int, ...]) -> None:
    """The colour that a PNG declares transparent is white at every depth, and no other colour is."""
    content = raw_png(2, 1, bits=bits, rows=b"\0" + row, colour_type=colour_type, transparent=key)
    picture = read(content)
    assert [picture.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), other]


def test_warnings_are_not_printed() -> None:
    """What Pillow thinks of broken metadata does not flood the log."""
    code = """
import io, sys
from pigeonhole.intake.pictures import Limits, read_picture
read_picture(io.BytesIO(sys.stdin.buffer.read()), Limits(25_000_000, 10_000))
"""
    content = encoded(ORIGINAL, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff" + b"\xff" * 50)
    run = subprocess.run([sys.executable, "-c", code], input=content, cwd=ROOT, capture_output=True)
    assert (run.returncode, run.stderr) == (0, b"")


@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_other_modes(mode: str) -> None:
    """Grey, one-bit and palette pictures come out as Pillow's own conversion makes them."""
    image = ORIGINAL.convert(mode)
    assert difference(read(encoded(image)), image.convert("RGB")) == 0


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_colour_hidden_under_transparency(mode: str) -> None:
    """What is fully transparent is white, whatever colour is stored beneath it."""
    image = ORIGINAL.convert(mode)
    image.putalpha(0)
    assert set(read(encoded(image)).get_flattened_data()) == {(255, 255, 255)}


def test_half_transparent() -> None:
    """Half transparent black over white is grey."""
    assert read(encoded(Image.new("RGBA", (2, 2), (0, 0, 0, 128)))).getpixel((0, 0)) == (127, 127, 127)


TURNED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(10))
def test_orientations(kind: str, orientation: int) -> None:
    """A picture stored turned, with the tag that says so, is upright again; tags out of range are ignored."""
    stored = ORIGINAL.transpose(TURNED[orientation]) if orientation in TURNED else ORIGINAL
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    content = encoded(stored, kind, exif=exif, quality=95)
    assert difference(read(content), ORIGINAL) <= 20
    assert difference(read(content, orientation="as-stored"), stored) <= 20


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # Pillow's word to the log
def test_exif_that_is_rubbish() -> None:
    """A picture is not refused for its metadata."""
    assert read(encoded(ORIGINAL, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff" + b"\xff" * 50)).size == (24, 16)


def test_a_phones_mpo() -> None:
    """Phones store two pictures in one JPEG, which Pillow calls MPO; the first is taken."""
    content = encoded(ORIGINAL, "MPO", save_all=True, append_images=[Image.new("RGB", (24, 16))], quality=95)
    assert Image.open(io.BytesIO(content)).format == "MPO"
    assert difference(read(content), ORIGINAL) <= 12


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_animations(kind: str) -> None:
    """Of an animation the first frame is taken."""
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("lime", "red", "blue")]
    content = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert read(content).getpixel((4, 4))[1] > 240


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", EmptyImage),
        (b"\xff", NotAnImage),
        (b"hello", NotAnImage),
        (b"BMW is a maker of cars and motorcycles", NotAnImage),
        (b"<?php system('id'); ?>", NotAnImage),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", NotAnImage),
        (b"\x7fELF" + bytes(60), NotAnImage),
        (b"%!PS-Adobe-3.0 EPSF-3.0", NotAnImage),
        (b"PK\x03\x04" + bytes(60), UnsupportedType),
        (encoded(ORIGINAL, "TIFF"), UnsupportedType),
        (encoded(ORIGINAL, "AVIF"), UnsupportedType),
        (encoded(ORIGINAL, "ICO"), UnsupportedType),
        (b"\0\0\0\x18ftypheic" + bytes(60), UnsupportedType),
    ],
    ids=["empty", "one-byte", "text", "bmw", "php", "svg", "elf", "eps", "zip", "tiff", "avif", "ico", "heic"],
)
def test_other_files(content: bytes, error: type[RequestError]) -> None:
    """What is not one of the five types is refused by its first bytes, and the answer says which are taken."""
    with pytest.raises(error) as refusal:
        read(content)
    assert "JPEG" in str(refusal.value) or error is EmptyImage


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP"])
@pytest.mark.parametrize("part", [0.05, 0.3, 0.6, 0.9])
def test_truncated(kind: str, part: float) -> None:
    """A picture that is cut off is refused, not guessed."""
    content = encoded(Image.effect_noise((64, 64), 60).convert("RGB"), kind)
    with pytest.raises((BrokenImage, NotAnImage)):
        read(content[: int(len(content) * part)])


def test_the_signature_alone() -> None:
    """A file that is only a signature is broken, for each type."""
    signatures = (
        b"\xff\xd8\xff",
        b"\x89PNG\r\n\x1a\n",
        b"GIF89a",
        b"RIFF\4\0\0\0WEBP",
        b"BM" + bytes(12) + b"\x28\0\0\0",
    )
    assert len(signatures) == len(BY_DEFAULT)
    for signature in signatures:
        with pytest.raises(BrokenImage):
            read(signature)


def test_truncated_images_stay_refused() -> None:
    """Nobody has told Pillow to accept truncated files."""
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


@pytest.mark.parametrize(
    "size", [(50_000, 50_000), (10_001, 1), (5001, 5000), (1, 2**31 - 1), (9500, 9500), (13_000, 13_000)]
)
def test_too_many_pixels(size: tuple[int, int]) -> None:
    """The size is read from the header; nothing is decoded."""
    with pytest.raises(TooManyPixels) as refusal:
        read(png_of_size(*size))
    assert "25 million" in str(refusal.value)


def test_limits_are_exact() -> None:
    """A picture of exactly the limit is taken, one more pixel is not."""
    assert read(encoded(ORIGINAL), limits=Limits(pixels=24 * 16, side=24)).size == (24, 16)
    for limits in (Limits(24 * 16 - 1, side=24), Limits(24 * 16, side=23)):
        with pytest.raises(TooManyPixels):
            read(encoded(ORIGINAL), limits=limits)


def test_a_bomb_is_not_announced() -> None:
    """A picture in the zone where Pillow only warns is refused without a word on standard error."""
    code = """
import io, sys
from pigeonhole.errors import TooManyPixels
from pigeonhole.intake.pictures import Limits, read_picture
try:
    read_picture(io.BytesIO(sys.stdin.buffer.read()), Limits(25_000_000, 10_000))
except TooManyPixels:
    print("refused")
"""
    bomb = png_of_size(9_900, 9_900)
    run = subprocess.run([sys.executable, "-c", code], input=bomb, cwd=ROOT, capture_output=True)
    assert (run.stdout, run.stderr) == (b"refused\n", b"")


HEIC = ROOT / "tests" / "intake" / "heic"
MORE = Limits(LIMITS.pixels, LIMITS.side, formats=("jpeg", "avif", "heic", "tiff"))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("AVIF", {"quality": 95}),
        *(("TIFF", {"compression": one}) for one in ("raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg")),
    ],
    ids=str,
)
@pytest.mark.parametrize("orientation", [1, 3, 6, 7])
def test_more_types(kind: str, options: dict[str, object], orientation: int) -> None:
    """AVIF and TIFF, where they are accepted, come out upright, as the picture that went in."""
    stored = ORIGINAL.transpose(TURNED[orientation]) if orientation in TURNED else ORIGINAL
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    content = encoded(stored, kind, exif=exif, **options)
    assert difference(read(content, MORE), ORIGINAL) <= 16
    assert open_photo(io.BytesIO(content), MORE).size == ORIGINAL.size
    with pytest.raises(UnsupportedType, match=f"{kind} picture; accepted are JPEG, PNG, GIF, WebP and BMP"):
        read(content)


@pytest.mark.parametrize("name", ["upright", "turned-and-tagged", "two-pictures"])
def test_heic(name: str) -> None:
    """A HEIC is upright, turned once though its box and its EXIF tag both say so; the main one of several pictures."""
    content = (HEIC / f"{name}.heic").read_bytes()
    assert difference(read(content, MORE), ORIGINAL.resize((240, 160), Image.Resampling.NEAREST)) <= 16
    with pytest.raises(UnsupportedType, match="a HEIC picture, as iPhones take them; accepted are JPEG, PNG"):
        read(content)


def test_heic_that_holds_more_than_it_announces() -> None:
    """Twelve million pixels behind a header of 64x64 are not decoded."""
    content = (HEIC / "12-megapixels.heic").read_bytes()
    size, small = (b"ispe" + struct.pack(">III", 0, *size) for size in ((4000, 3000), (64, 64)))
    assert size in content
    with pytest.raises(BrokenImage):
        read(content.replace(size, small), MORE)


@pytest.mark.parametrize("compression", ["packbits", "group4", "lzma", "zstd"])
def test_rare_tiffs(compression: str) -> None:
    """A TIFF that is compressed as cameras and Photoshop do not is refused before it is decoded."""
    image = ORIGINAL.convert("1") if compression == "group4" else ORIGINAL
    with pytest.raises(UnsupportedType, match="uncompressed, LZW, ZIP and JPEG are accepted"):
        read(encoded(image, "TIFF", compression=compression), MORE)


def test_only_some_types() -> None:
    """Fewer types than by default can be accepted, and the refusal names those."""
    with pytest.raises(UnsupportedType, match=r"the file is a PNG picture; accepted are JPEG, AVIF, HEIC and TIFF\."):
        read(encoded(ORIGINAL), MORE)
    with pytest.raises(NotAnImage, match=r"accepted are JPEG\."):
        read(b"hello", Limits(1, 1, ("jpeg",)))


def test_what_decodes_heic_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its package, HEIC is refused at the start, with the command that installs it."""
    monkeypatch.setitem(sys.modules, "pi_heif", None)
    with pytest.raises(
        PackagesMissing, match=r"IMAGE_FORMATS names heic.*`tools/environment.sh .venv packages formats`"
    ):
        Limits(1, 1, ("heic",))
