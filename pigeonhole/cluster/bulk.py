"""Many photos on many machines: Ray Data instead of this process's threads, the same answers in the same order.

Paths travel, photos do not: a machine reads them itself, from a disk that all share. What came of each comes back as
JSON, in which numbers stay what they are.
"""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pigeonhole.batch.answering import Answer, Answering
from pigeonhole.batch.command import Answerer
from pigeonhole.batch.finding import Found
from pigeonhole.batch.rows import Row
from pigeonhole.errors import ClusterError, PackagesMissing, PigeonholeError
from pigeonhole.intake.pictures import Limits, Orientation, open_probe
from pigeonhole.machine import usable_cores
from pigeonhole.model.choosing import Model, open_engine
from pigeonhole.model.predictor import Predictor

PHOTOS_AT_ONCE = 32  # that an actor is given; a second's work for one core
REACHED_WITHIN = 5  # seconds
INSTALL = "`tools/environment.sh .venv ray` installs it"


@contextmanager
def on_ray(address: str | None, model: Model, most: int | None) -> Iterator[Answerer]:
    """What answers files with `model` on the machines of the cluster at `address`, by default on this one.

    At most `most` photos are in hand at the same time.

    Raises:
        PackagesMissing: Ray is not installed.
        ClusterError: there is no cluster.
    """
    try:
        import ray
        from ray.data import DataContext
    except ImportError as error:
        raise PackagesMissing(f"--ray needs {error.name}, which is not installed here; {INSTALL}.") from error
    try:
        if address:
            _check_reachable(address)
        here: Any = {} if address else {"include_dashboard": False}
        ray.init(address or "local", log_to_driver=False, logging_level=logging.ERROR, **here)
    except (OSError, ValueError, RuntimeError) as error:
        raise ClusterError(
            f"there is no Ray cluster at RAY_ADDRESS={address}." if address else "Ray does not start here."
        ) from error
    try:
        context = DataContext.get_current()
        context.enable_progress_bars = False
        context.execution_options.preserve_order = True
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        actors = min(filter(None, (max(1, int(ray.cluster_resources().get("CPU", 1))), most)))
        absolute = replace(model, path=model.path.absolute())
        yield lambda answering, files: _answers(absolute, answering, files, actors)
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Raises OSError where nobody listens; Ray would try again for a quarter of an hour, silently."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACHED_WITHIN).close()


def _answers(
    model: Model, answering: Answering, files: Iterable[Found], actors: int
) -> Generator[tuple[Found, Answer], None, None]:
    import ray
    from ray.exceptions import RayError

    todo = list(files)
    if not todo:
        return
    about = answering.predictor.load().about
    task = Task(model, about, answering.limits, answering.orientation, answering.top)
    rows = ray.data.from_items([_item(one, answering.places) for one in todo]).map_batches(
        Actor, fn_constructor_args=(task,), batch_size=PHOTOS_AT_ONCE, concurrency=(1, actors), num_cpus=1
    )
    try:
        for one, row in zip(todo, rows.iter_rows(), strict=True):
            yield one, _answer(one, json.loads(row["answer"]))
    except RayError as error:
        raise ClusterError(_sentence(error)) from error


@dataclass(frozen=True)
class Task:
    """What an actor has to know; `about` is what the engine says of itself where the command runs."""

    model: Model
    about: Mapping[str, str]
    limits: Limits
    orientation: Orientation
    top: int | None


class Actor:
    """Loads the model once, in a process of one core, and answers batches of files.

    Raises:
        ClusterError: its machine would give other answers.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        model = replace(task.model, workers=usable_cores())
        self._predictor = Predictor(lambda: open_engine(model, open_probe))
        about = self._predictor.load().about
        if about != task.about:
            raise ClusterError(f"a machine would answer as {about}, and this one as {dict(task.about)}.")

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[str]]:
        return {
            "answer": [
                self._told(*fields) for fields in zip(batch["path"], batch["named"], batch["place"], strict=True)
            ]
        }

    def _told(self, path: bytes, is_named: bool, place: bytes) -> str:
        task, name = self._task, os.fsdecode(path)
        places = {name: Path(os.fsdecode(place))} if place else None
        answer = Answering(self._predictor, task.limits, task.orientation, task.top, places)(
            Found(name, "", bool(is_named))
        )
        return json.dumps([answer.success, answer.ranked] if isinstance(answer, Row) else answer)


def _item(one: Found, places: Mapping[str, Path] | None) -> dict[str, object]:
    """Names as bytes, as those of files need not be Unicode."""
    place = os.fsencode(places[one.name].absolute()) if places else b""
    return {"path": os.fsencode(one.path.absolute()), "named": one.is_named, "place": place}


def _answer(one: Found, told: Any) -> Answer:
    if not isinstance(told, list):
        return told  # type: ignore[no-any-return]
    success, ranked = told
    return Row(one.name, success, tuple((label, probability) for label, probability in ranked))


def _sentence(error: BaseException) -> str:
    """Ours, where one of ours is at the bottom of it."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(inner := getattr(cause, "cause", None), PigeonholeError):
            return str(inner)
        cause = cause.__cause__
    return "Ray could not finish; what was answered is kept, and the same command goes on."
