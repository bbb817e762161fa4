"""Make torch and torchvision importable together on a machine without a GPU.

torchvision's wheels on the package index are built against CUDA torch. Beside the CPU build of torch their compiled
operators do not load, and `import torchvision` stops with "operator torchvision::nms does not exist", because its
Python side describes two detection operators that are not there. Classification calls neither, so it is enough to
declare their schemas and import again. Where the compiled operators do load, nothing is declared.
"""

from __future__ import annotations

import sys
from types import ModuleType

from pigeonhole.errors import PackagesMissing

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)

_declarations: list[object] = []  # torch.library undoes a declaration when its Library object is collected


def import_torch() -> ModuleType:
    """Import torch and torchvision, whichever builds they are, and return torch.

    Raises:
        PackagesMissing: the learner packages are not installed.
    """
    try:
        import fastai  # noqa: F401
        import torch

        _import_torchvision(torch)
    except ImportError as error:
        raise PackagesMissing("fastai and torch are not installed here; `make serve` installs them.") from error
    return torch


def _import_torchvision(torch: ModuleType) -> None:
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        _declare_detection_operators(torch)
        import torchvision  # noqa: F401


def _declare_detection_operators(torch: ModuleType) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]  # what the failed import left half done
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in SCHEMAS:
        library.define(schema)
    _declarations.append(library)
