# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""How text is cut into rows, and the modes that are little more than that."""

from __future__ import annotations

import os

import pytest

from qsd.crypto.buffers import Readable, Runs, Writable
from qsd.crypto.cipher import make_ecb
from qsd.crypto.ivgen import make_ivgen
from qsd.crypto.rows import ROW_SECTORS, SECTOR, CtrRows, EcbRows, Rows


class Recorder(Rows):
    """Notes the rows it gets."""

    def __init__(self) -> None:
        super().__init__(make_ivgen("plain64", "aes-128", None, b""), 16)
        self.rows: list[tuple[int, int, int, bool]] = []

    def _row(
        self, count: int, vectors: Readable, data: Readable, out: Writable, *, encrypting: bool
    ) -> None:
        assert len(vectors) == 16 * count
        assert len(data) == len(out) == SECTOR * count
        out[:] = data
        first = int.from_bytes(bytes(vectors[:16]), "little")
        last = int.from_bytes(bytes(vectors[-16:]), "little")
        self.rows.append((count, first, last, encrypting))


@pytest.mark.parametrize(
    ("runs", "rows"),
    [
        ([(7, 3)], [(3, 7, 9)]),
        ([(7, 3), (100, 1), (5, 2)], [(6, 7, 6)]),
        ([(7, ROW_SECTORS + 2)], [(ROW_SECTORS, 7, ROW_SECTORS + 6),
                                  (2, ROW_SECTORS + 7, ROW_SECTORS + 8)]),
        ([(7, ROW_SECTORS - 1), (3, 2)], [(ROW_SECTORS, 7, 3), (1, 4, 4)]),
    ],
)  # fmt: skip
def test_cutting(runs: Runs, rows: list[tuple[int, int, int]]) -> None:
    recorder = Recorder()
    data = os.urandom(SECTOR * sum(count for _, count in runs))
    out = bytearray(len(data))
    recorder.encrypt(runs, data, out)
    assert out == data
    recorder.decrypt(runs, data, out)
    assert recorder.rows == [(*row, True) for row in rows] + [(*row, False) for row in rows]


PLAIN = bytes.fromhex("6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51")
KEY = bytes.fromhex("2b7e151628aed2a6abf7158809cf4f3c")


class Counter:
    """Gives every sector the vector of the standard's examples."""

    def make(self, runs: Runs) -> bytes:
        return bytes(range(0xF0, 0x100))


def test_ecb_sp_800_38a() -> None:
    """NIST SP 800-38A, F.1.1."""
    out = bytearray(SECTOR)
    EcbRows(make_ecb("aes-128", KEY), 16, None).encrypt([(0, 1)], PLAIN.ljust(SECTOR, b"\0"), out)
    assert out[:32].hex() == "3ad77bb40d7a3660a89ecaf32466ef97f5d3d58503b9699de785895a96fdbaaf"


def test_ctr_sp_800_38a() -> None:
    """NIST SP 800-38A, F.5.1."""
    tested = CtrRows(make_ecb("aes-128", KEY), 16, Counter())
    out = bytearray(SECTOR)
    tested.encrypt([(0, 1)], PLAIN.ljust(SECTOR, b"\0"), out)
    assert out[:32].hex() == "874d6191b620e3261bef6864990db6ce9806f66b7970fdff8617187bb9fffdff"
