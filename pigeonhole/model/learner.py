"""Open an export.pkl and answer with `learner.predict`: the reference engine.

`learner.predict` was made for a notebook. It keeps the picture it saw last, prints a progress bar, and before fastai
2.7 gave wrong answers when two threads called it at once. `LearnerEngine` calls it one at a time, silently, and leaves
the learner as it found it.
"""

from __future__ import annotations

import importlib.util
import logging
import random
import sys
import threading
import warnings
import zipfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import IO, TYPE_CHECKING, Any, Literal

import numpy as np

from pigeonhole.errors import ModelFileError
from pigeonhole.model.doctor import diagnose_file, mind, not_provided, notebook_beside
from pigeonhole.model.explain import Explanation, as_picture, normalized
from pigeonhole.model.export.building import PickleModule
from pigeonhole.model.export.container import check_file, opened
from pigeonhole.model.export.drift import complete
from pigeonhole.model.export.standins import NotProvided, StandIn
from pigeonhole.model.gradcam import NO_FEATURES, Place, gradcam, last_features
from pigeonhole.model.predictor import Photo, Prediction, Shown
from pigeonhole.model.torch_ready import import_torch

if TYPE_CHECKING:
    from fastai.learner import Learner
    from PIL.Image import Image
    from torch import Tensor, nn

log = logging.getLogger(__name__)

TRIAL = (64, 48)  # pixels of the picture that goes through before traffic does


def open_learner(
    path: Path, sha256: str | None = None, allowed: Collection[str] = (), device: str = "cpu"
) -> LearnerEngine:
    """Load the learner in `path`, put it on `device` and let a picture through it. No code in the file is run.

    `sha256` pins the file. `allowed` names, with their module, are admitted on top of those of image learners.

    Raises:
        ModelFileError: it is no export of an image classifier, is damaged, holds what no learner needs, or needs what
            is not here; the sentence says what and what to do.
        PackagesMissing: fastai or torch is not installed.
    """
    check_file(path)
    with opened(path) as file:  # once: what was looked at is what is loaded
        diagnosis = diagnose_file(file, path, sha256, allowed)
        if diagnosis.problem:
            raise ModelFileError(f"MODEL={diagnosis.problem}")
        for callback in diagnosis.callbacks:
            log.warning("MODEL=%s: %s.", path, mind(callback))
        return _load_and_try(file, path, allowed, diagnosis.sha256, device)


def _load_and_try(file: IO[bytes], path: Path, allowed: Collection[str], sha256: str, device: str) -> LearnerEngine:
    import_torch()
    try:
        engine = LearnerEngine(_load(file, path, allowed), sha256, device)
        engine.predict(Shown(blank_picture()))
        _ = engine.features  # found now, not when somebody asks
    except Exception as error:
        raise ModelFileError(f"MODEL={path} cannot be served: {_explained(error)}") from error
    return engine


def _load(file: IO[bytes], path: Path, allowed: Collection[str]) -> Learner:
    from fastai.learner import load_learner

    file.seek(0)
    _check_torchs_view(file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fastai warns of pickle at every load
        learner = load_learner(file, pickle_module=PickleModule(notebook_of(path), allowed))
    return _made_ready(learner)


def _check_torchs_view(file: IO[bytes]) -> None:
    """torch has a zip reader of its own; it has to find the parts that ours found, where ours found them.

    Raises:
        ModelFileError: it does not.
    """
    import torch

    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            ours = {part.filename.partition("/")[2]: part for part in archive.infolist()}
        file.seek(0)
        reader = torch._C.PyTorchFileReader(file)
        theirs = set(reader.get_all_records())
        offset_of = reader.get_record_offset  # type: ignore[attr-defined]
        if theirs != set(ours) or not all(_lies_at(file, part, offset_of(name)) for name, part in ours.items()):
            raise ModelFileError(
                "torch reads other parts in it than its directory lists; torch.save writes no such file."
            )
    file.seek(0)


def _lies_at(file: IO[bytes], part: zipfile.ZipInfo, offset: int) -> bool:
    """Does the content of `part` begin at `offset`? Before it lie 30 bytes, its name and some padding."""
    file.seek(part.header_offset + 26)
    name, extra = int.from_bytes(file.read(2), "little"), int.from_bytes(file.read(2), "little")
    return offset == part.header_offset + 30 + name + extra


def _made_ready(learner: Learner) -> Learner:
    """Give what was left out of the file, or is none of its business, the value a new learner has."""
    from fastai.callback.core import TrainEvalCallback
    from fastai.imports import noop
    from fastai.learner import CastToTensor, Recorder
    from torch import nn

    if not isinstance(learner.model, nn.Module):
        raise ModelFileError("its network is none of torch's.")
    complete(learner.model)
    of_the_notebook = [callback for callback in learner.cbs if not isinstance(callback, StandIn)]
    learner.cbs = learner.cbs[:0]
    learner.add_cbs([TrainEvalCallback(), Recorder(), CastToTensor(), *of_the_notebook])
    learner.metrics = []
    learner.opt, learner.training, learner.create_mbar, learner.logger = None, False, False, noop
    for loader in learner.dls.loaders:
        loader.rng, loader.fake_l.worker_init_fn = random.Random(0), noop
    return learner


def notebook_of(path: Path) -> ModuleType | None:
    """The user's notebook.py, run as a module: it is theirs, and lies on their disk.

    Raises:
        ModelFileError: it fails.
    """
    beside = notebook_beside(path)
    if beside is None:
        return None
    spec = importlib.util.spec_from_file_location("pigeonhole_notebook", beside)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses and pickle look a class's module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ModelFileError(f"{beside} beside it fails: {type(error).__name__}: {error}.") from error
    return module


def _explained(error: BaseException) -> str:
    """A sentence for what went wrong while the learner was loaded or tried."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, NotProvided):
            return not_provided([cause.wanted])
        if isinstance(cause, ModelFileError):
            return str(cause)
        cause = cause.__cause__ or cause.__context__
    text = next(iter(str(error).splitlines()), "")
    return f"the packages installed here cannot run it ({type(error).__name__}: {text})."


def blank_picture() -> Image:
    from PIL import Image

    return Image.new("RGB", TRIAL, (128, 128, 128))


class LearnerEngine:
    """`learner.predict` on one of torch's devices, one call at a time, with nothing kept of the picture.

    Raises:
        ModelFileError: the learner does not classify images.
    """

    def __init__(self, learner: Learner, sha256: str = "", device: str = "cpu") -> None:
        self.about = {"engine": "learner", "precision": "float32", "device": device, "model_sha256": sha256}
        self.labels = _labels(learner)
        self._item_class = _item_class(learner)
        self._learner = learner
        learner.dls.to(device)
        learner.model.to(device)
        self._one_at_a_time = threading.Lock()  # guards the learner's attributes, where predict keeps its state

    def predict(self, photo: Photo) -> Prediction:
        item = self._as_item(photo.decoded())
        with self._one_at_a_time:
            return self._predicted(item)

    def explain(self, photo: Photo, label: str | None = None) -> tuple[Prediction, Explanation]:
        """The network computes twice: in `learner.predict`, and with a gradient behind its features."""
        features, item = self.features, self._as_item(photo.decoded())
        assert features is not None
        with self._one_at_a_time:
            with _batch_of(self._learner.model) as batches:
                prediction = self._predicted(item)
            index = prediction.index_of(label, self.labels)
            (heatmap,) = gradcam(self._learner.model, features, batches[0], index)
        seen = as_picture(_before_normalizing(self._learner, batches[0]))
        return prediction, Explanation(self.labels[index], seen, normalized(heatmap))

    @cached_property
    def features(self) -> Place | None:
        """Where its network has its last convolutional features."""
        item = self._as_item(blank_picture())
        with self._one_at_a_time:
            return last_features(self._learner.model, lambda: self._predicted(item))

    @property
    def why_unexplained(self) -> str | None:
        return NO_FEATURES if self.features is None else None

    @property
    def useful_side(self) -> int | None:
        """Not known: what the learner does to a picture is fastai's to say."""
        return None

    def _predicted(self, item: Any) -> Prediction:
        before = dict(vars(self._learner))
        try:
            decoded, _, probabilities = self._learner.predict(item)
        finally:
            vars(self._learner).clear()
            vars(self._learner).update(before)
        # fastai decodes to a str for one label and to a list for a multi-label learner
        success = str(decoded) if isinstance(decoded, str) else [str(label) for label in decoded]
        return Prediction(success, tuple(probabilities.tolist()))

    @property
    def learner(self) -> Learner:
        """fastai's own object, for who compiles it."""
        return self._learner

    @property
    def mode(self) -> Literal["RGB", "L"]:
        """Pillow's mode of the pictures it was trained on, so that a learner of grey pictures gets grey ones."""
        mode: Literal["RGB", "L"] = getattr(self._item_class, "_open_args", {}).get("mode", "RGB")
        return mode

    def _as_item(self, picture: Image) -> Any:
        return self._item_class(picture.convert(self.mode))  # convert copies, and fastai makes the copy one of its own


@contextmanager
def _batch_of(network: nn.Module) -> Iterator[list[Tensor]]:
    """Note what `network` is called with, as torch's own tensors."""
    import torch

    batches: list[Tensor] = []
    handle = network.register_forward_pre_hook(
        lambda module, given: batches.append(given[0].detach().as_subclass(torch.Tensor))
    )
    try:
        yield batches
    finally:
        handle.remove()


def _before_normalizing(learner: Learner, batch: Tensor) -> np.ndarray:
    """The first picture of `batch` as the network saw it: uint8, height × width × channels."""
    scale = 1.0
    for transform in reversed(list(learner.dls.valid.after_batch.fs)):
        if type(transform).__name__ == "Normalize":
            batch = batch * transform.std.to(batch) + transform.mean.to(batch)
        elif type(transform).__name__ == "IntToFloatTensor":
            scale = float(transform.div or 1)
    pixels = (batch[0] * scale).round().clamp(0, 255).permute(1, 2, 0)
    return np.asarray(pixels.cpu().numpy().astype(np.uint8))


def _labels(learner: Learner) -> tuple[str, ...]:
    vocab = getattr(learner.dls, "vocab", None)
    if not vocab or not all(isinstance(label, (str, int, float, np.generic)) for label in vocab):
        raise ModelFileError("the learner has no list of labels; only image classifiers are served.")
    return tuple(map(str, vocab))  # a labelling function such as is_cat makes the vocab [False, True]


def _item_class(learner: Learner) -> Any:
    """What the learner's item pipeline makes of a file: PILImage, PILImageBW, or a class of the user's."""
    from fastai.vision.core import PILBase

    try:
        item_class = learner.dls.valid_ds.tls[0].types[-1]
    except (AttributeError, IndexError):  # of tables, text, and whatever else has no pipeline of items
        item_class = None
    if not (isinstance(item_class, type) and issubclass(item_class, PILBase)):
        raise ModelFileError("the learner does not take pictures; only image classifiers are served.")
    return item_class
