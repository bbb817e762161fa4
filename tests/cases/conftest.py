"""What the cases share: a server under watch, and the way a case is run and put into the table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cases.case import Case
from tests.cases.house import Heard, House
from tests.conftest import StartServer

Holds = Callable[..., None]


@pytest.fixture(scope="session")
def house(start_server: StartServer, tmp_path_factory: pytest.TempPathFactory) -> House:
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("what a process holds is looked up in /proc")
    uploads = tmp_path_factory.mktemp("cases") / "uploads"
    uploads.mkdir()
    return House(start_server(UPLOADS=str(uploads)), uploads)


@pytest.fixture
def holds(house: House, record_property: Callable[[str, object], None]) -> Holds:
    """Run a case, unless it was `heard` already, and see that all holds."""

    def holds(case: Case, heard: Heard | None = None) -> None:
        heard = heard or house.hear(case)
        got = heard.outcome if "closed" in case.expected else heard.outcome.replace(", closed", "")
        record_property("case", [case.id, case.words, case.expected, got])
        house.check(case, heard)

    return holds
