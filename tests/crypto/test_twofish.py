# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Twofish: the examples of the paper."""

from __future__ import annotations

import pytest

from qsd.crypto.twofish import Twofish

#: "Twofish: A 128-Bit Block Cipher", appendix B.2, "Full Encryptions" of zeroes.
EXAMPLES = [
    ("00000000000000000000000000000000", "9f589f5cf6122c32b6bfec2f2ae8c35a"),
    ("0123456789abcdeffedcba98765432100011223344556677", "cfd1d2e5a9be9cdf501f13b892bd2248"),
    (
        "0123456789abcdeffedcba987654321000112233445566778899aabbccddeeff",
        "37527be0052334b89f0cfccae87cfa20",
    ),
]


@pytest.mark.parametrize(("key", "secret"), EXAMPLES)
def test_known_answers(key: str, secret: str) -> None:
    cipher = Twofish(bytes.fromhex(key))
    out = bytearray(32)
    cipher.encrypt(bytes(16), out)
    assert out[:16].hex() == secret
    cipher.decrypt(bytes(out[:16]), out)
    assert out[:16] == bytes(16)
