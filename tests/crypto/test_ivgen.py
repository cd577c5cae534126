# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Initialization vectors."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import pytest

from qsd.crypto.buffers import load_numpy
from qsd.crypto.cipher import make_ecb
from qsd.crypto.ivgen import _MAX_GRIDS, Plain, essiv_algorithm, make_ivgen

BIG = (1 << 32) + 5


@pytest.mark.parametrize("numpy", [None, load_numpy()], ids=["integers", "arrays"])
@pytest.mark.parametrize("count", [1, 9, 100])
def test_vectors(count: int, numpy: Any) -> None:
    plain64 = make_ivgen("plain64", "aes-128", None, b"", numpy)
    expected = b"".join((BIG + index).to_bytes(16, "little") for index in range(count))
    assert bytes(plain64.make([(BIG, count)])) == expected
    plain = make_ivgen("plain", "cast5-128", None, b"", numpy)
    expected = b"".join((5 + index).to_bytes(8, "little") for index in range(count))
    assert bytes(plain.make([(BIG, count)])) == expected


@pytest.mark.parametrize(
    "runs",
    [
        [(3, 40)],
        [(7, 8)] * 2,
        [(7, 128), (9000, 128), (BIG, 128)],
        [(7, 128), (9000, 64), (BIG, 128)],
        [(1, 30), (5, 50)],
        [((1 << 32) - 70, 50), ((1 << 32) - 20, 50)],
        [],
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["plain", "plain64"])
@pytest.mark.parametrize("name", ["aes-256", "cast5-128"])
def test_both_ways_of_making_many(kind: str, name: str, runs: list[tuple[int, int]]) -> None:
    """Arrays come to the same as integers, also when they are used again."""
    integers, arrays = (make_ivgen(kind, name, None, b"", numpy) for numpy in (None, load_numpy()))
    for add in (0, 1000):
        moved = [(first + add, count) for first, count in runs]
        assert bytes(arrays.make(moved)) == bytes(integers.make(moved))


def test_arrays_are_kept_for_few_shapes_only() -> None:
    arrays = make_ivgen("plain64", "aes-256", None, b"", load_numpy())
    integers = make_ivgen("plain64", "aes-256", None, b"")
    assert isinstance(arrays, Plain)
    for count in range(33, 33 + 2 * _MAX_GRIDS):
        assert bytes(arrays.make([(5, count)])) == bytes(integers.make([(5, count)]))
        assert len(arrays._grids) <= _MAX_GRIDS


def test_essiv() -> None:
    """The vector is the sector's number, encrypted with the hash of the key."""
    key = bytes(range(16))
    out = bytearray(32)
    make_ecb("aes-256", sha256(key).digest()).encrypt((77).to_bytes(16, "little"), out)
    essiv = make_ivgen("essiv", "aes-128", "sha256", key)
    assert bytes(essiv.make([(77, 1)])) == out[:16]


def test_essiv_algorithm() -> None:
    assert essiv_algorithm("twofish-128", 32) == "twofish-256"
    assert essiv_algorithm("aes-128", 20) is None
    with pytest.raises(ValueError, match="no cipher"):
        make_ivgen("essiv", "aes-128", "sha1", bytes(16))
