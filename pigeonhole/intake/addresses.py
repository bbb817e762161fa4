"""Which addresses a client may have fetched: those of public web servers, and nothing else.

Two parsers that read one address differently are how a check is passed by (Orange Tsai, "A New Era of SSRF", 2017). So
an address is read once, here, into parts; what reaches the wire is made of these parts, never of the client's text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_network
from urllib.parse import quote, urljoin

from pigeonhole.errors import BadURL, RequestError, URLNotAllowed

MAX_CHARACTERS = 2_048  # of an address; browsers and caches take at least as many
MAX_NAME = 253  # characters of a host name: RFC 1035 has 255 bytes with the lengths of its labels

ADDRESS = re.compile(r"(https?)://([^/?#]*)([^?#]*)(?:\?([^#]*))?(?:#.*)?", re.IGNORECASE | re.ASCII)  # as RFC 3986, B
SCHEME = re.compile(r"https?:", re.IGNORECASE | re.ASCII)  # ASCII, or "ſ" would be an "s"
AUTHORITY = re.compile(r"(\[[^\[\]]*\]|[^:\[\]]+)(?::([0-9]*))?")
LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")  # a last label like it makes browsers read the host as IPv4
UNRESERVED = "!#$%&'()*+,/:;=?@[]~"  # besides letters, digits and "-._": what a path or a query may hold as it is

PORTS = {"http": 80, "https": 443}
# names that are nobody's on the public web: RFC 6761, 6762, 7686, 9476, and ICANN's resolution on .internal
PRIVATE_NAMES = frozenset(("localhost", "local", "internal", "arpa", "onion", "alt", "test", "invalid"))

IPAddress = IPv4Address | IPv6Address

# Our own list: `is_global` was wrong before Python 3.12.4. IANA's registries of special-purpose addresses, and what
# clouds answer on. A network that its registry calls globally reachable is on it where nothing public is served there.
NOT_PUBLIC_4 = tuple(
    map(
        ip_network,
        (
            "0.0.0.0/8",  # this host
            "10.0.0.0/8",
            "100.64.0.0/10",  # shared by carriers; Alibaba's metadata
            "127.0.0.0/8",
            "168.63.129.16/32",  # Azure's, inside a public network
            "169.254.0.0/16",  # link-local; metadata of AWS, Google and Azure
            "172.16.0.0/12",
            "192.0.0.0/24",  # protocols; Oracle's metadata
            "192.0.2.0/24",
            "192.88.99.0/24",  # relays of 6to4
            "192.168.0.0/16",
            "198.18.0.0/15",  # benchmarks
            "198.51.100.0/24",
            "203.0.113.0/24",
            "224.0.0.0/4",  # multicast
            "240.0.0.0/4",  # reserved, broadcast
        ),
    )
)
GLOBAL_UNICAST = ip_network("2000::/3")  # all else is loopback, mapped or translated IPv4, local, multicast, unassigned
NOT_PUBLIC_6 = tuple(
    map(
        ip_network,
        (
            "2001::/23",  # protocols; Teredo, which holds an IPv4 address
            "2001:db8::/32",
            "2002::/16",  # 6to4, which holds an IPv4 address
            "3fff::/20",
        ),
    )
)
ISATAP = (0x0000_5EFE, 0x0200_5EFE)  # RFC 5214: in front of an IPv4 address in the lower half

NOT_PUBLIC = "the address does not lead to a public web server; pictures are fetched from those only."


@dataclass(frozen=True)
class WebAddress:
    """An http or https address that may be asked for, if its host turns out to be public.

    `host` is a name in ASCII lower case without a dot at its end, or an address. `target` is path and query, percent-
    encoded.
    """

    scheme: str
    host: str | IPAddress
    port: int
    target: str

    @property
    def netloc(self) -> str:
        """Host and port as they stand in an address and in the Host header."""
        host = f"[{self.host}]" if isinstance(self.host, IPv6Address) else str(self.host)
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.netloc}{self.target}"


def web_address(url: str) -> WebAddress:
    """Read `url`, strictly.

    >>> str(web_address("HTTPS://Bücher.example.com:443/ä.jpg#top"))
    'https://xn--bcher-kva.example.com/%C3%A4.jpg'

    Raises:
        BadURL: it is no address, or one that others might read differently.
        URLNotAllowed: it is one of something else than a web server, or of a private one.
    """
    _check_characters(url)
    if not SCHEME.match(url):
        raise URLNotAllowed("only addresses that start with http:// or https:// are fetched.")
    if not (match := ADDRESS.fullmatch(url)):
        raise BadURL("the address has no host, as in https://example.com/photo.jpg.")
    scheme, authority, path, query = match.groups()
    scheme = scheme.lower()
    host, port = _host_and_port(authority, scheme)
    target = quote(path or "/", safe=UNRESERVED) + ("" if query is None else "?" + quote(query, safe=UNRESERVED))
    return WebAddress(scheme, host, port, target)


def redirected(address: WebAddress, location: bytes) -> WebAddress:
    """Where the answer of `address` leads with its Location.

    Raises:
        URLNotAllowed: somewhere `web_address` would not go, or from https to http; nothing of `location` is repeated.
    """
    try:
        text = location.decode()
        _check_characters(text)
        there = web_address(urljoin(str(address), text))
    except (RequestError, ValueError) as error:
        raise URLNotAllowed("the address redirects to one that is not allowed.") from error
    if (address.scheme, there.scheme) == ("https", "http"):
        raise URLNotAllowed("the address redirects from https:// to http://, which is not followed.")
    return there


def is_public(address: IPAddress) -> bool:
    """Whether a public web server can be at `address`."""
    if isinstance(address, IPv4Address):
        return not any(address in network for network in NOT_PUBLIC_4)
    if address.scope_id is not None or address not in GLOBAL_UNICAST:
        return False
    if int(address) >> 32 & 0xFFFF_FFFF in ISATAP:
        return False
    return not any(address in network for network in NOT_PUBLIC_6)


def _check_characters(text: str) -> None:
    if len(text) > MAX_CHARACTERS:
        raise BadURL(f"the address is longer than {MAX_CHARACTERS} characters.")
    if not text.isprintable() or " " in text or "\\" in text:
        raise BadURL("the address holds a space, a backslash or an invisible character; percent-encode it.")


def _host_and_port(authority: str, scheme: str) -> tuple[str | IPAddress, int]:
    if "@" in authority:
        raise URLNotAllowed("addresses with a user name or a password are not fetched.")
    if not (match := AUTHORITY.fullmatch(authority)):
        raise BadURL("the address has no host, as in https://example.com/photo.jpg, or no number as its port.")
    host, port = match.groups()
    if port not in (None, "", "80", "443"):
        raise URLNotAllowed("only ports 80 and 443 are fetched from.")
    return _host(host), int(port or PORTS[scheme])


def _host(text: str) -> str | IPAddress:
    if "%" in text:  # an encoded name, or an IPv6 address with a zone
        raise URLNotAllowed("the host of the address holds %; write it out.")
    try:
        return IPv6Address(text[1:-1]) if text.startswith("[") else IPv4Address(text)
    except ValueError as error:
        if text.startswith("["):
            raise BadURL("the host of the address stands in brackets, but is no IPv6 address.") from error
    return _name(text)


def _name(text: str) -> str:
    name = _in_ascii(text).removesuffix(".")
    *_, last = labels = name.split(".")
    if len(name) > MAX_NAME or not all(map(LABEL.fullmatch, labels)):
        raise BadURL("the host of the address is no name of letters, digits, hyphens and dots.")
    if NUMBER.fullmatch(last):
        raise URLNotAllowed("the host of the address is a number; only four decimal ones are an IPv4 address.")
    if len(labels) == 1 or last in PRIVATE_NAMES:
        raise URLNotAllowed(NOT_PUBLIC)
    return name


def _in_ascii(name: str) -> str:
    """`name` in lower case; what is not ASCII by UTS 46, as browsers do. It can turn into digits, and into dots."""
    if name.isascii():
        return name.lower()
    import idna

    try:
        return idna.encode(name, uts46=True).decode()
    except idna.IDNAError as error:
        raise BadURL("the host of the address is no name that can be looked up.") from error
