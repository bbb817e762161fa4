"""Attacks made of admitted names only: what hides a method, calls what it holds, or reaches beyond what is there.

Each is a real learner, changed as its pickle could be and saved as learn.export() does.
"""

from __future__ import annotations

import functools
import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pigeonhole.errors import ModelFileError
from pigeonhole.model.doctor import diagnose
from pigeonhole.model.export.building import PickleModule
from pigeonhole.model.learner import open_learner
from pigeonhole.model.predictor import Shown
from pigeonhole.model.torch_ready import import_torch
from tests.conftest import EXPORT
from tests.model.export.hostile import ATTACKS, PROTOCOL_2, call, copied, in_zip, learner_pickle, literal
from tests.model.learners import export_learner


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_learner(tmp_path_factory.mktemp("honest"), "colour")


def getattr_as_a_layer(learner: Any) -> None:
    from torch.nn.functional import relu

    learner.model._modules["9"] = functools.partial(getattr, relu, "__builtins__")


def a_method_hidden(learner: Any) -> None:
    from torch.nn.functional import relu

    learner.model.forward = relu


def no_layer(learner: Any) -> None:
    from torch.nn.functional import relu

    learner.model._modules["9"] = relu


def a_hook(learner: Any) -> None:
    from torch.nn.functional import relu

    learner.model._forward_hooks[0] = relu


def a_transforms_method_hidden(learner: Any) -> None:
    from torch.nn.functional import relu

    learner.dls.valid.after_item.fs[0].before_call = relu


def a_file_read_by_a_partial(learner: Any) -> None:
    from fastai.vision.core import PILImage

    learner.dls.valid.after_item.fs[0].size = functools.partial(PILImage.create, "secret.png")


def a_partial_of_an_object(learner: Any) -> None:
    learner.dls.valid.after_item.fs[0].size = functools.partial(learner.loss_func, "x")


def a_method_of_an_object(learner: Any) -> None:
    learner.dls.valid.after_item.fs[0].size = learner.export


def getattr_held(learner: Any) -> None:
    learner.dls.valid.after_item.fs[0].size = [getattr]


CHANGES: dict[str, tuple[Callable[[Any], None], str]] = {
    "getattr as a layer": (getattr_as_a_layer, "functools.partial of builtins.getattr"),
    "getattr held": (getattr_held, "builtins.getattr, not called"),
    "a method hidden": (a_method_hidden, "torch.nn.modules.container.Sequential whose forward is replaced"),
    "a function as a layer": (no_layer, "Sequential with parts that are no layers"),
    "a hook": (a_hook, "Sequential with parts that are no layers"),
    "a transform's method hidden": (a_transforms_method_hidden, "Resize whose before_call is replaced"),
    "a file read by a partial": (a_file_read_by_a_partial, "functools.partial of"),
    "a partial of an object": (a_partial_of_an_object, "functools.partial of"),
    "a method of an object": (a_method_of_an_object, "types.MethodType of builtins.getattr, fastai.learner.Learner"),
}


def changed(honest: Path, path: Path, change: Callable[[Any], None]) -> Path:
    torch = import_torch()
    import cloudpickle
    from fastai.learner import load_learner

    learner = load_learner(honest)
    change(learner)
    torch.save(learner, path, pickle_module=cloudpickle, pickle_protocol=2)
    return path


@pytest.mark.parametrize(("change", "words"), CHANGES.values(), ids=CHANGES.keys())
def test_refused(change: Callable[[Any], None], words: str, honest: Path, tmp_path: Path) -> None:
    """What would be called in place of a method, or call what it is given, is refused with its place."""
    path = changed(honest, tmp_path / "export.pkl", change)
    with pytest.raises(ModelFileError) as refusal:
        open_learner(path)
    assert words in str(refusal.value)


def everything_else(learner: Any) -> None:
    """Attributes that inference does not read, some of which would hide methods of fastai's."""
    from torch.nn.functional import relu

    learner.predict = learner.get_preds = functools.partial(relu, "x")
    learner.train_eval.before_validate = functools.partial(learner.train_eval, "touch")
    learner.train_eval.learn = Path("nowhere")
    learner.recorder.after_validate = relu
    learner.dls.cpu = learner.dls.valid.test_dl = relu
    learner.dls.valid.dataset.tls[0]._after_item = relu
    learner.dls.valid.after_item.fs.map = relu
    learner.xb = (Image.new("RGB", (9, 9)),)  # somebody's photo


def test_dropped(honest: Path, tmp_path: Path) -> None:
    """What inference does not read of fastai's structures is not built; the answers are those of the honest file."""
    path = changed(honest, tmp_path / "export.pkl", everything_else)
    picture = Image.linear_gradient("L").convert("RGB")
    engine = open_learner(path)
    assert engine.predict(Shown(picture)) == open_learner(honest).predict(Shown(picture))
    assert not hasattr(engine._learner, "xb") or engine._learner.xb is None


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())
def test_the_second_guard(attack: Any, tmp_path: Path) -> None:
    """What stands between torch and a pickle refuses by itself what the doctor refuses."""
    import_torch()
    opcodes, named, _ = attack
    canary = tmp_path / "canary"
    with pytest.raises(ModelFileError) as refusal:
        PickleModule().load(io.BytesIO(opcodes(canary)))
    assert named in str(refusal.value)
    assert not canary.exists()


def test_raw_bytes_as_objects(tmp_path: Path) -> None:
    """NumPy's own unpickling would take bytes for pointers, and crash; ours does not, whatever the flags say."""
    import_torch()
    dtype = call("numpy", "dtype", "O8") + b"(K\x03" + literal("|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85" + literal("b") + b"tR"
    state = b"(K\x01K\x01\x85" + dtype + b"\x89" + literal(b"A" * 8) + b"tb"
    with pytest.raises(ValueError, match="reshape"):
        PickleModule().load(io.BytesIO(PROTOCOL_2 + array + state + b"."))


def test_a_key_of_tuples(tmp_path: Path) -> None:
    """Hashing tuples of tuples of tuples would take for ever."""
    nested = b")" + b"\x85q\x00h\x00\x86" * 22  # four million, doubled by each level more
    assert "malformed" in str(
        diagnose(in_zip(PROTOCOL_2 + b"}" + nested + b"K\x01s.", tmp_path / "export.pkl")).problem
    )


def test_a_tensor_beyond_its_storage(honest: Path, tmp_path: Path) -> None:
    """A tensor that announces more numbers than its storage holds is refused; torch would look for them."""
    data, size = learner_pickle(honest), b"K\x03K\x03"  # the end of 8 x 3 x 3 x 3
    at = data.index(size)
    larger = data[:at] + b"K\x03M\xb8\x0b" + data[at + len(size) :]
    path = copied(tmp_path / "export.pkl", honest, **{"data.pkl": larger})
    assert "torch._utils._rebuild_tensor_v2 of" in str(diagnose(path).problem)


def test_weights_of_another_size(honest: Path, tmp_path: Path) -> None:
    """A part that holds less than the pickle announces is refused."""
    with zipfile.ZipFile(honest) as archive:
        (name, size) = next(
            (p.filename.partition("/")[2], p.file_size) for p in archive.infolist() if "/data/" in p.filename
        )
    path = copied(tmp_path / "export.pkl", honest, **{name: b"\0" * (size - 4)})
    assert f"it announces {size} bytes of weights" in str(diagnose(path).problem)


def test_two_directories(tmp_path: Path) -> None:
    """Readers of zips differ when something lies before the first part; torch's would find what ours does not."""
    path = tmp_path / "export.pkl"
    path.write_bytes(b"PK\x03\x04 something else first" + EXPORT.read_bytes())
    assert "do not lie where its directory says" in str(diagnose(path).problem)


def test_torch_finds_the_same_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before torch opens a zip, its own reader is asked what it sees in it."""
    torch = import_torch()

    class Other:
        def __init__(self, file: Any) -> None:
            pass

        def get_all_records(self) -> list[str]:
            return ["data.pkl", "constants.pkl"]

        def get_record_offset(self, name: str) -> int:
            return 0

    monkeypatch.setattr(torch._C, "PyTorchFileReader", Other)
    with pytest.raises(ModelFileError, match="torch reads other parts in it"):
        open_learner(EXPORT)


def test_pickled_by_hand(tmp_path: Path, honest: Path) -> None:
    """A network that somebody pickled without torch.save is refused by what it is."""
    import_torch()
    from fastai.learner import load_learner

    learner = load_learner(honest)
    (tmp_path / "export.pkl").write_bytes(pickle.dumps(learner.model))
    assert "it holds torch.storage._load_from_bytes" in str(diagnose(tmp_path / "export.pkl").problem)
