"""What MODEL may name besides a file, and how it is shown to people."""

from __future__ import annotations

import ipaddress
import re
from contextlib import suppress
from urllib.parse import urlsplit

from pigeonhole.errors import DownloadError

ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")  # of two letters or more: C:/ is a path
SCHEMES = ("https", "http", "s3", "gs", "hf", "runs", "models")
RUN = re.compile(r"runs:/([\w-]+)/(.+)")
REGISTERED = re.compile(
    r"models:/(?:(?P<model>m-[0-9a-f]+)|(?P<name>[^/@]+)(?:/(?P<version>[0-9]+)|@(?P<alias>[\w.-]+)))"
)


def is_address(model: str) -> bool:
    """Is MODEL somewhere else? `./s3:/x.pkl` is a path."""
    return ADDRESS.match(model) is not None


def shown(address: str) -> str:
    """The address as people may see it: without a password, and without a query, which may be a signature.

    >>> shown("https://me:secret@example.com/export.pkl?signature=abc")
    'https://…@example.com/export.pkl?…'
    """
    address, _, query = address.partition("#")[0].partition("?")
    address = re.sub(r"(://)[^/]*@", r"\1…@", address)
    return "".join(c if c.isprintable() else "…" for c in address) + ("?…" if query else "")


def check_address(address: str) -> None:
    """Refuse what is visibly no address of a file.

    Raises:
        DownloadError: it is none.
    """
    here = f"MODEL={shown(address)}"
    match = ADDRESS.match(address)
    scheme = match[1] if match else ""
    if scheme not in SCHEMES:
        accepted = ", ".join(SCHEMES[:1] + SCHEMES[2:])
        raise DownloadError(
            f"{here} is no address that a model can come from; those begin with {accepted}. A "
            "file of this machine is named by its path."
        )
    if scheme in ("runs", "models"):
        if not (RUN if scheme == "runs" else REGISTERED).fullmatch(address):
            wanted = "runs:/ID/path/export.pkl" if scheme == "runs" else "models:/NAME/VERSION or models:/NAME@ALIAS"
            raise DownloadError(f"{here} is not complete; such an address looks like {wanted}.")
        return
    try:
        parts = urlsplit(address)
        host = parts.hostname
    except ValueError:
        host = None
    if not host or not parts.path.strip("/"):
        raise DownloadError(f"{here} names no file.")
    if "@" in parts.netloc:
        raise DownloadError(f"{here} holds a password, which logs and lists of processes would show; leave it out.")
    if not is_safe(scheme, host):
        raise DownloadError(f"{here} is not encrypted, so anybody on the way could change the model; use https.")


def is_safe(scheme: str, host: str) -> bool:
    """Is what comes from there what was sent? http is all right where it never leaves this machine."""
    if scheme != "http" or host == "localhost":
        return True
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False
