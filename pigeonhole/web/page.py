"""The page at `/`: people send a photo and see what the model says, and where it looked; JavaScript is not needed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, cast

import numpy as np
from flask import Blueprint, Flask, Response, g, request
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import BeforeValidator, Field
from werkzeug.exceptions import NotFound

from pigeonhole.errors import NoImage, NotReady
from pigeonhole.intake.formats import FORMATS, listed
from pigeonhole.model.explain import Explanation
from pigeonhole.model.predictor import Prediction, Predictor
from pigeonhole.settings import MIB, Settings
from pigeonhole.web.answers import Likely, data_uri, likely
from pigeonhole.web.bodies import Form, Submission, read_body
from pigeonhole.web.classifier import Classifier
from pigeonhole.web.files import file_reply, text_reply
from pigeonhole.web.keys import Keys
from pigeonhole.web.page_examples import ExamplePicture, examples_of
from pigeonhole.web.picture_request import PictureRequest, SentPicture
from pigeonhole.web.prediction_request import Options, combined
from pigeonhole.web.replies import Refusal, refusal_of
from pigeonhole.web.theme import stylesheet

FORM = "page.answered_page"  # what Flask calls the route that takes the form
FILES = ("page.css", "page.js")
STATIC = Path(__file__).parent / "static"
TEMPLATES = Path(__file__).parent / "templates"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
SHOWN_AT_FIRST = 5  # labels; the others on request
MIDDLE = (0.4, 0.6)  # of a picture's width or height
Examples = Mapping[str | None, ExamplePicture]  # by their numbers


class PageForm(Options):
    """What the form sends beside pictures; browsers send its empty fields as well."""

    refused: ClassVar[dict[str, str]] = {}

    url: Annotated[
        str | None,
        BeforeValidator(lambda text: text.strip() or None),
        Field(description="the address of a picture on the public web"),
    ] = None
    example: Annotated[str | None, Field(description="the number of an example")] = None
    key: Annotated[str | None, Field(description="a key, where one is needed and no header held it")] = None


@dataclass(frozen=True)
class ShownAnswer:
    """A picture's answer, as the page shows it."""

    name: str
    labels: Sequence[str]
    ranked: Sequence[Likely]
    explanation: Explanation | None

    @property
    def first(self) -> Sequence[Likely]:
        return self.ranked[:SHOWN_AT_FIRST]


@dataclass(frozen=True)
class Abilities:
    """What the page has to know of the engine; see `Engine`."""

    why_unexplained: str | None = None
    useful_side: int | None = None


def install(
    app: Flask, settings: Settings, classifier: Classifier, predictor: Predictor, keys: Keys | None = None
) -> None:
    """Add the page, its files under `/page/` and its examples, unless PAGE=0.

    Raises:
        FolderError: as `examples_of`.
    """
    if settings.page:
        _add_files(app, settings.page_colour)
        examples: Examples = {str(number): example for number, example in enumerate(examples_of(settings), 1)}
        _add_examples(app, examples)
        answers = Answers(classifier, predictor, examples, keys)
        _add_page(app, predictor, _render_of(settings, examples), answers)


class Answers:
    """Reads the form of the request at hand, and answers it."""

    form = Form(("image",), PageForm, optional=True)

    def __init__(self, classifier: Classifier, predictor: Predictor, examples: Examples, keys: Keys | None) -> None:
        self._classifier, self._predictor = classifier, predictor
        self._examples, self._keys = examples, keys

    def answered(self) -> Sequence[ShownAnswer]:
        """What the model says of each picture.

        Raises:
            RequestError, ServiceError: as /predict.
        """
        body = self._read()
        wanted = combined(Options(), body)
        explains = wanted.explain and self._predictor.load_or_refuse().why_unexplained is None
        pictures = [self._classifier.fetched(wanted.url)] if wanted.url is not None else wanted.pictures
        said: Sequence[tuple[Prediction, Explanation | None]]
        if explains:
            said = self._classifier.explain(pictures, wanted.explain_label)
        else:
            said = [(prediction, None) for prediction in self._classifier.classify(pictures)]
        return [self._shown(*pair, picture) for pair, picture in zip(said, pictures, strict=True)]

    def _read(self) -> Submission:
        """The form of who may call, with the example that it names as if it had been sent."""
        with self._classifier.phase("read"):
            body = cast(Submission, read_body([self.form], cast(PictureRequest, request)))
        if self._keys and "key_name" not in g:
            g.key_name = self._keys.check(body.parameters.key)
        if example := self._examples.get(body.parameters.example):
            kept = cast(PictureRequest, request).kept([_content_of(example)])
            return Submission(
                kept, parameters=body.parameters.model_copy(update={"url": None})
            )  # what was clicked counts
        if not body.pictures and body.parameters.url is None:
            raise NoImage("no picture was chosen; choose one, and send it again.")
        return body

    def _shown(self, prediction: Prediction, explanation: Explanation | None, picture: SentPicture) -> ShownAnswer:
        labels = [prediction.success] if isinstance(prediction.success, str) else prediction.success
        ranked = likely(prediction, self._classifier.labels, "all")
        return ShownAnswer(picture.harmless_name, labels, ranked, explanation)


def _content_of(example: ExamplePicture) -> bytes:
    try:
        return example.path.read_bytes()
    except OSError as error:
        raise NoImage("that example is not there any more; choose another one.") from error


def _add_page(app: Flask, predictor: Predictor, render: Callable[..., str], answers: Answers) -> None:
    empty = cache(render)  # one text for each of the engine's abilities, of which there is one
    routes = Blueprint("page", __name__)

    @routes.get("/")
    def page() -> Response:
        """The page."""
        predictor.load_or_refuse()
        return _reply(empty(_abilities(predictor)))

    @routes.post("/")
    def answered_page() -> Response:
        """What the page's form gets where JavaScript is off."""
        began = time.monotonic()
        shown = answers.answered()
        return _reply(render(_abilities(predictor), answers=shown, seconds=time.monotonic() - began))

    @routes.errorhandler(Exception)
    def refused(error: Exception) -> Response:
        """People get a page, whatever happened; the API's answer would be JSON."""
        refusal = refusal_of(error)
        return _reply(render(_abilities(predictor), refusal=refusal, request_id=g.request_id), refusal)

    app.register_blueprint(routes)


def _abilities(predictor: Predictor) -> Abilities:
    try:
        engine = predictor.load_or_refuse()
    except NotReady:
        return Abilities()
    return Abilities(engine.why_unexplained, engine.useful_side)


def _reply(text: str, refusal: Refusal | None = None) -> Response:
    response = Response(text, refusal.status if refusal else 200, mimetype="text/html")
    response.headers["Content-Security-Policy"] = POLICY
    response.headers.update(refusal.headers if refusal else {})
    return response


def _render_of(settings: Settings, examples: Examples) -> Callable[..., str]:
    """What makes the page's text; the settings are in it from the start."""
    jinja = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined)
    jinja.filters.update(percent=percent, data_uri=data_uri, whereabouts=whereabouts)
    jinja.trim_blocks = jinja.lstrip_blocks = True
    template = jinja.get_template("page.html")
    known: dict[str, Any] = {
        "settings": settings,
        "examples": list(examples),
        "mib": settings.max_body_bytes / MIB,
        "accepted": listed(settings.formats),
        "media_types": ",".join(FORMATS[name].media_type for name in settings.formats),
        "has_keys": settings.has_keys,
    }

    def render(abilities: Abilities, **more: Any) -> str:
        return template.render(known, abilities=abilities, **more)

    return render


def _add_files(app: Flask, colour: str) -> None:
    theme, icon = stylesheet(colour), (TEMPLATES / "icon.svg").read_text("utf-8").replace("COLOUR", colour)

    @app.get("/page/<name>")
    def page_file(name: str) -> Response:
        if name == "theme.css":
            return text_reply(theme, "text/css", POLICY)
        if name == "icon.svg":
            return text_reply(icon, "image/svg+xml", POLICY)
        if name not in FILES:
            raise NotFound
        return file_reply(STATIC / name, POLICY)


def _add_examples(app: Flask, examples: Examples) -> None:
    @app.get("/examples/<name>")
    def example(name: str) -> Response:
        shown = examples.get(name)
        if shown is None:
            raise NotFound
        return file_reply(shown.path, POLICY, shown.media_type)


def percent(probability: float) -> str:
    """As page.js writes it: 98%, 4.1%, below 0.1%; halves are rounded up."""
    if 0 < probability < 0.001:
        return "below 0.1%"
    step = Decimal("0.1") if 0 < probability < 0.0995 else Decimal(1)
    return f"{Decimal(probability * 100).quantize(step, ROUND_HALF_UP)}%"


def whereabouts(explanation: Explanation) -> str:
    """Where the heat lies, in words, for who does not see it: its centre, in which the hottest cells count most."""
    weights = explanation.grid.astype(float) ** 3
    if not weights.max() > 0:
        return "nowhere in particular"
    down = _third(weights.sum(1), ("top", "", "bottom"))
    across = _third(weights.sum(0), ("left", "", "right"))
    return f"most at the {' '.join(filter(None, (down, across)))}" if down or across else "most in the middle"


def _third(weights: np.ndarray, names: tuple[str, str, str]) -> str:
    centre = float(weights @ (np.arange(len(weights)) + 0.5) / weights.sum() / len(weights))
    return names[0] if centre < MIDDLE[0] else names[2] if centre > MIDDLE[1] else names[1]
