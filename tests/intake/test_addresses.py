"""What may be fetched is decided by address, and addresses are read in one way only."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from pigeonhole.errors import URLNotAllowed
from pigeonhole.intake.addresses import is_public, redirected, web_address

# the first and the last address of what nobody may have fetched
NOT_PUBLIC = {
    "E2 this host": "0.0.0.0 0.255.255.255",
    "E2 loopback": "127.0.0.0 127.0.0.1 127.255.255.254 127.255.255.255",
    "E3 AWS, Google and Azure": "169.254.169.254",
    "E3 AWS by IPv6": "fd00:ec2::254",
    "E3 Alibaba": "100.100.100.200",
    "E3 Oracle": "192.0.0.192",
    "E3 Azure's own": "168.63.129.16",
    "E4 10/8": "10.0.0.0 10.255.255.255",
    "E4 172.16/12": "172.16.0.0 172.31.255.255",
    "E4 192.168/16": "192.168.0.0 192.168.255.255",
    "E4 100.64/10": "100.64.0.0 100.127.255.255",
    "E4 169.254/16": "169.254.0.0 169.254.255.255",
    "E4 192.0.0/24": "192.0.0.0 192.0.0.255",
    "E4 192.0.2/24": "192.0.2.0 192.0.2.255",
    "E4 192.88.99/24": "192.88.99.0 192.88.99.255",
    "E4 198.18/15": "198.18.0.0 198.19.255.255",
    "E4 198.51.100/24": "198.51.100.0 198.51.100.255",
    "E4 203.0.113/24": "203.0.113.0 203.0.113.255",
    "E4 224/4": "224.0.0.0 239.255.255.255",
    "E4 240/4": "240.0.0.0 255.255.255.255",
    "E4 unspecified and loopback": ":: ::1",
    "E4 discarded": "100:: 100::ffff:ffff:ffff:ffff",
    "E4 below 2000::/3": "1fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    "E4 above 2000::/3": "4000:: 5f00::1 fbff::1",
    "E4 fc00::/7": "fc00:: fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    "E4 fe80::/10": "fe80:: febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    "E4 a zone": "fe80::1%eth0 2606:2800:21f::1%eth0",
    "E4 fec0::/10": "fec0::1",
    "E4 ff00::/8": "ff00:: ff02::1 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    "E4 2001:db8::/32": "2001:db8:: 2001:db8:ffff:ffff:ffff:ffff:ffff:ffff",
    "E4 3fff::/20": "3fff:: 3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff",
    "E6 mapped": "::ffff:127.0.0.1 ::ffff:93.184.215.14",
    "E6 compatible": "::127.0.0.1 ::93.184.215.14",
    "E6 translated": "::ffff:0:127.0.0.1",
    "E6 6to4": "2002:: 2002:7f00:1:: 2002:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    "E6 NAT64": "64:ff9b::7f00:1 64:ff9b::5db8:d70e 64:ff9b:1::7f00:1 64:ff9b:1:ffff:ffff:ffff:ffff:ffff",
    "E6 Teredo": "2001:: 2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "E6 protocols": "2001:1::1 2001:10::1 2001:20::1 2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff",
    "E6 ISATAP": "2606:2800:21f::5efe:10.0.0.1 2606:2800:21f::200:5efe:127.0.0.1",
}

# their neighbours, and some of everyday
PUBLIC = (
    "1.0.0.0 1.1.1.1 8.8.8.8 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.0 "
    "168.63.129.15 168.63.129.17 169.253.255.255 169.255.0.0 172.15.255.255 172.32.0.0 191.255.255.255 192.0.1.0 "
    "192.0.1.255 192.0.3.0 192.88.98.255 192.88.100.0 192.167.255.255 192.169.0.0 198.17.255.255 198.20.0.0 "
    "198.51.99.255 198.51.101.0 203.0.112.255 203.0.114.0 223.255.255.255 93.184.215.14 "
    "2000:: 2001:200:: 2001:db7:ffff:ffff:ffff:ffff:ffff:ffff 2001:db9:: 2001:ffff:: 2003:: 2606:4700:4700::1111 "
    "2606:2800:21f::5eff:127.0.0.1 3ffe:ffff:: 3fff:1000::"
)

# what is written, what it is read as
READ = {
    "nothing but a host": ("https://example.com", "https://example.com/"),
    "capitals": ("HTTPS://EXAMPLE.COM/A.JPG", "https://example.com/A.JPG"),
    "a fragment": ("https://example.com/a#b?c", "https://example.com/a"),
    "a query without a path": ("https://example.com?a=b/c?d", "https://example.com/?a=b/c?d"),
    "an empty query": ("https://example.com/?", "https://example.com/?"),
    "the usual port": ("https://example.com:443/", "https://example.com/"),
    "no port": ("http://example.com:/", "http://example.com/"),
    "the other port": ("http://example.com:443/", "http://example.com:443/"),
    "a dot at the end": ("https://example.com./", "https://example.com/"),
    "percent signs": ("https://example.com/%2F%zz%", "https://example.com/%2F%zz%"),
    "another script": ("https://bücher.example.com/ä?ö=ü", "https://xn--bcher-kva.example.com/%C3%A4?%C3%B6=%C3%BC"),
    "another dot": ("https://example。com/", "https://example.com/"),
    "quotes": ("""https://example.com/"'<>^`{|}""", "https://example.com/%22'%3C%3E%5E%60%7B%7C%7D"),
    "hyphens, as YouTube has": ("https://r3---sn-x.example.com/", "https://r3---sn-x.example.com/"),
    "an @ in the path": ("https://example.com/@me?you@them", "https://example.com/@me?you@them"),
    "IPv4": ("http://93.184.215.14/", "http://93.184.215.14/"),
    "IPv6": ("http://[2606:2800:021F:0::1]:443/", "http://[2606:2800:21f::1]:443/"),
}

# what an answer of https://photos.example.com/a/b says, where that leads
LED = {
    "absolute": (b"https://cdn.example.com/c", "https://cdn.example.com/c"),
    "of the root": (b"/c?d", "https://photos.example.com/c?d"),
    "relative": (b"../c", "https://photos.example.com/c"),
    "of the same scheme": (b"//cdn.example.com/c", "https://cdn.example.com/c"),
    "scheme without host": (b"https:c", "https://photos.example.com/a/c"),
    "empty": (b"", "https://photos.example.com/a/b"),
    "in UTF-8": ("/ä".encode(), "https://photos.example.com/%C3%A4"),
}
LED_ASTRAY = {
    "E9 file": b"file:///etc/passwd",
    "E9 port": b"https://photos.example.com:22/",
    "E9 to http": b"http://photos.example.com/",
    "E9 localhost": b"//localhost/",
    "E11 tab": b"\t//127.0.0.1",
    "E11 tab inside": b"/\t/127.0.0.1",
    "E11 backslashes": rb"https:\\127.0.0.1",
    "E11 backslash behind the host": rb"https://photos.example.com\@127.0.0.1/",
    "E11 user": b"https://photos.example.com@127.0.0.1/",
    "E11 user, relative": b"//me:secret@photos.example.com/",
    "E11 space": b" https://photos.example.com/",
    "E11 NUL": b"/\x00",
    "E11 bracket": b"//[::1",
    "E11 no UTF-8": b"/\xff",
    "E11 10 KB": b"/" * 10_000,
}


@pytest.mark.parametrize("addresses", NOT_PUBLIC.values(), ids=NOT_PUBLIC)
def test_not_public(addresses: str) -> None:
    """From the first address of a special-purpose network to the last, nothing is public."""
    assert [text for text in addresses.split() if is_public(ip_address(text))] == []


def test_public() -> None:
    """What lies right beside such a network is public."""
    assert [text for text in PUBLIC.split() if not is_public(ip_address(text))] == []


@pytest.mark.parametrize(("written", "read"), READ.values(), ids=READ)
def test_read(written: str, read: str) -> None:
    """An address is read as browsers read it, and reading what was read changes nothing."""
    assert str(web_address(written)) == read
    assert str(web_address(read)) == read


@pytest.mark.parametrize(("location", "there"), LED.values(), ids=LED)
def test_redirected(location: bytes, there: str) -> None:
    """A Location is taken relative to the address that answered with it."""
    assert str(redirected(web_address("https://photos.example.com/a/b"), location)) == there


@pytest.mark.parametrize("location", LED_ASTRAY.values(), ids=LED_ASTRAY)
def test_led_astray(location: bytes) -> None:
    """A Location is read as strictly as an address, and not a word of it is repeated."""
    with pytest.raises(URLNotAllowed, match=r"^the address redirects (to one that is not allowed|from https)"):
        redirected(web_address("https://photos.example.com/a/b"), location)
