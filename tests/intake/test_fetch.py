"""A client's address is fetched from public web servers, or refused, and neither tells more than a browser would."""

from __future__ import annotations

import io
import random
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from inspect import signature
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from pigeonhole.errors import BadURL, NoSpace, Overloaded, PigeonholeError, URLFailed, URLNotAllowed
from pigeonhole.intake.fetch import USER_AGENT, Fetcher, connect, resolve
from tests.conftest import ROOT, picture
from tests.intake.a_web import (
    ALSO_PUBLIC,
    PUBLIC,
    ZONE,
    Certificates,
    Script,
    Site,
    Web,
    answer,
    drip,
    flood,
    hang,
    ok,
    redirect,
)

PHOTO = picture()
URL = "http://photos.example.com/red.png"
SECURE_URL = "https://photos.example.com/red.png"
SHORT = 0.3  # seconds, where a fetch is to run out of them
LATE = 1.0  # seconds more that a busy machine may take to notice

# an address, and how it is refused before anybody is asked for anything
REFUSED: dict[str, tuple[str, type[PigeonholeError]]] = {
    "E2 127.0.0.1": ("http://127.0.0.1/", URLNotAllowed),
    "E2 127.1": ("http://127.1/", URLNotAllowed),
    "E2 127.255.255.254": ("http://127.255.255.254/", URLNotAllowed),
    "E2 localhost": ("http://localhost/", URLNotAllowed),
    "E2 localhost.": ("http://LOCALHOST./", URLNotAllowed),
    "E2 below localhost": ("http://photos.localhost/", URLNotAllowed),
    "E2 0.0.0.0": ("http://0.0.0.0/", URLNotAllowed),
    "E2 0": ("http://0/", URLNotAllowed),
    "E2 [::1]": ("http://[::1]/", URLNotAllowed),
    "E2 [::]": ("http://[::]:80/", URLNotAllowed),
    "E3 metadata": ("http://169.254.169.254/latest/meta-data/", URLNotAllowed),
    "E3 metadata.google.internal": ("http://metadata.google.internal/computeMetadata/v1/", URLNotAllowed),
    "E3 fd00:ec2::254": ("http://[fd00:ec2::254]/", URLNotAllowed),
    "E3 100.100.100.200": ("http://100.100.100.200/", URLNotAllowed),
    "E3 168.63.129.16": ("http://168.63.129.16/", URLNotAllowed),
    "E4 10/8": ("https://10.0.0.1/", URLNotAllowed),
    "E4 link-local": ("http://[fe80::1]/", URLNotAllowed),
    "E4 zone": ("http://[fe80::1%eth0]/", URLNotAllowed),
    "E4 zone, encoded": ("http://[fe80::1%25eth0]/", URLNotAllowed),
    "E4 zone on a public one": (f"http://[{ALSO_PUBLIC}%25eth0]/", URLNotAllowed),
    "E4 a name of this network": ("http://printer.local/", URLNotAllowed),
    "E4 a name without a dot": ("http://printer/", URLNotAllowed),
    "E5 decimal": ("http://2130706433/", URLNotAllowed),
    "E5 decimal of a public one": ("http://1572395790/", URLNotAllowed),
    "E5 hexadecimal": ("http://0x7f000001/", URLNotAllowed),
    "E5 octal": ("http://0177.0.0.1/", URLNotAllowed),
    "E5 octal of a public one": ("http://0135.184.215.14/", URLNotAllowed),
    "E5 mixed": ("http://0x7f.1/", URLNotAllowed),
    "E5 0x": ("http://photos.0x/", URLNotAllowed),
    "E5 five parts": ("http://1.127.0.0.1/", URLNotAllowed),
    "E5 too large": ("http://127.0.0.256/", URLNotAllowed),
    "E5 a dot at the end": ("http://127.0.0.1./", URLNotAllowed),
    "E5 a dot behind a public one": (f"http://{PUBLIC}./", URLNotAllowed),
    "E5 fullwidth": ("http://１２７.０.０.１/", URLNotAllowed),
    "E5 fullwidth of a public one": ("http://９３.184.215.14/", URLNotAllowed),
    "E5 circled": ("http://①②⑦.⓪.⓪.①/", URLNotAllowed),
    "E5 Roman": ("http://0Ⅹ7f.1/", URLNotAllowed),
    "E5 ideographic dots": ("http://127。0。0。1/", URLNotAllowed),
    "E5 localhost with an ideographic dot": ("http://localhost。/", URLNotAllowed),
    "E5 circled localhost": ("http://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ/", URLNotAllowed),
    "E5 percent-encoded": ("http://%31%32%37.0.0.1/", URLNotAllowed),
    "E5 percent-encoded name": ("http://photos%2eexample.com/", URLNotAllowed),
    "E6 mapped": ("http://[::ffff:127.0.0.1]/", URLNotAllowed),
    "E6 mapped public one": (f"http://[::ffff:{PUBLIC}]/", URLNotAllowed),
    "E6 compatible": ("http://[::127.0.0.1]/", URLNotAllowed),
    "E6 6to4": ("http://[2002:7f00:1::]/", URLNotAllowed),
    "E6 NAT64": ("http://[64:ff9b::7f00:1]/", URLNotAllowed),
    "E6 local NAT64": ("http://[64:ff9b:1::1]/", URLNotAllowed),
    "E6 Teredo": ("http://[2001:0:4136:e378:8000:63bf:3fff:fdd2]/", URLNotAllowed),
    "E6 ISATAP": ("http://[2606:2800:21f::5efe:127.0.0.1]/", URLNotAllowed),
    "E10 file": ("file:///etc/passwd", URLNotAllowed),
    "E10 file with host": ("file://photos.example.com/red.png", URLNotAllowed),
    "E10 gopher": ("gopher://photos.example.com:80/_GET", URLNotAllowed),
    "E10 ftp": ("ftp://photos.example.com/", URLNotAllowed),
    "E10 dict": ("dict://photos.example.com:80/d", URLNotAllowed),
    "E10 data": ("data:image/png;base64,iVBORw0KGgo=", URLNotAllowed),
    "E10 jar": ("jar:http://photos.example.com!/", URLNotAllowed),
    "E10 ldap": ("ldap://photos.example.com/", URLNotAllowed),
    "E10 unix": ("unix:/run/docker.sock", URLNotAllowed),
    "E10 http+unix": ("http+unix://%2Frun%2Fdocker.sock/", URLNotAllowed),
    "E10 javascript": ("javascript:alert(1)", URLNotAllowed),
    "E10 view-source": ("view-source:http://photos.example.com/", URLNotAllowed),
    "E10 long s": ("httpſ://photos.example.com/", URLNotAllowed),
    "E10 no scheme": ("photos.example.com/red.png", URLNotAllowed),
    "E10 //host": ("//photos.example.com/red.png", URLNotAllowed),
    "E10 empty scheme": ("://photos.example.com/", URLNotAllowed),
    "E10 nothing": ("", URLNotAllowed),
    "E11 user and password": ("http://me:secret@photos.example.com/", URLNotAllowed),
    "E11 user only": ("http://me@photos.example.com/", URLNotAllowed),
    "E11 empty user": ("http://@photos.example.com/", URLNotAllowed),
    "E11 two @": ("http://a@127.0.0.1@photos.example.com/", URLNotAllowed),
    "E11 fullwidth @": ("http://127.0.0.1＠photos.example.com/", BadURL),
    "E11 backslash and @": (r"http://photos.example.com\@127.0.0.1/", BadURL),
    "E11 backslashes": (r"http:\\127.0.0.1\red.png", BadURL),
    "E11 backslash in the path": (r"http://photos.example.com/a\b", BadURL),
    "E11 fullwidth slash": ("http://photos.example.com／.evil.example.com/", BadURL),
    "E11 a name in brackets": ("http://[photos.example.com]/", BadURL),
    "E11 IPv4 in brackets": ("http://[127.0.0.1]/", BadURL),
    "E11 a future IP": ("http://[v1.fe80::1]/", BadURL),
    "E11 an open bracket": ("http://[::1/", BadURL),
    "E11 text behind the bracket": (f"http://[{ALSO_PUBLIC}].example.com/", BadURL),
    "E11 IPv6 without brackets": ("http://::1/", BadURL),
    "E11 tab": ("http://photos.exa\tmple.com/", BadURL),
    "E11 CR and LF": ("http://photos.example.com/ HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", BadURL),
    "E11 LF": ("http://photos.example.com\n/", BadURL),
    "E11 LF at the end": ("http://photos.example.com/\n", BadURL),
    "E11 NUL": ("http://127.0.0.1\0.photos.example.com/", BadURL),
    "E11 space in front": (" http://photos.example.com/", BadURL),
    "E11 space inside": ("http://photos.example.com/red green.png", BadURL),
    "E11 no-break space": ("http://photos.example.com/red\u00a0green.png", BadURL),
    "E11 line separator": ("http://photos.example.com/\u2028", BadURL),
    "E11 right to left": ("http://photos.example.com/\u202egnp.red", BadURL),
    "E11 soft hyphen": ("http://photos.exam\u00adple.com/", BadURL),
    "E11 half a surrogate pair": ("http://photos.example.com/\ud83d", BadURL),
    "E11 10 KB": ("http://photos.example.com/" + "a" * 10_000, BadURL),
    "E11 2,049 characters": (URL.ljust(2_049, "a"), BadURL),
    "E11 a label of 64": (f"http://{'a' * 64}.example.com/", BadURL),
    "E11 a name of 254": (f"http://{'a.' * 122}xample.com/", BadURL),
    "E11 an empty label": ("http://photos..example.com/", BadURL),
    "E11 two dots at the end": ("http://photos.example.com../", BadURL),
    "E11 only a dot": ("http://./", BadURL),
    "E11 underscore": ("http://photos_1.example.com/", BadURL),
    "E11 hyphen in front": ("http://-photos.example.com/", BadURL),
    "E11 account of, as a letter": ("http://photos.example.com℀.example.com/", BadURL),
    "E11 a joiner": ("http://pho\u0301\u200dtos.example.com/", BadURL),
    "E11 no host": ("http:///red.png", BadURL),
    "E11 no slashes": ("http:photos.example.com", BadURL),
    "E11 one slash": ("http:/photos.example.com", BadURL),
    "E11 only a port": ("http://:80/", BadURL),
    "E12 22": ("http://photos.example.com:22/", URLNotAllowed),
    "E12 25": ("http://photos.example.com:25/", URLNotAllowed),
    "E12 6379": ("http://photos.example.com:6379/", URLNotAllowed),
    "E12 8080": ("http://photos.example.com:8080/", URLNotAllowed),
    "E12 65535": ("http://photos.example.com:65535/", URLNotAllowed),
    "E12 65616": ("http://photos.example.com:65616/", URLNotAllowed),  # 80, in sixteen bits
    "E12 0": ("http://photos.example.com:0/", URLNotAllowed),
    "E12 99999": ("http://photos.example.com:99999/", URLNotAllowed),
    "E12 080": ("http://photos.example.com:080/", URLNotAllowed),
    "E12 -1": ("http://photos.example.com:-1/", BadURL),
    "E12 Arabic digits": ("http://photos.example.com:٨٠/", BadURL),
    "E12 two ports": ("http://photos.example.com:80:80/", BadURL),
}

# the answers of a name server that do not lead to public addresses, and to nothing else
NOT_PUBLIC_NAMES = {
    "E7 private": "photos.example.com. A 10.0.0.1",
    "E7 metadata": "photos.example.com. A 169.254.169.254",
    "E7 private by IPv6": "photos.example.com. AAAA fd00::1",
    "E7 mapped": "photos.example.com. AAAA ::ffff:7f00:1",
    "E7 public, then private": f"{ZONE}\nphotos.example.com. A 127.0.0.1",
    "E7 private, then public": f"photos.example.com. A 127.0.0.1\n{ZONE}",
    "E7 public, and private by IPv6": f"{ZONE}\nphotos.example.com. AAAA ::1",
    "E7 private, and public by IPv6": f"photos.example.com. A 10.0.0.1\nphotos.example.com. AAAA {ALSO_PUBLIC}",
    "E7 CNAME to localhost": "photos.example.com. CNAME localhost.\nlocalhost. A 127.0.0.1",
    "E7 CNAME to nowhere": "photos.example.com. CNAME nowhere.example.com.",
    "E7 no such name": "cats.example.com. A 93.184.215.14",
    "E7 a name without addresses": "photos.example.com. TXT nothing",
}
# those that are none
NO_ANSWER: dict[str, dict[str, Any]] = {
    "E7 time-out": {"code": ""},
    "E7 trouble there": {"code": "SERVFAIL"},
    "E7 refused there": {"code": "REFUSED"},
    "E7 cut, and no more by TCP": {"cut": True},
}

# what a server says with PHOTO, or nearly
WAYS_TO_SAY = {
    "with its length": ok(PHOTO),
    "as text/html": ok(PHOTO, "Content-Type: text/html"),
    "until it hangs up": answer("200 OK") + PHOTO,
    "in HTTP/1.0": b"HTTP/1.0 200 OK\r\n\r\n" + PHOTO,
    "in one chunk": answer("200 OK", "Transfer-Encoding: chunked") + b"%x\r\n%b\r\n0\r\n\r\n" % (len(PHOTO), PHOTO),
    "in chunks of a byte": answer("200 OK", "Transfer-Encoding: chunked")
    + b"".join(b"1;name=value\r\n%c\r\n" % byte for byte in PHOTO)
    + b"0\r\nTrailer: value\r\n\r\n",
    "after 100 and 103": answer("100 Continue") + answer("103 Early Hints", "Link: </x>") + ok(PHOTO),
    "as identity": ok(PHOTO, "Content-Encoding: Identity"),
    "with more behind it": ok(PHOTO) + b"HTTP/1.1 200 OK\r\n\r\nmore",
}

# where a redirect may not lead
ASTRAY = {
    "E9 private": "http://10.0.0.1/",
    "E9 metadata": "http://169.254.169.254/latest/meta-data/",
    "E9 localhost": "//localhost/",
    "E9 a private name": "http://inside.example.com/",
    "E9 no name at all": "http://nowhere.example.com/",
    "E9 file": "file:///etc/passwd",
    "E9 gopher": "gopher://127.0.0.1/",
    "E9 other port": "http://photos.example.com:6379/",
    "E9 user": "http://me:canary@photos.example.com/",
    "E9 decimal": "http://2130706433/",
    "E9 tab": "\t//127.0.0.1/",
    "E9 tab inside": "/\t/127.0.0.1/",
    "E9 backslashes": r"http:\\127.0.0.1/",
    "E9 backslash and @": r"http://photos.example.com\@127.0.0.1/",
    "E9 space": "http://photos.example.com/ canary",
    "E9 bracket": "//[canary",
    "E9 no UTF-8": "/\udcff",
    "E9 10 KB": "/" + "a" * 10_000,
}

CHUNKED = answer("200 OK", "Transfer-Encoding: chunked")
ENDLESS: dict[str, Script] = {
    "E13 body": flood(answer("200 OK"), b"a" * 65_536),
    "E13 chunks": flood(CHUNKED, b"10000\r\n" + b"a" * 65_536 + b"\r\n"),
    "E13 chunk of 2^80": flood(CHUNKED + b"f" * 20 + b"\r\n", b"a" * 65_536),
    "E13 chunks of a byte": flood(CHUNKED, b"1\r\na\r\n" * 10_000),
    "E13 chunk extensions": flood(CHUNKED, b"1;" + b"a" * 50_000 + b"\r\na\r\n"),
    "E13 one chunk extension": flood(CHUNKED + b"1;", b"a" * 65_536),
    "E13 trailers": flood(CHUNKED + b"0\r\n", b"Canary: yes\r\n" * 5_000),
    "E13 one trailer": flood(CHUNKED + b"0\r\nCanary: ", b"a" * 65_536),
    "E13 headers": flood(b"HTTP/1.1 200 OK\r\n", b"Canary: yes\r\n" * 5_000),
    "E13 one header": flood(b"HTTP/1.1 200 OK\r\nCanary: ", b"a" * 65_536),
    "E13 folded header": flood(b"HTTP/1.1 200 OK\r\nCanary: yes\r\n", b" yes\r\n" * 10_000),
    "E13 status line": flood(b"HTTP/1.1 200 ", b"a" * 65_536),
    "E13 no HTTP": flood(b"", b"a" * 65_536),
    "E13 1xx": flood(b"", answer("100 Continue") * 2_000),
    "E13 1xx with headers": flood(b"", answer("103 Early Hints", *["Canary: yes"] * 1_000)),
    "E13 lying length": flood(answer("200 OK", "Content-Length: 99999999"), b"a" * 65_536),
}
SLOW: dict[str, Script] = {
    "E13 nothing": hang,
    "E13 drip of the status line": drip(b"", b"HTTP/1.1 200 OK canary"[:1]),
    "E13 drip of headers": drip(b"HTTP/1.1 200 OK\r\n", b"A: b\r\n"),
    "E13 drip of 1xx": drip(b"", answer("102 Processing")),
    "E13 drip of the body": drip(answer("200 OK"), b"a"),
    "E13 drip of a known body": drip(answer("200 OK", "Content-Length: 1000"), b"a"),
    "E13 drip of chunks": drip(CHUNKED, b"1\r\na\r\n"),
    "E13 drip of trailers": drip(CHUNKED + b"0\r\n", b"A: b\r\n"),
}

# no picture comes of them
BAD_ANSWERS = {
    "E13 shorter than its length": answer("200 OK", "Content-Length: 1000") + b"canary",
    "E13 length over the limit": answer("200 OK", "Content-Length: 100001"),
    "E13 length of 4,000 digits": answer("200 OK", "Content-Length: " + "9" * 4_000),
    "E13 negative length": answer("200 OK", "Content-Length: -1") + b"canary",
    "E13 two lengths": answer("200 OK", "Content-Length: 1", "Content-Length: 6") + b"canary",
    "E13 chunks without an end": CHUNKED + b"6\r\ncanary\r\n",
    "E13 a chunk of no number": CHUNKED + b"canary\r\n",
    "E13 a chunk of another length": CHUNKED + b"5\r\ncanary\r\n0\r\n\r\n",
    "E13 nothing": b"",
    "E13 half a head": b"HTTP/1.1 200 OK\r\nCanary",
    "E13 NUL in a header": answer("200 OK", "Canary: \0"),
    "E13 a space before the colon": answer("200 OK", "Canary : yes"),
    "E14 gzip": ok(b"\x1f\x8bcanary", "Content-Encoding: gzip"),
    "E14 br": ok(b"canary", "content-encoding: BR"),
    "E14 zstd": ok(b"canary", "Content-Encoding: zstd"),
    "E14 gzip twice": ok(b"canary", "Content-Encoding: identity, gzip"),
    "E14 gzip in a second header": ok(b"canary", "Content-Encoding: identity", "Content-Encoding: gzip"),
    "E14 gzip as transfer": answer("200 OK", "Transfer-Encoding: gzip, chunked") + b"6\r\ncanary\r\n0\r\n\r\n",
    "E14 on a redirect": answer("302 Found", "Location: /photo", "Content-Encoding: gzip") + b"canary",
    "E15 101": answer("101 Switching Protocols", "Upgrade: canary", "Connection: upgrade"),
    "E15 201": answer("201 Created", "Content-Length: 6") + b"canary",
    "E15 204": answer("204 canary"),
    "E15 206": answer("206 canary", "Content-Length: 6", "Content-Range: bytes 0-5/9") + b"canary",
    "E15 300": answer("300 canary", "Location: /photo"),
    "E15 302 to nowhere": answer("302 canary"),
    "E15 302 to two places": answer("302 canary", "Location: /photo", "Location: /canary"),
    "E15 304": answer("304 canary"),
    "E15 404": answer("404 canary", "Content-Length: 6") + b"canary",
    "E15 500": answer("500 canary") + b"Traceback (most recent call last): canary",
    "E15 999": answer("999 canary"),
    "E15 HTTP/0.9": b"canary",
    "E15 HTTP/2": b"HTTP/2 200 OK\r\n\r\ncanary",
    "E15 SSH": b"SSH-2.0-canary\r\n",
    "E15 SMTP": b"220 canary ESMTP\r\n",
    "E15 TLS on port 80": b"\x16\x03\x01\x00\xa5canary",
}

BAD_CERTIFICATES: dict[str, Callable[[Certificates], ssl.SSLContext]] = {
    "E15 self-signed": lambda authority: authority.server("photos.example.com", signed=False),
    "E15 expired": lambda authority: authority.server("photos.example.com", days=-1),
    "E15 another's": lambda authority: authority.server("cats.example.com"),
    "E15 for a name above": lambda authority: authority.server("example.com"),
}


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def web(certificates: Certificates) -> Iterator[Web]:
    with Web(certificates.trust) as web:
        yield web


def refused(web: Web, kind: type[PigeonholeError], url: str = URL, **options: Any) -> str:
    """The sentence with which `url` is refused; it tells nothing that was found on the way."""
    with pytest.raises(kind) as refusal:
        web.fetch(url, **options)
    sentence = str(refusal.value)
    for found in ("canary", PUBLIC, "10.0.0.1", "127.0.0.1", "photos", "red.png", "rror", "Traceback", "secret"):
        assert found not in sentence
    return sentence


def hanging(web: Web) -> Site:
    """Port 80 takes connections and says nothing."""
    return web.site()


@pytest.mark.parametrize("said", WAYS_TO_SAY.values(), ids=WAYS_TO_SAY)
def test_fetched(web: Web, said: bytes) -> None:
    """However a server frames a picture, what is written is the picture, byte by byte."""
    web.site(said)
    assert web.fetch(URL) == PHOTO


def test_fetched_large(web: Web) -> None:
    """A large file is fetched whole, in chunks as servers send them too."""
    body = random.Random(0).randbytes(3_000_000)
    chunks = b"".join(
        b"%x\r\n%b\r\n" % (len(part), part) for part in (body[at : at + 1_000] for at in range(0, 3_000_000, 1_000))
    )
    web.site(ok(body), CHUNKED + chunks + b"0\r\n\r\n")
    assert web.fetch(URL, limit=3_000_000) == body
    assert web.fetch(URL, limit=3_000_000) == body


def test_fetched_by_tls(web: Web, certificates: Certificates) -> None:
    """Over TLS the name is in SNI, in the certificate and in Host; dialled is the address that was looked up."""
    site = web.site(ok(PHOTO), port=443, tls=certificates.server("photos.example.com"))
    assert web.fetch(SECURE_URL) == PHOTO
    assert web.dialled == [(PUBLIC, 443)]
    assert site.names == ["photos.example.com"]
    assert b"\r\nHost: photos.example.com\r\n" in site.heads[0]


def test_nothing_but_this_is_sent(web: Web, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """E16: the head is always the same; proxies, .netrc and cookies change nothing, and the proxy hears nothing."""
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        proxy.setblocking(False)
        for name in ("http_proxy", "HTTPS_PROXY", "ALL_PROXY", "all_proxy", "HTTP_PROXY"):
            monkeypatch.setenv(name, f"http://me:secret@127.0.0.1:{proxy.getsockname()[1]}")
        (tmp_path / ".netrc").write_text("default login me password secret\n")
        (tmp_path / ".netrc").chmod(0o600)
        monkeypatch.setenv("HOME", str(tmp_path))
        site = web.site(redirect("/blue.png?x=ä"), ok(PHOTO))
        assert web.fetch(URL + "?token=1#top") == PHOTO
        with pytest.raises(BlockingIOError):
            proxy.accept()
    rest = (
        " HTTP/1.1\r\nHost: photos.example.com\r\nUser-Agent: " + USER_AGENT + "\r\nAccept: image/*\r\n"
        "Accept-Encoding: identity\r\nConnection: close\r\n\r\n"
    )
    assert site.heads == [f"GET /red.png?token=1{rest}".encode(), f"GET /blue.png?x=%C3%A4{rest}".encode()]


@pytest.mark.parametrize(("url", "kind"), REFUSED.values(), ids=REFUSED)
def test_refused_by_itself(web: Web, url: str, kind: type[PigeonholeError]) -> None:
    """Such an address is refused before a name server or a server hears of it."""
    refused(web, kind, url)
    assert (web.names.asked, web.dialled) == ([], [])


def test_ports_are_refused_alike(web: Web) -> None:
    """E12: a port that is open and one that is closed get the same sentence, and so do 80 and 443 without a server."""
    web.site(ok(PHOTO), port=22)
    assert refused(web, URLNotAllowed, "http://photos.example.com:22/") == refused(
        web, URLNotAllowed, "http://photos.example.com:23/"
    )
    closed = refused(web, URLFailed)
    web.site(b"SSH-2.0-canary\r\n")
    assert refused(web, URLFailed) == closed == refused(web, URLFailed, SECURE_URL)


@pytest.mark.parametrize("zone", NOT_PUBLIC_NAMES.values(), ids=NOT_PUBLIC_NAMES)
def test_names_of_no_public_server(web: Web, zone: str) -> None:
    """One address that is not public refuses all; what does not exist gets the same sentence as what is inside."""
    web.named(zone)
    assert refused(web, URLNotAllowed) == refused(web, URLNotAllowed, "http://127.0.0.1/")
    assert web.dialled == []


@pytest.mark.parametrize("trouble", NO_ANSWER.values(), ids=NO_ANSWER)
def test_names_nobody_answers_for(web: Web, trouble: dict[str, Any]) -> None:
    """A name server in trouble ends the fetch in time."""
    web.named(ZONE, **trouble)
    began = time.monotonic()
    refused(web, URLFailed, seconds=SHORT)
    assert time.monotonic() - began < SHORT + LATE
    assert web.dialled == []


def test_cname(web: Web) -> None:
    """A name that stands for another is followed."""
    web.named(f"photos.example.com. CNAME cdn.example.com.\ncdn.example.com. A {PUBLIC}")
    web.site(ok(PHOTO))
    assert web.fetch(URL) == PHOTO


def test_rebinding(web: Web, certificates: Certificates) -> None:
    """E8: a name that is public first and private second was asked for once, and the public address dialled."""
    web.named(ZONE, "photos.example.com. A 127.0.0.1")
    site = web.site(ok(PHOTO), port=443, tls=certificates.server("photos.example.com"))
    assert web.fetch(SECURE_URL) == PHOTO
    assert web.names.asked == [("photos.example.com", "A"), ("photos.example.com", "AAAA")]
    assert web.dialled == [(PUBLIC, 443)]
    assert site.names == ["photos.example.com"]


def test_rebinding_between_hops(web: Web) -> None:
    """E8: a redirect to the same name has it looked up and judged again."""
    web.named(ZONE, "photos.example.com. A 127.0.0.1")
    site = web.site(redirect("/blue.png"), ok(PHOTO))
    refused(web, URLNotAllowed)
    assert (len(site.heads), web.dialled) == (1, [(PUBLIC, 80)])


def test_the_next_address_is_tried(web: Web) -> None:
    """Where one address of a name does not answer, the next is dialled, IPv4 first."""
    web.named(f"{ZONE}\nphotos.example.com. AAAA {ALSO_PUBLIC}")
    web.site(ok(PHOTO), at=ALSO_PUBLIC)
    assert web.fetch(URL) == PHOTO
    assert web.dialled == [(PUBLIC, 80), (ALSO_PUBLIC, 80)]


def test_not_every_address_is_tried(web: Web) -> None:
    """A name cannot have a hundred addresses dialled."""
    web.named("\n".join(f"photos.example.com. A 93.184.215.{number}" for number in range(15)))
    refused(web, URLFailed)
    assert len(web.dialled) == 3


def test_addresses_instead_of_names(web: Web) -> None:
    """A public IPv4 or IPv6 address is dialled without a look-up."""
    web.site(ok(PHOTO), at=ALSO_PUBLIC)
    site = web.site(ok(PHOTO))
    assert web.fetch(f"http://{PUBLIC}/red.png") == web.fetch(f"http://[{ALSO_PUBLIC}]:80/red.png") == PHOTO
    assert web.names.asked == []
    assert f"\r\nHost: {PUBLIC}\r\n".encode() in site.heads[0]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects(web: Web, status: int, certificates: Certificates) -> None:
    """E9: redirects to public addresses are followed, also from http to https."""
    web.named(f"{ZONE}\ncdn.example.com. A 93.184.215.15")
    web.site(redirect("green.png", status), redirect("https://cdn.example.com/blue.png", status))
    web.site(ok(PHOTO), at="93.184.215.15", port=443, tls=certificates.server("cdn.example.com"))
    assert web.fetch(URL) == PHOTO
    assert web.dialled == [(PUBLIC, 80), (PUBLIC, 80), ("93.184.215.15", 443)]


@pytest.mark.parametrize("location", ASTRAY.values(), ids=ASTRAY)
def test_redirected_astray(web: Web, location: str) -> None:
    """E9: a redirect leads nowhere where an address may not."""
    web.named(f"{ZONE}\ninside.example.com. A 10.0.0.1")
    said = f"HTTP/1.1 302 Found\r\nLocation: {location}\r\n\r\n".encode(errors="surrogateescape")
    site = web.site(said, ok(PHOTO))
    refused(web, URLNotAllowed)
    assert (len(site.heads), web.dialled) == (1, [(PUBLIC, 80)])


def test_redirected_to_http(web: Web, certificates: Certificates) -> None:
    """E9: what was asked for under https is not fetched without."""
    web.site(redirect(URL), port=443, tls=certificates.server("photos.example.com"))
    assert "from https:// to http://" in refused(web, URLNotAllowed, SECURE_URL)
    assert web.dialled == [(PUBLIC, 443)]


def test_three_redirects(web: Web) -> None:
    """E9: three redirects are followed, a fourth is not, so a loop ends."""
    site = web.site(redirect("/1"), redirect("/2"), redirect("/3"), ok(PHOTO))
    assert web.fetch(URL) == PHOTO
    assert len(site.heads) == 4
    site = web.site(redirect("/red.png"))
    assert "more than 3 times" in refused(web, URLFailed)
    assert len(site.heads) == 4


@pytest.mark.parametrize("script", ENDLESS.values(), ids=ENDLESS)
def test_endless(web: Web, script: Script) -> None:
    """E13: an answer without end is left at a number of bytes, long before the deadline, and the socket closed."""
    site = web.site(script)
    began, computed = time.monotonic(), time.thread_time()
    refused(web, URLFailed, limit=10_000_000)
    assert time.monotonic() - began < 2
    assert time.thread_time() - computed < 1
    assert site.hung_up.wait(2)


@pytest.mark.parametrize("script", SLOW.values(), ids=SLOW)
def test_slow(web: Web, script: Script) -> None:
    """E13: an answer that drips is left at the deadline, and the socket closed."""
    site = web.site(script)
    began = time.monotonic()
    refused(web, URLFailed, seconds=SHORT)
    assert SHORT <= time.monotonic() - began < SHORT + LATE
    assert site.hung_up.wait(2)


def test_slow_in_sum(web: Web) -> None:
    """E13: the deadline is one for all redirects, not one for each."""

    def slowly(client: socket.socket) -> None:
        time.sleep(0.2)
        client.sendall(redirect("/red.png"))

    web.site(slowly)
    began = time.monotonic()
    assert "0.3 seconds" in refused(web, URLFailed, seconds=SHORT)
    assert time.monotonic() - began < SHORT + LATE


def test_slow_handshake(web: Web) -> None:
    """E13: a server that does not get on with TLS is left at the deadline."""
    web.site(port=443)
    began = time.monotonic()
    refused(web, URLFailed, SECURE_URL, seconds=SHORT)
    assert time.monotonic() - began < SHORT + LATE


def test_nobody_answers(web: Web) -> None:
    """E13: one address is waited for no longer than for connecting, and all no longer than for everything."""
    web.named("\n".join(f"photos.example.com. A 93.184.215.{number}" for number in range(3)))
    began = time.monotonic()

    def connect(address: object, port: int, seconds: float) -> socket.socket:
        web.given.append(seconds)
        time.sleep(seconds)
        raise TimeoutError

    refused(web, URLFailed, connect=connect, seconds=0.5, connect_seconds=0.3)
    assert time.monotonic() - began < 0.5 + LATE
    assert web.given[0] == 0.3
    assert sum(web.given) < 0.51


@pytest.mark.parametrize("said", BAD_ANSWERS.values(), ids=BAD_ANSWERS)
def test_bad_answers(web: Web, said: bytes) -> None:
    """E13, E14, E15: what is no answer of status 200, complete, uncompressed and of the allowed size is refused."""
    web.site(said, ok(PHOTO))
    refused(web, URLFailed)
    assert len(web.dialled) == 1


def test_status_is_told(web: Web) -> None:
    """E15: the status is the one thing of an answer that is told."""
    web.site(answer("404 canary"))
    assert "status 404" in refused(web, URLFailed)


@pytest.mark.parametrize("way", ["with its length", "until it hangs up", "in chunks"])
def test_limit(web: Web, way: str) -> None:
    """E13: a file of exactly the limit is fetched, one byte more is not, and no byte more than the limit is written."""
    for size in (1_000, 1_001):
        body = b"a" * size
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:600], body[600:])) + b"0\r\n\r\n"
        web.site({"with its length": ok(body), "until it hangs up": answer("200 OK") + body}.get(way, CHUNKED + chunks))
        into = io.BytesIO()
        if size == 1_000:
            web.fetcher(limit=1_000).fetch(URL, into)
            assert into.getvalue() == body
        else:
            with pytest.raises(URLFailed, match="larger than 1000 bytes"):
                web.fetcher(limit=1_000).fetch(URL, into)
            assert len(into.getvalue()) <= 1_000


def test_announced_too_large(web: Web) -> None:
    """E13: a file that is announced as too large is refused without waiting for it."""

    def announce(client: socket.socket) -> None:
        client.sendall(answer("200 OK", "Content-Length: 1001"))
        hang(client)

    site = web.site(announce)
    assert "larger than 1000 bytes" in refused(web, URLFailed, limit=1_000)
    assert site.hung_up.wait(2)


def test_nothing(web: Web) -> None:
    """An empty file is fetched as such; that it is no picture is for others to say."""
    web.site(ok(b""))
    assert web.fetch(URL) == b""


@pytest.mark.parametrize("server", BAD_CERTIFICATES.values(), ids=BAD_CERTIFICATES)
def test_bad_certificates(
    web: Web, certificates: Certificates, server: Callable[[Certificates], ssl.SSLContext]
) -> None:
    """E15: a certificate that does not hold ends it, and nothing is sent, nor tried without TLS."""
    site = web.site(ok(PHOTO), port=443, tls=server(certificates))
    closed = refused(web, URLFailed, "https://photos.example.com:80/")
    web.dialled.clear()
    assert refused(web, URLFailed, SECURE_URL) == closed
    assert (site.heads, web.dialled) == ([], [(PUBLIC, 443)])


def test_certificates_of_this_machine(web: Web, certificates: Certificates) -> None:
    """E15: without another trust, what this machine trusts counts; the authority of these tests is not among it."""
    web.site(ok(PHOTO), port=443, tls=certificates.server("photos.example.com"))
    refused(web, URLFailed, SECURE_URL, trust=None)


def test_one_too_many(web: Web) -> None:
    """E17: of a hundred fetches that hang four do, the others are refused at once; afterwards there is room again."""
    hanging(web)
    fetcher = web.fetcher(at_once=4, seconds=1)
    ends: list[tuple[type[BaseException], float]] = []

    def fetch() -> None:
        began = time.monotonic()
        try:
            fetcher.fetch(URL, io.BytesIO())
        except PigeonholeError as error:
            ends.append((type(error), time.monotonic() - began))

    threads = [threading.Thread(target=fetch) for _ in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(kind.__name__ for kind, _ in ends) == ["Overloaded"] * 96 + ["URLFailed"] * 4
    assert max(seconds for kind, seconds in ends if kind is Overloaded) < 0.8
    web.site(ok(PHOTO))
    into = io.BytesIO()
    fetcher.fetch(URL, into)
    assert into.getvalue() == PHOTO


def test_a_place_is_given_back(web: Web) -> None:
    """Whatever ends a fetch, the next one finds a place."""
    fetcher = web.fetcher(at_once=1)
    web.site(answer("404 Not Found"), hang)
    for url in (URL, "http://127.0.0.1/", "http://photos.example.com:22/", "http://127.0.0.1/", URL[:-1] + "\n"):
        with pytest.raises((URLFailed, URLNotAllowed, BadURL)):
            fetcher.fetch(url, io.BytesIO())


def test_our_own_trouble(web: Web) -> None:
    """A disk that is full is not blamed on the address, and the socket is closed all the same."""

    class Full(io.BytesIO):
        def write(self, data: object) -> int:
            raise NoSpace

    site = web.site(flood(answer("200 OK"), b"a" * 65_536))
    with pytest.raises(NoSpace):
        web.fetcher().fetch(URL, Full())
    assert site.hung_up.wait(2)


def test_budgets() -> None:
    """Left alone, a fetch may take eight seconds, and three of them for connecting."""
    defaults = {name: parameter.default for name, parameter in signature(Fetcher).parameters.items()}
    expected = {"seconds": 8, "connect_seconds": 3, "resolve": resolve, "connect": connect, "trust": None}
    assert {name: defaults[name] for name in expected} == expected


def test_name_servers_of_this_machine() -> None:
    """E2: by default its name servers are asked, as they are set; its own list of names has no say."""
    code = """
import sys
from pigeonhole.intake.fetch import resolve
seen = []
sys.addaudithook(lambda event, arguments: seen.append((event, arguments)))
try:
    resolve("localhost", 0.2)
except Exception:
    pass  # no name server here, or none that answers
asked = {arguments[0] for event, arguments in seen if event in ("open", "socket.getaddrinfo", "socket.gethostbyname")}
print([name in asked for name in ("/etc/resolv.conf", "/etc/hosts", "localhost", "localhost.", b"localhost")])
"""
    asked = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    assert asked == "[True, False, False, False, False]"


@pytest.mark.skipif(sys.platform != "linux", reason="127.0.0.2 is Linux's, and so is what it does with a full queue")
def test_dialling() -> None:
    """A server is dialled by its address, for no longer than given."""
    address = ip_address("127.0.0.2")
    with socket.create_server((str(address), 0), backlog=0) as server, ExitStack() as waiting:
        port = server.getsockname()[1]
        connected = waiting.enter_context(connect(address, port, 1))
        assert connected.getpeername() == (str(address), port)
        began = time.monotonic()
        with pytest.raises(TimeoutError):  # the queue holds one
            waiting.enter_context(connect(address, port, 0.2))
        assert 0.2 <= time.monotonic() - began < 0.2 + LATE


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_we_do_not_dial_ourselves(host: str) -> None:
    """E17: a connection whose two ends are one address leads to this machine, public or not, and is closed."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as server:
        with pytest.raises(URLNotAllowed):
            connect(ip_address(host), server.getsockname()[1], 1)
        client, _ = server.accept()
        with client:
            assert client.recv(1) == b""
