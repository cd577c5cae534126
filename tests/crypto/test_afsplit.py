# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The anti-forensic splitter."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsd.crypto import afsplit


@given(key=st.binary(min_size=1, max_size=70), stripes=st.integers(1, 9))
def test_round_trip(key: bytes, stripes: int) -> None:
    material = afsplit.split("sha256", key, stripes, os.urandom(len(key) * (stripes - 1)))
    assert len(material) == len(key) * stripes
    assert afsplit.merge("sha256", material, stripes) == key


def test_every_stripe_counts() -> None:
    key = os.urandom(64)
    material = bytearray(afsplit.split("sha1", key, 8, os.urandom(64 * 7)))
    for stripe in range(8):
        material[stripe * 64] ^= 1
        assert afsplit.merge("sha1", bytes(material), 8) != key
        material[stripe * 64] ^= 1


def test_noise_length() -> None:
    with pytest.raises(ValueError, match="noise"):
        afsplit.split("sha1", b"key", 3, b"12345")
