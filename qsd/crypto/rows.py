# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""What the modes of operation share: sectors come in runs, and are worked on in rows.

A *run* is ``(number of the first sector, count)``; see :data:`qsd.crypto.buffers.Runs`.  A call
takes the text of one run or of several, one behind the other, so that many short requests cost no
more calls than a long one.  A *row* is what a mode works on at once; rows are cut from the text
wherever runs end.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Final

from qsd.crypto.cipher import SLACK

if TYPE_CHECKING:
    from qsd.crypto.buffers import Pieces, Readable, Runs, Writable
    from qsd.crypto.cipher import Ecb
    from qsd.crypto.ivgen import IvGen

#: Bytes; the unit of encryption.
SECTOR: Final = 512
#: Sectors of a row at most, usually.  More do not fit the processor's second cache with all
#: intermediate results; fewer pay the cost of a call more often.
ROW_SECTORS: Final = 512


class Rows(ABC):
    """Cuts what comes into rows; works in buffers of its own and serves one thread at a time."""

    #: Sectors of a row at most.
    row_sectors: ClassVar[int] = ROW_SECTORS

    __slots__ = ("_ivgen", "_joined", "_vector_length")

    def __init__(self, ivgen: IvGen | None, vector_length: int) -> None:
        """Make an engine.

        Args:
            ivgen: Makes the vectors; None for a mode without.
            vector_length: Bytes of a vector, 0 for a mode without.
        """
        self._ivgen = ivgen
        self._vector_length = vector_length
        self._joined = memoryview(bytearray())

    def encrypt(self, runs: Runs, data: Readable, out: Writable) -> None:
        """Encrypt whole sectors; `out` may be the same memory as `data`."""
        self._cut(runs, data, out, encrypting=True)

    def decrypt(self, runs: Runs, data: Readable, out: Writable) -> None:
        """Decrypt whole sectors; `out` may be the same memory as `data`."""
        self._cut(runs, data, out, encrypting=False)

    def encrypt_pieces(self, pieces: Pieces) -> None:
        """Encrypt whole sectors that lie apart."""
        self._spread(pieces, encrypting=True)

    def decrypt_pieces(self, pieces: Pieces) -> None:
        """Decrypt whole sectors that lie apart."""
        self._spread(pieces, encrypting=False)

    def _spread(self, pieces: Pieces, *, encrypting: bool) -> None:
        """Work on pieces as on one text: two copies take less time than a call for each."""
        total = sum([len(data) for _, data, _ in pieces])
        if total > len(self._joined):
            self._joined = memoryview(bytearray(total))
        text, end = self._joined[:total], 0
        for _, data, _ in pieces:
            start, end = end, end + len(data)
            text[start:end] = data
        self._cut(find_runs(pieces), text, text, encrypting=encrypting)
        end = 0
        for _, _, out in pieces:
            start, end = end, end + len(out)
            out[:] = text[start:end]

    def _cut(self, runs: Runs, data: Readable, out: Writable, *, encrypting: bool) -> None:
        vectors: Readable = b"" if self._ivgen is None else self._ivgen.make(runs)
        total = len(data) // SECTOR
        row = self.row_sectors
        if total <= row:
            self._row(total, vectors, data, out, encrypting=encrypting)
            return
        width = self._vector_length
        vectors, source, target = memoryview(vectors), memoryview(data), memoryview(out)
        in_place = data is out
        for start in range(0, total, row):
            end = min(start + row, total)
            piece = source[start * SECTOR : end * SECTOR]
            self._row(
                end - start,
                vectors[start * width : end * width],
                piece,
                piece if in_place else target[start * SECTOR : end * SECTOR],
                encrypting=encrypting,
            )

    @abstractmethod
    def _row(
        self, count: int, vectors: Readable, data: Readable, out: Writable, *, encrypting: bool
    ) -> None:
        """Work on at most `row_sectors` sectors, which have these vectors."""


def find_runs(pieces: Pieces) -> Runs:
    """Return what sectors pieces are."""
    return [(first, len(data) // SECTOR) for first, data, _ in pieces]


class CodebookRows(Rows):
    """A mode that is made of the codebook, which needs a buffer for its results."""

    __slots__ = ("_block", "_ecb", "_scratch")

    def __init__(self, ecb: Ecb, block_length: int, ivgen: IvGen | None) -> None:
        """Make an engine.

        Args:
            ecb: The codebook.
            block_length: Bytes of its blocks.
            ivgen: Makes the vectors; None for a mode without.
        """
        super().__init__(ivgen, block_length)
        self._ecb = ecb
        self._block = block_length
        self._scratch = memoryview(bytearray(self.row_sectors * SECTOR + SLACK))


class EcbRows(CodebookRows):
    """Electronic codebook: equal blocks look equal."""

    __slots__ = ()

    def _row(
        self, count: int, vectors: Readable, data: Readable, out: Writable, *, encrypting: bool
    ) -> None:
        length = count * SECTOR
        work = self._ecb.encrypt if encrypting else self._ecb.decrypt
        work(data, self._scratch[: length + SLACK])
        # The library wants room beyond the data, which belongs to somebody else: hence the copy.
        out[:length] = self._scratch[:length]


class CtrRows(CodebookRows):
    """Counter mode; the counter is the vector as a big-endian number ("6.5 The Counter Mode")."""

    __slots__ = ()

    def _row(
        self, count: int, vectors: Readable, data: Readable, out: Writable, *, encrypting: bool
    ) -> None:
        block = self._block
        size = count * SECTOR
        limit = (1 << (block * 8)) - 1
        starts = bytes(vectors)
        counters = b"".join(
            ((start + step) & limit).to_bytes(block, "big")
            for start in (
                int.from_bytes(starts[at : at + block], "big")
                for at in range(0, count * block, block)
            )
            for step in range(SECTOR // block)
        )
        self._ecb.encrypt(counters, self._scratch[: size + SLACK])
        stream = int.from_bytes(self._scratch[:size], "little")
        out[:size] = (int.from_bytes(data, "little") ^ stream).to_bytes(size, "little")
