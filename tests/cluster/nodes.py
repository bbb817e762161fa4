"""Ray nodes on this machine's loopback, with the service on them as deploy/ray-serve.yaml has it.

    python -m tests.cluster.nodes PORT NODES [OPTIONS]

OPTIONS is JSON, of the deployment. It takes orders from standard input, answers each with a line of JSON, and ends,
with all its nodes, when that is closed: `replicas` (the nodes of those that run), `kill` (all processes of the node
that came last, by SIGKILL), `add` (a node), `scale N`.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import yaml
from ray import serve
from ray.cluster_utils import Cluster

from pigeonhole.cluster.replica import Replica
from tests.faults.watch import descendants

ROOT = Path(__file__).resolve().parent.parent.parent
CPUS = 2  # of a node, as Ray counts
NODE = "127.0.0.2"  # 127.0.0.1 would be taken for the address of this machine in its network


class Nodes:
    def __init__(self, port: int, nodes: int, options: dict[str, Any]) -> None:
        self._cluster = Cluster()
        for _ in range(nodes):
            self.add()
        ray.init(self._cluster.address, _node_ip_address=NODE, log_to_driver=False, logging_level=logging.ERROR)
        config = yaml.safe_load((ROOT / "deploy" / "ray-serve.yaml").read_text())
        (deployment,) = config["applications"][0]["deployments"]
        self._options = {**deployment, **options}
        if "num_replicas" in options:
            del self._options["autoscaling_config"]
        serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
        self.scale(None)

    def scale(self, replicas: str | None) -> list[str]:
        if replicas:
            self._options["num_replicas"] = int(replicas)
        options = {"logging_config": {"enable_access_log": False}, **self._options}
        serve.run(Replica.options(**options).bind(), name="pigeonhole")
        return self.replicas()

    def replicas(self) -> list[str]:
        deployments = serve.status().applications["pigeonhole"].deployments
        running = sum(one.replica_states.get("RUNNING", 0) for one in deployments.values())
        return [str(running), *sorted(node["NodeID"][:8] for node in ray.nodes() if node["Alive"])]

    def add(self) -> str:
        self._last = self._cluster.add_node(num_cpus=CPUS, node_ip_address=NODE, include_dashboard=False, num_gpus=0)
        return str(self._last.node_id[:8])

    def kill(self) -> str:
        (raylet,) = self._last.all_processes["raylet"]
        for pid in (raylet.process.pid, *descendants(raylet.process.pid)):
            os.kill(pid, signal.SIGKILL)
        return str(self._last.node_id[:8])

    def shutdown(self) -> None:
        serve.shutdown()
        ray.shutdown()
        self._cluster.shutdown()


def main(port: str, nodes: str, options: str = "{}") -> None:
    said = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what Ray prints is no answer
    began = time.monotonic()
    running = Nodes(int(port), int(nodes), json.loads(options))
    orders: dict[str, Callable[..., object]] = {
        name: getattr(running, name) for name in ("replicas", "kill", "add", "scale")
    }
    try:
        print(json.dumps({"ready": round(time.monotonic() - began, 1)}), file=said)
        for line in sys.stdin:
            order, *arguments = line.split()
            print(json.dumps(orders[order](*arguments)), file=said)
    finally:
        running.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
