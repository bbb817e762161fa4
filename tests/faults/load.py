"""Load on a server of its own, with figures as JSON: `python -m tests.faults.load soak --seconds 1800 --clients 8`."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from typing import Any

from tests.faults.rate import rate
from tests.faults.restarts import FAULTS, restarts
from tests.faults.service import serving
from tests.faults.soak import soak
from tests.faults.swaps import swaps

RUNS = {"swaps": swaps, "soak": soak, "restarts": restarts, "rate": rate}
OPTIONS: dict[str, dict[str, Any]] = {
    "swaps": {"count": 10_000, "clients": 50},
    "soak": {"seconds": 1800.0, "clients": 8},
    "restarts": {"fault": "term", "seconds": 6.0, "clients": 16},
    "rate": {"overload_seconds": 60.0},
}


def main() -> int:
    """1 if something did not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    runs = parser.add_subparsers(dest="run", required=True)
    for run, defaults in OPTIONS.items():
        options = runs.add_parser(run, help=RUNS[run].__doc__)
        for name, default in defaults.items():
            options.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    chosen = vars(parser.parse_args())
    run = chosen.pop("run")
    fault = FAULTS[chosen.get("fault", "term")]
    with serving("app:app", *fault.arguments, **fault.environment) as service:
        figures = asyncio.run(RUNS[run](service, **chosen))  # type: ignore[operator]
    print(json.dumps(figures, indent=2))
    return bool(figures["problems"])


if __name__ == "__main__":
    sys.exit(main())
