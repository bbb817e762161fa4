"""Mounts that only the server sees: it runs in a mount namespace of its own, and nothing of them is left after it."""

from __future__ import annotations

import shlex
import subprocess

import pytest

from tests.conftest import GUNICORN, Server


def _can_mount() -> bool:
    try:
        return (
            subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True).returncode
            == 0
        )
    except OSError:
        return False


needs_namespaces = pytest.mark.skipif(not _can_mount(), reason="may not mount anything here: needs root and unshare")


def gunicorn_after(commands: str) -> tuple[str, ...]:
    """Start it behind `commands` of a shell, in a mount namespace of its own."""
    return ("unshare", "-m", "sh", "-c", f"{commands} && exec {shlex.join(GUNICORN)}")


def inside(server: Server, *command: str) -> None:
    """Run `command` where the server's mounts are."""
    subprocess.run(["nsenter", "-m", "-t", str(server.process.pid), *command], check=True, capture_output=True)
