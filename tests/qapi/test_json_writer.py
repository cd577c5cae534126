# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""JSON as QEMU writes it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qsd.qapi import json_writer
from qsd.qapi.json_writer import dumps


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"a": 1, "b": [1, True, None]}, '{"a": 1, "b": [1, true, null]}'),
        ("\x7f\x80\u00e9\u20ac\U0001f600", '"\\u007F\\u0080\\u00E9\\u20AC\\uD83D\\uDE00"'),
        ("/<>&'\"\n\r\t\b\f\x1f\\", '"/<>&\'\\"\\n\\r\\t\\b\\f\\u001F\\\\"'),
        ("\udcff\udcc3(", '"\\uFFFD\\uFFFD("'),
        ([0.1, 2.5e-7, 1.0, 1e17, -0.0, 5e-324], None),
        ([float("inf"), float("-inf")], "[inf, -inf]"),
        ("version 7.2", '"version 7.2"'),
        ([], "[]"),
    ],
)
def test_dumps(value: Any, text: str | None) -> None:
    expected = text or (
        "[0.10000000000000001, 2.4999999999999999e-07, 1, 1e+17, -0, 4.9406564584124654e-324]"
    )
    assert dumps(value) == expected
    assert json_writer.dumps_slow(value, None) == expected


def test_dumps_pretty() -> None:
    value = {"id": {"a": [], "b": {}, "c": [1, 2]}, "return": {}}
    assert dumps(value, pretty=True) == (
        '{\n    "id": {\n        "a": [\n        ],\n        "b": {\n        },\n        "c": [\n'
        '            1,\n            2\n        ]\n    },\n    "return": {\n    }\n}'
    )


def test_no_json() -> None:
    for value in (object(), {"a": [b"bytes"]}):
        with pytest.raises(TypeError, match="is no JSON value"):
            dumps(value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text() | st.floats(-1e9, 1e9),
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=5)
    ),
    max_leaves=8,
)


@given(JSON)
@settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow])
def test_fast_and_slow_output_agree(value: Any) -> None:
    assert dumps(value) == json_writer.dumps_slow(value, None)
