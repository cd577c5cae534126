# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Serpent: the NESSIE test vectors."""

from __future__ import annotations

import pytest

from qsd.crypto.serpent import Serpent

#: NESSIE, "Serpent-128-128", "Serpent-192-128", "Serpent-256-128": set 1, vector 0 (of zeroes).
VECTORS = [
    (16, "264e5481eff42a4606abda06c0bfda3d"),
    (24, "9e274ead9b737bb21efcfca548602689"),
    (32, "a223aa1288463c0e2be38ebd825616c0"),
]


@pytest.mark.parametrize(("length", "secret"), VECTORS)
def test_nessie(length: int, secret: str) -> None:
    cipher = Serpent(b"\x80" + bytes(length - 1))
    out = bytearray(32)
    cipher.encrypt(bytes(16), out)
    assert out[:16].hex() == secret
    cipher.decrypt(bytes(out[:16]), out)
    assert out[:16] == bytes(16)
