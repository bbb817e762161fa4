"""From a picture to a Prediction, by whichever engine serves the model; loaded once, shared by all threads."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from pigeonhole.errors import BadParameter, ModelFault, NotAvailable, NotReady, RequestError, ServiceError, StartError

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    from pigeonhole.model.explain import Explanation
    from pigeonhole.model.recipe import Recipe

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prediction:
    """What the model says of one picture.

    `success` is the label, or the list of labels of a multi-label model. `probabilities` go with the engine's `labels`,
    each in [0, 1]; they sum to 1 unless the model is multi-label.
    """

    success: str | list[str]
    probabilities: tuple[float, ...]

    def ranked(self, labels: Sequence[str]) -> list[tuple[str, float]]:
        """Each of the engine's `labels` with its probability, best first; of equals, the first label first."""
        return sorted(zip(labels, self.probabilities, strict=True), key=lambda pair: -pair[1])

    def index_of(self, label: str | None, labels: Sequence[str]) -> int:
        """Where `label` stands among the engine's `labels`; of None, where the most probable one does."""
        return max(range(len(labels)), key=self.probabilities.__getitem__) if label is None else labels.index(label)


class Photo(Protocol):
    """A picture that is decoded when it is needed, upright and RGB; as often as wanted."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, upright, in pixels."""

    def reduction(self, allows: Callable[[tuple[int, int], int], bool]) -> int:
        """By how much the decoder shrinks it, of what is allowed for its size; 1 for not at all."""

    def decoded(self, reduction: int = 1) -> Image: ...

    def through(self, recipe: Recipe, reduction: int = 1) -> np.ndarray:
        """What `recipe` makes of it, decoded: uint8, height × width × channels."""


@dataclass(frozen=True)
class Shown:
    """A Photo of a picture that is decoded already."""

    picture: Image

    @property
    def size(self) -> tuple[int, int]:
        return self.picture.size

    def reduction(self, allows: Callable[[tuple[int, int], int], bool]) -> int:
        return 1

    def decoded(self, reduction: int = 1) -> Image:
        return self.picture

    def through(self, recipe: Recipe, reduction: int = 1) -> np.ndarray:
        return recipe.apply(self.picture)


class Engine(Protocol):
    """What can answer for a model; `predict` and `explain` may be called from many threads at once."""

    labels: tuple[str, ...]

    @property
    def about(self) -> dict[str, str]:
        """Its name, its precision and the SHA-256 of the export."""

    @property
    def why_unexplained(self) -> str | None:
        """Why where the model looked cannot be shown, as a sentence; None if it can."""

    @property
    def useful_side(self) -> int | None:
        """In pixels: a photo whose shorter side is longer may be shrunk to it beforehand; None if none may."""

    def predict(self, photo: Photo) -> Prediction: ...

    def explain(self, photo: Photo, label: str | None = None) -> tuple[Prediction, Explanation]:
        """What `predict` says, and where the model looked for `label`, by default the most probable one."""


class Predictor:
    """Opens its engine once, when `load` or the first `predict` comes, and guards what it answers.

    >>> predictor = Predictor(lambda: open_learner(Path("export.pkl")))
    >>> predictor.predict(photo).success
    'sparrow'
    """

    def __init__(self, open_engine: Callable[[], Engine]) -> None:
        self._open_engine = open_engine
        self._engine: Engine | None = None
        self._refusal: StartError | None = None
        self._loading = threading.Lock()  # guards both: a model is opened once, however many threads ask first

    def load(self) -> Engine:
        """Open the engine if it is not open.

        Raises:
            StartError: it cannot be opened; it is not tried again.
        """
        with self._loading:
            if self._refusal:
                raise self._refusal.with_traceback(None)
            if self._engine is None:
                try:
                    self._engine = self._open_engine()
                except StartError as refusal:
                    self._refusal = refusal
                    raise
            return self._engine

    def load_or_refuse(self) -> Engine:
        """The engine, for a request.

        Raises:
            NotReady: it cannot be opened.
        """
        try:
            return self._engine or self.load()
        except StartError as error:
            raise NotReady("the model is not loaded.") from error

    @property
    def about(self) -> dict[str, str]:
        """What the engine says of itself; nothing as long as it is not loaded."""
        return self._engine.about if self._engine else {}

    @property
    def labels(self) -> tuple[str, ...]:
        """What a prediction's probabilities are of; raises NotReady as `load_or_refuse`."""
        return self.load_or_refuse().labels

    def predict(self, photo: Photo) -> Prediction:
        """What the model says of `photo`.

        Raises:
            RequestError: the photo does not decode.
            NotReady: the model could not be opened.
            ModelFault: the engine failed, or its probabilities are no numbers.
        """
        engine = self.load_or_refuse()
        with _guarded():
            return _finite(engine.predict(photo))

    def explain(self, photo: Photo, label: str | None = None) -> tuple[Prediction, Explanation]:
        """What the model says of `photo`, and where it looked for `label`, by default the most probable one.

        Raises:
            BadParameter: there is no such label.
            NotAvailable: it cannot be shown for this model.
            RequestError, NotReady, ModelFault: as `predict`.
        """
        engine = self.check_explainable(label)
        with _guarded():
            prediction, explanation = engine.explain(photo, label)
            return _finite(prediction), explanation

    def check_explainable(self, label: str | None = None) -> Engine:
        """The engine, if it can show where it looks for `label`; raises as `explain`."""
        engine = self.load_or_refuse()
        if engine.why_unexplained is not None:
            raise NotAvailable(engine.why_unexplained)
        if label is not None and label not in engine.labels:
            raise BadParameter("the label to explain is none of the model's labels.")
        return engine


@contextmanager
def _guarded() -> Iterator[None]:
    try:
        yield
    except (RequestError, ServiceError):
        raise
    except Exception as error:
        raise ModelFault("the model failed on this picture.") from error


def _finite(prediction: Prediction) -> Prediction:
    if not all(map(math.isfinite, prediction.probabilities)):
        raise ModelFault("the model's answer is not a number.")
    return prediction
