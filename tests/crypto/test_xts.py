# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""XTS: the standard's examples, the theory of windows, and both ways of computing."""

from __future__ import annotations

import os
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from qsd.crypto.buffers import load_numpy
from qsd.crypto.cipher import make_ecb
from qsd.crypto.ivgen import make_ivgen
from qsd.crypto.rows import SECTOR
from qsd.crypto.xts import _CORRECTION, XtsNumpy, XtsPure, _make_corrections

WAYS = [None, load_numpy()]
MASK = (1 << 128) - 1


def engine(name: str, key: bytes, numpy: Any) -> XtsNumpy | XtsPure:
    half = len(key) // 2
    data, tweak = make_ecb(name, key[:half]), make_ecb(name, key[half:])
    ivgen = make_ivgen("plain64", name, None, b"", numpy)
    if numpy is None:
        return XtsPure(data, tweak, ivgen)
    return XtsNumpy(data, tweak, ivgen, numpy)


#: IEEE Std 1619-2007, annex B: key, number of the data unit, start and end of the encrypted text of
#: the bytes 0 to 255, twice.  Vectors 4, 10 and 14.
PI_E_128 = "2718281828459045235360287471352631415926535897932384626433832795"
PI_E_256 = (
    "2718281828459045235360287471352662497757247093699959574966967627"
    "3141592653589793238462643383279502884197169399375105820974944592"
)
VECTORS = [
    ("aes-128", PI_E_128, 0,
     "27a7479befa1d476489f308cd4cfa6e2a96e4bbe3208ff25287dd3819616e89c",
     "eb4a427d1923ce3ff262735779a418f20a282df920147beabe421ee5319d0568"),
    ("aes-256", PI_E_256, 0xFF,
     "1c3b3a102f770386e4836c99e370cf9bea00803f5e482357a4ae12d414a3e63b",
     "dad38014bd2092fa755c824bb5e54c4f36ffda9fcea70b9c6e693e148c151"),
    ("aes-256", PI_E_256, 0xFFFFFFFFFF,
     "64497e5a831e4a932c09be3e5393376daa599548b816031d224bbf50a818ed23",
     ""),
]  # fmt: skip


@pytest.mark.parametrize("numpy", WAYS, ids=["integers", "arrays"])
@pytest.mark.parametrize(("name", "key", "number", "start", "end"), VECTORS)
def test_ieee_1619(name: str, key: str, number: int, start: str, end: str, numpy: Any) -> None:
    plain = bytes(range(256)) * 2
    out = bytearray(SECTOR)
    tested = engine(name, bytes.fromhex(key), numpy)
    tested.encrypt([(number, 1)], plain, out)
    assert out.hex().startswith(start)
    assert out.hex().endswith(end)
    tested.decrypt([(number, 1)], out, out)
    assert out == plain


@given(st.integers(0, MASK))
def test_windows_and_corrections(first: int) -> None:
    """The theory of the module: tweaks are windows in a sequence, but for seven bits."""

    def to_window(tweak: int) -> int:
        return tweak ^ _CORRECTION[tweak >> 120]

    sequence = to_window(first)
    for _ in range(32):
        bits = [sequence >> (127 - place) & 1 for place in (0, 1, 2, 7)]
        tweak = first << 1
        first = tweak & MASK ^ (0x87 if tweak >> 128 else 0)
        sequence = (sequence << 1 | sum(bits) & 1) & MASK
        assert to_window(first) == sequence
        assert sequence ^ _CORRECTION[sequence >> 120] == first


@given(st.lists(st.tuples(st.integers(0, (1 << 64) - 40), st.integers(1, 40)), min_size=1,
                max_size=6))  # fmt: skip
def test_runs_are_like_single_sectors(runs: list[tuple[int, int]]) -> None:
    """However sectors are put together, each is encrypted as the library does it."""
    key = bytes(range(64))
    sectors = [number for first, count in runs for number in range(first, first + count)]
    data = bytes(index * 7 & 255 for index in range(SECTOR)) * len(sectors)
    expected = b"".join(
        Cipher(algorithms.AES(key), modes.XTS(number.to_bytes(16, "little")))
        .encryptor()
        .update(data[:SECTOR])
        for number in sectors
    )
    for numpy in WAYS:
        tested = engine("aes-256", key, numpy)
        out = bytearray(len(data))
        tested.encrypt(runs, data, out)
        assert out == expected
        tested.decrypt(runs, out, out)
        assert out == data


def test_all_lengths_with_one_engine() -> None:
    """Rows of all lengths share their buffers, and leave nothing to each other."""
    key = os.urandom(64)
    fast, slow = engine("aes-256", key, load_numpy()), engine("aes-256", key, None)
    for count in (3, 40, 1, 7, 40, 2):
        data = os.urandom(count * SECTOR)
        one, other = bytearray(len(data)), bytearray(len(data))
        fast.encrypt([(count, count)], data, one)
        slow.encrypt([(count, count)], data, other)
        assert one == other


def test_every_entry_of_the_table_of_corrections() -> None:
    """Fourteen bits of a sequence are the highest byte of eight windows, one after the other."""
    numpy = load_numpy()
    entries = _make_corrections(numpy).tobytes()
    expected = bytes(
        _CORRECTION[bits << shift >> 6 & 0xFF] for bits in range(1 << 14) for shift in range(8)
    )
    assert entries == expected
