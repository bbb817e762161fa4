"""The code that README and /docs show for each way in is run, and is the same in both."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from flask.testing import FlaskClient

from app import create_app
from pigeonhole.model.predictor import Predictor
from pigeonhole.settings import Settings
from pigeonhole.web.examples import ADDRESS, WAYS_IN
from tests.conftest import ROOT, Colours, picture
from tests.web.web import Web, listening

SHOWN = WAYS_IN.read_text()
SECTIONS = re.split(r"^### ", SHOWN, flags=re.M)[1:]
LANGUAGES = {
    "sh": ("bash", "-c"),
    "python": (sys.executable, "-c"),
    "js": ("node", "-e"),
}
CODE = {
    f"{section.partition(chr(10))[0]}, {language}": (language, code)
    for section in SECTIONS
    for language, code in re.findall(r"```(\w+)\n(.*?)```", section, re.S)
}


@pytest.fixture
def address(settings: Settings) -> Iterator[str]:
    """Where the service listens, with FETCH_URLS=1 and a web where the example is a blue picture."""
    on = settings.model_copy(update={"fetch_urls": True})
    with listening(create_app(on, Predictor(Colours), Web({ADDRESS["url"]: picture("blue")}))) as address:
        yield address


def test_each_way_in_each_language() -> None:
    """Four ways, three languages."""
    assert len(CODE) == 12


@pytest.mark.parametrize(("language", "code"), CODE.values(), ids=CODE.keys())
def test_it_works(address: str, tmp_path: Path, language: str, code: str) -> None:
    """It prints the label of the photo."""
    if not shutil.which(LANGUAGES[language][0]):
        pytest.skip(f"{LANGUAGES[language][0]} is not here")
    for name in ("photo.jpg", "other.jpg"):
        (tmp_path / name).write_bytes(picture("blue", (60, 80)))
    assert "http://localhost:5000" in code
    command = [*LANGUAGES[language], code.replace("http://localhost:5000", address)]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert re.search("blue", ran.stdout), ran.stdout


def test_readme_and_docs_show_it(client: FlaskClient) -> None:
    """README and the API's description hold the same text."""
    assert SHOWN in (ROOT / "README.md").read_text()
    assert SHOWN in client.get("/openapi.json").json["paths"]["/predict"]["post"]["description"]
