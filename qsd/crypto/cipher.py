# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Block ciphers, many blocks in one call.

Everything else in this package is built on one operation: encrypt or decrypt a row of blocks, each
on its own (electronic codebook).  OpenSSL does that for AES and CAST5 at the speed of the
processor; Serpent and Twofish, which it does not have, are in :mod:`qsd.crypto.serpent` and
:mod:`qsd.crypto.twofish`.

Key lengths and block lengths: AES FIPS 197; Serpent "Serpent: A Proposal for the Advanced
Encryption Standard"; Twofish "Twofish: A 128-Bit Block Cipher"; CAST5-128 RFC 2144.

An :class:`Ecb` object has state inside the library and serves one thread at a time.  It holds a
key, so it has no repr that would show one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qsd.crypto.buffers import Readable, Writable

#: Bytes that an output buffer must have beyond the data (the library asks for it).
SLACK: Final = 16


class Algorithm(NamedTuple):
    """A cipher with one key length.

    Attributes:
        family: The cipher's name in LUKS headers.
        key_length: Bytes.
        block_length: Bytes.
    """

    family: str
    key_length: int
    block_length: int


#: Ciphers by their names in QMP (QMP reference, "QCryptoCipherAlgorithm").
ALGORITHMS: Final[Mapping[str, Algorithm]] = {
    "aes-128": Algorithm("aes", 16, 16),
    "aes-192": Algorithm("aes", 24, 16),
    "aes-256": Algorithm("aes", 32, 16),
    "cast5-128": Algorithm("cast5", 16, 8),
    "serpent-128": Algorithm("serpent", 16, 16),
    "serpent-192": Algorithm("serpent", 24, 16),
    "serpent-256": Algorithm("serpent", 32, 16),
    "twofish-128": Algorithm("twofish", 16, 16),
    "twofish-192": Algorithm("twofish", 24, 16),
    "twofish-256": Algorithm("twofish", 32, 16),
}


class Ecb(Protocol):
    """One cipher under one key."""

    def encrypt(self, data: Readable, out: Writable) -> None:
        """Encrypt whole blocks; `out` has SLACK bytes more than `data` and does not overlap it."""

    def decrypt(self, data: Readable, out: Writable) -> None:
        """Decrypt whole blocks; `out` has SLACK bytes more than `data` and does not overlap it."""


def make_ecb(name: str, key: bytes) -> Ecb:
    """Return a cipher under a key.

    Args:
        name: A key of :data:`ALGORITHMS`.
        key: As long as the algorithm wants it.
    """
    algorithm = ALGORITHMS[name]
    if len(key) != algorithm.key_length:
        raise ValueError(f"{name} takes a key of {algorithm.key_length} bytes")
    if algorithm.family == "serpent":
        from qsd.crypto.serpent import Serpent

        return Serpent(key)
    if algorithm.family == "twofish":
        from qsd.crypto.twofish import Twofish

        return Twofish(key)
    return _Library(algorithm.family, key)


class _Library:
    """A cipher of OpenSSL."""

    __slots__ = ("_decryptor", "_encryptor")

    def __init__(self, family: str, key: bytes) -> None:
        # Imported when an encrypted image is opened: most daemons never do.
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

        # The codebook is what the modes of this package are made of, not a mode to use.
        if family == "aes":
            cipher = Cipher(algorithms.AES(key), modes.ECB())  # noqa: S305
        else:
            from cryptography.hazmat.decrepit.ciphers.algorithms import CAST5

            cipher = Cipher(CAST5(key), modes.ECB())  # noqa: S305
        # Blocks are independent, so one context serves for ever.
        self._encryptor = cipher.encryptor()
        self._decryptor = cipher.decryptor()

    def encrypt(self, data: Readable, out: Writable) -> None:
        """Encrypt whole blocks."""
        self._encryptor.update_into(data, out)

    def decrypt(self, data: Readable, out: Writable) -> None:
        """Decrypt whole blocks."""
        self._decryptor.update_into(data, out)
