"""Open an export.pkl and answer with `learner.predict`: the reference engine.

`learner.predict` was made for a notebook. It keeps the picture it saw last, prints a progress bar, and before fastai
2.7 gave wrong answers when two threads called it at once. `LearnerEngine` calls it one at a time, silently, and leaves
the learner as it found it.
"""

from __future__ import annotations

import threading
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pigeonhole.errors import ModelFileError
from pigeonhole.model.predictor import Prediction
from pigeonhole.model.torch_ready import import_torch

if TYPE_CHECKING:
    from fastai.learner import Learner
    from PIL.Image import Image

HEAD = 64  # bytes looked at to tell what a file is
ZIP_MAGIC = b"PK\x03\x04"  # torch.save since torch 1.6
PICKLE_MAGIC = b"\x80"  # torch.save before, and every pickle of protocol 2 and later
GIT_LFS_MAGIC = b"version https://git-lfs"


def check_export(path: Path) -> None:
    """Look at the file without opening it as a pickle, and without torch.

    Raises:
        ModelFileError: it is missing, empty, or visibly something else than an export.
    """
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
    except FileNotFoundError as error:
        raise ModelFileError(f"MODEL={path} is not there; put the file there that learn.export() wrote.") from error
    except IsADirectoryError as error:
        raise ModelFileError(f"MODEL={path} is a folder; name the file that learn.export() wrote.") from error
    except OSError as error:
        raise ModelFileError(f"MODEL={path} cannot be read by this user.") from error
    if not head:
        raise ModelFileError(f"MODEL={path} is empty; export the learner again, or copy it again.")
    if head.startswith(GIT_LFS_MAGIC):
        raise ModelFileError(
            f"MODEL={path} is a Git LFS pointer, not the model itself: run `git lfs install`, then `git lfs pull`."
        )
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise ModelFileError(f"MODEL={path} is a web page; the download stopped at a log-in or an error page.")
    if not head.startswith((ZIP_MAGIC, PICKLE_MAGIC)):
        raise ModelFileError(f"MODEL={path} is not what learn.export() writes; it starts with {head[:8]!r}.")


def open_learner(path: Path) -> LearnerEngine:
    """Load the learner in `path` on the CPU. The file can run code: open only what you trust.

    Raises:
        ModelFileError: it is no export of an image classifier.
        PackagesMissing: fastai or torch is not installed.
    """
    check_export(path)
    import_torch()
    from fastai.learner import load_learner

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # fastai warns of pickle at every load; the README does too
            learner = load_learner(path)
    except Exception as error:
        raise ModelFileError(f"MODEL={path} cannot be opened: {type(error).__name__}: {error}") from error
    return LearnerEngine(learner)


class LearnerEngine:
    """`learner.predict`, one call at a time, with nothing kept of the picture.

    Raises:
        ModelFileError: the learner does not classify images.
    """

    def __init__(self, learner: Learner) -> None:
        self.labels = _labels(learner)
        self._item_class = _item_class(learner)
        self._learner = _silenced(learner)
        self._one_at_a_time = threading.Lock()  # guards the learner's attributes, where predict keeps its state

    def predict(self, picture: Image) -> Prediction:
        item = self._as_item(picture)
        with self._one_at_a_time:
            before = dict(vars(self._learner))
            try:
                decoded, _, probabilities = self._learner.predict(item)
            finally:
                vars(self._learner).clear()
                vars(self._learner).update(before)
        # fastai decodes to a str for one label and to a list for a multi-label learner
        success = str(decoded) if isinstance(decoded, str) else [str(label) for label in decoded]
        return Prediction(success, tuple(probabilities.tolist()))

    def _as_item(self, picture: Image) -> Any:
        """The picture as the class the learner was trained on, so that a learner of grey pictures gets a grey one."""
        mode = getattr(self._item_class, "_open_args", {}).get("mode", "RGB")
        return self._item_class(picture.convert(mode))  # convert copies, and fastai makes the copy one of its own


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


def _silenced(learner: Learner) -> Learner:
    from fastai.callback.progress import ProgressCallback

    learner.remove_cbs(callback for callback in list(learner.cbs) if isinstance(callback, ProgressCallback))
    return learner
