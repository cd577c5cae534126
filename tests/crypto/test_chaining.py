# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""CBC: the standard's examples, chains of the library, and all ways of computing."""

from __future__ import annotations

import os
from typing import Any

import pytest

from qsd.crypto.buffers import Runs, load_numpy
from qsd.crypto.chaining import _FEW_SECTORS, CbcNumpy, CbcPure
from qsd.crypto.cipher import ALGORITHMS, make_chain, make_ecb
from qsd.crypto.ivgen import make_ivgen
from qsd.crypto.rows import SECTOR


class FixedVector:
    """Gives every sector the same vector."""

    def __init__(self, vector: bytes) -> None:
        self._vector = vector

    def make(self, runs: Runs) -> bytes:
        return self._vector * sum(count for _, count in runs)


def engine(way: str, name: str, key: bytes, ivgen: Any) -> CbcNumpy | CbcPure:
    ecb, length = make_ecb(name, key), ALGORITHMS[name].block_length
    if way == "integers":
        return CbcPure(ecb, length, ivgen)
    chain = make_chain(name, key) if way == "chains" else None
    return CbcNumpy(ecb, chain, length, ivgen, load_numpy())


PLAIN = bytes.fromhex(
    "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"
    "30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710"
)
#: NIST SP 800-38A, F.2.1, F.2.3, F.2.5.
VECTORS = [
    ("aes-128", "2b7e151628aed2a6abf7158809cf4f3c",
     "7649abac8119b246cee98e9b12e9197d5086cb9b507219ee95db113a917678b2"
     "73bed6b8e3c1743b7116e69e222295163ff1caa1681fac09120eca307586e1a7"),
    ("aes-192", "8e73b0f7da0e6452c810f32b809079e562f8ead2522c6b7b",
     "4f021db243bc633d7178183a9fa071e8b4d9ada9ad7dedf4e5e738763f69145a"
     "571b242012fb7ae07fa9baac3df102e008b0e27988598881d920a9e64f5615cd"),
    ("aes-256", "603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4",
     "f58c4c04d6e5f1ba779eabfb5f7bfbd69cfc4e967edb808d679f777bc6702c7d"
     "39f23369a9d9bacfa530e26304231461b2eb05e2c39be9fcda6c19078c6a9d1b"),
]  # fmt: skip


@pytest.mark.parametrize("way", ["integers", "arrays", "chains"])
@pytest.mark.parametrize(("name", "key", "secret"), VECTORS)
def test_sp_800_38a(name: str, key: str, secret: str, way: str) -> None:
    tested = engine(way, name, bytes.fromhex(key), FixedVector(bytes(range(16))))
    data = PLAIN.ljust(SECTOR, b"\0") * 3
    out = bytearray(len(data))
    tested.encrypt([(0, 3)], data, out)
    for start in range(0, len(data), SECTOR):
        assert out[start : start + len(PLAIN)].hex() == secret
    tested.decrypt([(0, 3)], out, out)
    assert out == data


@pytest.mark.parametrize("name", ["aes-256", "cast5-128", "twofish-192"])
def test_chains_go_on_through_everything(name: str) -> None:
    """Rows of all lengths, both directions mixed: every way gives the same."""
    key = os.urandom(ALGORITHMS[name].key_length)
    ivgen = make_ivgen("plain64", name, None, key)
    engines = [engine(way, name, key, ivgen) for way in ("integers", "arrays", "chains")]
    for count in (1, 8, _FEW_SECTORS, 2, _FEW_SECTORS + 1, 3):
        data = os.urandom(count * SECTOR)
        results = set()
        for tested in engines:
            out = bytearray(len(data))
            tested.encrypt([(count, count)], data, out)
            results.add(bytes(out))
            tested.decrypt([(count, count)], out, out)
            assert out == data
        assert len(results) == 1
