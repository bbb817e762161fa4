"""A Python environment for each peer and way, with exactly what its requirements pin, made once and kept.

Ours has what the container has: the category `packages` of the Pipfile.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
FOLDER = HERE / ".environments"
PEERS = HERE / "peers"
OURS = "pigeonhole"
DONE = "installed"  # a file that is there once an environment is whole


def folder_of(peer: str, needs: str | None) -> Path:
    """Where its environment lies; `needs` names the requirements of the model, peers/NEEDS.txt."""
    return FOLDER / (f"{peer}-{needs}" if needs else peer)


def install(peer: str, needs: str | None) -> Path:
    """Make the environment if it is not there, and return its folder.

    Raises:
        subprocess.CalledProcessError: pip could not.
    """
    folder = folder_of(peer, needs)
    if (folder / DONE).exists():
        return folder
    print(f"installing {folder.name}", file=sys.stderr, flush=True)
    if needs is None:
        subprocess.run(["tools/environment.sh", folder, "packages"], cwd=ROOT, check=True, stdout=sys.stderr)
        subprocess.run(["rm", "-rf", folder / "pipenv"], check=True)
    else:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        requirements = [PEERS / f"{needs}.txt", PEERS / peer / "requirements.txt"]
        _install_torch(folder, requirements[0])
        _pip(folder, *(part for path in requirements for part in ("-r", path)))
    (folder / DONE).touch()
    return folder


def _install_torch(folder: Path, requirements: Path) -> None:
    """First and alone, as tools/environment.sh does it: its CPU build may come from an index of its own."""
    torch = re.search(r"^torch==.*$", requirements.read_text(), re.M)
    if not torch:
        return
    try:
        _pip(folder, "--no-deps", torch[0])
    except subprocess.CalledProcessError:
        index = re.search(r"^TORCH_CPU_INDEX=(.*)$", (ROOT / "tools" / "environment.sh").read_text(), re.M)
        assert index
        _pip(folder, "--no-deps", "--extra-index-url", index[1], torch[0])


def _pip(folder: Path, *arguments: str | Path) -> None:
    command = [folder / "bin" / "python", "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    subprocess.run([*command, *arguments], check=True, stdout=sys.stderr)


def versions(folder: Path) -> list[str]:
    """All packages in it, as `pip freeze` names them."""
    command = [folder / "bin" / "python", "-m", "pip", "freeze", "--disable-pip-version-check"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


def installed_mb(folder: Path) -> float:
    """What it takes on the disk, without pip and setuptools, which every environment has."""
    packages = next((folder / "lib").glob("python3*/site-packages"))
    skipped = {"pip", "setuptools", "pkg_resources", "_distutils_hack"}
    own = [path for path in packages.iterdir() if path.name.split("-")[0] not in skipped]
    files = {path for top in own for path in (top.rglob("*") if top.is_dir() else [top]) if path.is_file()}
    sizes = {(status.st_dev, status.st_ino): status.st_blocks * 512 for status in (path.stat() for path in files)}
    return sum(sizes.values()) / 1e6
