"""Names that clients give their files, and labels that a model gives (A): text, and never more than that."""

from __future__ import annotations

import io
import logging
from itertools import product

import pytest
from PIL import Image

from app import create_app
from pigeonhole.model.predictor import Predictor
from pigeonhole.settings import Settings
from tests.cases.case import Case, as_params, case
from tests.cases.conftest import Holds
from tests.cases.messages import CANARY, IMAGE, named, part, upload
from tests.conftest import Colours, encoded, form, picture

UPS = (
    b"../",
    b"..\\\\",
    b"..%2f",
    b"..%5c",
    b"%2e%2e/",
    b"....//",
    b"..;/",
    b"..%c0%af",
    b"..%252f",
    b"/",
    b"file:///",
)
TARGETS = (b"escaped.png", b"etc/passwd", b"etc/cron.d/x", b"app.py", b"tmp/x.png")
TRAVERSALS = [up * depth + target for up, depth, target in product(UPS, (1, 2, 9), TARGETS)]
CONTROLS = [bytes([code]) for code in [*range(1, 10), 11, 12, *range(14, 32), 127]]
C1 = [chr(code).encode() for code in range(0x80, 0xA0)]
DEVICES = [b"CON", b"NUL.png", b"aux.jpg", b"COM1", b"LPT9.txt", b".", b"..", b"...", b".htaccess", b".git",
           b"x.png.", b"x.png ", b" x.png", b"-rf.png", b"--help", b"~", b"~root", b"*", b"?", b"x::$DATA"]  # fmt: skip
EXTENSIONS = [b"shell.php.jpg", b"x.jpg%00.php", b"x", b"x.txt", b"x.svg", b"x.php", b"x.png/", b"x.jsp;.png", b"x.exe"]
# the kinds of the Big List of Naughty Strings
NAUGHTY = {
    "words of languages": ["undefined", "null", "None", "true", "NaN", "-1/0", "0x0", "1e309", "hasOwnProperty"],
    "punctuation": ["!@#$%^&*()`~", "<>?:{}|_+", ",./;'[]-=", "```", "%s%s%s%n", "{0}", "$HOME", "%d"],
    "Unicode symbols": ["Ω≈ç√∫˜µ≤≥÷", "¡™£¢∞§¶•ªº–≠", "⁰⁴⁵", "社會科學院", "찦차를 타고 온", "ÅÍÎÏ˝ÓÔÒÚÆ☃"],
    "emoji": ["😍", "👩‍👩‍👧‍👦", "🏳️‍🌈", "🇺🇸🇷🇺", "1️⃣", "👨🏿"],
    "right to left": ["\u202egnp.exe", "\u2067x\u2069", "مُنَاقَشَةُ", "בְּרֵאשִׁית", "\u200f.png", "\u202a\u202b\u202c.png"],
    "white and invisible": [
        "\u00a0",
        "\u2003\u3000",
        "\u200b\u200c\u200d\ufeff",
        "\u00ad",
        "\u180e",
        "\u2028\u2029",
        "\u115f",
    ],
    "combining": ["Z̮̞̠͙͔ͅḀ̗̞͈̻̗Ḷ͙͎̯̹̞͓G̻O̭̗̮", "e\u0301.png", "\u00e9.png", "a" + "\u0301" * 200],
    "fullwidth": ["．．／ｘ.png", "ｐｎｇ", "Ⓣⓗⓔ", "𝕿𝖍𝖊", "\uff0e\uff0e\u2215x"],
    "out of the plane": ["\U000e0041\U000e0042", "\U0010ffff", "\ufffe\uffff", "\ue000", "𐐷𤭢"],
}
NAMES_THAT_RUN = [b"<img src=x onerror=alert(1)>.png", b"<script>alert(1)</script>", b"{{7*7}}", b"{% raw %}",
                  b"${7*7}", b"#{7*7}", b"${jndi:ldap://127.0.0.1/x}", b";id", b"$(id)", b"`id`", b"|id", b"&& sleep 9",
                  b"x' OR '1'='1", b"'; DROP TABLE x;--", b"() { :;}; id", b"%x%x%n", b"!!python/object:x",
                  b"=cmd|'/C calc'!A0", b"@x.png", b"http://127.0.0.1/x.png", b"file:///etc/passwd"]  # fmt: skip
SURROGATE = b"\xed\xa0\x80.png"  # half a pair, as UTF-8 would have it
NOT_UTF_8 = [b"\xff\xfe.png", b"\xc3(.png", b"\xc0\xaf.png", b"\xf8\x88\x80\x80\x80.png", SURROGATE]


def extended(name: bytes) -> bytes:
    """An upload whose file name comes percent-encoded (RFC 5987)."""
    return upload(part(CANARY, b"form-data; name=\"image\"; filename*=UTF-8''" + name))


def disposed(disposition: bytes) -> bytes:
    return upload(part(CANARY, disposition))


PHP = b"<?php system($_GET['x']); ?>"
JPEG = encoded(Image.open(io.BytesIO(CANARY)), "JPEG", quality=100, subsampling=0)
NAMES = [
    Case("A1", f"{len(TRAVERSALS)} names that climb or are absolute", [*map(named, TRAVERSALS)], "200 label"),
    case("A1", "filename* that climbs", extended(b"..%2f..%2fescaped.png"), "200 label"),
    case("A2", "NUL in the name", named(b"x\0.png"), "200 label"),
    Case("A2", "every other C0 control, and DEL", [named(b"a%bz.png" % each) for each in CONTROLS], "200 label"),
    Case("A2", "every C1 control", [named(b"a%bz.png" % each) for each in C1], "200 label"),
    case("A2", "%00 and %0d%0a in the name", named(b"x.png%00.php%0d%0aSet-Cookie: a=b"), "200 label"),
    case("A3", 'filename=""', named(b"", b""), "400 no_image"),
    case("A3", 'filename="" with a picture', named(b""), "400 no_image"),
    case("A3", "no filename", disposed(b'form-data; name="image"'), "400 no_image"),
    case("A4", "a name of 5,000 characters", named(b"x" * 5_000 + b".png"), "200 label"),
    case("A4", "a name of 60,000 characters", named(b"x" * 60_000 + b".png"), "200 label"),
    Case("A5", "devices, dots, trailing dots, leading dashes", [*map(named, DEVICES)], "200 label"),
    Case("A6", "extensions that lie", [named(name, CANARY) for name in EXTENSIONS], "200 label"),
    case("A6", ".txt on a JPEG", named(b"x.txt", JPEG), "200 label"),
    case("A6", "PHP text called x.jpg", named(b"x.jpg", PHP), "415 not_an_image"),
    *(
        Case("A7", f"naughty names: {kind}", [named(name.encode()) for name in names], "200 label")
        for kind, names in NAUGHTY.items()
    ),
    Case("A8", "names that are not UTF-8", [*map(named, NOT_UTF_8)], "400 bad_multipart"),
    case("A8", "CR LF and a header in the name", named(b"x\r\nSet-Cookie: a=b\r\n\r\n.png"), "400 no_image"),
    case("A8", "LF in the name", named(b"x\n.png"), "400 no_image"),
    case("A8", "CR in the name", named(b"x\r.png"), "400 no_image"),
    case("A8", "a quote that is never closed", disposed(b'form-data; name="image"; filename="x.png'), "400 no_image"),
    case("A8", "quotes within quotes", disposed(b'form-data; name="image"; filename="a"b"c.png"'), "200 label"),
    Case("A9", "names that run elsewhere", [*map(named, NAMES_THAT_RUN)], "200 label"),
    case("A9", "two filename parameters", disposed(IMAGE + b'; filename="x.php"'), "200 label"),
]


@pytest.mark.parametrize("case", as_params(NAMES))
def test_names(case: Case, holds: Holds) -> None:
    """A name changes nothing: not the answer, not where the picture lies, not the shape of the log."""
    holds(case)


LABELS = {
    "script": "<script>alert(1)</script>",
    "newline": "a\r\nHTTP/1.1 200 OK\r\n",
    "ANSI": "\x1b[31mred\x1b[0m",
    "JSON": '","admin":true,"x":"',
    "separators": "a\u2028b\u202ec",
    "10 KB": "x" * 10_240,
}


@pytest.mark.parametrize("label", LABELS.values(), ids=[f"A10 {kind}" for kind in LABELS])
def test_labels(settings: Settings, caplog: pytest.LogCaptureFixture, label: str) -> None:
    """A model's label comes escaped in JSON, as it is, and the log has its one line without it."""
    caplog.set_level(logging.INFO, "pigeonhole")
    client = create_app(settings, Predictor(lambda: Colours((label, "green", "blue", "grey")))).test_client()
    response = client.post("/predict", data=form((picture("red"), "x.png")))
    assert (response.json, response.mimetype) == ({"success": label}, "application/json")
    assert not set("\r\x1b") & set(response.text)
    assert response.text.count("\n") == 1
    assert [label in record.getMessage() for record in caplog.records] == [False]
