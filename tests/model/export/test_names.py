"""The tables of names: what they point at exists, and what they admit is no more than they say."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from pigeonhole.model.export import names
from pigeonhole.model.export.building import _look_up
from pigeonhole.model.torch_ready import import_torch

ELSEWHERE = (  # admitted as a name, and read by code of ours instead of being called
    "torch._tensor._fa_rebuild_tensor",
    "torch._tensor._rebuild_from_type",
    "builtins.NoneType",
)


@pytest.mark.parametrize("table", [names.CALLED, names.MADE, names.HELD, names.ATTRIBUTES])
def test_what_is_admitted_exists(table: dict[str, str]) -> None:
    """Each admitted name is there in what is installed."""
    import_torch()
    for module, listed in table.items():
        owner = "" if table is not names.ATTRIBUTES else module
        for name in listed.split():
            if owner:
                package, _, cls = owner.rpartition(".")
                assert _look_up(package, f"{cls}.{name}") is not None
            elif f"{module}.{name}" not in ELSEWHERE:
                assert _look_up(module, name) is not None


@pytest.mark.parametrize("move", names.MOVED, ids=lambda move: move.old)
def test_where_things_moved(move: names.Move) -> None:
    """The new place of each row exists, and the row applies to its own names."""
    import_torch()
    module = importlib.import_module(move.new)
    for name in ["Anything"] if move.names == "*" else move.names.split():
        before, _, after = name.partition("=")
        assert names.moved(move.old, before) != (move.old, before)
        if move.names != "*" and move.new != "torch._tensor":  # those are read by code of ours
            assert hasattr(module, after or before)


MOVES = [
    ("fastai2.vision.core", "PILImage", "fastai.vision.core.PILImage"),
    ("fastai2.layers", "CrossEntropyLossFlat", "fastai.losses.CrossEntropyLossFlat"),  # two rows, one after the other
    ("fastai.layers", "ConvLayer", "fastai.layers.ConvLayer"),
    ("fastcore.transform", "Pipeline", "fasttransform.transform.Pipeline"),
    ("pathlib._local", "PosixPath", "pathlib.PosixPath"),
    ("numpy.core.multiarray", "scalar", "numpy._core.multiarray.scalar"),
    ("timm.models.layers.mlp", "Mlp", "timm.layers.mlp.Mlp"),
    ("timm.models.vision_transformer", "VisionTransformer", "timm.models.vision_transformer.VisionTransformer"),
]


@pytest.mark.parametrize(("module", "name", "today"), MOVES, ids=[f"{module}.{name}" for module, name, _ in MOVES])
def test_moved(module: str, name: str, today: str) -> None:
    """Where a name lies today."""
    assert ".".join(names.moved(module, name)) == today


FATES: list[tuple[str, str, str]] = [
    ("torch.nn.modules.linear", "Linear", "made"),
    ("torchvision.models.resnet", "BasicBlock", "made"),
    ("timm.models.convnext", "ConvNeXt", "made"),
    ("collections", "OrderedDict", "called"),
    ("fastai.metrics", "accuracy", "left out"),
    ("fastai.callback.wandb", "WandbCallback", "left out"),
    ("sklearn.metrics._classification", "f1_score", "left out"),
    ("IPython.core.display", "DisplayHandle", "left out"),
    ("__main__", "get_x", "notebook"),
    ("my_labels.of_birds", "get_x", "notebook"),
    ("tests.model.learners", "_label", "notebook"),  # a module that lies about, and is no installed package
    ("os", "system", "refused"),
    ("posix", "system", "refused"),
    ("builtins", "eval", "refused"),
    ("builtins", "__import__", "refused"),
    ("torch.hub", "load", "refused"),
    ("torch", "load", "refused"),
    ("torch.nn.modules.linear", "os.system", "refused"),
    ("torch.nn.modules.module", "torch", "refused"),
    ("fastcore.xtras", "run", "refused"),
    ("fastai.vision.core", "PILImage.__init__", "refused"),
    ("numpy.testing._private.utils", "runstring", "refused"),
    ("pip._internal", "main", "refused"),
    ("pytest", "main", "refused"),  # installed
    ("__main__", "__class__", "refused"),
    ("torch", "FloatStorage", "held"),
    ("torch.nn.functional", "relu", "held"),
    ("fastai.learner", "Learner", "made"),
    ("fastai.learner", "load_learner", "left out"),
    ("fastai.data.transforms", "AttrGetter", "left out"),  # a getattr in disguise
    ("torch.storage", "_load_from_bytes", "refused"),
    ("torch", "os.FloatStorage", "refused"),
    ("", "x", "refused"),
    ("fastai.metrics", "(computed)", "refused"),
]


@pytest.mark.parametrize(("module", "name", "fate"), FATES, ids=[f"{module}.{name}" for module, name, _ in FATES])
def test_fates(module: str, name: str, fate: str) -> None:
    """What becomes of a name."""
    assert names.judge(module, name).fate == fate


def test_allowed() -> None:
    """What the user vouches for is admitted, by its whole name."""
    allowed = {"mypackage.Thing"}
    assert names.judge("mypackage", "Thing", allowed).fate == "called"
    assert names.judge("os", "system", {"posix.system"}).fate == "refused"


def test_a_family_member_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """What looks like a class of a family and is something else is refused when it is looked up."""
    import_torch()
    import torch.nn.modules.linear as linear

    from pigeonhole.errors import ModelFileError
    from pigeonhole.model.export.building import GuardedUnpickler

    unpickler = GuardedUnpickler(None)  # type: ignore[arg-type]
    assert unpickler.find_class("torch.nn.modules.linear", "Linear") is linear.Linear
    impostors: dict[str, Any] = {"Popen": __import__("subprocess").Popen, "Run": print}
    for name, impostor in impostors.items():
        monkeypatch.setattr(linear, name, impostor, raising=False)
        with pytest.raises(ModelFileError, match=f"it holds torch.nn.modules.linear.{name}"):
            unpickler.find_class("torch.nn.modules.linear", name)
