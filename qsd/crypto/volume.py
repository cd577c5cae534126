# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""A volume's cipher, complete: cipher, mode, vectors and key in one object."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qsd.crypto.buffers import load_numpy
from qsd.crypto.cipher import ALGORITHMS
from qsd.crypto.ivgen import make_ivgen
from qsd.crypto.modes import make_engine
from qsd.crypto.rows import SECTOR
from qsd.util.namedtuple import NamedTuple

if TYPE_CHECKING:
    from qsd.crypto.buffers import Pieces, Readable, Runs, Writable
    from qsd.crypto.modes import Engine


class CipherSpec(NamedTuple):
    """How sectors are encrypted, without the key.

    Attributes:
        cipher: A key of `cipher.ALGORITHMS`.
        mode: "ecb", "cbc", "ctr" or "xts".
        ivgen: "plain", "plain64" or "essiv".
        ivgen_hash: For "essiv", the hash.
    """

    cipher: str
    mode: str
    ivgen: str
    ivgen_hash: str | None


class Volume:
    """Encrypts and decrypts sectors; may be used by several threads at once.

    Each thread takes an engine of its own while it works, so there are as many as ever worked at
    the same time.

    Attributes:
        is_slow: Whether the cipher is one that processors do not help with: 30 to 250 MB/s instead
            of 800.
    """

    __slots__ = ("_free", "_key", "_numpy", "_spec", "is_slow")

    def __init__(self, spec: CipherSpec, key: bytes, *, use_numpy: bool = True) -> None:
        self._spec = spec
        self.is_slow = ALGORITHMS[spec.cipher].family != "aes"
        self._key = key
        self._numpy = load_numpy() if use_numpy else None
        self._free: list[Engine] = [self._make()]

    def _make(self) -> Engine:
        spec, key = self._spec, self._key
        ivgen = None
        if spec.mode != "ecb":
            ivgen = make_ivgen(spec.ivgen, spec.cipher, spec.ivgen_hash, key, self._numpy)
        return make_engine(spec.mode, spec.cipher, key, ivgen, self._numpy)

    def _take(self) -> Engine:
        try:
            return self._free.pop()
        except IndexError:
            return self._make()

    def encrypt(self, first: int, data: Readable, out: Writable) -> None:
        """Encrypt whole sectors.

        Args:
            first: The number of the first sector.
            data: The plain text.
            out: As long; may be the same memory.
        """
        self.encrypt_runs(((first, len(data) // SECTOR),), data, out)

    def decrypt(self, first: int, data: Readable, out: Writable) -> None:
        """Decrypt whole sectors; arguments as those of :meth:`encrypt`."""
        self.decrypt_runs(((first, len(data) // SECTOR),), data, out)

    def encrypt_runs(self, runs: Runs, data: Readable, out: Writable) -> None:
        """Encrypt several runs of sectors at once.

        Args:
            runs: (number of the first sector, count) of each.
            data: The plain text of all, one behind the other.
            out: As long; may be the same memory.
        """
        engine = self._take()
        try:
            engine.encrypt(runs, data, out)
        finally:
            self._free.append(engine)

    def decrypt_runs(self, runs: Runs, data: Readable, out: Writable) -> None:
        """Decrypt several runs of sectors at once; arguments as those of :meth:`encrypt_runs`."""
        engine = self._take()
        try:
            engine.decrypt(runs, data, out)
        finally:
            self._free.append(engine)

    def encrypt_pieces(self, pieces: Pieces) -> None:
        """Encrypt several runs of sectors that lie apart, as if they were one text."""
        engine = self._take()
        try:
            engine.encrypt_pieces(pieces)
        finally:
            self._free.append(engine)

    def decrypt_pieces(self, pieces: Pieces) -> None:
        """Decrypt several runs of sectors that lie apart, as if they were one text."""
        engine = self._take()
        try:
            engine.decrypt_pieces(pieces)
        finally:
            self._free.append(engine)

    def forget(self) -> None:
        """Drop the key.  The object is of no use afterwards."""
        self._key = b""
        self._free.clear()
