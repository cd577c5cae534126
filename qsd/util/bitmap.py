# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
r"""Sparse bitmaps over byte ranges: one bit for each granule of an image.

Bits are kept in leaves of fixed size, and only leaves that have something set exist.  A leaf is a
Python integer, so that setting, clearing, merging and counting thousands of bits are single
operations::

    leaves    { 0: 0b...0110,  7: ALL,  4096: 0b1 }     leaf number -> integer of LEAF_BITS bits
                                 \
                                  +-- the full leaf is one shared integer, however often it occurs

Memory follows what is dirty: an image of 16 TiB with one bit set costs one leaf, at any
granularity.  A completely dirty image costs one dictionary entry for each leaf's worth of granules;
long runs of full leaves share the integer.

What a guest's writes set is first noted, many together, then gathered in a set of units, where it
costs no arithmetic with long integers; whoever looks at the leaves finds it there.

All offsets and lengths are in bytes.  Setting covers every granule that the range touches; so does
clearing, whose callers align (or mean it).
"""

from __future__ import annotations

from functools import reduce
from itertools import chain, repeat
from operator import or_, rshift
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Bits of a leaf: small enough that a copy of it costs next to nothing.
LEAF_SHIFT: Final = 11
LEAF_BITS: Final = 1 << LEAF_SHIFT
_LOW: Final = LEAF_BITS - 1
_FULL: Final = (1 << LEAF_BITS) - 1
#: Units that are marked before they are set: 1 to 2 ms of work.
MAX_FRESH: Final = 8192
#: Batches of ranges that are noted before they are marked.
_MAX_NOTED: Final = 128
#: Bits of the offset inside of the smallest unit: what most writes are multiples of.
_UNIT_SHIFT: Final = 12
_ONE: Final = ord("1")
#: Binary digits to numbers.
_DIGITS: Final = bytes(value == ord("1") for value in range(256))


def _mask(first: int, last: int) -> int:
    """Return an integer with the bits `first` to `last` set, both included."""
    return (1 << last + 1) - (1 << first)


class Bitmap:
    """A set of granules.

    Attributes:
        length: Bytes that the bitmap is about.
        granularity: Bytes for each bit, a power of two.
        unit_shift: Bits of an offset inside of a unit: a granule, or several up to 4 KiB.
        fresh: Numbers of units all of which is to be set.
    """

    __slots__ = (
        "_kept", "_noted", "_noted_length", "_order", "_shift", "fresh", "granularity", "length",
        "unit_shift",
    )  # fmt: skip

    def __init__(self, length: int, granularity: int) -> None:
        self.length = length
        self.granularity = granularity
        self._shift = granularity.bit_length() - 1
        self.unit_shift = max(self._shift, _UNIT_SHIFT)
        self.fresh = set[int]()
        self._noted: list[list[int]] = []  # offsets of ranges, each list as it came
        self._noted_length = 1  # of each range
        self._kept: dict[int, int] = {}  # see `_leaves`
        # The leaf numbers in order, or None if it has to be made again.
        self._order: list[int] | None = []

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Bitmap):
            return NotImplemented
        return (
            self.granularity == other.granularity
            and self.length == other.length
            and self._leaves == other._leaves
        )

    __hash__ = None  # type: ignore[assignment]  # mutable

    def copy(self) -> Bitmap:
        """Return an independent bitmap with the same content."""
        other = Bitmap(self.length, self.granularity)
        other._kept = dict(self._leaves)
        other._order = None
        return other

    # Fresh marks

    @property
    def _leaves(self) -> dict[int, int]:
        """The leaves, with what is fresh."""
        if self.fresh or self._noted:
            self.settle()
        return self._kept

    def settle(self) -> None:
        """Set the bits of fresh marks."""
        self._gather()
        wide = self.unit_shift - self._shift  # bits of the number of a granule inside of a unit
        shift = LEAF_SHIFT - wide
        size = 1 << shift
        columns: dict[int, bytearray] = {}  # by leaf: a digit for each unit, the last one first
        for unit in self.fresh:
            number = unit >> shift
            column = columns.get(number)
            if column is None:
                column = columns[number] = bytearray(b"0" * size)
            column[~(unit & size - 1)] = _ONE
        self.fresh.clear()
        leaves = self._kept
        self._order = None
        for number, column in columns.items():
            if wide:
                count = 1 << wide
                column = column.replace(b"1", b"1" * count).replace(b"0", b"0" * count)
            leaves[number] = leaves.get(number, 0) | int(column, 2)

    def set_all(self, offsets: list[int], length: int) -> None:
        """Set the bits of ranges of equal length, by and by.

        Fast: they are but noted.

        Args:
            offsets: Not to be changed any more.
            length: Of each, more than 0.
        """
        if length != self._noted_length:
            self._gather()
            self._noted_length = length
        self._noted.append(offsets)
        if len(self._noted) > _MAX_NOTED:
            self._gather()
            if len(self.fresh) > MAX_FRESH:
                self.settle()

    def _gather(self) -> None:
        """Make fresh marks of the ranges that were noted."""
        # Loops over many inside of the interpreter: one alone takes ten times as long.
        offsets = list(chain.from_iterable(self._noted))
        self._noted.clear()
        length = self._noted_length
        low = length - 1
        unit = 1 << self.unit_shift
        is_within_units = length <= unit and not length & low and not reduce(or_, offsets, 0) & low
        if is_within_units and (length == unit or self.granularity >= unit):
            self.fresh.update(map(rshift, offsets, repeat(self.unit_shift)))
        else:
            for offset in offsets:
                self.set(offset, length)

    # Changing

    def set(self, offset: int, length: int) -> None:
        """Set the bits of all granules that a range touches."""
        if length <= 0:
            return
        shift = self._shift
        first = offset >> shift
        last = (offset + length - 1) >> shift
        number = first >> LEAF_SHIFT
        leaves = self._kept  # what is fresh is added to it in any order
        if number == last >> LEAF_SHIFT:
            # Most often all is set already: looking at the low end of a shifted leaf is cheaper
            # than making a mask as long as a leaf.
            start = first & _LOW
            mask = (2 << last - first) - 1
            old = leaves.get(number, 0)
            if old >> start & mask != mask:
                if not old:
                    self._order = None
                leaves[number] = old | mask << start
            return
        self._set_many(first, last)

    def _set_many(self, first: int, last: int) -> None:
        leaves = self._kept
        self._order = None
        low, high = first >> LEAF_SHIFT, last >> LEAF_SHIFT
        leaves[low] = leaves.get(low, 0) | _mask(first & _LOW, _LOW)
        for number in range(low + 1, high):
            leaves[number] = _FULL
        leaves[high] = leaves.get(high, 0) | _mask(0, last & _LOW)

    def clear(self, offset: int, length: int) -> None:
        """Clear the bits of all granules that a range touches."""
        if length <= 0 or not self._leaves:
            return
        first = offset >> self._shift
        last = (offset + length - 1) >> self._shift
        low, high = first >> LEAF_SHIFT, last >> LEAF_SHIFT
        for number in self._numbers(low, high + 1):
            start = first & _LOW if number == low else 0
            end = last & _LOW if number == high else _LOW
            rest = self._leaves[number] & ~_mask(start, end)
            if rest:
                self._leaves[number] = rest
            else:
                del self._leaves[number]
                self._order = None

    def clear_all(self) -> None:
        """Clear all bits."""
        self._noted.clear()
        self.fresh.clear()
        self._kept.clear()
        self._order = []

    def merge(self, other: Bitmap) -> None:
        """Set all bits whose granules touch something that is set in `other`."""
        if other.granularity == self.granularity:
            leaves = self._leaves
            for number, bits in other._leaves.items():
                leaves[number] = leaves.get(number, 0) | bits
            self._order = None
            self._cut()
            return
        for offset, length in other.areas():
            self.set(offset, min(length, self.length - offset))

    def resize(self, length: int) -> None:
        """Change the length; what is added is clear."""
        self.settle()
        self.length = length
        self._cut()

    def _cut(self) -> None:
        """Drop the bits behind the end."""
        bits = -(-self.length >> self._shift)
        limit = bits >> LEAF_SHIFT
        for number in [number for number in self._leaves if number >= limit]:
            keep = self._leaves[number] & ((1 << (bits & _LOW)) - 1) if number == limit else 0
            if keep:
                self._leaves[number] = keep
            else:
                del self._leaves[number]
                self._order = None

    # Asking

    def __bool__(self) -> bool:
        return bool(self._leaves)

    def count(self) -> int:
        """Return the number of bits that are set."""
        return sum(map(int.bit_count, self._leaves.values()))

    def dirty_bytes(self) -> int:
        """Return the bytes that the set bits stand for; the last granule counts in full."""
        return self.count() << self._shift

    def get(self, offset: int) -> bool:
        """Tell whether the granule at an offset is set."""
        bit = offset >> self._shift
        return bool(self._leaves.get(bit >> LEAF_SHIFT, 0) >> (bit & _LOW) & 1)

    def next_dirty(self, offset: int, end: int) -> int | None:
        """Return the first dirty byte in ``[offset, end)``, or None."""
        if not self._leaves or offset >= end:
            return None
        first, last = offset >> self._shift, (end - 1) >> self._shift
        for number in self._numbers(first >> LEAF_SHIFT, (last >> LEAF_SHIFT) + 1):
            base = number << LEAF_SHIFT
            skip = max(first - base, 0)
            bits = self._leaves[number] >> skip
            if bits:
                bit = base + skip + (bits & -bits).bit_length() - 1
                return max(bit << self._shift, offset) if bit <= last else None
        return None

    def next_clean(self, offset: int, end: int) -> int | None:
        """Return the first clean byte in ``[offset, end)``, or None."""
        bit = offset >> self._shift
        leaves = self._leaves
        while bit << self._shift < end:
            leaf = leaves.get(bit >> LEAF_SHIFT, 0)
            if leaf is _FULL:
                bit = ((bit >> LEAF_SHIFT) + 1) << LEAF_SHIFT
                continue
            clean = ~(leaf >> (bit & _LOW))
            step = (clean & -clean).bit_length() - 1
            if (bit & _LOW) + step < LEAF_BITS:
                found = max((bit + step) << self._shift, offset)
                return found if found < end else None
            bit = ((bit >> LEAF_SHIFT) + 1) << LEAF_SHIFT
        return None

    def next_dirty_area(self, offset: int, end: int) -> tuple[int, int] | None:
        """Return (offset, length) of the first dirty area in a range, clipped to it, or None."""
        end = min(end, self.length)
        start = self.next_dirty(offset, end)
        if start is None:
            return None
        stop = self.next_clean(start, end)
        return start, (end if stop is None else stop) - start

    def column(self, offset: int, end: int) -> bytes:
        """Return one byte, 1 or 0, for each granule of ``[offset, end)`` in the leaf of `offset`.

        Nothing if no bit of that leaf is set.
        """
        first, last = offset >> self._shift, (end - 1) >> self._shift
        leaf = self._leaves.get(first >> LEAF_SHIFT)
        if leaf is None:
            return b""
        count = min(last - first, LEAF_BITS - 1 - (first & _LOW)) + 1
        bits = leaf >> (first & _LOW) & ((1 << count) - 1)
        # Digits are made in linear time, the last bit first.
        return f"{bits:0{count}b}".encode().translate(_DIGITS)[::-1]

    def is_all_dirty(self, offset: int, length: int) -> bool:
        """Tell whether a range is dirty without a gap."""
        return self.next_clean(offset, offset + length) is None

    def areas(self) -> Iterator[tuple[int, int]]:
        """Iterate over (offset, length) of all dirty areas; nothing may change meanwhile."""
        offset = 0
        while (area := self.next_dirty_area(offset, self.length)) is not None:
            yield area
            offset = area[0] + area[1]

    def leaf_bytes(self) -> Iterator[tuple[int, bytes]]:
        """Iterate over (bit number, little-endian bytes) of all leaves that have a bit set."""
        for number in self._ordered():
            yield number << LEAF_SHIFT, self._leaves[number].to_bytes(LEAF_BITS // 8, "little")

    def or_bytes(self, bit: int, data: bytes | memoryview) -> None:
        """Set the bits that `data` has set, from a bit number on that is a multiple of eight."""
        value = int.from_bytes(data, "little")
        while value:
            number, start = bit >> LEAF_SHIFT, bit & _LOW
            room = LEAF_BITS - start
            part = value & ((1 << room) - 1)
            if part:
                self._leaves[number] = self._leaves.get(number, 0) | part << start
                self._order = None
            value >>= room
            bit += room
        self._cut()

    # Leaves in order

    def _ordered(self) -> list[int]:
        leaves = self._leaves  # may change the order
        order = self._order
        if order is None:
            order = self._order = sorted(leaves)
        return order

    def _numbers(self, low: int, high: int) -> Iterator[int]:
        """Iterate over the numbers of existing leaves in ``[low, high)``, in order."""
        if high - low <= 8:
            leaves = self._leaves
            return iter([number for number in range(low, high) if number in leaves])
        from bisect import bisect_left

        order = self._ordered()
        return iter(order[bisect_left(order, low) : bisect_left(order, high)])
