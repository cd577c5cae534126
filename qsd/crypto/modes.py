# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
r"""Modes of operation over rows of sectors.

A volume is encrypted sector by sector, 512 bytes each, with an initialization vector that is made
of the sector's number.  A loop over sectors would cost microseconds for each.  Instead each mode is
written such that a whole row of sectors needs a few calls of the cipher's codebook form and a few
operations on whole buffers::

    xts decrypt       sector numbers --codebook, 2nd key--> first tweaks --> all tweaks
                      data ^ tweaks --codebook--> ... ^ tweaks
    cbc decrypt       data --codebook--> ... ^ (data moved on by one block, vectors put in front)
    cbc encrypt       block by block, but for all sectors of the row at once
    ctr               counters --codebook--> key stream ^ data

The operations are done by numpy where it is installed, else with long integers.  The two ways are
separate classes, and tests hold them to the same results.

XTS: :mod:`qsd.crypto.xts`, IEEE Std 1619-2007.  CBC: :mod:`qsd.crypto.chaining`; ECB and CTR:
:mod:`qsd.crypto.rows`; all three NIST SP 800-38A.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from qsd.crypto.chaining import CbcNumpy, CbcPure
from qsd.crypto.cipher import ALGORITHMS, make_chain, make_ecb
from qsd.crypto.rows import CtrRows, EcbRows
from qsd.crypto.xts import XtsNumpy, XtsPure

if TYPE_CHECKING:
    from qsd.crypto.buffers import Pieces, Readable, Runs, Writable
    from qsd.crypto.ivgen import IvGen


class Engine(Protocol):
    """One mode, cipher and key; works in buffers of its own and serves one thread at a time."""

    def encrypt(self, runs: Runs, data: Readable, out: Writable) -> None:
        """Encrypt whole sectors.

        Args:
            runs: (number of the first sector, count), one or more, adding up to the data.
            data: The plain text of all runs, one behind the other.
            out: As long; may be the same memory.
        """

    def decrypt(self, runs: Runs, data: Readable, out: Writable) -> None:
        """Decrypt whole sectors; arguments as those of :meth:`encrypt`."""

    def encrypt_pieces(self, pieces: Pieces) -> None:
        """Encrypt whole sectors that lie apart; no two pieces share memory."""

    def decrypt_pieces(self, pieces: Pieces) -> None:
        """Decrypt whole sectors that lie apart; no two pieces share memory."""


def make_engine(mode: str, name: str, key: bytes, ivgen: IvGen | None, numpy: Any) -> Engine:
    """Return an engine.

    Args:
        mode: "ecb", "cbc", "ctr" or "xts".
        name: The cipher.
        key: Its key; for "xts" two of them, one behind the other.
        ivgen: Makes the vectors; None for "ecb".
        numpy: The module, or None.
    """
    block_length = ALGORITHMS[name].block_length
    if mode == "xts":
        half = len(key) // 2
        data_ecb, tweak_ecb = make_ecb(name, key[:half]), make_ecb(name, key[half:])
        assert ivgen is not None  # by definition of the mode
        if numpy is None:
            return XtsPure(data_ecb, tweak_ecb, ivgen)
        return XtsNumpy(data_ecb, tweak_ecb, ivgen, numpy)
    ecb = make_ecb(name, key)
    if mode == "ecb":
        return EcbRows(ecb, block_length, None)
    assert ivgen is not None  # by definition of the modes
    if mode == "cbc":
        if numpy is None:
            return CbcPure(ecb, block_length, ivgen)
        return CbcNumpy(ecb, make_chain(name, key), block_length, ivgen, numpy)
    return CtrRows(ecb, block_length, ivgen)
