# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Changing what guest ranges map to: new data, zeroes, discards.

The engine holds the exclusive claim on the guest range, in whole clusters, from `allocate` to
`commit` or `abandon`, and around `zero` and `discard`.  So nobody else changes the entries of that
range, even across awaits; entries of other ranges in the same table change freely.

Writing to a cluster needs

* a new host cluster where there is none, where a snapshot shares it, or where it is compressed;
* nothing but a changed entry where a host cluster is reserved already (zero cluster with an offset,
  subclusters of an allocated cluster).

Old content goes along with the first and last cluster (copy on write), but in images with extended
entries only up to the border of the subcluster, unless the old subclusters lie in a cluster that is
left.
"""

from __future__ import annotations

import asyncio
import errno
from array import array
from typing import TYPE_CHECKING, Final

from qsd.block.mapping import MAY_UNMAP, Allocation
from qsd.errors import os_error
from qsd.formats.qcow2.layout import (
    ALL_ALLOCATED,
    ALL_ZERO,
    COMPRESSED,
    COPIED,
    OFFSET_MASK,
    SUBCLUSTERS,
    ZERO_FLAG,
)
from qsd.formats.qcow2.refcount import FREE_OTHER, FREE_REQUEST, FREE_SILENT
from qsd.util.namedtuple import NamedTuple

if TYPE_CHECKING:
    from qsd.formats.qcow2.image import Image


#: Clusters; after so many changed entries a long request lets others have their turn.
_TURN: Final = 8192


class Token(NamedTuple):
    """What `commit` needs to know of an allocation."""

    first: int  #: first entry in the slice
    clusters: int  #: how many
    host: int  #: offset of the first host cluster
    fresh: bool  #: whether the clusters were taken for this allocation


class Changer:
    """Changes the mapping of one image."""

    __slots__ = ("_image", "_v3")

    def __init__(self, image: Image) -> None:
        self._image = image
        self._v3 = image.header.version >= 3

    # New data

    def _is_reserved(self, entry: int) -> bool:
        """Tell whether an entry has a host cluster of its own."""
        return bool(
            entry & COPIED
            and not entry & COMPRESSED
            and (entry & OFFSET_MASK or self._image.external_data)
        )

    async def allocate(self, offset: int, length: int) -> Allocation:
        """Reserve host space for the start of a guest range."""
        image = self._image
        geometry = image.geometry
        size = geometry.cluster_size
        words = geometry.entry_words
        table = await image.writable_slice(offset)
        index = (offset >> geometry.cluster_bits) & (image.slice_entries - 1)
        within = offset & (size - 1)
        wanted = (within + length + size - 1) >> geometry.cluster_bits
        wanted = min(wanted, image.slice_entries - index)
        fresh = not self._is_reserved(table[index * words])
        if fresh:
            image.announce_allocation()
        if not fresh:
            host = table[index * words] & OFFSET_MASK
            count = self._count_reserved(table, index, wanted)
            await self._check_reserved(host, within, min(length, count * size - within))
        else:
            count = 1
            while count < wanted and not self._is_reserved(table[(index + count) * words]):
                count += 1
            if image.external_data:
                host = offset - within
            else:
                run = image.refcounts.take_nowait(count)
                if run is None:
                    run = await image.refcounts.take(count, check=False)
                size_there = min(length, (run[1] << geometry.cluster_bits) - within)
                await image.check_new(*run, (run[0] << geometry.cluster_bits) + within, size_there)
                host, count = run[0] << geometry.cluster_bits, run[1]
        length = min(length, count * size - within)
        zeroed = (
            fresh and not image.external_data and not image.encrypted and host >= image.high_water
        )
        image.used(host + count * size)
        head = self._head(table, index, within, fresh, zeroed)
        end = (within + length) & (size - 1)
        tail = 0
        if end:
            tail = self._tail(table, index + count - 1, end, fresh, zeroed)
        if zeroed and (within or end) and not (head or tail):
            image.file.driver.debug_event("cluster_alloc_space")
        return Allocation(
            offset,
            length,
            image.data_edge,
            host + within,
            head,
            tail,
            zeroed,
            Token(index, count, host, fresh),
        )

    def _count_reserved(self, table: array[int], index: int, wanted: int) -> int:
        """Count consecutive reserved clusters that are not plain data already."""
        words = self._image.geometry.entry_words
        size = self._image.geometry.cluster_size
        expected = table[index * words]
        count = 1
        while count < wanted:
            expected += size
            at = (index + count) * words
            if table[at] != expected or (words == 2 and table[at + 1] == ALL_ALLOCATED):
                break
            count += 1
        return count

    async def _check_reserved(self, host: int, within: int, length: int) -> None:
        """Refuse to write where the engine was told not to: on metadata, or between clusters."""
        image = self._image
        if host & (image.geometry.cluster_size - 1):
            raise await image.corrupt(f"Cluster allocation offset {host:#x} unaligned")
        if image.external_data:
            return
        found = image.overlaps.find(host + within, length)
        if found is not None:
            raise await image.corrupt(
                f"Preventing invalid write on metadata (overlaps with {found})",
                host + within,
                length,
            )

    def _reads_zero(self, entry: int) -> bool:
        """Tell whether a standard entry reads as zeroes for certain."""
        if entry & COMPRESSED:
            return False
        if entry & ZERO_FLAG and self._v3:
            return True
        return not entry & OFFSET_MASK and not self._image.node.children.get("backing")

    def _head(self, table: array[int], index: int, within: int, fresh: bool, zeroed: bool) -> int:
        """Return how many bytes before the new data must be stored with it."""
        if not within:
            return 0
        geometry = self._image.geometry
        if not geometry.extended:
            return 0 if zeroed and self._reads_zero(table[index]) else within
        entry, bitmap = table[2 * index], table[2 * index + 1]
        if fresh and (entry & COMPRESSED or bitmap & ALL_ALLOCATED):
            return within
        if bitmap >> (within >> geometry.subcluster_bits) & 1:
            return 0  # the rest of the subcluster is there already
        return within & (geometry.subcluster_size - 1)

    def _tail(self, table: array[int], index: int, end: int, fresh: bool, zeroed: bool) -> int:
        """Return how many bytes behind the new data, which ends at `end`, must go with it."""
        geometry = self._image.geometry
        rest = geometry.cluster_size - end
        if not geometry.extended:
            return 0 if zeroed and self._reads_zero(table[index]) else rest
        entry, bitmap = table[2 * index], table[2 * index + 1]
        if fresh and (entry & COMPRESSED or bitmap & ALL_ALLOCATED):
            return rest
        if bitmap >> (end >> geometry.subcluster_bits) & 1:
            return 0
        return -end & (geometry.subcluster_size - 1)

    async def commit(self, allocation: Allocation) -> None:
        """Let the guest range refer to the data that was written."""
        image = self._image
        token: Token = allocation.token
        try:
            table = await image.writable_slice(allocation.offset)
        except BaseException:
            self.abandon(allocation)
            raise
        # Atomic from here on.
        size = image.geometry.cluster_size
        words = image.geometry.entry_words
        start, end = token.first * words, (token.first + token.clusters) * words
        old = table[start:end]
        first = token.host | COPIED
        entries = array("Q", range(first, first + token.clusters * size, size))
        if words == 1:
            table[start:end] = entries
        else:
            self._commit_bitmaps(table, allocation, entries)
        image.l2.mark(allocation.offset >> image.slice_bits, start, end)
        image.needs_barrier = True
        if token.fresh and old.count(0) != len(old):
            for entry in old[::words]:
                self.free_entry(entry, FREE_OTHER)

    def _commit_bitmaps(
        self, table: array[int], allocation: Allocation, entries: array[int]
    ) -> None:
        geometry = self._image.geometry
        size = geometry.cluster_size
        token: Token = allocation.token
        begin = (allocation.offset & (size - 1)) - allocation.head
        end = begin + allocation.head + allocation.length + allocation.tail
        for number, entry in enumerate(entries):
            at = 2 * (token.first + number)
            low = max(begin - number * size, 0) >> geometry.subcluster_bits
            high = -(-min(end - number * size, size) // geometry.subcluster_size)
            written = (1 << high) - (1 << low)
            bitmap = table[at + 1]
            if table[at] & COMPRESSED:
                bitmap = 0
            table[at] = entry
            table[at + 1] = (bitmap | written) & ~(written << SUBCLUSTERS)

    def abandon(self, allocation: Allocation) -> None:
        """Give clusters back that nothing refers to."""
        token: Token = allocation.token
        if token.fresh and not self._image.external_data:
            bits = self._image.geometry.cluster_bits
            self._image.free(token.host >> bits, token.clusters, FREE_SILENT)

    def free_entry(self, entry: int, reason: int) -> None:
        """Drop what an old entry refers to."""
        image = self._image
        bits = image.geometry.cluster_bits
        if entry & COMPRESSED:
            start, length = image.geometry.compressed_range(entry)
            first = start >> bits
            image.free(first, ((start + length - 1) >> bits) - first + 1, reason)
        elif entry & OFFSET_MASK and not image.external_data:
            image.free((entry & OFFSET_MASK) >> bits, 1, reason)

    # Zeroes

    async def zero(self, offset: int, length: int, flags: int) -> None:
        """Make a range of whole subclusters (or up to the end of the image) read as zeroes.

        Raises:
            OSError: ENOTSUP if entries cannot say so.
        """
        image = self._image
        if not self._v3:
            # No zero flag: only a cluster without backing file can read as zeroes.
            if image.node.children.get("backing"):
                raise os_error(errno.ENOTSUP)
            await self.discard(offset, length)
            return
        if image.external_data and image.header.autoclear_features & 2:
            await image.data_edge.node.zero(offset, length, flags)
        end = offset + length
        if end == image.header.size:
            end += -end % image.geometry.cluster_size
        yielded = offset
        while offset < end:
            if offset - yielded >= _TURN << image.geometry.cluster_bits:
                yielded = offset
                await asyncio.sleep(0)
            table = await image.writable_slice(offset)
            stop = min(end, ((offset >> image.slice_bits) + 1) << image.slice_bits)
            if image.geometry.extended:
                offset = self._zero_extended(table, offset, stop, flags)
            else:
                self._zero_standard(table, offset, stop, flags)
                offset = stop

    def _zero_standard(self, table: array[int], offset: int, stop: int, flags: int) -> None:
        image = self._image
        bits = image.geometry.cluster_bits
        first = (offset >> bits) & (image.slice_entries - 1)
        end = first + ((stop - offset) >> bits)
        for index in range(first, end):
            entry = table[index]
            if entry & COMPRESSED or (flags & MAY_UNMAP and entry & OFFSET_MASK):
                table[index] = ZERO_FLAG
                self.free_entry(entry, FREE_REQUEST)
            elif flags & MAY_UNMAP:
                table[index] = ZERO_FLAG
            else:
                table[index] = entry | ZERO_FLAG
        image.l2.mark(offset >> image.slice_bits, first, end)

    def _zero_extended(self, table: array[int], offset: int, stop: int, flags: int) -> int:
        """Zero (a part of) one cluster; return where it ends."""
        image = self._image
        geometry = image.geometry
        size = geometry.cluster_size
        index = (offset >> geometry.cluster_bits) & (image.slice_entries - 1)
        within = offset & (size - 1)
        stop = min(stop, offset - within + size)
        entry = table[2 * index]
        if stop - offset == size:
            if entry & COMPRESSED or flags & MAY_UNMAP:
                table[2 * index] = 0
                self.free_entry(entry, FREE_REQUEST)
            table[2 * index + 1] = ALL_ZERO
        else:
            if entry & COMPRESSED:
                raise os_error(errno.ENOTSUP)
            low = within >> geometry.subcluster_bits
            high = (within + stop - offset) >> geometry.subcluster_bits
            cleared = (1 << high) - (1 << low)
            bitmap = table[2 * index + 1]
            table[2 * index + 1] = (bitmap | cleared << SUBCLUSTERS) & ~cleared
        image.l2.mark(offset >> image.slice_bits, 2 * index, 2 * index + 2)
        return stop

    # Discards

    async def discard(self, offset: int, length: int, *, full: bool = False) -> None:
        """Drop whole clusters (or up to the end of the image).

        Discarded clusters read as zeroes; where that needs no entry, there is none.

        Args:
            offset: Start.
            length: Length.
            full: Leave no entry at all: for ranges that stop to exist.

        Raises:
            OSError: ENOTSUP in a version 2 image with backing file, where old data would reappear.
        """
        image = self._image
        backing = image.node.children.get("backing") is not None
        if not self._v3 and backing and not full:
            raise os_error(errno.ENOTSUP)
        start = offset
        end = offset + length
        end += -end % image.geometry.cluster_size
        yielded = offset
        while offset < end:
            if offset - yielded >= _TURN << image.geometry.cluster_bits:
                yielded = offset
                await asyncio.sleep(0)
            stop = min(end, ((offset >> image.slice_bits) + 1) << image.slice_bits)
            if image.slice_offset(offset >> image.slice_bits) or (backing and not full):
                table = await image.writable_slice(offset)
                self._discard_slice(table, offset, stop, keep_holes=full or not backing, full=full)
            offset = stop
        if image.external_data and not full and image.passes_discard(FREE_REQUEST):
            # At once: the data's place is fixed, later it might be in use again.
            await self._discard_data(start, end - start)

    async def _discard_data(self, offset: int, length: int) -> None:
        image = self._image
        node = image.data_edge.node
        length = min(length, node.length() - offset)
        if length <= 0:
            return
        if image.header.autoclear_features & 2:
            await node.zero(offset, length, MAY_UNMAP)
        else:
            await node.discard(offset, length)

    def _discard_slice(
        self, table: array[int], offset: int, stop: int, *, keep_holes: bool, full: bool
    ) -> None:
        image = self._image
        bits = image.geometry.cluster_bits
        words = image.geometry.entry_words
        first = (offset >> bits) & (image.slice_entries - 1)
        end = first + ((stop - offset) >> bits)
        for at in range(first * words, end * words, words):
            entry = table[at]
            if words == 2:
                if not entry and not table[at + 1] and keep_holes:
                    continue
                table[at] = 0
                table[at + 1] = 0 if full else ALL_ZERO
            else:
                if not entry and keep_holes:
                    continue
                table[at] = 0 if full or not self._v3 else ZERO_FLAG
            self.free_entry(entry, FREE_REQUEST)
        image.l2.mark(offset >> image.slice_bits, first * words, end * words)
