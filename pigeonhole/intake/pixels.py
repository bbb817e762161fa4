"""From a picture that Pillow has opened to 8-bit RGB, in as little memory as there is a way to.

Pillow keeps a pixel of RGB in four bytes. What a step has read is given back before the next step begins, so that no
more than two copies are held at any moment.
"""

from __future__ import annotations

from typing import Any

from PIL import Image, ImageFile

GREY_STEPS = {"L;2": 85, "L;4": 17}  # between two neighbouring levels of two and of four bits, in levels of eight
SIXTEEN_TO_EIGHT = [(level * 255 + 32_767) // 65_535 for level in range(65_536)]  # rounded; cutting would darken


def pixels_of(opened: ImageFile.ImageFile) -> Image.Image:
    """The first frame, in the mode in which its decoder gives it.

    Raises:
        Exception: whatever Pillow raises.
    """
    announced, stored_as = opened.size, _raw_mode(opened)
    image = _webp_pixels(opened) if opened.format == "WEBP" else opened
    image.load()
    if image.size != announced:  # HEIC's decoder goes by what is in the stream
        raise ValueError("the header announced another size")
    _mend_transparency(image, stored_as)
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """`image` of any mode of the accepted types as 8-bit RGB, what is transparent over white; `image` may be closed."""
    if image.mode.startswith("I"):
        image = instead_of(image, _sixteen_to_eight_bits(image))
    if image.has_transparency_data:
        image = instead_of(image, image if image.mode == "RGBA" else image.convert("RGBA"))
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image)  # half the memory of alpha_composite, which wants four channels
        return instead_of(image, white)
    return instead_of(image, image if image.mode == "RGB" else image.convert("RGB"))


def instead_of(old: Image.Image, new: Image.Image) -> Image.Image:
    """`new`; the memory of `old` is given back, though others may still hold it."""
    if new is not old:
        old.close()
    return new


def _webp_pixels(opened: Any) -> Image.Image:
    """A WebP's first frame as its decoder gives it, without the decoder.

    Pillow itself would copy these bytes once more, and keep the decoder with its two canvases of four bytes a pixel.
    """
    frame, opened._decoder = opened._decoder.get_next(), None
    if frame is None:
        raise ValueError("there is no frame that decodes")
    return Image.frombuffer(opened.rawmode, opened.size, frame[0], "raw", opened.rawmode, 0, 1)


def _sixteen_to_eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey as 8-bit grey, what is transparent white; Pillow's convert("RGB") would clip all but the darkest."""
    levels = SIXTEEN_TO_EIGHT
    if isinstance(transparent := image.info.pop("transparency", None), int):
        levels = [*levels[:transparent], 255, *levels[transparent + 1 :]]
    return image.convert("I").point(levels, "L")


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
