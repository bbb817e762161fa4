"""Imports go one way, and heavy or hazardous things stay in their rooms."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

SOURCES = sorted([ROOT / "app.py", *(ROOT / "pigeonhole").rglob("*.py")])

ROOMS = {
    "flask": ("app.py", "pigeonhole/web/"),
    "werkzeug": ("app.py", "pigeonhole/web/"),
    "torch": ("pigeonhole/model/",),
    "torchvision": ("pigeonhole/model/",),
    "fastai": ("pigeonhole/model/",),
    "timm": ("pigeonhole/model/",),
    "onnx": ("pigeonhole/model/compiler.py",),
    "openvino": ("pigeonhole/model/",),
    "fsspec": ("pigeonhole/model/store/",),
    "s3fs": ("pigeonhole/model/store/",),
    "gcsfs": ("pigeonhole/model/store/",),
    "aiohttp": ("pigeonhole/model/store/",),
    "huggingface_hub": ("pigeonhole/model/store/",),
    "mlflow": ("pigeonhole/model/store/",),
    "tqdm": ("pigeonhole/model/store/", "pigeonhole/batch/progress.py"),
    "jinja2": ("pigeonhole/batch/report.py", "pigeonhole/web/"),
    "gunicorn": ("pigeonhole/server/", "pigeonhole/gunicorn_conf.py"),
    "httpcore": ("pigeonhole/intake/fetch.py",),
    "h11": ("pigeonhole/intake/fetch.py",),
    "dns": ("pigeonhole/intake/fetch.py",),
    "opentelemetry": ("pigeonhole/web/tracing.py",),
    "idna": ("pigeonhole/intake/addresses.py",),
    "limits": ("pigeonhole/settings.py", "pigeonhole/web/rates.py"),
    "redis": ("pigeonhole/web/rates.py",),
    "ray": ("pigeonhole/cluster/",),
    "a2wsgi": ("pigeonhole/cluster/",),
    "starlette": ("pigeonhole/cluster/",),
}
# who may not import whom: errors, drafts, machine and settings are leaves, intake and model know no web
BARRED = {
    "pigeonhole/errors.py": ("pigeonhole",),
    "pigeonhole/drafts.py": ("pigeonhole",),
    "pigeonhole/machine.py": ("pigeonhole",),
    "pigeonhole/sizing.py": ("pigeonhole.web", "pigeonhole.intake", "pigeonhole.model", "app"),
    "pigeonhole/measuring.py": ("pigeonhole.web", "pigeonhole.intake", "pigeonhole.planning", "app"),
    "pigeonhole/settings.py": ("pigeonhole.web", "pigeonhole.intake", "pigeonhole.model", "app"),
    "pigeonhole/intake/": ("pigeonhole.web", "pigeonhole.model", "pigeonhole.settings", "app"),
    "pigeonhole/model/": ("pigeonhole.web", "pigeonhole.intake", "pigeonhole.settings", "app"),
    "pigeonhole/batch/": (
        "pigeonhole.web",
        "pigeonhole.cluster",
        "pigeonhole.settings",
        "pigeonhole.wiring",
        "pigeonhole.cli",
        "app",
    ),
    "pigeonhole/web/": ("pigeonhole.batch", "pigeonhole.cluster", "pigeonhole.cli", "pigeonhole.server", "app"),
    "pigeonhole/server/": (
        "pigeonhole.batch",
        "pigeonhole.cluster",
        "pigeonhole.cli",
        "pigeonhole.model",
        "flask",
        "app",
    ),
}


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """(module, whether it runs when `path` is imported), for each import that is not for type checkers only."""
    tree = ast.parse(path.read_text())
    inside = {
        id(node) for function in ast.walk(tree) if isinstance(function, ast.FunctionDef) for node in ast.walk(function)
    }
    typing = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
        if id(node) not in typing:
            yield from ((name, id(node) not in inside) for name in names)


AT_ONCE = ("flask", "werkzeug", "jinja2", "gunicorn", "ray", "a2wsgi", "starlette")  # loaded with the app, or before it


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_rooms(path: Path) -> None:
    """Flask stays in web, torch and fastai in model and inside functions, and nobody imports against the stream."""
    here = str(path.relative_to(ROOT))
    for name, at_import in imports(path):
        for package, rooms in ROOMS.items():
            if within(name, package):
                assert here.startswith(rooms), f"{here} imports {name}"
                assert not (at_import and package not in AT_ONCE), f"{here} imports {name} before it is needed"
        for room, others in BARRED.items():
            if here.startswith(room):
                assert not any(within(name, other) for other in others), f"{here} imports {name}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_environment_is_read_in_one_place(path: Path) -> None:
    """os.environ and os.getenv stand in settings.py only."""
    named = {ast.unparse(node) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
    named |= {name for name, _ in imports(path)}
    assert not named & {"os.environ", "os.getenv", "os.environb"} or path.name == "settings.py"


def test_the_watch_sees() -> None:
    """The watch over imports sees every way of writing one."""
    seen = {name for name, _ in imports(ROOT / "tests" / "test_rooms.py")}
    assert {"ast", "pathlib.Path", "collections.abc.Iterator", "tests.conftest.ROOT"} <= seen


@pytest.mark.parametrize("module", ["app", "pigeonhole.gunicorn_conf"])
def test_the_app_imports_no_torch(module: str) -> None:
    """Importing the app, or what the master runs, loads no torch or OpenVINO, or what downloads, counts or traces."""
    heavy = ("torch", "fastai", "torchvision", "openvino", "onnx", "fsspec", "aiohttp", "mlflow", "huggingface_hub")
    heavy += ("limits", "redis", "opentelemetry", "ray")
    code = f"import {module}, sys; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout.strip() == "[]"
