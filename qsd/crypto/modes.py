# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
r"""Modes of operation over rows of sectors.

A volume is encrypted sector by sector, 512 bytes each, with an initialization vector that is made
of the sector's number.  A loop over sectors would cost microseconds for each.  Instead each mode is
written such that a whole row of sectors needs a few calls of the cipher's codebook form and a few
operations on whole buffers::

    xts decrypt       sector numbers --codebook, 2nd key--> first tweaks --doubling--> all tweaks
                      data ^ tweaks --codebook--> ... ^ tweaks
    cbc decrypt       data --codebook--> ... ^ (data moved on by one block, vectors put in front)
    cbc encrypt       block by block, but for all sectors of the row at once
    ctr               counters --codebook--> key stream ^ data

The operations are done by numpy where it is installed, else with long integers.  The two ways are
separate classes, and tests hold them to the same results.

XTS: IEEE Std 1619-2007, "5. XTS-AES transform".  CBC, ECB and CTR: NIST SP 800-38A.

An engine works in buffers of its own and serves one thread at a time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Final, Protocol

from qsd.crypto.cipher import ALGORITHMS, SLACK, make_ecb

if TYPE_CHECKING:
    from qsd.crypto.buffers import Readable, Writable
    from qsd.crypto.cipher import Ecb
    from qsd.crypto.ivgen import IvGen

#: Bytes; the unit of encryption.
SECTOR: Final = 512
#: Sectors of a row at most.  More do not fit the processor's second cache with all intermediate
#: results; fewer pay the cost of a call more often.
ROW_SECTORS: Final = 128

#: Blocks of 16 bytes in a sector.
_XTS_BLOCKS: Final = SECTOR // 16


class Engine(Protocol):
    """One mode, cipher and key."""

    def encrypt(self, first: int, data: Readable, out: Writable) -> None:
        """Encrypt whole sectors from number `first` on; `out` may be the same memory as `data`."""

    def decrypt(self, first: int, data: Readable, out: Writable) -> None:
        """Decrypt whole sectors from number `first` on; `out` may be the same memory as `data`."""


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
        return EcbRows(ecb)
    assert ivgen is not None  # by definition of the modes
    if mode == "cbc":
        if numpy is None:
            return CbcPure(ecb, block_length, ivgen)
        return CbcNumpy(ecb, block_length, ivgen, numpy)
    return Ctr(ecb, block_length, ivgen)


class _Rows(ABC):
    """Cuts what comes into rows."""

    __slots__ = ()

    def encrypt(self, first: int, data: Readable, out: Writable) -> None:
        """Encrypt whole sectors."""
        self._cut(first, data, out, encrypting=True)

    def decrypt(self, first: int, data: Readable, out: Writable) -> None:
        """Decrypt whole sectors."""
        self._cut(first, data, out, encrypting=False)

    def _cut(self, first: int, data: Readable, out: Writable, *, encrypting: bool) -> None:
        length = len(data)
        row = ROW_SECTORS * SECTOR
        if length <= row:
            self._row(first, length // SECTOR, data, out, encrypting=encrypting)
            return
        source, target = memoryview(data), memoryview(out)
        for start in range(0, length, row):
            piece = min(row, length - start)
            self._row(
                first + start // SECTOR,
                piece // SECTOR,
                source[start : start + piece],
                target[start : start + piece],
                encrypting=encrypting,
            )

    @abstractmethod
    def _row(
        self, first: int, count: int, data: Readable, out: Writable, *, encrypting: bool
    ) -> None:
        """Work on at most ROW_SECTORS sectors."""


class EcbRows(_Rows):
    """Electronic codebook: equal blocks look equal."""

    __slots__ = ("_ecb", "_scratch")

    def __init__(self, ecb: Ecb) -> None:
        self._ecb = ecb
        self._scratch = memoryview(bytearray(ROW_SECTORS * SECTOR + SLACK))

    def _row(
        self, first: int, count: int, data: Readable, out: Writable, *, encrypting: bool
    ) -> None:
        length = count * SECTOR
        work = self._ecb.encrypt if encrypting else self._ecb.decrypt
        work(data, self._scratch[: length + SLACK])
        # The library writes past the end, which belongs to somebody else: hence the copy.
        out[:length] = self._scratch[:length]


# XTS


class _XtsBuffers:
    """The buffers for rows of one length, as arrays that lie over them.

    Making views costs as much as computing on a short row, so they are kept.
    """

    __slots__ = (
        "a", "b", "c", "first_hi", "first_lo", "first_out", "mixed", "mixed64", "result",
        "result64", "tweaks64", "tweaks_hi", "tweaks_lo",
    )  # fmt: skip

    def __init__(self, count: int, np: Any) -> None:
        u64 = np.uint64
        self.first_out = np.zeros(count * 16 + SLACK, np.uint8)
        first = self.first_out[: count * 16].view(u64).reshape(count, 2)
        self.first_lo, self.first_hi = first[:, 0:1], first[:, 1:2]
        self.a = np.zeros((count, _XTS_BLOCKS), u64)
        self.b = np.zeros((count, _XTS_BLOCKS), u64)
        self.c = np.zeros((count, _XTS_BLOCKS), u64)
        tweaks = np.zeros((count, _XTS_BLOCKS, 2), u64)
        self.tweaks_lo, self.tweaks_hi = tweaks[:, :, 0], tweaks[:, :, 1]
        self.tweaks64 = tweaks.reshape(-1)
        self.mixed = np.zeros(count * SECTOR, np.uint8)
        self.mixed64 = self.mixed.view(u64)
        self.result = np.zeros(count * SECTOR + SLACK, np.uint8)
        self.result64 = self.result[: count * SECTOR].view(u64)


class XtsNumpy(_Rows):
    """Fast: XTS with numpy."""

    __slots__ = ("_buffers", "_data", "_down", "_ivgen", "_np", "_shifts", "_tweak", "_up")

    def __init__(self, data_ecb: Ecb, tweak_ecb: Ecb, ivgen: IvGen, numpy: Any) -> None:
        self._data = data_ecb
        self._tweak = tweak_ecb
        self._ivgen = ivgen
        self._np = numpy
        u64 = numpy.uint64
        self._up = numpy.arange(_XTS_BLOCKS, dtype=u64).reshape(1, _XTS_BLOCKS)
        self._down = u64(64) - self._up
        self._shifts = (u64(1), u64(2), u64(7))
        self._buffers: dict[int, _XtsBuffers] = {}

    def _find_buffers(self, count: int) -> _XtsBuffers:
        found = self._buffers.get(count)
        if found is None:
            if len(self._buffers) >= 4:
                self._buffers.clear()
            found = self._buffers[count] = _XtsBuffers(count, self._np)
        return found

    def _make_tweaks(self, first: int, count: int, buf: _XtsBuffers) -> None:
        """Compute all tweaks: the first of each sector, times alpha to the power of 0 to 31.

        "5.2 Multiplication by a primitive element alpha": with the 128 bits as one little-endian
        number, times alpha to the power of j is a shift by j; what falls out at the top comes back
        multiplied (without carry) by 0x87 = 2^7 + 2^2 + 2^1 + 2^0.  So little falls out that it
        stays within the lower half.  A shift by 64 gives 0 in numpy, so j = 0 is no special case.
        """
        self._tweak.encrypt(self._ivgen.make(first, count), buf.first_out)
        np = self._np
        shift_left, shift_right, xor = np.left_shift, np.right_shift, np.bitwise_xor
        a, b, fallen = buf.a, buf.b, buf.c
        shift_right(buf.first_lo, self._down, b)
        shift_left(buf.first_hi, self._up, a)
        xor(a, b, buf.tweaks_hi)
        shift_right(buf.first_hi, self._down, fallen)
        shift_left(buf.first_lo, self._up, a)
        xor(a, fallen, a)
        by1, by2, by7 = self._shifts
        shift_left(fallen, by1, b)
        xor(a, b, a)
        shift_left(fallen, by2, b)
        xor(a, b, a)
        shift_left(fallen, by7, b)
        xor(a, b, buf.tweaks_lo)

    def _row(
        self, first: int, count: int, data: Readable, out: Writable, *, encrypting: bool
    ) -> None:
        buf = self._buffers.get(count) or self._find_buffers(count)
        self._make_tweaks(first, count, buf)
        np = self._np
        xor = np.bitwise_xor
        xor(np.frombuffer(data, np.uint64), buf.tweaks64, buf.mixed64)
        work = self._data.encrypt if encrypting else self._data.decrypt
        work(buf.mixed, buf.result)
        xor(buf.result64, buf.tweaks64, np.frombuffer(out, np.uint64))


class XtsPure(_Rows):
    """Slow: XTS with long integers, which hold the tweaks of a whole row side by side."""

    __slots__ = ("_data", "_ivgen", "_scratch", "_tweak", "_units")

    def __init__(self, data_ecb: Ecb, tweak_ecb: Ecb, ivgen: IvGen) -> None:
        self._data = data_ecb
        self._tweak = tweak_ecb
        self._ivgen = ivgen
        self._scratch = memoryview(bytearray(ROW_SECTORS * SECTOR + SLACK))
        # By number of sectors: a number with the lowest bit of each block set.
        self._units: dict[int, int] = {}

    def _find_unit(self, count: int) -> int:
        unit = self._units.get(count)
        if unit is None:
            if len(self._units) >= 4:
                self._units.clear()
            blocks = (b"\1" + bytes(15)) * (count * _XTS_BLOCKS)
            unit = self._units[count] = int.from_bytes(blocks, "little")
        return unit

    def _make_tweaks(self, first: int, count: int) -> int:
        """Compute all tweaks as XtsNumpy does, but by doubling: 1, 2, 4, 8, 16 blocks at once."""
        start = bytearray(count * 16 + SLACK)
        self._tweak.encrypt(bytes(self._ivgen.make(first, count)), start)
        gap = bytes(SECTOR - 16)
        tweaks = int.from_bytes(
            b"".join(bytes(start[at : at + 16]) + gap for at in range(0, count * 16, 16)), "little"
        )
        unit = self._find_unit(count)
        everything = (1 << (count * SECTOR * 8)) - 1
        for blocks in (1, 2, 4, 8, 16):
            low_bits = unit * ((1 << blocks) - 1)
            fallen = (tweaks >> (128 - blocks)) & low_bits
            more = (tweaks << blocks) & (everything ^ low_bits)
            more ^= fallen ^ (fallen << 1) ^ (fallen << 2) ^ (fallen << 7)
            tweaks |= more << (128 * blocks)
        return tweaks

    def _row(
        self, first: int, count: int, data: Readable, out: Writable, *, encrypting: bool
    ) -> None:
        length = count * SECTOR
        tweaks = self._make_tweaks(first, count)
        mixed = (int.from_bytes(data, "little") ^ tweaks).to_bytes(length, "little")
        work = self._data.encrypt if encrypting else self._data.decrypt
        work(mixed, self._scratch[: length + SLACK])
        result = int.from_bytes(self._scratch[:length], "little") ^ tweaks
        out[:length] = result.to_bytes(length, "little")


# CBC


class CbcNumpy(_Rows):
    """Fast: CBC with numpy."""

    __slots__ = ("_ecb", "_ivgen", "_np", "_scratch", "_width", "_words")

    def __init__(self, ecb: Ecb, block_length: int, ivgen: IvGen, numpy: Any) -> None:
        self._ecb = ecb
        self._ivgen = ivgen
        self._np = numpy
        self._width = SECTOR // block_length
        self._words = block_length // 8
        self._scratch = numpy.zeros(ROW_SECTORS * SECTOR + SLACK, numpy.uint8)

    def _row(
        self, first: int, count: int, data: Readable, out: Writable, *, encrypting: bool
    ) -> None:
        np = self._np
        shape = (count, self._width, self._words)
        source = np.frombuffer(data, np.uint64).reshape(shape)
        target = np.frombuffer(out, np.uint64).reshape(shape)
        vectors = np.frombuffer(self._ivgen.make(first, count), np.uint64)
        vectors = vectors.reshape(count, self._words)
        if encrypting:
            self._encrypt(count, source, target, vectors)
        else:
            self._decrypt(count, source, target, vectors, data)

    def _encrypt(self, count: int, source: Any, target: Any, vectors: Any) -> None:
        """Chain block by block; all sectors of the row at once."""
        np = self._np
        size = count * self._words * 8
        column = np.zeros((count, self._words), np.uint64)
        column8 = column.reshape(-1).view(np.uint8)
        result8 = self._scratch[: size + SLACK]
        result = self._scratch[:size].view(np.uint64).reshape(count, self._words)
        before = vectors
        for index in range(self._width):
            np.bitwise_xor(source[:, index], before, column)
            self._ecb.encrypt(column8, result8)
            target[:, index] = result
            before = result

    def _decrypt(self, count: int, source: Any, target: Any, vectors: Any, data: Readable) -> None:
        np = self._np
        size = count * SECTOR
        self._ecb.decrypt(data, self._scratch[: size + SLACK])
        plain = self._scratch[:size].view(np.uint64).reshape(source.shape)
        plain[:, 1:] ^= source[:, :-1]
        plain[:, 0] ^= vectors
        target[:] = plain


class CbcPure(_Rows):
    """Slow: CBC with long integers."""

    __slots__ = ("_block", "_ecb", "_ivgen", "_scratch")

    def __init__(self, ecb: Ecb, block_length: int, ivgen: IvGen) -> None:
        self._ecb = ecb
        self._block = block_length
        self._ivgen = ivgen
        self._scratch = memoryview(bytearray(ROW_SECTORS * SECTOR + SLACK))

    def _row(
        self, first: int, count: int, data: Readable, out: Writable, *, encrypting: bool
    ) -> None:
        vectors = bytes(self._ivgen.make(first, count))
        source = bytes(data)
        if encrypting:
            self._encrypt(count, source, out, vectors)
        else:
            self._decrypt(count, source, out, vectors)

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


class Ctr(_Rows):
    """Counter mode; the counter is the vector as a big-endian number ("6.5 The Counter Mode")."""

    __slots__ = ("_block", "_ecb", "_ivgen", "_scratch")

    def __init__(self, ecb: Ecb, block_length: int, ivgen: IvGen) -> None:
        self._ecb = ecb
        self._block = block_length
        self._ivgen = ivgen
        self._scratch = memoryview(bytearray(ROW_SECTORS * SECTOR + SLACK))

    def _row(
        self, first: int, count: int, data: Readable, out: Writable, *, encrypting: bool
    ) -> None:
        block = self._block
        size = count * SECTOR
        limit = (1 << (block * 8)) - 1
        vectors = bytes(self._ivgen.make(first, count))
        counters = b"".join(
            ((start + step) & limit).to_bytes(block, "big")
            for start in (
                int.from_bytes(vectors[at : at + block], "big")
                for at in range(0, count * block, block)
            )
            for step in range(SECTOR // block)
        )
        self._ecb.encrypt(counters, self._scratch[: size + SLACK])
        stream = int.from_bytes(self._scratch[:size], "little")
        out[:size] = (int.from_bytes(data, "little") ^ stream).to_bytes(size, "little")
