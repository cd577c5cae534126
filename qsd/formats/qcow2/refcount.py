# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Reference counts: which host clusters are in use, finding free ones, making the table grow.

Vocabulary ("Host cluster management"):

* A **block** holds the counts of 2^block_bits clusters; the **refcount table** points to the
  blocks.  The whole table is in memory, blocks are in a bounded cache.
* A **run** is a number of consecutive free clusters inside one block.
* A new block describes itself: it lies in the first cluster of those that it counts.

Invariants that make writing safe (see ``image.py`` for the order of everything):

* Counts in memory rise before anybody can refer to a cluster and fall only after the last table
  that referred to it is durable without it.  So a block may be written at any time: what is on
  disk is never too low for what is referenced on disk, once the blocks were written and synced
  before the tables that refer.
* A table entry is written only after the block it points to is durable.
* Taking a run is a plain function: nothing else runs between finding and taking it.
"""

from __future__ import annotations

import asyncio
import errno
from array import array
from typing import TYPE_CHECKING, Final

from qsd.errors import os_error
from qsd.formats.qcow2 import layout
from qsd.formats.qcow2.cache import TableCache
from qsd.formats.qcow2.header import MAX_HOST_OFFSET
from qsd.util.namedtuple import NamedTuple

if TYPE_CHECKING:
    from qsd.formats.qcow2.cache import Slot
    from qsd.formats.qcow2.image import Image

#: Why a cluster was freed: decides whether the file below hears of it (pass-discard-* options).
FREE_REQUEST: Final = 0  #: the guest discarded it
FREE_SNAPSHOT: Final = 1  #: a snapshot operation
FREE_OTHER: Final = 2  #: anything else
FREE_SILENT: Final = 3  #: never passed on (space that was never used)


class Free(NamedTuple):
    """A reference that was dropped: each of `clusters` clusters from `first` on counts one less."""

    first: int
    clusters: int
    reason: int


class Refcounts:
    """The reference counts of one image.

    Attributes:
        cache: Refcount blocks by block number.
        table: The refcount table; entries in host order.
        free_hint: No cluster below this number is free, as far as is known.
    """

    __slots__ = (
        "_dirty_from",
        "_dirty_to",
        "_entries_per_unit",
        "_grow_lock",
        "_image",
        "_pointer_dirty",
        "cache",
        "free_hint",
        "table",
    )

    def __init__(self, image: Image, capacity: int) -> None:
        self._image = image
        self.cache = TableCache(capacity)
        self.table: array[int] = array("Q")
        self.free_hint = 0
        self._dirty_from = self._dirty_to = 0
        # Whether the header may not yet point to the table in use.
        self._pointer_dirty = False
        self._grow_lock = asyncio.Lock()
        # Counts that share 512 bytes on disk; written pieces start and end on such borders.
        self._entries_per_unit = 512 * 8 >> image.geometry.refcount_order

    # Loading

    async def open(self) -> None:
        """Read the refcount table."""
        image = self._image
        header = image.header
        image.file.driver.debug_event("reftable_load")
        raw = bytearray(header.refcount_table_clusters << image.geometry.cluster_bits)
        await image.file.read_or_zero(header.refcount_table_offset, memoryview(raw))
        self.table = layout.table_from_bytes(raw)

    def block_offset(self, block: int) -> int:
        """Return the host offset of a block, 0 if it does not exist."""
        if block >= len(self.table):
            return 0
        return self.table[block] & layout.REFTABLE_MASK

    async def _read_block(self, block: int) -> array[int]:
        image = self._image
        offset = self.block_offset(block)
        if offset % image.geometry.cluster_size:
            raise await image.corrupt(
                f"Refblock offset {offset:#x} unaligned (reftable index: {layout.c_hex(block)})"
            )
        image.file.driver.debug_event("refblock_load")
        raw = bytearray(image.geometry.cluster_size)
        await image.file.read_or_zero(offset, memoryview(raw))
        return layout.refcounts_from_bytes(raw, image.geometry.refcount_order)

    async def _load(self, block: int) -> array[int]:
        if self.cache.needs_write_back and block not in self.cache:
            await self._image.write_back_refcounts()
        return await self.cache.load(block, self._read_block)

    async def get(self, cluster: int) -> int:
        """Return the count of one host cluster."""
        bits = self._image.geometry.block_bits
        block = cluster >> bits
        if not self.block_offset(block):
            return 0
        table = await self._load(block)
        return table[cluster & ((1 << bits) - 1)]

    async def last_used(self) -> int:
        """Return the number of the last host cluster that is in use."""
        bits = self._image.geometry.block_bits
        for block in range(len(self.table) - 1, -1, -1):
            if not self.block_offset(block):
                continue
            counts = await self._load(block)
            for index in range(len(counts) - 1, -1, -1):
                if counts[index]:
                    return (block << bits) + index
        return 0

    # Taking clusters

    def take_nowait(self, wanted: int) -> tuple[int, int] | None:
        """Take up to `wanted` consecutive free clusters if cached blocks allow it.

        Returns:
            (first cluster, count), or None: a block must be loaded or made first.
        """
        bits = self._image.geometry.block_bits
        mask = (1 << bits) - 1
        cluster = self.free_hint
        while True:
            block = cluster >> bits
            counts = self.cache.hot.get(block)
            if counts is None and (counts := self.cache.get(block)) is None:
                self.free_hint = cluster
                return None
            try:
                start = counts.index(0, cluster & mask)
            except ValueError:
                cluster = (block + 1) << bits
                continue
            end = start + 1
            # Atomic: from finding to taking, nothing awaits.
            counts[start] = 1
            limit = start + wanted if start + wanted <= mask else mask + 1
            while end < limit and not counts[end]:
                counts[end] = 1
                end += 1
            first = (block << bits) + start
            self.cache.mark(block, start, end)
            self.free_hint = first + end - start
            return first, end - start

    async def take(self, wanted: int, *, check: bool = True) -> tuple[int, int]:
        """Take up to `wanted` consecutive free clusters.

        Args:
            wanted: Number of clusters.
            check: Whether to look if they hold metadata; else the caller does.

        Raises:
            OSError: EFBIG if the image cannot grow; errors of reading blocks.
        """
        self._image.announce_allocation()
        bits = self._image.geometry.block_bits
        while (run := self.take_nowait(wanted)) is None:
            block = self.free_hint >> bits
            if self.block_offset(block):
                await self._load(block)
            else:
                await self._make_block(block)
        if (run[0] + run[1]) << self._image.geometry.cluster_bits > MAX_HOST_OFFSET:
            self._image.free(*run, FREE_SILENT)
            raise os_error(errno.EFBIG)
        if check:
            await self._image.check_new(*run)
        return run

    async def take_exactly(self, count: int) -> int:
        """Take `count` consecutive clusters, at least one, for a table and return the first."""
        assert count > 0  # no run that is taken would do
        image = self._image
        if count > 1 << (image.geometry.block_bits - 1):
            async with self._grow_lock:
                used = max((n for n, entry in enumerate(self.table) if entry), default=-1) + 1
                return await self._grow(count, used)
        tried: list[tuple[int, int]] = []
        try:
            while True:
                run = await self.take(count)
                if run[1] == count:
                    return run[0]
                tried.append(run)
        finally:
            # Runs that were too short are free again; they were never referred to.
            for run in tried:
                self.release_nowait(*run)

    def release_nowait(self, first: int, count: int) -> None:
        """Give clusters of one run back that were never referred to."""
        bits = self._image.geometry.block_bits
        counts = self.cache.get(first >> bits)
        if counts is None:
            self._image.free(first, count, FREE_SILENT)
            return
        start = first & ((1 << bits) - 1)
        for index in range(start, start + count):
            counts[index] -= 1
        self.cache.mark(first >> bits, start, start + count)
        self.free_hint = min(self.free_hint, first)

    async def add(self, first: int, count: int) -> None:
        """Count one more reference to each of some clusters that are in use.

        Raises:
            OSError: EINVAL if a count does not fit its width; then nothing has changed.
        """
        geometry = self._image.geometry
        bits = geometry.block_bits
        done = 0
        try:
            for cluster in range(first, first + count):
                if not self.block_offset(cluster >> bits):
                    await self._make_block(cluster >> bits)
                counts = await self._load(cluster >> bits)
                index = cluster & ((1 << bits) - 1)
                if counts[index] >= geometry.max_refcount:
                    raise os_error(errno.EINVAL)
                counts[index] += 1
                self.cache.mark(cluster >> bits, index, index + 1)
                done += 1
        except OSError:
            if done:
                self._image.free(first, done, FREE_SILENT)
            raise

    # Growing

    async def _make_block(self, block: int) -> None:
        """Make a refcount block that does not exist yet."""
        async with self._grow_lock:
            if self.block_offset(block):
                return
            if block >= len(self.table):
                await self._grow(0, block)
                return
            self._image.file.driver.debug_event("refblock_alloc_write")
            bits = self._image.geometry.block_bits
            counts = layout.empty_refcounts(self._image.geometry)
            counts[0] = 1  # itself
            self._add_block(block, block << bits, counts)

    def _add_block(self, block: int, cluster: int, counts: array[int]) -> None:
        self.table[block] = cluster << self._image.geometry.cluster_bits
        self.cache.put(block, counts)
        self.cache.mark(block, 0, len(counts))
        if self._dirty_from == self._dirty_to:
            self._dirty_from, self._dirty_to = block, block + 1
        else:
            self._dirty_from = min(self._dirty_from, block)
            self._dirty_to = max(self._dirty_to, block + 1)
        self._image.note_block(cluster)

    async def _grow(self, payload: int, first_block: int) -> int:
        """Claim space from a block on for blocks, a larger table and `payload` clusters.

        Everything from that block on must be free.  The order on disk: new blocks and the new
        table, sync, the header that points to the table, sync.

        Returns:
            The first cluster of the payload.
        """
        image = self._image
        image.file.driver.debug_event("reftable_grow")
        geometry = image.geometry
        bits = geometry.block_bits
        per_cluster = geometry.cluster_size // 8
        blocks = table_clusters = 0
        while True:  # more blocks may need a larger table, which may need more blocks
            total = blocks + table_clusters + payload
            need_blocks = max(1, -(-total >> bits))
            # Half as much again: growing is rare then even for images that only grow.
            entries = max(first_block + need_blocks, len(self.table) * 3 // 2)
            need_table = -(-entries // per_cluster)
            if need_blocks <= blocks and need_table <= table_clusters:
                break
            blocks, table_clusters = max(blocks, need_blocks), max(table_clusters, need_table)
        if table_clusters << geometry.cluster_bits > layout.MAX_REFTABLE_BYTES:
            raise os_error(errno.EFBIG)
        start = first_block << bits
        total = blocks + table_clusters + payload
        await image.check_new(start, total)
        async with image.write_lock:
            await self._move_table(first_block, blocks, table_clusters, total)
        return start + blocks + table_clusters

    async def _move_table(self, first_block: int, blocks: int, clusters: int, total: int) -> None:
        """Make new blocks and write the table behind them; `write_lock` is held."""
        image = self._image
        bits = image.geometry.block_bits
        old_table = self.table
        dirty = self._dirty_from, self._dirty_to
        self.table = array("Q", bytes(clusters << image.geometry.cluster_bits))
        self.table[: len(old_table)] = old_table
        start = first_block << bits
        for number in range(blocks):
            counts = layout.empty_refcounts(image.geometry)
            used = min(max(total - (number << bits), 0), 1 << bits)
            counts[:used] = _ones(counts.typecode, used)
            self._add_block(first_block + number, start + number, counts)
        cluster = start + blocks
        at = cluster << image.geometry.cluster_bits
        debug_event = image.file.driver.debug_event
        try:
            debug_event("refblock_alloc_write_blocks")
            await self.write_blocks()
            debug_event("refblock_alloc_write_table")
            await image.file.write(at, memoryview(layout.table_to_bytes(self.table)))
            await image.file.flush()
        except BaseException:
            self.table = old_table
            self._dirty_from, self._dirty_to = dirty
            for number in range(blocks):
                self.cache.drop(first_block + number)
            raise
        header = image.header
        old = header.refcount_table_offset, header.refcount_table_clusters
        header.refcount_table_offset, header.refcount_table_clusters = at, clusters
        self._dirty_from = self._dirty_to = 0
        self._pointer_dirty = True
        image.note_reftable(old, (at, clusters))
        image.free(old[0] >> image.geometry.cluster_bits, old[1], FREE_OTHER)
        await self._write_pointer()

    async def _write_pointer(self) -> None:
        image = self._image
        header = image.header
        fields = header.refcount_table_offset, header.refcount_table_clusters
        image.file.driver.debug_event("refblock_alloc_switch_table")
        await image.file.write(layout.AT_REFTABLE, memoryview(layout.REFTABLE_FIELDS.pack(*fields)))
        await image.file.flush()
        self._pointer_dirty = False

    # Writing; `image.write_lock` is held

    @property
    def is_dirty(self) -> bool:
        """Whether a block or the table must be written."""
        return bool(self.cache.dirty) or self._dirty_from != self._dirty_to or self._pointer_dirty

    async def write_blocks(self) -> None:
        """Write all dirty blocks."""
        for slot in sorted(self.cache.dirty.values(), key=lambda slot: slot.key):
            await self._write_block(slot)

    async def _write_block(self, slot: Slot) -> None:
        image = self._image
        unit = self._entries_per_unit
        dirty = self.cache.begin_write(slot)
        start = dirty[0] - dirty[0] % unit
        end = dirty[1] + -dirty[1] % unit
        order = image.geometry.refcount_order
        data = layout.refcounts_to_bytes(slot.table[start:end], order)
        at = self.block_offset(slot.key) + (start << order >> 3)
        image.file.driver.debug_event("refblock_update_part")
        try:
            await image.file.write(at, memoryview(data))
        except BaseException:
            self.cache.end_write(slot, dirty)
            raise
        self.cache.end_write(slot)

    async def write(self) -> None:
        """Write dirty blocks, then the table entries that point to new ones.

        Entries are written only once their blocks are durable.  The last writes are not synced.
        """
        if self._pointer_dirty:
            await self._write_pointer()
        start, end = self._dirty_from, self._dirty_to
        # What is published now; entries added while this awaits belong to the next round.
        entries = layout.table_to_bytes(self.table[start:end])
        self._dirty_from = self._dirty_to = 0
        try:
            await self.write_blocks()
            if start == end:
                return
            image = self._image
            await image.file.flush()
            image.file.driver.debug_event("refblock_alloc_hookup")
            await image.file.write(
                image.header.refcount_table_offset + start * 8, memoryview(entries)
            )
        except BaseException:
            if start != end:
                if self._dirty_from == self._dirty_to:
                    self._dirty_from, self._dirty_to = start, end
                self._dirty_from = min(self._dirty_from, start)
                self._dirty_to = max(self._dirty_to, end)
            raise

    # Repair

    async def rebuild(self, counts: array[int]) -> None:
        """Replace all counts; nothing else uses the image.

        Blocks that do not exist yet get clusters behind all others, since their own first cluster
        may be in use.

        Args:
            counts: References by host cluster; changed to include the new blocks.

        Raises:
            OSError: EINVAL if a count does not fit, EFBIG if the refcount table is too short.
        """
        geometry = self._image.geometry
        bits = geometry.block_bits
        if max(counts, default=0) > geometry.max_refcount:
            raise os_error(errno.EINVAL)
        block = 0
        while block << bits < len(counts):
            if block >= len(self.table):
                raise os_error(errno.EFBIG)
            if not self.block_offset(block):
                self._add_block(block, len(counts), layout.empty_refcounts(geometry))
                counts.append(1)
            block += 1
        for block in range(len(self.table)):
            if self.block_offset(block):
                wanted = layout.empty_refcounts(geometry)
                part = counts[block << bits : (block + 1) << bits]
                wanted[: len(part)] = array(wanted.typecode, part)
                table = await self._load(block)
                if table != wanted:
                    table[:] = wanted
                    self.cache.mark(block, 0, len(wanted))
        self.free_hint = 0

    # Freeing; called once the tables without the references are durable

    async def release(self, frees: list[Free]) -> None:
        """Lower counts; clusters that reach zero are passed to `discard_host` first."""
        bits = self._image.geometry.block_bits
        mask = (1 << bits) - 1
        for first, count, reason in frees:
            cluster = first
            end = first + count
            while cluster < end:
                stop = min(end, ((cluster >> bits) + 1) << bits)
                if self.block_offset(cluster >> bits):
                    counts = await self.cache.load(cluster >> bits, self._read_block)
                    start = cluster & mask
                    await self._release_in(counts, start, stop - cluster, cluster, reason)
                    if self.cache.needs_write_back:
                        await self.write_blocks()
                cluster = stop

    async def _release_in(
        self, counts: array[int], start: int, count: int, cluster: int, reason: int
    ) -> None:
        """Lower `count` counts of one block from index `start`, which belongs to `cluster`."""
        image = self._image
        block = cluster >> image.geometry.block_bits
        if image.passes_discard(reason):
            index = start
            while index < start + count:
                if counts[index] != 1:
                    index += 1
                    continue
                run = index
                while run < start + count and counts[run] == 1:
                    run += 1
                # Before the count falls: nobody can take the clusters while the file is told.
                await image.discard_host(cluster + index - start, run - index)
                index = run
            counts = await self.cache.load(block, self._read_block)
        for index in range(start, start + count):
            if counts[index]:  # else the image was damaged before: nothing left to drop
                counts[index] -= 1
                if not counts[index]:
                    self.free_hint = min(self.free_hint, cluster + index - start)
        self.cache.mark(block, start, start + count)


def _ones(typecode: str, count: int) -> array[int]:
    return array(typecode, (1,)) * count
