"""Pictures as base64 text or data URI; text that is something else, an address or a path, is never followed."""

from __future__ import annotations

import binascii

from pigeonhole.errors import BadBase64


def decoded(text: str) -> bytes:
    """The bytes of base64 (RFC 4648, section 4, padded, nothing between) or of a data URI (RFC 2397) that holds it.

    The media type of a data URI does not matter: the content tells what it is.

    Raises:
        BadBase64: it is neither.
    """
    if text[:5].lower() == "data:":
        head, comma, text = text.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise BadBase64("the image is a data URI, but not of base64; send data:image/jpeg;base64,…")
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except ValueError as error:  # binascii.Error, and for text that is not ASCII
        raise BadBase64(
            "the image is not base64: A to Z, a to z, 0 to 9, + and /, padded with =, without line breaks."
        ) from error
