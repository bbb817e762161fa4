"""Every case of attack and privacy that the service is held to, over a real socket, and what has to hold after each.

    test_*      the cases: A names, B bodies, F the protocol, H privacy; tables of `Case`
    case        what a case is, and how an outcome is put into words
    wire        a connection of our own: bytes as they are, answers read strictly
    messages    requests, byte for byte
    house       the server under watch: what has to hold after every case
    table       the plugin behind `pytest --cases-table FILE`; `python -m tests.cases` prints the table

A case's id is that of the list it comes from: a letter for the group, a number, and words.
"""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("tests.cases.house", "tests.cases.wire")  # so that what does not hold is shown
