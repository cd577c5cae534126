# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The anti-forensic splitter (LUKS On-Disk Format Specification, "2.4 Anti-forensic splitting").

Key material is blown up to many stripes such that all of them are needed to get it back: destroying
any one of them destroys the key.
"""

from __future__ import annotations

import hashlib


def _diffuse(name: str, block: bytes) -> bytes:
    """Let every bit of a piece of the block depend on all bits of that piece ("H1")."""
    hasher = hashlib.new(name, usedforsecurity=False)
    size = hasher.digest_size
    out = []
    for number, start in enumerate(range(0, len(block), size)):
        piece = block[start : start + size]
        state = hasher.copy()
        state.update(number.to_bytes(4, "big") + piece)
        out.append(state.digest()[: len(piece)])
    return b"".join(out)


def split(name: str, key: bytes, stripes: int, noise: bytes) -> bytes:
    """Blow a key up.

    Args:
        name: The hash.
        key: The key.
        stripes: How many pieces of the key's length come out.
        noise: Random bytes, as long as `stripes` - 1 keys.
    """
    length = len(key)
    if len(noise) != length * (stripes - 1):
        raise ValueError("noise has the wrong length")
    state = bytes(length)
    for start in range(0, len(noise), length):
        state = _diffuse(name, _xor(state, noise[start : start + length]))
    return noise + _xor(state, key)


def merge(name: str, material: bytes, stripes: int) -> bytes:
    """Get a key back from all of its stripes."""
    length = len(material) // stripes
    state = bytes(length)
    last = length * (stripes - 1)
    for start in range(0, last, length):
        state = _diffuse(name, _xor(state, material[start : start + length]))
    return _xor(state, material[last : last + length])


def _xor(one: bytes, other: bytes) -> bytes:
    mixed = int.from_bytes(one, "little") ^ int.from_bytes(other, "little")
    return mixed.to_bytes(len(one), "little")
