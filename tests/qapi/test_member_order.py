# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Member order, as recorded from the C daemon."""

from __future__ import annotations

import json
from typing import Any

import pytest

from qsd.qapi.member_order import ordered, ordered_names

RECORDED = [
    '{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "E",'
    ' "data": {"status": "created", "id": "j"}}',
    '{"return": {"package": "x"}, "id": 3}',
    '{"id": 6, "error": {"class": "CommandNotFound", "desc": "x"}}',
    '[{"frontend-open": true, "filename": "unix:", "label": "m"}]',
    '{"iops_rd": 0, "detect_zeroes": "off", "image": {"virtual-size": 1, "filename": "f",'
    ' "format": "null-co", "actual-size": 0}, "iops_wr": 0, "ro": false, "node-name": "n",'
    ' "backing_file_depth": 0, "drv": "null-co", "iops": 0, "bps_wr": 0, "write_threshold": 0,'
    ' "encrypted": false, "bps": 0, "bps_rd": 0, "cache": {"no-flush": false, "direct": false,'
    ' "writeback": true}, "file": "x"}',
]


def shuffled(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: shuffled(value[name]) for name in sorted(value)}
    if isinstance(value, list):
        return [shuffled(item) for item in value]
    return value


@pytest.mark.parametrize("text", RECORDED)
def test_recorded(text: str) -> None:
    value = shuffled(json.loads(text))
    before = json.dumps(value)
    assert json.dumps(ordered(value)) == text
    assert json.dumps(value) == before


def test_same_bucket() -> None:
    """In one bucket the name that was inserted last comes first."""
    assert ordered_names(["major", "minor", "micro"]) == ["micro", "minor", "major"]
    assert ordered_names(["major", "micro", "minor"]) == ["minor", "micro", "major"]


def test_dotted_names_of_pseudo_names() -> None:
    names = ["driver", "export", "server.type", "server.host", "server.port", "server.to"]
    assert ordered_names(names) == [
        *("server.to", "server.port", "server.host", "driver", "export", "server.type"),
    ]


def test_unknown_names_come_last_in_given_order() -> None:
    assert ordered_names(["zzz", "id", "aaa", "return"]) == ["return", "id", "zzz", "aaa"]


def test_scalars_and_depth() -> None:
    assert ordered(5) == 5
    assert ordered({}) == {}
    deep: Any = []
    for _ in range(5000):
        deep = [deep]
    copy = ordered(deep)
    depth = 0
    while copy:
        copy = copy[0]
        depth += 1
    assert depth == 5000
