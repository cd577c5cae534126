# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Block ciphers, many blocks in one call.

Everything else in this package is built on one operation: encrypt or decrypt a row of blocks, each
on its own (electronic codebook).  OpenSSL does that for AES and CAST5 at the speed of the
processor.  Serpent and Twofish, which it does not have, are those of :mod:`qsd.crypto.nettle`, else
our own in :mod:`qsd.crypto.serpent` and :mod:`qsd.crypto.twofish`.

Key lengths and block lengths: AES FIPS 197; Serpent "Serpent: A Proposal for the Advanced
Encryption Standard"; Twofish "Twofish: A 128-Bit Block Cipher"; CAST5-128 RFC 2144.

An :class:`Ecb` object has state inside the library and serves one thread at a time.  It holds a
key, so it has no repr that would show one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

from qsd.util.namedtuple import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

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

    def encrypt(self, data: Readable, out: Writable, /) -> object:
        """Encrypt whole blocks.

        Args:
            data: The plain text.
            out: Has SLACK bytes more, and either starts with `data` or does not overlap it.
        """

    def decrypt(self, data: Readable, out: Writable, /) -> object:
        """Decrypt whole blocks; arguments as those of :meth:`encrypt`."""


class Chain(Protocol):
    """One cipher under one key that chains blocks, in each direction on from its last call.

    Both chains start with a block of zeroes.  Arguments are those of :class:`Ecb`.
    """

    def encrypt(self, data: Readable, out: Writable, /) -> object:
        """Encrypt whole blocks; each is added to the one before it first."""

    def decrypt(self, data: Readable, out: Writable, /) -> object:
        """Decrypt whole blocks; each is added to the encrypted one before it afterwards."""


def make_ecb(name: str, key: bytes) -> Ecb:
    """Return a cipher under a key.

    Args:
        name: A key of :data:`ALGORITHMS`.
        key: As long as the algorithm wants it.
    """
    algorithm = ALGORITHMS[name]
    if len(key) != algorithm.key_length:
        raise ValueError(f"{name} takes a key of {algorithm.key_length} bytes")
    if algorithm.family in ("serpent", "twofish"):
        from qsd.crypto.nettle import make_nettle

        nettle = make_nettle(name, key)
        if nettle is not None:
            return nettle
    if algorithm.family == "serpent":
        from qsd.crypto.serpent import Serpent

        return Serpent(key)
    if algorithm.family == "twofish":
        from qsd.crypto.twofish import Twofish

        return Twofish(key)
    return _Library(algorithm.family, key, 0)


def make_chain(name: str, key: bytes) -> Chain | None:
    """Return a chaining cipher under a key; None if the library does not have the cipher."""
    algorithm = ALGORITHMS[name]
    if algorithm.family in ("serpent", "twofish"):
        return None
    return _Library(algorithm.family, key, algorithm.block_length)


class _Library:
    """A cipher of OpenSSL."""

    __slots__ = ("decrypt", "encrypt")

    def __init__(self, family: str, key: bytes, chained: int) -> None:
        """Prepare both directions.

        Args:
            family: "aes" or "cast5".
            key: The key.
            chained: The block length to chain blocks, 0 for the codebook.
        """
        # Imported when an encrypted image is opened: most daemons never do.
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

        # The codebook is what the modes of this package are made of, not a mode to use.
        mode = modes.CBC(bytes(chained)) if chained else modes.ECB()  # noqa: S305
        if family == "aes":
            cipher: Any = Cipher(algorithms.AES(key), mode)
        else:
            from cryptography.hazmat.decrepit.ciphers.algorithms import CAST5

            cipher = Cipher(CAST5(key), mode)
        # The contexts are never finalized, so they serve for ever.  Their methods are what the
        # protocols ask for; a function around them would take a tenth of a short call.
        self.encrypt: Callable[[Readable, Writable], object] = cipher.encryptor().update_into
        self.decrypt: Callable[[Readable, Writable], object] = cipher.decryptor().update_into
