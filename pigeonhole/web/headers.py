"""The headers of every answer, whoever gives it: browsers are to make nothing of it but what it is."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

# the page, /docs and files have a policy, and files a Cache-Control, of their own
EVERY_ANSWER: Mapping[str, str] = MappingProxyType(
    {
        "Cache-Control": "no-store",
        "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
        "Cross-Origin-Resource-Policy": "same-origin",  # does not touch what CORS lets other origins fetch
        "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
    }
)
# where a trusted proxy says that it was asked by https; a year, as OWASP's ASVS wants
ONLY_HTTPS: Mapping[str, str] = MappingProxyType({"Strict-Transport-Security": "max-age=31536000"})
