"""Write what an image is made of as CycloneDX, and check that it names exactly what is installed.

    tools/sbom.py ENVIRONMENT FOLDER        for example: /opt/venv /sbom

FOLDER gets python.cdx.json, of the packages in ENVIRONMENT, and debian.cdx.json, of those of this Debian. Run it with
the Python that has cyclonedx-bom and debsbom. Neither lists Python itself, which is not one of Debian's packages here.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

TOOLS = Path(sys.executable).parent
NOW_IS_LEFT_OUT = ("--timestamp", "1970-01-01T00:00:00+00:00", "--cdx-serialnumber", f"{0:08}-0000-0000-0000-{0:012}")


def main(environment: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    python, debian = folder / "python.cdx.json", folder / "debian.cdx.json"
    run(TOOLS / "cyclonedx-py", "environment", "--output-reproducible", "-o", python, environment)
    check({(normal(name), version) for name, version in named(python, "pkg:pypi/")}, installed(environment))
    if Path("/var/lib/dpkg/status").exists():
        run(TOOLS / "debsbom", "generate", "-t", "cdx", "-o", folder / "debian", *NOW_IS_LEFT_OUT)
        check(named(debian, "pkg:deb/"), debian_packages())


def named(bom: Path, kind: str) -> set[tuple[str, str]]:
    """Name and version of each component; Debian's source packages, which are not installed, are left out."""
    return {
        (component["name"], component["version"])
        for component in json.loads(bom.read_text())["components"]
        if component.get("purl", "").startswith(kind) and "arch=source" not in component["purl"]
    }


def installed(environment: Path) -> set[tuple[str, str]]:
    folders = map(str, environment.glob("lib/python3.*/site-packages"))
    return {(normal(found.name), found.version) for found in distributions(path=list(folders))}


def debian_packages() -> set[tuple[str, str]]:
    rows = run("dpkg-query", "--show", "--showformat=${Package} ${Version}\n").splitlines()
    return {(name, version) for name, version in map(str.split, rows)}


def normal(name: str) -> str:
    """The one spelling of a Python package's name; packages write their own in several."""
    return re.sub(r"[-_.]+", "-", name).lower()


def run(*command: str | Path) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def check(told: set[tuple[str, str]], there: set[tuple[str, str]]) -> None:
    if told != there or not there:
        sys.exit(f"the bill of materials lacks {sorted(there - told)} and has too much {sorted(told - there)}")
    print(f"{len(there)} packages named")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
