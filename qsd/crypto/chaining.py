# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Cipher block chaining over rows of sectors (NIST SP 800-38A, "6.2 The Cipher Block Chaining
Mode").

Each block is added to the one before it is encrypted, so within a sector encryption goes block by
block.  It is done for all sectors of a row at once: block 0 of each, then block 1 of each.  That is
many calls, whose cost does not depend on the length of the row; for a short one it takes less time
to let the library chain, sector by sector.

The library's chains have no end: each call goes on from the last block of the one before.  A sector
starts with a vector instead, so its first block gets both added: the vector, and the block that the
library is about to add, which cancels it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from qsd.crypto.cipher import SLACK
from qsd.crypto.rows import SECTOR, CodebookRows, Rows

if TYPE_CHECKING:
    from qsd.crypto.buffers import Readable, Writable
    from qsd.crypto.cipher import Chain, Ecb
    from qsd.crypto.ivgen import IvGen

#: Sectors; more are not encrypted one by one (measured: 32 columns of a row take as long as 48
#: sectors, with aes-256).
_FEW_SECTORS: Final = 48


class CbcNumpy(Rows):
    """Fast: CBC with numpy, and with the library's own chains if it has any for the cipher."""

    __slots__ = ("_chain", "_columns", "_ecb", "_last", "_np", "_scratch", "_steps", "_words")

    def __init__(
        self, ecb: Ecb, chain: Chain | None, block_length: int, ivgen: IvGen, numpy: Any
    ) -> None:
        """Make an engine.

        Args:
            ecb: The cipher under the key.
            chain: The same, chaining from a block of zeroes on; None if the library has none.
            block_length: Bytes.
            ivgen: Makes the vectors.
            numpy: The module.
        """
        super().__init__(ivgen, block_length)
        self._ecb = ecb
        self._chain = chain
        self._np = numpy
        self._words = block_length // 8
        self._columns = numpy.zeros(self.row_sectors * SECTOR, numpy.uint8)
        self._scratch = numpy.zeros(self.row_sectors * SECTOR + SLACK, numpy.uint8)
        # The last block that the decrypting chain has seen.
        self._last = numpy.zeros(self._words, numpy.uint64)
        self._steps = self._make_steps() if chain is not None else []

    def _make_steps(self) -> list[tuple[Any, Any, Any, Any]]:
        """Return for each of a few sectors: text, result, first block, block before it."""
        np, scratch = self._np, self._scratch
        block = self._words * 8
        before = np.zeros(self._words, np.uint64)
        steps = []
        for start in range(0, _FEW_SECTORS * SECTOR, SECTOR):
            end = start + SECTOR
            text = self._columns[start:end]
            steps.append((text, scratch[start : end + SLACK], text[:block].view(np.uint64), before))
            before = scratch[end - block : end].view(np.uint64)
        # The first one goes on from the last sector of the row before, wherever that ended.
        return steps

    def _row(
        self, count: int, vectors: Readable, data: Readable, out: Writable, *, encrypting: bool
    ) -> None:
        np = self._np
        shape = (count, SECTOR // (8 * self._words), self._words)
        source = np.frombuffer(data, np.uint64).reshape(shape)
        target = np.frombuffer(out, np.uint64).reshape(shape)
        starts = np.frombuffer(vectors, np.uint64).reshape(count, self._words)
        if not encrypting:
            if self._chain is None:
                self._decrypt(source, target, starts, data)
            else:
                self._decrypt_chained(source, target, starts, data)
        elif self._chain is None or count > _FEW_SECTORS:
            self._encrypt(source, target, starts)
        else:
            self._encrypt_chained(source, target, starts)

    def _encrypt(self, source: Any, target: Any, before: Any) -> None:
        """Chain block by block; all sectors of the row at once."""
        np = self._np
        xor, encrypt = np.bitwise_xor, self._ecb.encrypt
        count, width, words = source.shape
        size = count * words * 8
        # All first blocks, all second ones, ...: columns are short enough for the first cache.
        columns = self._columns[: count * SECTOR]
        text = columns.view(np.uint64).reshape(width, count, words)
        np.copyto(text, source.transpose(1, 0, 2))
        scratch = self._scratch
        results = scratch[: count * SECTOR].view(np.uint64).reshape(width, count, words)
        for index in range(width):
            column, start = text[index], index * size
            xor(column, before, column)
            encrypt(columns[start : start + size], scratch[start : start + size + SLACK])
            before = results[index]
        np.copyto(target, results.transpose(1, 0, 2))

    def _encrypt_chained(self, source: Any, target: Any, starts: Any) -> None:
        """Let the library chain, sector by sector."""
        assert self._chain is not None  # else this is not called
        np = self._np
        count = len(source)
        xor, update = np.bitwise_xor, self._chain.encrypt
        size = count * SECTOR
        text = self._columns[:size].view(np.uint64).reshape(source.shape)
        np.copyto(text, source)
        first = text[:, 0]
        xor(first, starts, first)
        steps = self._steps
        for sector, result, block, before in steps[:count]:
            xor(block, before, block)
            update(sector, result)
        result64 = self._scratch[:size].view(np.uint64).reshape(source.shape)
        np.copyto(target, result64)
        np.copyto(steps[0][3], result64[-1, -1])

    def _decrypt(self, source: Any, target: Any, starts: Any, data: Readable) -> None:
        """Decrypt all blocks, and add the ones before."""
        size = len(source) * SECTOR
        self._ecb.decrypt(data, self._scratch[: size + SLACK])
        plain = self._scratch[:size].view(self._np.uint64).reshape(source.shape)
        plain[:, 1:] ^= source[:, :-1]
        plain[:, 0] ^= starts
        target[:] = plain

    def _decrypt_chained(self, source: Any, target: Any, starts: Any, data: Readable) -> None:
        """Let the library take the row for one chain, and put the first blocks right."""
        assert self._chain is not None  # else this is not called
        size = len(source) * SECTOR
        self._chain.decrypt(data, self._scratch[: size + SLACK])
        plain = self._scratch[:size].view(self._np.uint64).reshape(source.shape)
        first = plain[:, 0]
        first ^= starts
        first[1:] ^= source[:-1, -1]
        first[0] ^= self._last
        self._last[:] = source[-1, -1]
        target[:] = plain


class CbcPure(CodebookRows):
    """Slow: CBC with long integers."""

    __slots__ = ()

    def _row(
        self, count: int, vectors: Readable, data: Readable, out: Writable, *, encrypting: bool
    ) -> None:
        source, starts = bytes(data), bytes(vectors)
        if encrypting:
            self._encrypt(count, source, out, starts)
        else:
            self._decrypt(count, source, out, starts)

    def _encrypt(self, count: int, source: bytes, out: Writable, vectors: bytes) -> None:
        block = self._block
        size = count * block
        before = int.from_bytes(vectors, "little")
        for at in range(0, SECTOR, block):
            column = b"".join(
                source[start : start + block] for start in range(at, count * SECTOR, SECTOR)
            )
            mixed = (int.from_bytes(column, "little") ^ before).to_bytes(size, "little")
            self._ecb.encrypt(mixed, self._scratch[: size + SLACK])
            result = bytes(self._scratch[:size])
            for sector in range(count):
                start = sector * SECTOR + at
                out[start : start + block] = result[sector * block : (sector + 1) * block]
            before = int.from_bytes(result, "little")

    def _decrypt(self, count: int, source: bytes, out: Writable, vectors: bytes) -> None:
        block = self._block
        size = count * SECTOR
        self._ecb.decrypt(source, self._scratch[: size + SLACK])
        moved = b"".join(
            vectors[sector * block : (sector + 1) * block]
            + source[sector * SECTOR : (sector + 1) * SECTOR - block]
            for sector in range(count)
        )
        plain = int.from_bytes(self._scratch[:size], "little") ^ int.from_bytes(moved, "little")
        out[:size] = plain.to_bytes(size, "little")
