# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
r"""XTS over rows of sectors (IEEE Std 1619-2007, "5. XTS-AES transform").

Block j of a sector is encrypted between two additions of its tweak, T(j) = T(0) * alpha^j ("5.2
Multiplication by a primitive element alpha").  The multiplications are what costs: 32 of 128-bit
numbers for each sector.

*The theory of the fast way.*  To multiply by alpha is to shift by one bit, and to add 0x87 = 2^7 +
2^2 + 2^1 + 2^0 if a bit fell out at the top.  Let o(j) be the bit that falls out in step j.  A bit
that enters is only ever changed at the places 1, 2 and 7, so but for their seven lowest bits the
tweaks are windows of 128 bits in one long sequence::

    o(0) o(1) o(2) ... o(127) o(128) ... o(158)       o(j + 128) = o(j) + o(j+1) + o(j+2) + o(j+7)
    \______ W(0) __________/
         \______ W(1) ___________/                    T(j) = W(j) + c(top seven bits of W(j))

and the seven lowest bits differ from the window by something that depends on its seven highest
alone: working the steps backwards, with t the top byte of W(j), c = (t >> 1) ^ (t >> 6) ^ (t >> 7).

Windows that lie eight bits apart are the same bytes, read from another address.  So only eight
copies of a sector's sequence are made, shifted by zero to seven bits, and all 32 windows are copied
out of them as bytes are.  What is computed bit by bit is half as long as the text, instead of
several times as long.

The corrections are looked up: those of eight windows in a row depend on the fourteen bits o(8w) to
o(8w + 13), all of them in the upper half of the first tweak, and are one entry of a table.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final

from qsd.crypto.cipher import SLACK
from qsd.crypto.rows import ROW_SECTORS, SECTOR, CodebookRows, Rows, find_runs
from qsd.crypto.xts_short import ShortRow

if TYPE_CHECKING:
    from qsd.crypto.buffers import Pieces, Readable, Writable
    from qsd.crypto.cipher import Ecb
    from qsd.crypto.ivgen import IvGen
    from qsd.crypto.xts_short import Work

#: Bytes of a block, and so of a tweak.
_BLOCK: Final = 16
#: Blocks of a sector.
_BLOCKS: Final = SECTOR // _BLOCK
#: Copies of a sequence, each shifted by one bit more, and windows in each.
_SHIFTS: Final = 8
_WINDOWS: Final = _BLOCKS // _SHIFTS
#: What the lowest byte of a window is corrected by, for each value of its highest byte.
_CORRECTION: Final = bytes(top >> 1 ^ top >> 6 ^ top >> 7 for top in range(256))
#: Bits of a sequence that tell the corrections of all windows at one address, one in each copy.
_KEY_BITS: Final = 14
#: Words of 64 bits of a sequence, lowest first: o(128) to o(159) above 32 bits of no use, then the
#: lower and the upper half of the first window.
_WORDS: Final = 3
_WORD_BYTES: Final = 8
_NEXT, _LOWER, _UPPER = 0, 1, 2
#: Sectors; the tweaks of more are made the way of long rows.
_SHORT: Final = 32
#: Sectors of a row at most, twice as many as with other modes, though they hardly fit the second
#: cache.  Each of the 20 calls for a row takes the interpreter's lock, and with two threads at work
#: those of a row of 512 take a third of their time.
_ROW_SECTORS: Final = 2 * ROW_SECTORS
#: Bytes; pieces of this length are worth three calls each, shorter ones are copied together.
_LONG_PIECE: Final = 32 << 10


class _Buffers:
    """The memory that an engine works in."""

    __slots__ = (
        "copies", "corrections", "first", "keys", "last", "mixed", "moved", "parts", "tweaks",
    )  # fmt: skip

    def __init__(self, np: Any) -> None:
        u8, u64 = np.uint8, np.uint64
        count = _ROW_SECTORS
        self.first = np.zeros(count * _BLOCK + SLACK, u8)
        self.keys = np.zeros(count * _WINDOWS, u64)
        self.corrections = np.zeros(count * _WINDOWS, u64)
        self.parts = np.zeros(4 * count, u64)
        # The first word only is there to be below another one.
        self.copies = np.zeros(1 + _SHIFTS * count * _WORDS, u64)
        self.moved = np.zeros((_SHIFTS - 1) * count * _WORDS, u64)
        self.tweaks = np.zeros(count * SECTOR, u8)
        self.last = np.zeros(_BLOCK + SLACK, u8)
        self.mixed = np.zeros(count * SECTOR + SLACK, u8)


class _Views:
    """Arrays over the buffers of an engine, for rows of one length.

    To make an array costs as much as to compute with it on a short row, so they are kept.
    """

    __slots__ = (
        "below", "copies", "corrections", "first", "first_correction", "first_out", "first_upper",
        "indices", "keys", "low_corrections", "lower_low", "moved", "next", "parts", "start",
        "tweak_low", "tweaks", "upper", "windowed", "windows", "words",
    )  # fmt: skip

    def __init__(self, buffers: _Buffers, count: int, np: Any) -> None:
        u8, u64 = np.uint8, np.uint64
        block = np.dtype(f"V{_BLOCK}")
        # First tweaks, as the cipher gives them.
        self.first_out = buffers.first[: count * _BLOCK + SLACK]
        self.first = buffers.first[: count * _BLOCK].view(u64).reshape(count, 2)
        # Corrections: their places in the table, and themselves, a byte for each window.
        self.first_upper = self.first[:, 1:]
        self.keys = buffers.keys[: count * _WINDOWS].reshape(count, _WINDOWS)
        self.indices = self.keys.view(np.intp)
        self.corrections = buffers.corrections[: count * _WINDOWS].reshape(count, _WINDOWS)
        self.low_corrections = self.corrections.view(u8).reshape(count * _BLOCKS)
        self.first_correction = self.low_corrections[::_BLOCKS]
        # The sequences, which are the first copy.
        width = count * _WORDS
        words = buffers.copies[1 : 1 + width].reshape(count, _WORDS)
        self.next, self.start, self.upper = words[:, _NEXT], words[:, _LOWER:], words[:, _UPPER]
        self.lower_low = words.view(u8)[:, _LOWER * _WORD_BYTES]
        self.parts = buffers.parts[: 4 * count].reshape(4, count)
        # All other copies, and what they are made of: each word and the one below it.
        self.words, self.below = buffers.copies[1 : 1 + width], buffers.copies[:width]
        shape = _SHIFTS - 1, width
        self.copies = buffers.copies[1 + width : 1 + _SHIFTS * width].reshape(shape)
        self.moved = buffers.moved[: (_SHIFTS - 1) * width].reshape(shape)
        # Windows, each one byte before the other, and the tweaks made of them.
        self.windows = np.ndarray(
            (count, _WINDOWS, _SHIFTS),
            block,
            buffers.copies,
            (1 + _LOWER) * _WORD_BYTES,
            (_WORDS * _WORD_BYTES, -1, width * _WORD_BYTES),
        )
        self.tweaks = buffers.tweaks[: count * SECTOR]
        self.windowed = self.tweaks.view(block).reshape(count, _WINDOWS, _SHIFTS)
        self.tweak_low = self.tweaks[::_BLOCK]


@functools.cache
def _make_corrections(np: Any) -> Any:
    """Return, for each value of fourteen bits, the corrections of eight windows, one in a byte."""
    u64 = np.uint64
    bits = np.arange(1 << _KEY_BITS, dtype=u64)
    table = np.zeros_like(bits)
    by_top = np.frombuffer(_CORRECTION, np.uint8).astype(u64)
    for shift in range(_SHIFTS):
        # A correction minds the upper seven bits of the top byte, and so seven of the fourteen.
        top = (bits << u64(shift) >> u64(_KEY_BITS - 8)) & u64(0xFF)
        table |= by_top[top.view(np.intp)] << u64(8 * shift)
    return table


class XtsNumpy(Rows):
    """Fast: XTS with numpy; the windows of the module's theory.

    1 MiB of aes-256 takes 0.8 ms, half a cipher's and half an arithmetic's; shifting each tweak by
    itself, with numpy too, took 0.7 ms more.
    """

    row_sectors = _ROW_SECTORS

    __slots__ = (
        "_buffers", "_corrections", "_data", "_feedback", "_key_mask", "_left", "_np", "_places",
        "_right", "_short", "_tweak", "_views",
    )  # fmt: skip

    def __init__(self, data_ecb: Ecb, tweak_ecb: Ecb, ivgen: IvGen, numpy: Any) -> None:
        super().__init__(ivgen, _BLOCK)
        self._data = data_ecb
        self._tweak = tweak_ecb
        self._np = numpy
        self._feedback = numpy.array([0, 1, 2, 7], numpy.uint64).reshape(4, 1)
        self._corrections = _make_corrections(numpy)
        # Where the fourteen bits for each address are in the upper half of a first tweak.
        places = [64 - _KEY_BITS - _SHIFTS * window for window in range(_WINDOWS)]
        self._places = numpy.array(places, numpy.uint64)
        self._key_mask = numpy.uint64((1 << _KEY_BITS) - 1)
        self._left = numpy.arange(1, _SHIFTS, dtype=numpy.uint64).reshape(_SHIFTS - 1, 1)
        self._right = 64 - self._left
        self._buffers = _Buffers(numpy)
        # By number of sectors.
        self._short: dict[int, ShortRow] = {}
        self._views: dict[int, _Views] = {}

    def _make_tweaks(self, count: int, vectors: Readable) -> Any:
        """Compute and return all tweaks of a row."""
        np = self._np
        views = self._views.get(count)
        if views is None:
            views = self._views[count] = _Views(self._buffers, count, np)
        xor, shift_left, shift_right = np.bitwise_xor, np.left_shift, np.right_shift
        self._tweak.encrypt(vectors, views.first_out)
        shift_right(views.first_upper, self._places, views.keys)
        np.bitwise_and(views.keys, self._key_mask, views.keys)
        # "clip" does without a check of the indices; none is beyond the table.
        self._corrections.take(views.indices, None, views.corrections, "clip")
        # T(0) to W(0): the correction undoes itself.
        np.copyto(views.start, views.first)
        xor(views.lower_low, views.first_correction, views.lower_low)
        # o(128) to o(159) are made of o(0) to o(38), which are in the upper half.
        shift_left(views.upper, self._feedback, views.parts)
        xor.reduce(views.parts, 0, None, views.next)
        # A copy's lowest bits come from another sector; no window reaches there.
        copies, moved = views.copies, views.moved
        shift_left(views.words, self._left, copies)
        shift_right(views.below, self._right, moved)
        xor(copies, moved, copies)
        np.copyto(views.windowed, views.windows)
        xor(views.tweak_low, views.low_corrections, views.tweak_low)
        return views.tweaks

    def _row(
        self, count: int, vectors: Readable, data: Readable, out: Writable, *, encrypting: bool
    ) -> None:
        np = self._np
        # Bytes, since the text may lie anywhere: numpy copies words that are not aligned first.
        source = np.frombuffer(data, np.uint8)
        target = source if out is data else np.frombuffer(out, np.uint8)
        work = self._data.encrypt if encrypting else self._data.decrypt
        if count <= _SHORT:
            short = self._short.get(count)
            if short is None:
                short = self._short[count] = ShortRow(count, np)
            short.make_tweaks(self._tweak, vectors, _CORRECTION)
            short.apply(work, source, target)
            return
        self._apply(work, self._make_tweaks(count, vectors), source, target)

    def _apply(self, work: Work, tweaks: Any, source: Any, target: Any) -> None:
        """Encrypt or decrypt a long row in place: one buffer more would not fit the second cache.

        The library wants room beyond the data, which belongs to somebody else; hence the last block
        by itself.
        """
        xor, last = self._np.bitwise_xor, self._buffers.last
        xor(source, tweaks, target)
        end = target[-_BLOCK:]
        work(end, last)
        work(target[:-_BLOCK], target)
        end[:] = last[:_BLOCK]
        xor(target, tweaks, target)

    def _spread(self, pieces: Pieces, *, encrypting: bool) -> None:
        """Work on long pieces where they lie: the tweaks of all of them are made together.

        Of 64 KiB, that saves a fifth of what each takes by itself, and two copies.  A piece has
        been through all three steps before the next one is touched, so it stays in the cache.
        """
        total = sum([len(data) for _, data, _ in pieces])
        count = total // SECTOR
        if not _SHORT < count <= _ROW_SECTORS or total < len(pieces) * _LONG_PIECE:
            super()._spread(pieces, encrypting=encrypting)
            return
        np = self._np
        xor = np.bitwise_xor
        assert self._ivgen is not None  # by definition of the mode
        tweaks = self._make_tweaks(count, self._ivgen.make(find_runs(pieces)))
        work = self._data.encrypt if encrypting else self._data.decrypt
        end, scratch = 0, self._buffers.mixed
        for _, data, out in pieces:
            length = len(data)
            start, end = end, end + length
            mixed, own = scratch[:length], tweaks[start:end]
            xor(np.frombuffer(data, np.uint8), own, mixed)
            work(mixed, scratch[: length + SLACK])
            xor(mixed, own, np.frombuffer(out, np.uint8))


class XtsPure(CodebookRows):
    """Slow: XTS with long integers, which hold the tweaks of a whole row side by side."""

    __slots__ = ("_tweak", "_units")

    def __init__(self, data_ecb: Ecb, tweak_ecb: Ecb, ivgen: IvGen) -> None:
        super().__init__(data_ecb, _BLOCK, ivgen)
        self._tweak = tweak_ecb
        # By number of sectors: a number with the lowest bit of each block set.
        self._units: dict[int, int] = {}

    def _find_unit(self, count: int) -> int:
        unit = self._units.get(count)
        if unit is None:
            if len(self._units) >= 4:
                self._units.clear()
            blocks = (b"\1" + bytes(_BLOCK - 1)) * (count * _BLOCKS)
            unit = self._units[count] = int.from_bytes(blocks, "little")
        return unit

    def _make_tweaks(self, count: int, vectors: Readable) -> int:
        """Compute all tweaks as "5.2" says, but 1, 2, 4, 8, 16 blocks at once.

        What falls out of a block at the top comes back multiplied (without carry) by 0x87.
        """
        start = bytearray(count * _BLOCK + SLACK)
        self._tweak.encrypt(vectors, start)
        gap = bytes(SECTOR - _BLOCK)
        tweaks = int.from_bytes(
            b"".join(
                bytes(start[at : at + _BLOCK]) + gap for at in range(0, count * _BLOCK, _BLOCK)
            ),
            "little",
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
        self, count: int, vectors: Readable, data: Readable, out: Writable, *, encrypting: bool
    ) -> None:
        length = count * SECTOR
        tweaks = self._make_tweaks(count, vectors)
        mixed = (int.from_bytes(data, "little") ^ tweaks).to_bytes(length, "little")
        work = self._ecb.encrypt if encrypting else self._ecb.decrypt
        work(mixed, self._scratch[: length + SLACK])
        result = int.from_bytes(self._scratch[:length], "little") ^ tweaks
        out[:length] = result.to_bytes(length, "little")
