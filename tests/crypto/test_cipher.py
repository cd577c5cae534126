# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Block ciphers against the examples of their standards."""

from __future__ import annotations

import os

import pytest

from qsd.crypto.cipher import ALGORITHMS, SLACK, make_chain, make_ecb

COUNTING = bytes(range(32))

#: FIPS 197, appendix C; RFC 2144, appendix B.1.
EXAMPLES = [
    ("aes-128", COUNTING[:16], "00112233445566778899aabbccddeeff",
     "69c4e0d86a7b0430d8cdb78070b4c55a"),
    ("aes-192", COUNTING[:24], "00112233445566778899aabbccddeeff",
     "dda97ca4864cdfe06eaf70a0ec0d7191"),
    ("aes-256", COUNTING, "00112233445566778899aabbccddeeff",
     "8ea2b7ca516745bfeafc49904b496089"),
    ("cast5-128", bytes.fromhex("0123456712345678234567893456789a"), "0123456789abcdef",
     "238b4fe5847e44b2"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "key", "plain", "secret"), EXAMPLES)
def test_known_answers(name: str, key: bytes, plain: str, secret: str) -> None:
    ecb = make_ecb(name, key)
    data = bytes.fromhex(plain) * 3
    out = bytearray(len(data) + SLACK)
    ecb.encrypt(data, out)
    assert out[: len(data)].hex() == secret * 3
    back = bytearray(len(data) + SLACK)
    ecb.decrypt(bytes(out[: len(data)]), back)
    assert back[: len(data)] == data


@pytest.mark.parametrize("name", ALGORITHMS)
def test_round_trip(name: str) -> None:
    algorithm = ALGORITHMS[name]
    ecb = make_ecb(name, os.urandom(algorithm.key_length))
    data = os.urandom(algorithm.block_length * 70)
    out = bytearray(len(data) + SLACK)
    ecb.encrypt(data, out)
    assert out[: len(data)] != data
    back = bytearray(len(data) + SLACK)
    ecb.decrypt(bytes(out[: len(data)]), back)
    assert back[: len(data)] == data


@pytest.mark.parametrize("name", ALGORITHMS)
def test_key_length_and_repr(name: str) -> None:
    algorithm = ALGORITHMS[name]
    with pytest.raises(ValueError, match=r"^\S+ takes a key of \d+ bytes$"):
        make_ecb(name, bytes(algorithm.key_length + 1))
    assert "secretsecret" not in repr(make_ecb(name, (b"secret" * 8)[: algorithm.key_length]))


@pytest.mark.parametrize("name", ALGORITHMS)
def test_in_place(name: str) -> None:
    algorithm = ALGORITHMS[name]
    ecb = make_ecb(name, os.urandom(algorithm.key_length))
    data = os.urandom(algorithm.block_length * 50)
    apart = bytearray(len(data) + SLACK)
    ecb.encrypt(data, apart)
    same = bytearray(data + bytes(SLACK))
    view = memoryview(same)
    ecb.encrypt(view[: len(data)], view)
    assert same[: len(data)] == apart[: len(data)]
    ecb.decrypt(view[: len(data)], view)
    assert same[: len(data)] == data


@pytest.mark.parametrize("name", ALGORITHMS)
def test_chains(name: str) -> None:
    """A chain goes on where its last call ended."""
    algorithm = ALGORITHMS[name]
    key = os.urandom(algorithm.key_length)
    chain = make_chain(name, key)
    if chain is None:
        assert algorithm.family in ("serpent", "twofish")
        return
    length = algorithm.block_length
    out = bytearray(length + SLACK)
    blocks = []
    for number in range(3):
        chain.encrypt(bytes([number]) * length, out)
        blocks.append(bytes(out[:length]))
    before = bytes(length)
    ecb = make_ecb(name, key)
    for number, block in enumerate(blocks):
        ecb.encrypt(
            bytes(a ^ b for a, b in zip(before, bytes([number]) * length, strict=True)), out
        )
        assert out[:length] == block
        chain.decrypt(block, out)
        assert out[:length] == bytes([number]) * length
        before = block
