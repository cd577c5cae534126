# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Commands about the monitor itself."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from qsd.aio.loop import run
from qsd.commands import control
from qsd.qapi.convert import to_json
from qsd.qapi.model import Empty

NO_CONTEXT: Any = None


def test_version() -> None:
    info = to_json(run(control.query_version(NO_CONTEXT, Empty())))
    assert info["qemu"] == {"major": 7, "minor": 2, "micro": 22}
    assert info == to_json(control.version_info())


def test_commands() -> None:
    names = [info.name for info in run(control.query_commands(NO_CONTEXT, Empty()))]
    assert len(names) == len(set(names)) == 74
    assert {"quit", "blockdev-add", "qmp_capabilities"} <= set(names)


def test_quit_asks_for_the_end() -> None:
    asked: list[bool] = []
    context: Any = SimpleNamespace(shutdown=lambda: asked.append(True))
    run(control.quit_(context, Empty()))
    assert asked == [True]
