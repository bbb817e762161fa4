"""Arithmetic: how much an answer is, and how much this machine does in a second.

python -m benchmarks.peak export.pkl CORES     prints JSON; in a process of its own, because of torch
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from benchmarks.learners import SIDE
from pigeonhole.model.torch_ready import import_torch

MATRIX = 2048  # rows and columns of what is multiplied: 4 million numbers, more than the caches of two cores hold
TIMES = 15


def operations(export: Path) -> int:
    """Multiplications and additions of one picture's forward pass, as torch counts them."""
    torch = import_torch()
    from fastai.learner import load_learner
    from torch.utils.flop_counter import FlopCounterMode

    network = load_learner(export).model.eval()
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(torch.zeros(1, 3, SIDE, SIDE))
    return int(counter.get_total_flops())


def peak(precision: str, cores: int) -> float:
    """Operations a second of the fastest of several multiplications of large matrices."""
    torch = import_torch()
    torch.set_num_threads(cores)
    one, other = (torch.randn(MATRIX, MATRIX).to(getattr(torch, precision)) for _ in range(2))
    fastest = float("inf")
    for _ in range(TIMES):
        began = time.perf_counter()
        one @ other
        fastest = min(fastest, time.perf_counter() - began)
    return 2 * MATRIX**3 / fastest


if __name__ == "__main__":
    export, cores = Path(sys.argv[1]), int(sys.argv[2])
    peaks = {precision: peak(precision, cores) for precision in ("float32", "bfloat16")}
    print(json.dumps({"operations": operations(export), **peaks}))
