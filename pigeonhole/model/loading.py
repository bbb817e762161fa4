"""From a compiled file to an engine: networks are compiled for this machine, and prove themselves before they count.

The network that answers in float32 comes first, and what it says has to be what the file says; see `known_answers`.
Where there is memory for it, other networks are compiled meanwhile, so that the service is ready sooner, and there are
two of each: all cores hurry for who asks alone, and share several (see `engine.ByDemand`).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from pigeonhole.errors import CompiledFileError, PackagesMissing, StartError
from pigeonhole.machine import anonymous_memory, usable_cores, usable_memory
from pigeonhole.model.card import COMPILE, FEATURES, Card, read_card
from pigeonhole.model.engine import (
    OTHER_HERE,
    ByDemand,
    CompiledEngine,
    FastWay,
    Network,
    NumberFormat,
    OpenVINONetwork,
    openvino_core,
)
from pigeonhole.model.explainer import Explainer
from pigeonhole.model.known_answers import OpenPhoto, check_exact, guard_of, looks_as_proven
from pigeonhole.model.predictor import Prediction

if TYPE_CHECKING:
    import openvino

log = logging.getLogger(__name__)

T = TypeVar("T")
Networks = Callable[[NumberFormat], Network | None]  # the network in a precision; None where it is not to be had
Precision = Literal["auto", "exact"]

LITTLE = 0.1  # of the memory that is left, for weights that are there already


def load_compiled(
    path: Path,
    open_photo: OpenPhoto,
    precision: Precision = "auto",
    workers: int = 1,
    memory: int | None = None,
    count: Callable[[str], object] = lambda way: None,
    networks: Networks | None = None,
) -> CompiledEngine:
    """The engine of the compiled file in `path`, with the fast way if `precision` allows it and its answers do.

    `workers` processes share the cores, and `memory` in bytes, which is what the system leaves unless it is told.
    `count` is called with the way that each picture went (one of `engine.WAYS`). `networks` makes others than
    OpenVINO's of the same learner, on a GPU, which have to give the same answers; heatmaps stay OpenVINO's.

    Raises:
        CompiledFileError: the file is damaged, or its answers here are not those it was proven with.
        ModelFileError: the device of `networks` does not compute it.
        PackagesMissing: OpenVINO is not installed.
    """
    try:
        core = openvino_core()
    except ImportError as error:
        raise PackagesMissing("openvino is not installed here; `make serve` installs it.") from error
    card = read_card(path)
    if not (card.probes and card.labels):
        raise CompiledFileError(f"{path} holds nothing to test it by; {COMPILE}")
    cores = max(1, usable_cores() // workers)
    room = (memory or usable_memory()) // workers
    has_room = networks is None and cores > 1 and _has_room_for_copies(path.stat().st_size, room)
    with ThreadPoolExecutor(1) as beside:
        try:
            loading = _Loading(card, core.read_model(path), open_photo, networks, cores, has_room, beside)
            return loading.engine(precision, count)
        except StartError:
            raise
        except Exception as error:  # of OpenVINO, or of numpy where the graph takes other pixels
            raise CompiledFileError(f"{path} cannot be run here ({type(error).__name__}); {COMPILE}") from error


def _has_room_for_copies(file: int, memory: int) -> bool:
    """Would a second copy of the weights, whose file has so many bytes, take little of the memory that is left?"""
    return file < (memory - anonymous_memory(os.getpid())) * LITTLE


@dataclass(frozen=True)
class _Loading:
    """One file on its way to an engine, on so many `cores`; where it `has_room`, networks are copied, two for each."""

    card: Card
    model: openvino.Model
    open_photo: OpenPhoto
    networks: Networks | None
    cores: int
    has_room: bool
    beside: Executor

    @property
    def at_once(self) -> int:
        """How many probes."""
        return self.cores if self.has_room else 1

    def engine(self, precision: Precision, count: Callable[[str], object]) -> CompiledEngine:
        """Raises CompiledFileError; and what OpenVINO, torch and numpy raise."""
        make_fast = None if precision == "exact" else self._begun(self._fast_networks)
        on_cpu = self._compiled("float32", also=() if self.card.unexplained else (FEATURES,))
        network = (self.networks and self.networks("float32")) or on_cpu
        exact = CompiledEngine(self.card, network, None)
        answers = check_exact(exact, self.open_photo, self.at_once)
        make_explainer = self._begun(partial(self._explainer, exact, on_cpu))
        fast = make_fast and self._fast_way(exact, answers, make_fast)
        explainer = make_explainer()
        if self.has_room and (fast is None or fast.network is network):
            network = self._for_many_too(network)
            fast = fast and FastWay(network, fast.guard)
        return CompiledEngine(self.card, network, fast, count, explainer)

    def _begun(self, what: Callable[[], T]) -> Callable[[], T]:
        """What gives the result of `what`, which begins at once where there is room for two things, else when asked."""
        return self.beside.submit(what).result if self.has_room else what

    def _compiled(self, precision: NumberFormat, also: Sequence[str] = (), for_many: bool = False) -> OpenVINONetwork:
        return OpenVINONetwork(self.model, precision, self.cores, also, for_many)

    def _for_many_too(self, network: Network) -> Network:
        """`network`, and beside it one for several callers at once; if that one answers as was proven, too."""
        try:
            many = self._compiled("float32", for_many=True)
            check_exact(CompiledEngine(self.card, many, None), self.open_photo, self.at_once)
        except Exception:  # of OpenVINO
            log.warning("several pictures at once are not computed faster on this machine", exc_info=True)
            return network
        return ByDemand(network, many)

    def _explainer(self, exact: CompiledEngine, network: OpenVINONetwork) -> Explainer | None:
        """What shows where the model looked, if it shows here what was proven; else there are answers, no heatmaps."""
        if self.card.unexplained:
            return None
        try:
            explainer = Explainer(self.model, network, self.cores)
            if looks_as_proven(exact, explainer, self.open_photo):
                return explainer
            log.warning(OTHER_HERE)
        except Exception:  # of OpenVINO
            log.warning("heatmaps cannot be computed on this machine; none are shown", exc_info=True)
        return None

    def _fast_networks(self) -> list[Network]:
        """What may compute the fast way; nothing where bfloat16 is not to be had."""
        if self.networks is not None:
            network = self.networks("bfloat16")
            return [] if network is None else [network]
        if "BF16" not in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            return []
        return [self._compiled("bfloat16", for_many=many) for many in ([False, True] if self.has_room else [False])]

    def _fast_way(
        self, exact: CompiledEngine, answers: Sequence[Prediction], make: Callable[[], list[Network]]
    ) -> FastWay | None:
        try:
            networks = make() or [exact.network]
            guard = guard_of(exact, answers, self.open_photo, *networks, at_once=self.at_once)
        except Exception:  # of OpenVINO, or torch
            log.warning("the fast way does not run on this machine; it is not used", exc_info=True)
            return None
        if guard is None:
            log.warning("the fast way is too far off on this machine, or cannot be judged; it is not used")
            return None
        return FastWay(ByDemand(*networks) if len(networks) > 1 else networks[0], guard)
