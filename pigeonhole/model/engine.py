"""Answer with export.onnx in OpenVINO: no torch, no fastai; fast where that cannot change the answer.

There are two ways from a picture to an answer. The **exact** one decodes every pixel and computes in float32. The
**fast** one computes in bfloat16 where the processor has instructions for it, and lets the JPEG decoder shrink a large
photo by 2, 4 or 8 while at least three times the needed pixels are left. The fast way moves probabilities a little, so
its answer counts only when the **guard** finds the margin large enough; else the picture goes the exact way as well.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from pigeonhole.model.card import PICTURES, PROBABILITIES, Card
from pigeonhole.model.predictor import Photo, Prediction

if TYPE_CHECKING:
    import openvino

    from pigeonhole.model.explain import Explanation

NAMES = {"float32": "f32", "bfloat16": "bf16"}  # OpenVINO's, of the precisions
NumberFormat = Literal["float32", "bfloat16"]
WAYS = ("fast", "exact", "rerun")  # the guard sent a rerun on to the exact way
SAFETY = 5  # times the largest deviation seen
RELATIVE = 0.01  # of the range of log-odds; bfloat16 is off by up to 2**-9 at each of a network's many roundings
NEVER_ZERO = 1e-37  # about the smallest float32; what a probability is at least, for its logarithm
OTHER_HERE = "on this machine heatmaps differ from those that were proven, so none are shown."
NEVER_ONE = 1 - 2.0**-24  # the last float32 before 1; a sigmoid that says 1 may mean less


class Network(Protocol):
    """What turns pixels into probabilities; called from many threads at once."""

    precision: NumberFormat
    device: str  # cpu, or torch's name of a GPU

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Probabilities, float32, one per label, of uint8 `pixels`, height × width × channels."""


@cache
def openvino_core() -> openvino.Core:
    """OpenVINO's one Core of this process, which is never let go.

    Its CPU plugin gives the thread that loads it an alternate signal stack (OpenVINO 2026.4, Linux, AVX-512). Where two
    Cores were let go in the order they were made, that stack is memory given back, and the next signal that Python
    handles, be it SIGTERM, ends the process with SIGSEGV.
    """
    import openvino

    return openvino.Core()


def part(
    model: openvino.Model, outputs: Sequence[str], inputs: Sequence[str], begin: str | None = None
) -> openvino.Model:
    """The part of `model`, which stays as it is, that computes `outputs` of `inputs`.

    With `begin`, an output of `model`, it begins with that one as its first input, for one picture.
    """
    import openvino
    from openvino import opset13
    from openvino.passes import ConstantFolding, Manager

    copy = model.clone()
    results = [copy.output(name).get_node() for name in outputs]
    parameters = [copy.input(name).get_node() for name in inputs]
    if begin is not None:
        take_one_picture(copy)
        folding = Manager()
        folding.register_pass(ConstantFolding())  # of what asks how many pictures there are
        folding.run_passes(copy)
        source = copy.output(begin).get_node().input_value(0)
        parameter = opset13.parameter(source.get_partial_shape(), source.get_element_type(), name=begin)
        for target in source.get_target_inputs():
            target.replace_source_output(parameter.output(0))
        parameter.output(0).set_names({begin})
        parameters = [parameter, *parameters]
    return openvino.Model(results, parameters)


def take_one_picture(model: openvino.Model) -> None:
    """Have `model` take one picture at a time, for which OpenVINO makes its kernels when it compiles."""
    model.reshape({PICTURES: [1, *list(model.input(PICTURES).get_partial_shape())[1:]]})


def compile_part(
    model: openvino.Model, precision: NumberFormat, cores: int, for_many: bool = False
) -> openvino.CompiledModel:
    """In one precision, which is never left to OpenVINO: it would choose bfloat16 itself.

    All `cores` work at one picture, or each at a picture of its own if it is `for_many` at once.
    """
    return openvino_core().compile_model(
        model,
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": NAMES[precision],
            "NUM_STREAMS": cores if for_many else 1,
            "INFERENCE_NUM_THREADS": cores,
        },
    )


class OpenVINONetwork:
    """What answers, of the graph of export.onnx, in one precision; `also` names outputs that come along.

    An infer request belongs to one caller at a time; as many are made as there were callers at once.
    """

    device = "cpu"

    def __init__(
        self,
        model: openvino.Model,
        precision: NumberFormat,
        cores: int,
        also: Sequence[str] = (),
        for_many: bool = False,
    ) -> None:
        self._names = (PROBABILITIES, *also)
        answers = part(model, self._names, [PICTURES])
        take_one_picture(answers)
        self._compiled = compile_part(answers, precision, cores, for_many)
        self.precision: NumberFormat = precision
        self._idle: deque[Any] = deque()  # requests nobody uses; appending and popping are atomic

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        return self.outputs(pixels, self._names[:1])[0]

    def outputs(self, pixels: np.ndarray, names: Sequence[str] = ()) -> list[np.ndarray]:
        """The outputs called `names`, by default all, of one picture."""
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._new_request(pixels[None].shape)
        held = request.get_input_tensor().data
        held[0] = pixels
        try:
            request.infer()
            return [np.array(request.get_tensor(name).data[0]) for name in names or self._names]
        finally:
            held[:] = 0  # a request that waits holds nobody's picture, nor what a picture could be told from
            for name in self._names:
                request.get_tensor(name).data[:] = 0
            self._idle.append(request)

    def _new_request(self, shape: tuple[int, ...]) -> Any:
        import openvino

        request = self._compiled.create_infer_request()
        request.set_input_tensor(openvino.Tensor(openvino.Type.u8, shape))
        return request


class ByDemand:
    """One network compiled twice: all cores hurry for a caller who is `alone`, and share `many` callers.

    Threads that compute one picture together wait for each other, longer where others compute meanwhile. On two cores,
    with the demo and eight clients, the first alone answered 90 photos a second and the second 123; for one client the
    second takes nearly twice as long.
    """

    def __init__(self, alone: Network, many: Network) -> None:
        self._alone, self._many = alone, many
        self.precision, self.device = alone.precision, alone.device
        self._lock = Lock()  # guards the count
        self._callers = 0

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        with self._lock:
            self._callers += 1
            network = self._alone if self._callers == 1 else self._many
        try:
            return network(pixels)
        finally:
            with self._lock:
                self._callers -= 1


@dataclass(frozen=True)
class Guard:
    """Decides whether an answer of the fast way may count.

    `whole` and `shrunk` are the largest deviations that were seen of the fast way, in log-odds, on pictures that were
    decoded whole and on shrunk ones; see `known_answers`. Rounding errors are relative: of an answer that spreads wide
    in log-odds, `RELATIVE` of its range is taken if that is more. The margin has to be `SAFETY` times the deviation, so
    that no label changes.
    """

    whole: float
    shrunk: float
    threshold: float | None

    def admits(self, probabilities: np.ndarray, reduction: int) -> bool:
        values = log_odds(probabilities, self.threshold)
        reach = np.ptp(values) if self.threshold is None else np.abs(values).max()
        deviation = max(self.whole if reduction == 1 else self.shrunk, RELATIVE * reach)
        return margin(probabilities, self.threshold) > SAFETY * deviation


def log_odds(probabilities: np.ndarray, threshold: float | None) -> np.ndarray:
    """What answers are decided by, one number per label, in float64.

    Of labels that exclude each other log p, of which the largest wins; of others logit p - logit(threshold), whose sign
    counts. Either is an output of the network, up to what all labels share.
    """
    values = np.maximum(probabilities.astype(np.float64), NEVER_ZERO)
    if threshold is None:
        return np.log(values)
    values = np.minimum(values, NEVER_ONE)
    return np.log(values / (1 - values)) - math.log(threshold / (1 - threshold))


def margin(probabilities: np.ndarray, threshold: float | None) -> float:
    """How far, in log-odds, the answer is from another one; infinite if there is only one label to choose."""
    values = log_odds(probabilities, threshold)
    if threshold is not None:
        return float(np.abs(values).min())
    second, best = np.partition(values, -2)[-2:] if len(values) > 1 else (-math.inf, 0.0)
    return float(best - second)


@dataclass(frozen=True)
class FastWay:
    network: Network
    guard: Guard


class Explains(Protocol):
    """What shows where a model looked; see `explainer.Explainer`."""

    def explain(self, card: Card, pixels: np.ndarray, label: str | None = None) -> tuple[Prediction, Explanation]: ...


class CompiledEngine:
    """export.onnx, ready to answer from many threads at once; without a `fast` way every answer is exact.

    `network` computes in float32. `count` is called with the way that each picture went. Without an `explainer`, where
    the model looked is not shown.
    """

    def __init__(
        self,
        card: Card,
        exact: Network,
        fast: FastWay | None,
        count: Callable[[str], object] = lambda way: None,
        explainer: Explains | None = None,
    ) -> None:
        self.card, self.labels = card, card.labels
        self.network, self._fast = exact, fast
        self._count, self._explainer = count, explainer

    @property
    def why_unexplained(self) -> str | None:
        return None if self._explainer else self.card.unexplained or OTHER_HERE

    @property
    def useful_side(self) -> int | None:
        return self.card.recipe.useful_side

    @property
    def about(self) -> dict[str, str]:
        precision = "float32" if self._fast is None else self._fast.network.precision
        device, sha256 = self.network.device, self.card.source
        return {"engine": "compiled", "precision": precision, "device": device, "model_sha256": sha256}

    @property
    def way(self) -> str:
        """In words: the precision, and the guard's bounds where there is a fast way."""
        if self._fast is None:
            return "in float32"
        guard = self._fast.guard
        bounds = f"{SAFETY * guard.whole:.2g} (shrunk photos: {SAFETY * guard.shrunk:.2g})"
        return f"in {self._fast.network.precision} where the margin is over {bounds} at least, else in float32"

    def predict(self, photo: Photo) -> Prediction:
        if self._fast is None:
            return self._counted("exact", self.exactly(photo))
        may_shrink = math.isfinite(self._fast.guard.shrunk)
        reduction = photo.reduction(self.card.recipe.allows_shrinking) if may_shrink else 1
        if reduction == 1 and self._fast.network is self.network:
            return self._counted("exact", self.exactly(photo))
        pixels = self.pixels(photo, reduction)
        probabilities = self._fast.network(pixels)
        if self._fast.guard.admits(probabilities, reduction):
            return self._counted("fast", answer(self.card, probabilities))
        whole = pixels if reduction == 1 else self.pixels(photo)
        return self._counted("rerun", answer(self.card, self.network(whole)))

    def explain(self, photo: Photo, label: str | None = None) -> tuple[Prediction, Explanation]:
        """The exact way, and where it looked."""
        assert self._explainer is not None
        prediction, explanation = self._explainer.explain(self.card, self.pixels(photo), label)
        return self._counted("exact", prediction), explanation

    def exactly(self, photo: Photo) -> Prediction:
        """All pixels, float32."""
        return answer(self.card, self.network(self.pixels(photo)))

    def pixels(self, photo: Photo, reduction: int = 1) -> np.ndarray:
        """What the network gets of `photo`: uint8, height × width × channels."""
        return photo.through(self.card.recipe, reduction)

    def _counted(self, way: str, prediction: Prediction) -> Prediction:
        self._count(way)
        return prediction


def answer(card: Card, probabilities: np.ndarray) -> Prediction:
    """What the learner's loss and vocabulary decode `probabilities`, float32, to."""
    if card.threshold is None:
        success: str | list[str] = card.labels[int(probabilities.argmax())]
    else:
        success = [card.labels[place] for place in np.flatnonzero(probabilities > np.float32(card.threshold))]
    return Prediction(success, tuple(map(float, probabilities)))
