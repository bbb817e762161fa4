"""The processes of tests/cluster/nodes.py, for tests and for benchmarks, which import no Ray."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conftest import ROOT, free_port

QUIET = {"RAY_USAGE_STATS_ENABLED": "0"}
EVENLY = {"RAY_SERVE_PROXY_PREFER_LOCAL_NODE_ROUTING": "0"}  # else one proxy's requests go to the replica beside it
IN_FRONT = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "pigeonhole.cluster.proxy.in_front"}


@dataclass(frozen=True)
class Running:
    url: str
    process: subprocess.Popen[str]
    log: Path

    def ask(self, order: str) -> Any:
        """What the nodes answer to an order."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(order + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, self.log.read_text()
        return json.loads(answer)


@contextmanager
def nodes(count: int = 1, environment: dict[str, str] = IN_FRONT, **options: object) -> Iterator[Running]:  # noqa: B006
    """`count` nodes with the service, ready; `options` are the deployment's."""
    port = free_port()
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # sockets lie there, whose paths may not be long
        log, uploads = Path(folder, "log"), Path(folder, "uploads")
        uploads.mkdir()
        paths = {"RAY_TMPDIR": folder, "UPLOADS": str(uploads), "HOME": folder, "MODEL": str(ROOT / "export.pkl")}
        with log.open("w") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.cluster.nodes", str(port), str(count), json.dumps(options)],
                cwd=ROOT,
                env={**os.environ, **QUIET, **paths, **environment},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                text=True,
            )
        try:
            assert process.stdout
            assert process.stdout.readline(), log.read_text()
            yield Running(f"http://127.0.0.1:{port}", process, log)
        finally:
            assert process.stdin
            process.stdin.close()
            process.wait(60)
            assert process.stdout
            process.stdout.close()
