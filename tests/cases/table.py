"""The cases that a run of pytest saw, as a table in Markdown: `pytest --cases-table FILE`.

A test puts its case there itself, as the property "case"; of one that does not, what its id or its docstring begins
with is taken, with the status and the code that it is parametrized with.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

HEAD = "| id | input | expected | got |\n|---|---|---|---|\n"
NAMED = re.compile(r"([A-H]\d{1,2}) (.+)")  # a parameter's id
IDS = r"((?:[A-H]\d{1,2}(?:, )?)+)"
TOLD = re.compile(rf"{IDS}: (?P<words>.+)\.|(?P<words_first>.+) \({IDS}\)\.")  # a docstring


class Table:
    """Gathers a row for each case, and writes them when the run is over."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._rows: list[Sequence[str]] = []

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
        report = yield
        if call.when == "call" and isinstance(item, pytest.Function):
            case = dict(report.user_properties).get("case") or _case_of(item)
            if case:
                self._rows.append([*case[:3], _told(case[3], report)])
        return report

    def pytest_sessionfinish(self) -> None:
        rows = sorted(self._rows, key=lambda row: (row[0][0], int(re.sub(r"\D.*", "", row[0][1:]))))
        self._file.write_text(HEAD + "".join(f"| {' | '.join(map(_cell, row))} |\n" for row in rows), "utf-8")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--cases-table", metavar="FILE", type=Path, help="write the cases that were run there, as Markdown"
    )
    parser.addoption("--trials", type=int, default=500, help="requests of the case of many clients (H6)")


def pytest_configure(config: pytest.Config) -> None:
    if file := config.getoption("--cases-table"):
        config.pluginmanager.register(Table(file))


def _case_of(item: pytest.Function) -> Sequence[str] | None:
    params: Mapping[str, Any] = item.callspec.params if hasattr(item, "callspec") else {}
    id = item.callspec.id if params else ""
    docstring = " ".join((item.function.__doc__ or "").split())
    if told := NAMED.fullmatch(id):
        return [told[1], told[2], _expected(params), _expected(params)]
    if told := TOLD.fullmatch(docstring):
        words = told["words"] or told["words_first"]
        return [told[1] or told[4], f"{words} [{id}]" if id else words, _expected(params), _expected(params)]
    return None


def _expected(params: Mapping[str, Any]) -> str:
    for value in params.values():
        if isinstance(value, type) and hasattr(value, "code"):
            return f"{value.status} {value.code}"
    return f"{params.get('status', '')} {params.get('code', '')}".strip() or "holds"


def _told(got: str, report: pytest.TestReport) -> str:
    if report.passed:
        return got
    reason = getattr(report, "wasxfail", "failed")
    return f"{got}: {reason}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
