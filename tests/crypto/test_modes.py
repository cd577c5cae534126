# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Modes of operation: standards, the library's own modes, and both ways of computing."""

from __future__ import annotations

import os
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from qsd.crypto.buffers import load_numpy
from qsd.crypto.ivgen import make_ivgen
from qsd.crypto.modes import Engine, make_engine
from qsd.crypto.rows import ROW_SECTORS, SECTOR

WAYS = [None, load_numpy()]
COUNTS = [1, 2, 7, 50, ROW_SECTORS, ROW_SECTORS + 3, 2 * ROW_SECTORS + 5]


def engine(mode: str, name: str, key: bytes, numpy: Any) -> Engine:
    return make_engine(mode, name, key, make_ivgen("plain64", name, None, key), numpy)


@pytest.mark.parametrize("numpy", WAYS, ids=["integers", "arrays"])
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("mode", ["xts", "cbc", "ctr", "ecb"])
def test_like_the_library(mode: str, count: int, numpy: Any) -> None:
    key = os.urandom(64 if mode == "xts" else 32)
    library: dict[str, Any] = {
        "xts": modes.XTS, "cbc": modes.CBC, "ctr": modes.CTR, "ecb": lambda _: modes.ECB(),
    }  # fmt: skip
    data = os.urandom(count * SECTOR)
    first = (1 << 33) + 1
    expected = b"".join(
        Cipher(algorithms.AES(key), library[mode]((first + index).to_bytes(16, "little")))
        .encryptor()
        .update(data[index * SECTOR : (index + 1) * SECTOR])
        for index in range(count)
    )
    out = bytearray(len(data))
    tested = engine(mode, "aes-256", key, numpy)
    tested.encrypt([(first, count)], data, out)
    assert out == expected
    # In place, and at an odd address.
    odd = bytearray(b"x" + expected + b"y" * 40)
    view = memoryview(odd)[1 : 1 + len(data)]
    tested.decrypt([(first, count)], view, view)
    assert odd[1 : 1 + len(data)] == data
    assert odd[0] == ord("x")
    assert odd[1 + len(data) :] == b"y" * 40


@pytest.mark.parametrize(
    ("mode", "name", "length"),
    [
        ("cbc", "cast5-128", 16), ("ctr", "cast5-128", 16), ("ecb", "cast5-128", 16),
        ("xts", "serpent-192", 48), ("xts", "twofish-256", 64), ("cbc", "twofish-128", 16),
    ],
)  # fmt: skip
def test_both_ways_agree(mode: str, name: str, length: int) -> None:
    key = os.urandom(length)
    data = os.urandom(3 * SECTOR)
    results = []
    for numpy in WAYS:
        out = bytearray(len(data))
        tested = engine(mode, name, key, numpy)
        tested.encrypt([(9, 3)], data, out)
        results.append(bytes(out))
        tested.decrypt([(9, 3)], out, out)
        assert out == data
    assert results[0] == results[1]


#: Sectors of pieces: short ones, long ones, more than a row, long and short, one alone, odd.
PIECES = [[1, 8, 8], [128, 128], [128] * 3 + [65], [700, 700], [128, 1, 128], [64], [300, 33]]


@pytest.mark.parametrize("numpy", WAYS, ids=["integers", "arrays"])
@pytest.mark.parametrize("counts", PIECES, ids=str)
@pytest.mark.parametrize("mode", ["xts", "cbc", "ctr", "ecb"])
@pytest.mark.parametrize("in_place", [True, False])
def test_pieces_like_runs(mode: str, counts: list[int], numpy: Any, in_place: bool) -> None:
    """What lies apart comes to the same as what lies together, both ways."""
    key = os.urandom(64 if mode == "xts" else 32)
    tested = engine(mode, "aes-256", key, numpy)
    texts = [os.urandom(count * SECTOR) for count in counts]
    firsts = [(index * 5000) + 3 for index in range(len(counts))]
    expected = bytearray(sum(map(len, texts)))
    tested.encrypt(list(zip(firsts, counts, strict=True)), b"".join(texts), expected)
    # At odd addresses, with a margin that must stay as it is.
    rooms = [memoryview(bytearray(b"m" + text + b"m" * 32)) for text in texts]
    views = [room[1 : 1 + len(text)] for room, text in zip(rooms, texts, strict=True)]
    outs = views if in_place else [memoryview(bytearray(len(text))) for text in texts]
    tested.encrypt_pieces(list(zip(firsts, views, outs, strict=True)))
    assert b"".join(outs) == expected
    tested.decrypt_pieces(list(zip(firsts, outs, outs, strict=True)))
    assert [bytes(out) for out in outs] == texts
    assert all(room[0] == 109 and bytes(room[-32:]) == b"m" * 32 for room in rooms)
