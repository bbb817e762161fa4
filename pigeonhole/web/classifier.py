"""From what a request brought to what the model says: the one way that all routes share."""

from __future__ import annotations

import atexit
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from threading import BoundedSemaphore
from typing import IO, Protocol, TypeVar, cast

from flask import request

from pigeonhole.errors import URLNotAllowed, URLOff
from pigeonhole.intake.fetch import USER_AGENT, Fetcher
from pigeonhole.intake.pictures import Limits, open_photo
from pigeonhole.intake.sandbox import Sandbox
from pigeonhole.model.explain import Explanation
from pigeonhole.model.predictor import Photo, Prediction, Predictor
from pigeonhole.settings import Settings
from pigeonhole.web.picture_request import PictureRequest, SentPicture, blamed_on

T = TypeVar("T")


@cache
def sandbox() -> Sandbox:
    """This process's one, which ends with it."""
    one = Sandbox(["pigeonhole.model.recipe"])
    atexit.register(one.close)
    return one


class Fetches(Protocol):
    """What gets the bytes at an address; see `Fetcher.fetch`."""

    def fetch(self, url: str, into: IO[bytes]) -> None: ...


class Classifier:
    """Classifies the pictures of the request at hand, within the limits of the settings."""

    def __init__(self, predictor: Predictor, settings: Settings, fetcher: Fetches | None = None) -> None:
        self._predictor, self._settings = predictor, settings
        self._limits = Limits(settings.max_pixels, settings.max_side)
        self._in_hand = BoundedSemaphore(settings.max_decoded)  # guards memory: decoding takes up to 16 bytes a pixel
        self._fetcher = fetcher or Fetcher(
            settings.max_body_bytes, at_once=min(settings.max_fetches, max(1, settings.threads - 1))
        )

    @property
    def labels(self) -> tuple[str, ...]:
        return self._predictor.labels

    def classify(self, pictures: Sequence[SentPicture]) -> list[Prediction]:
        """One prediction for each; a refusal of one of several says which.

        Raises:
            RequestError: a picture is refused.
            NotReady, ModelFault: as `Predictor.predict`.
        """
        return self._each(pictures, self._predictor.predict)

    def explain(
        self, pictures: Sequence[SentPicture], label: str | None = None
    ) -> list[tuple[Prediction, Explanation]]:
        """For each, what `classify` says of it, and where the model looked for `label`.

        Raises:
            BadParameter, NotAvailable: as `Predictor.explain`.
            RequestError, NotReady, ModelFault: as `classify`.
        """
        self._predictor.check_explainable(label)  # once, since it is not the first picture's fault
        return self._each(pictures, lambda photo: self._predictor.explain(photo, label))

    def _each(self, pictures: Sequence[SentPicture], ask: Callable[[Photo], T]) -> list[T]:
        answers = []
        for number, picture in enumerate(pictures, 1):
            with blamed_on(picture, number, len(pictures)), self._in_hand, self._opened(picture.file) as photo:
                answers.append(ask(photo))
        return answers

    def _opened(self, file: IO[bytes]) -> AbstractContextManager[Photo]:
        wanted = self._settings.sandbox
        if wanted == "on" or (wanted == "auto" and sandbox().works):
            return sandbox().opened(file, self._limits, self._settings.orientation)
        return nullcontext(open_photo(file, self._limits, self._settings.orientation))

    def fetched(self, url: str) -> SentPicture:
        """The picture at `url`, kept like an upload.

        Raises:
            URLOff: nothing is fetched here.
            BadURL, URLNotAllowed, URLFailed, Overloaded: as `Fetcher.fetch`.
        """
        if not self._settings.fetch_urls:
            raise URLOff("pictures are not fetched from addresses here; send the picture itself.")
        if request.user_agent.string == USER_AGENT:
            raise URLNotAllowed("a service like this one asks for a picture; it does not get one fetched.")
        file = cast(PictureRequest, request).uploads.new()
        self._fetcher.fetch(url, file)
        file.seek(0)
        return SentPicture(file)
