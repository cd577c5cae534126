# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""query-qmp-schema as a command."""

from __future__ import annotations

from typing import Any

from qsd.aio.loop import run
from qsd.commands import introspect
from qsd.qapi.model import Empty


def test_schema() -> None:
    no_context: Any = None
    entries = run(introspect.query_qmp_schema(no_context, Empty()))
    assert len(entries) == 494
    assert {entry["meta-type"] for entry in entries} == {
        "alternate", "array", "builtin", "command", "enum", "event", "object",
    }  # fmt: skip
