"""From a picture to a Prediction, by whichever engine serves the model; loaded once, shared by all threads."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from pigeonhole.errors import ModelFault, NotReady, StartError

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prediction:
    """What the model says of one picture.

    `success` is the label, or the list of labels of a multi-label model. `probabilities` go with the engine's `labels`,
    each in [0, 1]; they sum to 1 unless the model is multi-label.
    """

    success: str | list[str]
    probabilities: tuple[float, ...]


class Engine(Protocol):
    """What can answer for a model; `predict` may be called from many threads at once."""

    labels: tuple[str, ...]

    def predict(self, picture: Image) -> Prediction: ...


class Predictor:
    """Opens its engine once, when `load` or the first `predict` comes, and guards what it answers.

    >>> predictor = Predictor(lambda: open_learner(Path("export.pkl")))
    >>> predictor.predict(picture).success
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

    def predict(self, picture: Image) -> Prediction:
        """What the model says of `picture`, an upright RGB picture of any size.

        Raises:
            NotReady: the model could not be opened.
            ModelFault: the engine failed, or its probabilities are no numbers.
        """
        try:
            engine = self._engine or self.load()
        except StartError as error:
            raise NotReady("the model is not loaded.") from error
        try:
            prediction = engine.predict(picture)
        except Exception as error:
            raise ModelFault("the model failed on this picture.") from error
        if not all(map(math.isfinite, prediction.probabilities)):
            raise ModelFault("the model's answer is not a number.")
        return prediction
