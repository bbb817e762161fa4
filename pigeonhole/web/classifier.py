"""From what a request brought to what the model says: the one way that all routes share."""

from __future__ import annotations

import atexit
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from math import inf
from typing import IO, Protocol, TypeVar, cast

import numpy as np
from flask import g, request
from PIL import Image

from pigeonhole.errors import NotReady, URLNotAllowed, URLOff
from pigeonhole.intake.budget import Budget
from pigeonhole.intake.fetch import USER_AGENT, Fetcher
from pigeonhole.intake.pictures import Limits, open_photo
from pigeonhole.intake.pictures import Photo as IntakePhoto
from pigeonhole.intake.sandbox import Sandbox
from pigeonhole.intake.uploads import check_room
from pigeonhole.model.explain import Explanation
from pigeonhole.model.predictor import Engine, Photo, Prediction, Predictor
from pigeonhole.model.recipe import Recipe
from pigeonhole.settings import Settings
from pigeonhole.sizing import MeasuredRoom
from pigeonhole.web.picture_request import PictureRequest, SentPicture, blamed_on

T = TypeVar("T")
Phase = Callable[[str], AbstractContextManager[object]]


@cache
def sandbox(formats: tuple[str, ...]) -> Sandbox:
    """This process's one, which ends with it."""
    one = Sandbox(["pigeonhole.model.recipe"], formats)
    atexit.register(one.close)
    return one


class Fetches(Protocol):
    """What gets the bytes at an address; see `Fetcher.fetch`."""

    def fetch(self, url: str, into: IO[bytes]) -> None: ...


@dataclass(frozen=True)
class Timed:
    """A Photo whose decoding is a phase of its own, whenever the engine asks for it."""

    photo: Photo
    phase: Phase

    @property
    def size(self) -> tuple[int, int]:
        return self.photo.size

    def reduction(self, allows: Callable[[tuple[int, int], int], bool]) -> int:
        return self.photo.reduction(allows)

    def decoded(self, reduction: int = 1) -> Image.Image:
        with self.phase("decode"):
            return self.photo.decoded(reduction)

    def through(self, recipe: Recipe, reduction: int = 1) -> np.ndarray:
        with self.phase("decode"):
            return self.photo.through(recipe, reduction)


class Classifier:
    """Classifies the pictures of the request at hand, within the limits of the settings.

    `phase` is entered around each part of the work, with its name; see `Metrics`.
    """

    def __init__(
        self,
        predictor: Predictor,
        settings: Settings,
        fetcher: Fetches | None = None,
        phase: Phase = lambda name: nullcontext(),
    ) -> None:
        self._predictor, self._settings, self.phase = predictor, settings, phase
        self._limits = Limits(settings.max_pixels, settings.max_side, settings.formats)
        self.measured = MeasuredRoom(settings)
        self._turns = Budget(lambda: self.measured.room.decoding)
        self._memory = Budget(lambda: self.measured.room.pictures)
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
        return self._each(pictures, "infer", self._predictor.predict)

    def explain(
        self, pictures: Sequence[SentPicture], label: str | None = None
    ) -> list[tuple[Prediction, Explanation]]:
        """For each, what `classify` says of it, and where the model looked for `label`.

        Raises:
            BadParameter, NotAvailable: as `Predictor.explain`.
            RequestError, NotReady, ModelFault: as `classify`.
        """
        self._predictor.check_explainable(label)  # once, since it is not the first picture's fault
        return self._each(pictures, "explain", lambda photo: self._predictor.explain(photo, label))

    def _each(self, pictures: Sequence[SentPicture], phase: str, ask: Callable[[Photo], T]) -> list[T]:
        g.pictures = len(pictures)
        answers = []
        for number, picture in enumerate(pictures, 1):
            with (
                blamed_on(picture, number, len(pictures)),
                self._waited_for(self._turns, 1),
                self.phase(phase),
                self._opened(picture.file) as photo,
                self._waited_for(self._memory, photo.bytes_needed),
            ):
                answers.append(ask(Timed(photo, self.phase)))
        return answers

    @contextmanager
    def _waited_for(self, budget: Budget, amount: int) -> Iterator[None]:
        with ExitStack() as held:
            with self.phase("turn"):
                held.enter_context(budget.taken(amount, _deadline()))
            yield

    def _opened(self, file: IO[bytes]) -> AbstractContextManager[IntakePhoto]:
        wanted, formats = self._settings.sandbox, self._settings.formats
        if wanted == "on" or (wanted == "auto" and sandbox(formats).works):
            keeps = self.measured.room.cells_keep_memory
            return sandbox(formats).opened(file, self._limits, self._settings.orientation, keeps)
        return nullcontext(open_photo(file, self._limits, self._settings.orientation))

    def ready(self) -> Engine:
        """The engine, if it would answer a picture that came now.

        Raises:
            NotReady: the model could not be opened, or the service is stopping.
            NoSpace: a picture could not be kept while it is answered.
        """
        if request.environ.get("pigeonhole.draining"):
            raise NotReady("the service is stopping.")
        check_room(self._settings.uploads)
        return self._predictor.load_or_refuse()

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
        with self.phase("fetch"):
            self._fetcher.fetch(url, file)
        file.seek(0)
        return SentPicture(file)


def _deadline() -> float:
    """When the request at hand has waited long enough, by `time.monotonic`; servers that do not say so let it wait."""
    return float(request.environ.get("pigeonhole.deadline", inf))
