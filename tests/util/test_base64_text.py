# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Base64 as the C daemon reads it; the lengths were measured with it."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsd.errors import QmpError
from qsd.util.base64_text import decode_base64


@given(st.binary(max_size=100))
def test_what_encoders_make(data: bytes) -> None:
    assert decode_base64(base64.b64encode(data)) == data
    assert decode_base64(base64.encodebytes(data)) == data


@pytest.mark.parametrize(
    ("text", "length"),
    [
        ("aGVsbG8", 3), ("aGVsbG8=\n", 5), ("a", 0), ("aG", 0), ("aGV", 0), ("aGVs=", 3),
        ("====", 1), ("\n", 0), ("", 0), ("aGVsbG8=aGVs", 8), ("aGVsbG8==", 5), ("=aGVs", 3),
        ("aGVsbG9=", 5), ("AA==BB==", 2), ("aG=s", 2), ("a=Vs", 3), ("aGVs\nbG8\n=", 5),
        ("===", 0), ("AAAA====AAAA", 7),
    ],
)  # fmt: skip
def test_odd_shapes(text: str, length: int) -> None:
    assert len(decode_base64(text.encode())) == length


def test_padding_inside() -> None:
    assert decode_base64(b"aGVsbG8=aGVs") == b"hellohel"
    # "=aGV" is six zero bits, then three characters in full.
    assert decode_base64(b"=aGVs") == bytes([0x01, 0xA1, 0x95])


@pytest.mark.parametrize("text", ["!!!!", "aGVs bG8=", "aGV-_G8=", "aGVs\r\n", "\t", "é", "aGVs!"])
def test_foreign_characters(text: str) -> None:
    with pytest.raises(QmpError, match=r"^Base64 data contains invalid characters$"):
        decode_base64(text.encode())


def test_nul() -> None:
    with pytest.raises(QmpError, match=r"^Base64 data contains embedded NUL characters$"):
        decode_base64(b"!a\0b")
