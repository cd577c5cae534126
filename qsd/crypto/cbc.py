# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""AES-256-CBC with PKCS#7 padding, as secrets are encrypted (QMP reference, "SecretProperties").

The library is imported when it is needed: most daemons never decrypt a secret.
"""

from __future__ import annotations

from qsd.errors import QmpError

#: Length of an AES-256 key, bytes (FIPS 197, "5. Algorithm Specification").
KEY_LENGTH = 32

#: Length of an AES block and of an initialization vector for it, bytes.
BLOCK_LENGTH = 16


def decrypt_aes_256_cbc(key: bytes, iv: bytes, data: bytes) -> bytes:
    """Decrypt `data` and take off the padding.

    As in the C daemon, the last byte alone says how much padding there is: zero is taken for none
    and the other padding bytes are not looked at (RFC 5652, "6.3. Content-encryption Process",
    would have them all equal).

    Args:
        key: :data:`KEY_LENGTH` bytes.
        iv: :data:`BLOCK_LENGTH` bytes.
        data: Any number of whole blocks.

    Raises:
        QmpError: The length or the padding is wrong.
    """
    if len(data) % BLOCK_LENGTH:
        raise QmpError(f"Length {len(data)} must be a multiple of block size {BLOCK_LENGTH}")
    if not data:
        return b""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    decryptor = Cipher(algorithms.AES(key), modes.CBC(iv)).decryptor()
    plain = decryptor.update(data) + decryptor.finalize()
    padding = plain[-1]
    if padding > BLOCK_LENGTH:
        raise QmpError(f"Incorrect number of padding bytes ({padding}) found on decrypted data")
    return plain[: len(plain) - padding]
