# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Sizes as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsd.util.units import GIB, KIB, MIB, TIB, SizeRangeError, format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0), ("512", 512), ("1b", 1), ("1k", KIB), ("1K", KIB), ("3M", 3 * MIB),
        ("2g", 2 * GIB), ("1T", TIB), ("1p", 1 << 50), ("1e", 1 << 60), ("1.5k", 1536),
        ("0.5M", MIB // 2),
        ("1.9999k", 2048), ("1.1k", 1126), ("0.0005k", 1), ("+5", 5),
        ("1.k", KIB), ("1.0", 1), ("0x10", 16), ("0x10k", 16384), ("0xFF", 255),
        ("  7", 7), ("18446744073709551615", (1 << 64) - 1),
    ],
)  # fmt: skip
def test_good_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    ["", "k", "-1", "1.5", "1kb", "1 k", "0x", "0x1.5k", "1e3", "one", ".", ".5k", "1.5b", "٣"],
)
def test_bad_sizes(text: str) -> None:
    with pytest.raises(ValueError, match=r".*") as caught:
        parse_size(text)
    assert not isinstance(caught.value, SizeRangeError)


@pytest.mark.parametrize("text", ["18446744073709551616", "16e", "99999999999999999999k"])
def test_too_large(text: str) -> None:
    with pytest.raises(SizeRangeError):
        parse_size(text)


def test_default_suffix() -> None:
    assert parse_size("2", "M") == 2 * MIB
    assert parse_size("2b", "M") == 2


@given(st.integers(0, (1 << 64) - 1))
def test_plain_numbers(size: int) -> None:
    assert parse_size(str(size)) == parse_size(hex(size)) == size


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (512, "512 B"), (1024, "1 KiB"), (1536, "1.5 KiB"), (196616, "192 KiB"),
     (MIB, "1 MiB"), (10 * GIB, "10 GiB"), (1000, "0.977 KiB")],
)  # fmt: skip
def test_formatted(size: int, text: str) -> None:
    assert format_size(size) == text
