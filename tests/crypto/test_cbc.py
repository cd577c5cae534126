# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Decryption of secrets."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from qsd.crypto.cbc import decrypt_aes_256_cbc
from qsd.errors import QmpError

KEY = b"0123456789abcdef" * 2
IV = b"fedcba9876543210"


def encrypt(blocks: bytes) -> bytes:
    encryptor = Cipher(algorithms.AES(KEY), modes.CBC(IV)).encryptor()
    return encryptor.update(blocks) + encryptor.finalize()


def test_known_answer() -> None:
    """NIST SP 800-38A, F.2.6 CBC-AES256.Decrypt, first block, whose end is no padding."""
    key = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    data = bytes.fromhex("f58c4c04d6e5f1ba779eabfb5f7bfbd6")
    with pytest.raises(QmpError, match=r"^Incorrect number of padding bytes \(42\) found on"):
        decrypt_aes_256_cbc(key, bytes(range(16)), data)


@given(st.binary(max_size=100))
def test_round_trip(data: bytes) -> None:
    padding = 16 - len(data) % 16
    assert decrypt_aes_256_cbc(KEY, IV, encrypt(data + bytes([padding]) * padding)) == data


@pytest.mark.parametrize(
    ("plain", "expected"),
    [
        (b"0123456789abcde\x00", b"0123456789abcde\x00"),
        (b"0123456789abc\x01\x02\x03", b"0123456789abc"),
    ],
)
def test_only_the_last_byte_counts(plain: bytes, expected: bytes) -> None:
    assert decrypt_aes_256_cbc(KEY, IV, encrypt(plain)) == expected


def test_too_much_padding() -> None:
    with pytest.raises(QmpError) as caught:
        decrypt_aes_256_cbc(KEY, IV, encrypt(b"0123456789abcde\x11"))
    assert caught.value.desc == "Incorrect number of padding bytes (17) found on decrypted data"


def test_broken_block() -> None:
    with pytest.raises(QmpError, match=r"^Length 5 must be a multiple of block size 16$"):
        decrypt_aes_256_cbc(KEY, IV, b"12345")


def test_nothing() -> None:
    assert decrypt_aes_256_cbc(KEY, IV, b"") == b""
