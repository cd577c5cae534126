# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""From guest offsets to what is stored there: reading L1 and L2 tables ("Cluster mapping").

A lookup looks at one slice of one L2 table and describes the longest run in it that is all of one
kind: data in one piece, zeroes, nothing, or one compressed cluster.  The kinds::

    standard entry                                    extended entry, per subcluster
    compressed bit                      SPECIAL       compressed bit         SPECIAL
    zero flag (version 3)               ZERO          zero bit               ZERO
    no host offset                      HOLE          neither bit            HOLE
    else                                DATA          allocation bit         DATA

A range is writable in place if its entry has the COPIED flag, which says that the cluster is
counted once.  With an external data file the flag also tells an allocated cluster at offset 0 from
none.
"""

from __future__ import annotations

import errno
from array import array
from typing import TYPE_CHECKING

from qsd.block.mapping import (
    DATA,
    HOLE,
    SPECIAL,
    ZERO,
    Mapping,
)
from qsd.errors import os_error
from qsd.formats.qcow2.layout import (
    COMPRESSED,
    COPIED,
    OFFSET_MASK,
    SUBCLUSTERS,
    ZERO_FLAG,
    c_hex,
)

if TYPE_CHECKING:
    from qsd.formats.qcow2.image import Image


class Mapper:
    """Looks up guest ranges in one image."""

    __slots__ = ("_image", "_zero_flag")

    def __init__(self, image: Image) -> None:
        self._image = image
        # "Standard Cluster Descriptor": bit 0 is reserved in version 2; it is ignored there.
        self._zero_flag = ZERO_FLAG if image.header.version >= 3 else 0

    def map_nowait(self, offset: int, length: int) -> Mapping | None:
        """Map the start of a range from memory; None if a table must be read or looks damaged."""
        image = self._image
        table = image.l2.get(offset >> image.slice_bits)
        if table is None:
            if image.broken or image.slice_offset(offset >> image.slice_bits):
                return None
            return self._unmapped(offset, length)
        mapping = self._in_slice(table, offset, length)
        if mapping is None or not mapping.length:
            return None
        return mapping

    async def map(self, offset: int, length: int) -> Mapping:
        """Map the start of a range.

        Raises:
            OSError: A table could not be read, or is damaged.
        """
        image = self._image
        mapping = self.map_nowait(offset, length)
        if mapping is not None:
            return mapping
        if image.broken:
            raise os_error(errno.ENOMEDIUM)
        key = offset >> image.slice_bits
        table = await image.load_slice(key)
        mapping = self._in_slice(table, offset, length)
        if mapping is None:
            raise await self._damaged(table, offset)
        return mapping

    def _unmapped(self, offset: int, length: int) -> Mapping:
        """Describe a range without L2 table, over as many missing tables as there are."""
        image = self._image
        span = image.geometry.l2_span_bits
        l1 = image.l1
        index = offset >> span
        last = (offset + length - 1) >> span
        while index < last and (index + 1 >= len(l1) or not l1[index + 1] & OFFSET_MASK):
            index += 1
        return Mapping(HOLE, min(length, ((index + 1) << span) - offset))

    def _in_slice(self, table: array[int], offset: int, length: int) -> Mapping | None:
        """Map the start of a range inside one slice; None if its entry is damaged."""
        image = self._image
        size = image.geometry.cluster_size
        index = (offset >> image.geometry.cluster_bits) & (image.slice_entries - 1)
        within = offset & (size - 1)
        length = min(length, (image.slice_entries - index) * size - within)
        if image.geometry.extended:
            return self._extended(table, index, within, length)
        entry = table[index]
        if entry & COMPRESSED:
            return Mapping(SPECIAL, min(length, size - within), image.file_edge, special=entry)
        host = entry & OFFSET_MASK
        if host & (size - 1):
            return None
        step = size if host or image.external_data else 0
        needed = (within + length + size - 1) >> image.geometry.cluster_bits
        if needed > 1:
            length = min(length, _count(table, index, needed, step) * size - within)
        if entry & self._zero_flag:
            return Mapping(ZERO, length, image.data_edge, host + within if host else -1)
        if not host and not (image.external_data and entry & COPIED):
            return Mapping(HOLE, length)
        return self._data(entry, host + within, length)

    def _data(self, entry: int, host: int, length: int) -> Mapping:
        image = self._image
        writable = bool(entry & COPIED)
        if writable and not image.external_data and image.l2.never_hot:
            # Some table maps guest data onto metadata: never write there.
            writable = image.overlaps.find(host, length) is None
        return Mapping(DATA, length, image.data_edge, host, writable)

    def _extended(self, table: array[int], index: int, within: int, length: int) -> Mapping | None:
        image = self._image
        geometry = image.geometry
        size = geometry.cluster_size
        entry, bitmap = table[2 * index], table[2 * index + 1]
        if entry & COMPRESSED:
            return Mapping(SPECIAL, min(length, size - within), image.file_edge, special=entry)
        host = entry & OFFSET_MASK
        sub = within >> geometry.subcluster_bits
        kind = _kind(entry, bitmap, sub, image.external_data)
        if kind < 0 or host & (size - 1):
            return None
        step = size if host or image.external_data else 0
        done = _run(bitmap, kind, sub)
        count = 1
        expected = entry
        needed = (within + length + size - 1) >> geometry.cluster_bits
        while sub + done == count * SUBCLUSTERS and count < needed:
            entry_at = 2 * (index + count)
            expected += step
            other = table[entry_at + 1]
            if table[entry_at] != expected:
                break
            if _kind(expected, other, 0, image.external_data) != kind:
                break
            done += _run(other, kind, 0)
            count += 1
        length = min(length, ((sub + done) << geometry.subcluster_bits) - within)
        if kind == ZERO:
            return Mapping(ZERO, length, image.data_edge, host + within if host else -1)
        if kind == HOLE:
            return Mapping(HOLE, length, image.data_edge, host + within if host else -1)
        return self._data(entry, host + within, length)

    async def _damaged(self, table: array[int], offset: int) -> OSError:
        """Report an entry that no sound image has."""
        image = self._image
        geometry = image.geometry
        size = geometry.cluster_size
        l2_index = (offset >> geometry.cluster_bits) & ((1 << geometry.l2_bits) - 1)
        l2 = image.slice_offset(offset >> image.slice_bits) & ~(size - 1)
        index = (offset >> geometry.cluster_bits) & (image.slice_entries - 1)
        entry = table[index * geometry.entry_words]
        host = entry & OFFSET_MASK
        if geometry.extended and not host & (size - 1):
            text = f"Invalid cluster entry found  (L2 offset: {l2:#x}, L2 index: {c_hex(l2_index)})"
        else:
            text = (
                f"Cluster allocation offset {host:#x} unaligned (L2 offset: {l2:#x}, "
                f"L2 index: {c_hex(l2_index)})"
            )
        return await image.corrupt(text)


def _kind(entry: int, bitmap: int, sub: int, external: bool) -> int:
    """Return the kind of a subcluster, -1 if the entry is invalid ("Extended L2 Entries")."""
    if entry & COMPRESSED:
        return SPECIAL
    allocated = bitmap >> sub & 1
    if bitmap >> (sub + SUBCLUSTERS) & 1:
        return -1 if allocated else ZERO
    if not allocated:
        return HOLE
    if entry & OFFSET_MASK or (external and entry & COPIED):
        return DATA
    return -1


def _run(bitmap: int, kind: int, sub: int) -> int:
    """Return how many subclusters from `sub` on have the same kind as that one."""
    allocated = bitmap & 0xFFFFFFFF
    zero = bitmap >> SUBCLUSTERS
    if kind == DATA:
        same = allocated & ~zero
    elif kind == ZERO:
        same = zero & ~allocated
    else:
        same = ~(allocated | zero)
    different = (~same & 0xFFFFFFFF) >> sub
    if not different:
        return SUBCLUSTERS - sub
    return (different & -different).bit_length() - 1


def _count(table: array[int], index: int, limit: int, step: int) -> int:
    """Count entries from `index` on of which each is the one before plus `step`.

    Pieces of growing length are compared as a whole: a job that asks for the rest of the image at
    every step would spend its time here otherwise.
    """
    entry = table[index]
    if limit > 1 and table[index + 1] != entry + step:
        return 1  # a fragmented image
    count = 1
    piece = 8
    while count < limit:
        size = min(piece, limit - count)
        first = entry + count * step
        found = table[index + count : index + count + size]
        if step:
            expected = array("Q", range(first, first + size * step, step))
        else:
            expected = array("Q", (first,)) * size
        if found != expected:
            for one, other in zip(found, expected, strict=True):
                if one != other:
                    return count
                count += 1
        count += size
        piece *= 4
    return count
