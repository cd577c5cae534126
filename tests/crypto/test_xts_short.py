# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""XTS of a few sectors, held to the way of long rows and to the library."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from qsd.crypto.cipher import make_ecb
from qsd.crypto.ivgen import make_ivgen
from qsd.crypto.rows import SECTOR
from qsd.crypto.xts import _CORRECTION, _SHORT, XtsNumpy
from qsd.crypto.xts_short import ShortRow

if TYPE_CHECKING:
    from qsd.crypto.buffers import Readable, Writable


class Identity:
    """A cipher that does nothing, so that first tweaks can be chosen."""

    def encrypt(self, data: Readable, out: Writable, /) -> None:
        """Copy."""
        out[: len(data)] = data

    decrypt = encrypt


def multiply(tweak: int) -> int:
    """Multiply by alpha ("5.2 Multiplication by a primitive element alpha")."""
    tweak <<= 1
    return tweak & ((1 << 128) - 1) ^ (0x87 if tweak >> 128 else 0)


@given(st.lists(st.integers(0, (1 << 128) - 1), min_size=1, max_size=5))
def test_tweaks(first: list[int]) -> None:
    row = ShortRow(len(first), np)
    row.make_tweaks(Identity(), b"".join(one.to_bytes(16, "little") for one in first), _CORRECTION)
    expected = []
    for tweak in first:
        for _ in range(32):
            expected.append(tweak.to_bytes(16, "little"))
            tweak = multiply(tweak)
    assert row._tweaks.tobytes() == b"".join(expected)


@pytest.mark.parametrize("count", [1, 8, _SHORT])
def test_the_same_as_a_long_row(count: int) -> None:
    vectors = os.urandom(16 * count)
    ecb = make_ecb("aes-256", os.urandom(32))
    row = ShortRow(count, np)
    row.make_tweaks(ecb, vectors, _CORRECTION)
    engine = XtsNumpy(ecb, ecb, make_ivgen("plain64", "aes-256", None, b"", np), np)
    assert row._tweaks.tobytes() == engine._make_tweaks(count, vectors).tobytes()


@pytest.mark.parametrize("start", [0, 28])
@pytest.mark.parametrize("count", [_SHORT, _SHORT + 1])
def test_text_of_any_alignment(count: int, start: int) -> None:
    """Text that is not aligned, in place; what lies around it is left alone."""
    key = os.urandom(64)
    ivgen = make_ivgen("plain64", "aes-256", None, b"", np)
    engine = XtsNumpy(make_ecb("aes-256", key[:32]), make_ecb("aes-256", key[32:]), ivgen, np)
    memory = bytearray(os.urandom(start + count * SECTOR + 64))
    before = bytes(memory)
    text = memoryview(memory)[start : start + count * SECTOR]
    engine.encrypt([(5, count)], text, text)
    expected = b"".join(
        Cipher(algorithms.AES(key), modes.XTS((5 + index).to_bytes(16, "little")))
        .encryptor()
        .update(before[start + index * SECTOR : start + (index + 1) * SECTOR])
        for index in range(count)
    )
    assert text == expected
    assert memory[:start] == before[:start]
    assert memory[start + len(text) :] == before[start + len(text) :]
    engine.decrypt([(5, count)], text, text)
    assert memory == before
