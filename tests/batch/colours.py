"""`python -m pigeonhole` with an engine that knows colours, as a process that can be stopped and killed."""

from __future__ import annotations

import sys
import time

from pigeonhole.cli import main
from pigeonhole.model.predictor import Photo, Prediction, Predictor
from tests.conftest import Colours

ENDLESS = (7, 7)  # pixels of a photo that takes a minute


class Slow(Colours):
    """Takes a hundredth of a second, so that there is a middle to be stopped in."""

    def predict(self, photo: Photo) -> Prediction:
        time.sleep(60 if photo.size == ENDLESS else 0.01)
        return super().predict(photo)


if __name__ == "__main__":
    sys.exit(main(predictor=Predictor(Slow)))
