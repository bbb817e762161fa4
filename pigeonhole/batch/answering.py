"""From one file to its row, or to the sentence that says why there is none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pigeonhole.batch import heatmaps
from pigeonhole.batch.finding import Found, PassedOver, opened
from pigeonhole.batch.rows import Row, rounded
from pigeonhole.errors import ModelFault, RequestError
from pigeonhole.intake.pictures import Limits, Orientation, open_photo
from pigeonhole.model.predictor import Prediction, Predictor

Answer = Row | str | None  # a row; or the sentence that says why there is none; or nothing to say


@dataclass(frozen=True)
class Answering:
    """Answers for a file; called by several threads. With `places`, by names, heatmaps are put there."""

    predictor: Predictor
    limits: Limits
    orientation: Orientation
    top: int | None
    places: Mapping[str, Path] | None

    def __call__(self, one: Found) -> Answer:
        try:
            with opened(one) as file:
                photo = open_photo(file, self.limits, self.orientation)
                if self.places is None:
                    return self._row(one, self.predictor.predict(photo))
                prediction, explanation = self.predictor.explain(photo)
                heatmaps.save(explanation.overlay(), self.places[one.name])
                return self._row(one, prediction)
        except PassedOver:
            return None
        except OSError as error:
            return f"it cannot be read: {error.strerror}."
        except (RequestError, ModelFault) as error:
            return str(error)

    def _row(self, one: Found, prediction: Prediction) -> Row:
        return Row(one.name, prediction.success, rounded(prediction.ranked(self.predictor.labels)[: self.top]))
