# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Where an NBD export is known to have no holes, so that reads need not look for any.

Reads of clients with structured replies are told of holes.  To look for them before each read costs
more than the read; so what was found is remembered, and data that was read is looked at itself.
"""

from __future__ import annotations

from typing import Final

from qsd.aio.pagemap import CHUNK, CHUNK_BITS

#: The unit of what :class:`KnownData` remembers is ``1 << REGION_BITS`` bytes.  1 TiB takes 1 MiB.
REGION_BITS: Final = 20
_REGION: Final = 1 << REGION_BITS
#: States of a region: nobody has looked; it is all data; holes may be in it.
UNKNOWN: Final = 0
DATA: Final = 1
_MIXED: Final = 2
_DATA_BYTE: Final = bytes([DATA])
#: Bytes; holes of files start and end at multiples of it.
_HOLE_UNIT: Final = 512
#: A range without such a run of zeroes has no hole, but for one of which it has only an edge.  Up
#: to 99 bytes CPython searches at once, by skipping; a longer needle is analysed first, which costs
#: more than the search (measured: 0.1 us against 2.5 us for 4 KiB).
_RUN: Final = 96
_ZERO_RUN: Final = bytes(_RUN)


def _looks_like_hole(data: bytearray, start: int, end: int, offset: int) -> bool:
    """Tell whether ``data[start:end]``, read from `offset` of an image, may come from a hole.

    Only blocks that are all zero can, or the part of one at an end of the range.
    """
    unit = _HOLE_UNIT
    head = -offset % unit
    first = start + min(head, end - start)
    last = max(first, end - (offset + end - start) % unit)
    if first > start and data.count(0, start, first) == first - start:
        return True
    if end > last and data.count(0, last, end) == end - last:
        return True
    zeroes = bytes(unit)
    return any(data.startswith(zeroes, at) for at in range(first, last, unit))


class KnownData:
    """What looks for holes have found, by region; shared by the connections of an export.

    It only saves lookups: an OFFSET_DATA chunk full of zeroes is always a valid reply, so it does
    not matter when holes come into being unnoticed.

    Attributes:
        regions: The state of each region, for the hot loop to look at.
        start: Where the extent of data begins that a client was told of last.
        end: Where it ends.
        all_data: For each chunk of `CHUNK` bytes, for hot loops to look at: DATA if all of it is
            known to be data and :meth:`learn_chunk` has found that out.
    """

    __slots__ = ("all_data", "end", "regions", "start")

    def __init__(self, size: int) -> None:
        self.regions = bytearray((size + _REGION - 1) // _REGION)
        self.all_data = bytearray((size >> CHUNK_BITS) + 1)
        self.start = self.end = 0

    def covers(self, offset: int, length: int) -> bool:
        """Tell whether all of a range is known to be data."""
        if self.start <= offset and offset + length <= self.end:
            return True
        regions = self.regions
        first, last = offset // _REGION, (offset + length - 1) // _REGION
        if first == last:
            return regions[first] == DATA
        return not regions[first : last + 1].strip(_DATA_BYTE)

    def learn_chunk(self, index: int) -> None:
        """Look whether all of a chunk is known to be data, unless it was not."""
        if self.all_data[index]:
            return
        first = index << CHUNK_BITS - REGION_BITS
        last = first + (CHUNK >> REGION_BITS)
        is_all = last <= len(self.regions) and not self.regions[first:last].strip(_DATA_BYTE)
        self.all_data[index] = DATA if is_all else _MIXED

    def _look_again(self, offset: int, end: int) -> None:
        first, last = offset >> CHUNK_BITS, ((end - 1) >> CHUNK_BITS) + 1
        self.all_data[first:last] = bytes(last - first)

    def is_unknown(self, offset: int) -> bool:
        """Tell whether nobody has looked for holes around an offset yet."""
        return not self.regions[offset // _REGION]

    def may_have_hole(self, data: bytearray, start: int, end: int, offset: int) -> bool:
        """Tell whether ``data[start:end]``, read from `offset`, may have come from a hole.

        So may what nobody has looked at; the slow way will.
        """
        if self.is_unknown(offset):
            return True
        if self.covers(offset, end - start):
            return False
        if end - start >= _RUN and data.find(_ZERO_RUN, start, end) < 0:
            return False
        return _looks_like_hole(data, start, end, offset)

    def note_extent(self, offset: int, length: int) -> None:
        """Take note of data that a client was told of: it is what it will read."""
        self.start = offset
        self.end = offset + length

    def add(self, offset: int, length: int) -> None:
        """Take note that a range is data as far as it fills regions; its ends may be mixed."""
        regions = self.regions
        end = offset + length
        first, last = -(-offset // _REGION), end // _REGION
        if last > first:
            regions[first:last] = _DATA_BYTE * (last - first)
        for index in (offset // _REGION, (end - 1) // _REGION):
            regions[index] = regions[index] or _MIXED
        self._look_again(offset, end)

    def forget(self, offset: int, length: int) -> None:
        """Holes may have come into being in a range."""
        first, last = offset // _REGION, -(-(offset + length) // _REGION)
        self.regions[first:last] = bytes(last - first)
        self._look_again(offset, offset + length)
        self.start = self.end = 0
