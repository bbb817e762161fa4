"""Answer with the learner's own network in PyTorch on a GPU; pictures that wait at the same time go through together.

Where OpenVINO spreads one picture over a processor's cores, a GPU wants many pictures at once: one alone leaves most of
it idle. Callers put theirs in a queue, and a single thread takes all that wait, in one batch, and gives each its row.
Nobody is waited for: the next batch gathers while this one is computed, so batches grow with the load.
"""

from __future__ import annotations

import atexit
import queue
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pigeonhole.errors import ModelFileError, SettingsError
from pigeonhole.model.engine import NumberFormat
from pigeonhole.model.torch_ready import import_torch
from pigeonhole.model.tracing import answering, first_line

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pigeonhole.model.pipeline import Pipeline

Device = Literal["cpu", "cuda", "mps"]
# pictures of a batch, which is filled up with black ones: cuDNN takes a while to choose for each new size, and has
# chosen for these before the first request
SIZES = (1, 2, 4, 8, 16, 32, 64)
NEEDED = ("fastai", "torch")
ENDING = 5  # seconds to wait for the batch in hand when all ends


def check_device(device: Device) -> None:
    """See that torch can compute on `device`, in full float32 where that is asked for.

    Raises:
        PackagesMissing: torch or fastai is not installed.
        SettingsError: there is no such device, or this torch was not built for it.
    """
    torch = import_torch()
    is_there = {"cpu": lambda: True, "cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
    if not is_there[device]():
        raise SettingsError(
            f"DEVICE={device} is not possible here: PyTorch {torch.__version__} finds no such device. "
            f"It takes a build of torch for it and a driver; DEVICE=cpu does without."
        )
    # by default cuDNN rounds what it convolves to 10 bits (TF32); these belong to the process, so to all its networks
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def networks(pipeline: Pipeline, device: Device) -> Callable[[NumberFormat], TorchNetwork | None]:
    """What makes a network of `pipeline` in a precision, or None where `device` lacks it; they share the weights.

    It raises ModelFileError where `device` does not compute that network.
    """

    def network(precision: NumberFormat) -> TorchNetwork | None:
        if precision == "bfloat16" and not _has_bfloat16(device):
            return None
        try:
            return TorchNetwork(pipeline, device, precision)
        except Exception as error:  # of torch, of the driver; too little memory on the device
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise ModelFileError(f"DEVICE={device} does not compute this network in {precision} ({reason}).") from error

    return network


def module_of(pipeline: Pipeline, device: Device, precision: NumberFormat) -> Any:
    """A module on `device`: from uint8 N×H×W×C there to probabilities, float32. The pipeline's network is moved there.

    In bfloat16 only the network computes: its input and the activation behind it stay float32.
    """
    import torch

    pipeline = pipeline.on(device)
    # as tensor cores take it, and as the pictures come
    pipeline.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if precision == "float32":
        return answering(pipeline)
    return answering(replace(pipeline, network=_in_bfloat16(pipeline.network, device)))


class TorchNetwork:
    """What answers, of a learner's pipeline, on one device in one precision; called from many threads at once.

    What is held of pictures, here and in the device's memory, is zeroed when their batch is answered, as
    `OpenVINONetwork` does it. What the network makes in between lies in memory that torch keeps and writes over.
    """

    def __init__(self, pipeline: Pipeline, device: Device, precision: NumberFormat) -> None:
        import torch

        assert pipeline.recipe.size is not None
        width, height = pipeline.recipe.size
        self.device: str = device
        self.precision: NumberFormat = precision
        self.module = module_of(pipeline, device, precision)
        self._shape = (height, width, pipeline.recipe.channels)
        # from pinned memory a GPU fetches by itself
        self._held = torch.zeros(SIZES[-1], *self._shape, dtype=torch.uint8, pin_memory=device == "cuda")
        self._largest = SIZES[-1]
        self._waiting: queue.SimpleQueue[_Asked | None] = queue.SimpleQueue()  # None ends the thread
        warm: Future[None] = Future()
        # cuDNN's choices are kept by thread, so the one that answers has to be the one that warms up
        self._thread = threading.Thread(target=self._serve, args=(warm,), name=f"{device} {precision}", daemon=True)
        self._thread.start()
        atexit.register(self.close)  # Python ends threads that are in torch then by aborting
        warm.result()

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        if pixels.shape != self._shape or pixels.dtype != np.uint8:  # else it would fail the others of its batch
            raise ValueError(f"{pixels.dtype} {pixels.shape} instead of uint8 {self._shape}")
        if not self._thread.is_alive():  # as after a fork
            raise RuntimeError("the thread that answers is not there")
        return self._asked(pixels).result()

    def close(self) -> None:
        """Answer who waits, and end the thread; at the latest, the end of the process does it."""
        atexit.unregister(self.close)
        self._waiting.put(None)
        self._thread.join(ENDING)

    def _asked(self, pixels: np.ndarray) -> Future[np.ndarray]:
        asked = _Asked(pixels, Future())
        self._waiting.put(asked)
        return asked.answer

    def _serve(self, warm: Future[None]) -> None:
        try:
            self._warm_up()
        except Exception as error:
            warm.set_exception(error)
            return
        warm.set_result(None)
        while self._answered():  # in a frame of its own, so that no picture is held while nobody asks
            pass

    def _warm_up(self) -> None:
        """Compute a batch of each size. Those for which the device has too little memory are never made."""
        import torch

        for size in SIZES:
            try:
                self._computed(size)
            except torch.OutOfMemoryError:
                if size == SIZES[0]:
                    raise
                return
            self._largest = size

    def _answered(self) -> bool:
        """Answer a batch; False when it was time to end."""
        gathered = self._gathered()
        asked = [one for one in gathered if one is not None]
        is_open = len(asked) == len(gathered)
        gathered.clear()
        if asked:
            self._answer(asked)
        return is_open

    def _gathered(self) -> list[_Asked | None]:
        """Who waits, as soon as somebody does."""
        gathered = [self._waiting.get()]
        with suppress(queue.Empty):
            while len(gathered) < self._largest:
                gathered.append(self._waiting.get_nowait())
        return gathered

    def _answer(self, asked: list[_Asked]) -> None:
        """When the answers are there, no picture is, also not in a variable here, which a failure's traceback holds."""
        answers = deque(one.answer for one in asked)
        size = next(size for size in SIZES if size >= len(asked))
        try:
            np.stack([one.pixels for one in asked], out=self._held.numpy()[: len(asked)])
            asked.clear()
            rows = self._computed(size)
        except Exception as error:
            while answers:
                answers.popleft().set_exception(_failed(error))
            return
        for row in rows[: len(answers)]:
            answers.popleft().set_result(row.copy())  # a view would hold on to the others' answers

    def _computed(self, size: int) -> np.ndarray:
        """What the network says of the first `size` pictures held; then they are held no more."""
        import torch

        with torch.inference_mode():
            pictures = self._held[:size].to(self.device, non_blocking=True, copy=True)
            try:
                probabilities = self.module(pictures)
                rows = probabilities.float().cpu().numpy().copy()
                probabilities.zero_()
                return np.asarray(rows)
            finally:
                self._held.zero_()
                pictures.zero_()


@dataclass(frozen=True, eq=False)
class _Asked:
    pixels: np.ndarray
    answer: Future[np.ndarray]


def _failed(error: Exception) -> RuntimeError:
    """One for each caller: the tracebacks of an exception that several threads raise get mixed up."""
    failure = RuntimeError("the batch with this picture failed")
    failure.__cause__ = error
    return failure


def _in_bfloat16(network: nn.Module, device: Device) -> Any:
    """`network`, whose operations that bear it compute in bfloat16 by torch's own list (autocast)."""
    import torch

    class InBfloat16(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, batch: Tensor) -> Tensor:
            # without a cache, which is one for all threads
            with torch.autocast(device, torch.bfloat16, cache_enabled=False):
                outputs: Tensor = self.network(batch)
            return outputs.float()

    return InBfloat16()


def _has_bfloat16(device: Device) -> bool:
    import torch

    return device != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
