"""What a careful user writes to answer a photo with a learner, without Pigeonhole: two ways, for any web framework.

`VARIANT` says which way and `MODEL` which file:

    learner   export.pkl by `learner.predict`, as the notebook does
    torch     export.pkl's network in PyTorch, with the learner's preprocessing written out
    openvino  export.onnx in OpenVINO, set as its documentation recommends for servers, with the same preprocessing

All are called with what Pillow opened and give the label, from many threads at once.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Classify = Callable[[Image.Image], str]


def load() -> Classify:
    """The way that the environment names, ready to answer."""
    return {"learner": Learner, "torch": Torch, "openvino": OpenVINO}[os.environ["VARIANT"]](Path(os.environ["MODEL"]))


def resized(picture: Image.Image, side: int) -> Image.Image:
    """As fastai's `Resize(side)` does it at validation, rounding and all: the middle square, bilinear."""
    picture = picture.convert("RGB")
    scale = min(picture.width / side, picture.height / side)
    part = int(scale * side)
    left, top = int((picture.width - part) / 2), int((picture.height - part) / 2)
    return picture.crop((left, top, left + part, top + part)).resize((side, side), Image.Resampling.BILINEAR)


class Learner:
    def __init__(self, export: Path) -> None:
        self.learner = _learner(export)
        self.one_at_a_time = threading.Lock()  # in its favour: without it, several clients get answers of status 500

    def __call__(self, picture: Image.Image) -> str:
        from fastai.vision.core import PILImage

        picture = picture.convert("RGB")
        with self.one_at_a_time, self.learner.no_bar():
            label, _, _ = self.learner.predict(PILImage(picture))
        return str(label)


class Torch:
    def __init__(self, export: Path) -> None:
        learner = _learner(export)
        import torch
        from fastai.data.transforms import Normalize
        from fastai.vision.augment import Resize

        self.labels, self.network = list(learner.dls.vocab), learner.model.eval()
        (resize,) = [step for step in learner.dls.valid.after_item.fs if isinstance(step, Resize)]
        self.side = resize.size[0]
        self.normalize = [
            (torch.as_tensor(step.mean), torch.as_tensor(step.std))
            for step in learner.dls.valid.after_batch.fs
            if isinstance(step, Normalize)
        ]
        self.one_at_a_time = threading.Lock()  # in its favour: one forward pass uses all cores already

    def __call__(self, picture: Image.Image) -> str:
        import torch

        pixels = torch.from_numpy(np.array(resized(picture, self.side))).permute(2, 0, 1)
        batch = pixels[None] / 255
        for mean, deviation in self.normalize:
            batch = (batch - mean) / deviation
        with self.one_at_a_time, torch.inference_mode():
            probabilities = self.network(batch).softmax(1)[0]
        return str(self.labels[int(probabilities.argmax())])


class OpenVINO:
    """`HINT` is OpenVINO's performance hint; its documentation recommends THROUGHPUT where requests come in parallel.

    The precision is left to OpenVINO, as its documentation does. It takes bfloat16 where the processor has it.
    """

    def __init__(self, export: Path) -> None:
        import openvino

        core = openvino.Core()
        model = core.read_model(export)
        # what shows where the model looked needs a second input; without it, the rest is never computed
        answer, pictures = model.output("probabilities").get_node(), model.input("pictures").get_node()
        model = openvino.Model([answer], [pictures])
        self.side = model.input(0).get_partial_shape()[1].get_length()
        model.reshape([1, self.side, self.side, 3])
        hint = os.environ.get("HINT", "THROUGHPUT")
        self.compiled = core.compile_model(model, "CPU", {"PERFORMANCE_HINT": hint})
        self.labels = export.with_suffix(".labels").read_text().splitlines()
        self.of_this_thread = threading.local()

    def __call__(self, picture: Image.Image) -> str:
        if not hasattr(self.of_this_thread, "request"):
            self.of_this_thread.request = self.compiled.create_infer_request()
        request: Any = self.of_this_thread.request
        request.infer([np.asarray(resized(picture, self.side))[None]])
        return self.labels[int(request.get_output_tensor(0).data[0].argmax())]


def _learner(export: Path) -> Any:
    from pigeonhole.model.torch_ready import import_torch

    import_torch()  # fastai does not import beside a CPU build of torch without it
    import fastai.callback.progress  # noqa: F401
    from fastai.learner import load_learner

    return load_learner(export)
