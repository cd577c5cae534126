# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

import pytest

from qsd.qapi.scalars import parse_bool, parse_integer


@pytest.mark.parametrize("text", ["on", "yes", "true", "y"])
def test_true(text: str) -> None:
    assert parse_bool(text) is True


@pytest.mark.parametrize("text", ["off", "no", "false", "n"])
def test_false(text: str) -> None:
    assert parse_bool(text) is False


@pytest.mark.parametrize("text", ["", "1", "0", "ON", "On", " on", "on ", "t"])
def test_no_boolean(text: str) -> None:
    assert parse_bool(text) is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("0", 0),
        ("-0", 0),
        ("010", 8),
        ("0x10", 16),
        ("0XfF", 255),
        (" 1", 1),
        ("\t\n 1", 1),
        ("+1", 1),
        ("-1", -1),
        ("9223372036854775807", 2**63 - 1),
        ("-9223372036854775808", -(2**63)),
    ],
)
def test_integer(text: str, value: int) -> None:
    assert parse_integer(text, signed=True) == value
    assert parse_integer(text, signed=False) == value


@pytest.mark.parametrize("text", ["", " ", "1k", "1 ", "08", "0x", "--1", "- 1", "1e3", "1.0", "٣"])
def test_no_integer(text: str) -> None:
    assert parse_integer(text, signed=True) is None
    assert parse_integer(text, signed=False) is None


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, 2**64])
def test_out_of_range_for_signed(value: int) -> None:
    assert parse_integer(str(value), signed=True) is None


def test_range_of_unsigned() -> None:
    assert parse_integer(str(2**64 - 1), signed=False) == 2**64 - 1
    assert parse_integer(str(2**64), signed=False) is None
    assert parse_integer(str(-(2**64)), signed=False) is None
