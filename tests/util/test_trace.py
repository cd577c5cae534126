# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

import pytest

from qsd.util.trace import Tracer, command_points, patterns_in

NAMES = ("handle_qmp_command", "qmp_enter_quit", "qmp_exit_quit", "qmp_enter_job_pause")


def test_commands_have_two_points_each() -> None:
    assert command_points("quit") == ("qmp_enter_quit", "qmp_exit_quit")
    assert command_points("job-pause") == ("qmp_enter_job_pause", "qmp_exit_job_pause")
    assert command_points("block_resize")[0] == "qmp_enter_block_resize"


@pytest.mark.parametrize(
    ("patterns", "enabled"),
    [
        ([], set()),
        (["qmp_enter_quit"], {"qmp_enter_quit"}),
        (["qmp_*"], set(NAMES[1:])),
        (["*"], set(NAMES)),
        (["qmp_*", "-qmp_exit*"], {"qmp_enter_quit", "qmp_enter_job_pause"}),
        (["*", "-*"], set()),
        (["qmp_ente?_quit"], {"qmp_enter_quit"}),
        (["qmp_[e]*"], set()),
        (["nothing*"], set()),
    ],
)
def test_patterns(patterns: list[str], enabled: set[str]) -> None:
    tracer = Tracer(NAMES, lambda line: None)
    assert all(tracer.switch(pattern) for pattern in patterns)
    assert tracer.enabled == enabled


@pytest.mark.parametrize("pattern", ["quit", "-quit", "", "qmp_[e]nter_quit"])
def test_a_name_must_exist(pattern: str) -> None:
    tracer = Tracer(NAMES, lambda line: None)
    assert not tracer.switch(pattern)
    assert tracer.enabled == frozenset()


def test_only_enabled_points_write() -> None:
    lines: list[str] = []
    tracer = Tracer(NAMES, lines.append)
    tracer.emit("qmp_enter_quit", "{}")
    tracer.switch("qmp_enter_quit")
    tracer.emit("qmp_enter_quit", "{}")
    tracer.emit("qmp_exit_quit", "{} 1")
    assert lines == ["qmp_enter_quit {}"]


def test_event_files() -> None:
    assert patterns_in("# c\n\nqmp_*\n-qmp_exit*\n  bar\n") == [
        (3, "qmp_*"),
        (4, "-qmp_exit*"),
        (5, "  bar"),
    ]
