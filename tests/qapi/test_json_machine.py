# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The state machines by themselves, and their limits; test_json_text.py has what they read."""

from __future__ import annotations

from typing import Any

import pytest

from qsd.qapi import json_machine, json_text
from qsd.qapi.json_machine import JsonMachine
from qsd.qapi.json_scalars import JsonError
from qsd.qapi.json_writer import dumps


def outcomes(found: list[Any]) -> list[Any]:
    return [item.desc if isinstance(item, JsonError) else ... for item in found]


def test_idle_between_values_only() -> None:
    machine = JsonMachine()
    idle = [machine.is_idle]
    for piece, completed in ((b'{"a":', []), (b"tr", []), (b"ue} 1 \n", [{"a": True}, 1])):
        assert machine.feed(piece) == completed
        idle.append(machine.is_idle)
    assert idle == [True, False, False, True]


def test_the_end_completes_a_number_and_breaks_an_object() -> None:
    machine = JsonMachine()
    assert machine.feed(b"12") == []
    assert machine.finish() == [12]
    machine.feed(b"{")
    assert outcomes(machine.finish()) == ["JSON parse error, premature EOI"]
    assert machine.is_idle


def test_both_paths_have_one_limit() -> None:
    assert json_text.MAX_FAST_NESTING == json_machine.MAX_NESTING


def test_nesting_limit() -> None:
    deep = b"[" * json_machine.MAX_NESTING + b"]" * json_machine.MAX_NESTING
    (value,) = JsonMachine().feed(deep)
    assert dumps(value) == deep.decode()
    (too_deep, *rest) = JsonMachine().feed(b"[" + deep + b"]")
    assert too_deep.desc == "JSON nesting depth limit exceeded"
    assert outcomes(rest) == ["JSON parse error, expecting value"] * (json_machine.MAX_NESTING + 1)


def test_size_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_machine, "MAX_TEXT", 1000)
    stream = JsonMachine()
    assert stream.feed(b'{"a":"' + b"x" * 800) == []
    (error,) = stream.feed(b"x" * 800)
    assert error.desc == "JSON token size limit exceeded"
    stream = JsonMachine()
    found = outcomes(stream.feed(b"[" + b'"xxxxxxxx",' * 100 + b"\xff"))
    assert found[0] == "JSON token size limit exceeded"


def test_count_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_machine, "MAX_TOKENS", 100)
    assert outcomes(JsonMachine().feed(b"[" + b"1," * 49 + b"1]")) == [
        "JSON token count limit exceeded"
    ]
    assert outcomes(JsonMachine().feed(b"[" + b"1," * 48 + b"1]")) == [...]
