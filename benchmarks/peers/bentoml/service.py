"""BentoML: a picture as an argument is what its documentation recommends for photos, and is sent as a form's file.

Synchronous methods run in a pool of threads, which has one thread unless it is told otherwise.
"""

import bentoml
from PIL import Image

from by_hand import load


@bentoml.service(workers=1, threads=8, traffic={"timeout": 300})
class Classifier:
    def __init__(self) -> None:
        self.classify = load()

    @bentoml.api
    def predict(self, image: Image.Image) -> dict[str, str]:
        return {"success": self.classify(image)}
