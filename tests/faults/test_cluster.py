"""A machine of a Ray cluster that dies."""

from __future__ import annotations

from pathlib import Path

from tests.cluster.load import load, meanwhile
from tests.cluster.running import EVENLY, IN_FRONT, nodes


def test_a_node_dies(compiled_demo: Path, one_of_each: dict[str, Path]) -> None:
    """Whatever its replica had in hand is answered by the other one, rightly; a new node takes its place."""
    photos = [photo.read_bytes() for photo in one_of_each.values()]
    environment = {**EVENLY, **IN_FRONT, "MODEL": str(compiled_demo)}
    with nodes(2, environment, num_replicas=2, max_replicas_per_node=1, health_check_period_s=2) as cluster:
        dying = meanwhile(lambda: cluster.ask("kill"), 3)
        counts = load(cluster.url, photos, 10)
        dying.join()
        assert counts == {"sent": counts["sent"], "right": counts["sent"]}
        assert cluster.ask("replicas")[0] == "1"
        cluster.ask("add")
        assert load(cluster.url, photos, 20)["right"] > 0
        assert cluster.ask("replicas")[0] == "2"
