"""Under Ray Serve: answers a second of one replica and of two, against gunicorn; and what a node that dies costs.

    python -m benchmarks.cluster --photos FOLDER

`make serve` has to have compiled export.onnx. One machine plays all: its nodes are processes, and the clients compute
on the same cores. Replicas have a core each.
Figures are medians over rounds, in which all take turns. Everything stays on this machine, and ends by itself.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.cluster.load import load, meanwhile
from tests.cluster.running import EVENLY, IN_FRONT, nodes
from tests.conftest import GUNICORN, ROOT, free_port

SECONDS = 6  # of a turn
LOSS_SECONDS = 12  # of load, a third of the way through which the node dies


@contextmanager
def gunicorn() -> Iterator[str]:
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "UPLOADS": folder, "PORT": str(port)}
        process = subprocess.Popen(
            GUNICORN, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            url = f"http://127.0.0.1:{port}"
            while process.poll() is None:
                with suppress(OSError):
                    urllib.request.urlopen(url + "/ready").close()
                    break
                time.sleep(0.1)
            yield url
        finally:
            process.terminate()
            process.wait(30)


def throughput(photos: Sequence[bytes], rounds: int) -> None:
    speeds: dict[str, list[float]] = {"gunicorn": [], "1 replica": [], "2 replicas": []}
    with gunicorn() as alone, nodes(2, EVENLY | IN_FRONT, num_replicas=1, max_replicas_per_node=1) as ray:
        for _ in range(rounds):
            for name, url in (("gunicorn", alone), ("1 replica", ray.url), ("2 replicas", ray.url)):
                if url == ray.url:
                    ray.ask(f"scale {name[0]}")
                load(url, photos, 1)  # threads and buffers are there
                speeds[name].append(load(url, photos, SECONDS)["right"] / SECONDS)
    for name, figures in speeds.items():
        print(
            f"{name:<12}{statistics.median(figures):>8.1f} a second  (", ", ".join(f"{one:.1f}" for one in figures), ")"
        )


def loss(photos: Sequence[bytes]) -> None:
    for name, environment in (("as Ray has it", EVENLY), ("with pigeonhole.cluster.proxy", EVENLY | IN_FRONT)):
        options = {"num_replicas": 2, "max_replicas_per_node": 1, "health_check_period_s": 2}
        with nodes(2, environment, **options) as ray:
            load(ray.url, photos, 2)
            dying = meanwhile(lambda ray=ray: ray.ask("kill"), LOSS_SECONDS / 3)
            counts = load(ray.url, photos, LOSS_SECONDS)
            dying.join()
            began = time.monotonic()
            ray.ask("add")
            while ray.ask("replicas")[0] != "2":
                time.sleep(0.2)
            print(f"a node dies, {name}: {dict(counts)}; a new one answers after {time.monotonic() - began:.1f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, metavar="FOLDER", required=True, help="JPEGs, of which 30 are sent")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    paths = sorted(options.photos.rglob("*.jpg"))
    photos = [path.read_bytes() for path in paths[:: max(1, len(paths) // 30)]]
    throughput(photos, options.rounds)
    loss(photos)


if __name__ == "__main__":
    main()
