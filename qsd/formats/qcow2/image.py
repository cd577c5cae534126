# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""An open image's metadata in memory, and the one place that writes it back.

What may be on disk when
------------------------

Metadata changes in memory first.  :meth:`Image.write_back` is the only function that publishes it
(growing the refcount table apart, which has its own, stricter order), in rounds.  A round takes a
snapshot of everything dirty in one atomic step and then writes::

    1. refcount blocks          ] together with all data written before the snapshot
       -- sync --
    2. refcount table entries   ] only if there are new blocks
       -- sync --
    3. L2 tables
       -- sync --               ] only if an L1 entry changed
    4. L1 entries
       -- sync --               ] if a guest asked for it, or something was freed
    5. lower the counts of what the published tables no longer refer to

so that at any instant, and with any subset of the writes since the last sync lost:

* whatever a table on disk refers to has a count on disk (1, 2 before 3, 4);
* a new L2 table is complete before an L1 entry refers to it (3 before 4);
* data is durable before a mapping exposes it (1 before 3): an allocated cluster never shows what
  was in its place before;
* a cluster is reused, or discarded in the file below, only when nothing on disk refers to it
  (5 last).

A crash can leave clusters that are counted but not used: leaks, which cost space and nothing else.
With lazy refcounts, steps 1 and 2 write no counts; the dirty bit, durable before the first change,
says that they must be computed anew.

Locks
-----

`write_lock` is held by whoever writes metadata.  `change_lock` is held while an L2 table is made or
copied, so that two requests do not make two.  `write_lock` is taken inside `change_lock`, never the
other way round, and nobody who holds `write_lock` allocates.
"""

from __future__ import annotations

import asyncio
import errno
import sys
from array import array
from typing import TYPE_CHECKING

from qsd.block.loans import Loans
from qsd.errors import os_error
from qsd.formats.qcow2 import header as header_io
from qsd.formats.qcow2 import layout
from qsd.formats.qcow2.cache import TableCache
from qsd.formats.qcow2.layout import COPIED, OFFSET_MASK, Geometry, Header, c_hex
from qsd.formats.qcow2.overlap import (
    ACTIVE_L2,
    BITMAP_DIRECTORY,
    INACTIVE_L2,
    REFCOUNT_BLOCK,
    REFCOUNT_TABLE,
    Overlaps,
)
from qsd.formats.qcow2.refcount import FREE_OTHER, FREE_SILENT, Free, Refcounts

if TYPE_CHECKING:
    from qsd.block.graph import Edge
    from qsd.block.node import Node
    from qsd.formats.qcow2.cache import Slot
    from qsd.formats.qcow2.options import Options
    from qsd.formats.qcow2.snapshots import Snapshot

#: Clusters; so many freed ones may wait for a flush before they are written back on their own.
_MAX_PENDING_FREES = 4096


class Image:
    """The state that all parts of the driver share.

    Attributes:
        node: The node whose driver this belongs to.
        header: The header as it is on disk.
        geometry: Sizes.
        options: The options in force.
        file_edge, data_edge: Children with metadata and data; the same without external data file.
        l1: The active L1 table.
        l2: Slices of L2 tables, by guest offset >> `slice_bits`.
        slice_bits: Binary logarithm of the guest bytes that one slice maps.
        slice_entries: Entries of a slice.
        refcounts: Reference counts.
        overlaps: Where metadata lies.
        snapshots: Internal snapshots.
        high_water: Host offset from which on the file was never used: it reads as zeroes there.
        is_guarded: Whether tables are looked at, when they are read, for what leads to metadata.
        broken: Whether the image was found corrupt while in use; nothing is written any more.
        packing: Host cluster that compressed data is being packed into, -1 if there is none.
        warned: Whether damage was reported; that is done once.
        loans: Who may still look at pages of the file, see :mod:`qsd.block.loans`.
        needs_barrier: Whether data was written that the next published table exposes.
    """

    __slots__ = (
        "_l1_dirty_from",
        "_l1_dirty_to",
        "_lent",
        "_pending",
        "_pending_clusters",
        "_writer",
        "broken",
        "change_lock",
        "data_edge",
        "file_edge",
        "geometry",
        "header",
        "high_water",
        "is_guarded",
        "l1",
        "l2",
        "lazy",
        "loans",
        "needs_barrier",
        "node",
        "options",
        "overlaps",
        "packing",
        "refcounts",
        "slice_bits",
        "slice_entries",
        "snapshots",
        "warned",
        "write_lock",
    )

    def __init__(
        self, node: Node, header: Header, options: Options, file_edge: Edge, data_edge: Edge
    ) -> None:
        self.node = node
        self.header = header
        self.options = options
        self.file_edge = file_edge
        self.data_edge = data_edge
        geometry = self.geometry = Geometry(
            header.cluster_bits,
            header.refcount_order,
            bool(header.incompatible_features & layout.INCOMPAT_EXTENDED_L2),
        )
        self.slice_entries = options.l2_entry_size // (8 * geometry.entry_words)
        self.slice_bits = geometry.cluster_bits + self.slice_entries.bit_length() - 1
        self.l1: array[int] = array("Q")
        self.l2 = TableCache(options.l2_slices)
        self.refcounts = Refcounts(self, options.refcount_blocks)
        self.overlaps = Overlaps(geometry, options.overlap_checks)
        self.snapshots: list[Snapshot] = []
        self.high_water = 0
        self.is_guarded = False
        self.lazy = False
        self.broken = False
        self.warned = False
        self.packing = -1
        self.needs_barrier = False
        self.write_lock = asyncio.Lock()
        self.change_lock = asyncio.Lock()
        self._l1_dirty_from = self._l1_dirty_to = 0
        self.loans = Loans()
        # What could be freed already, but clients may still look at it.
        self._lent: list[Free] = []
        self._pending: list[Free] = []
        self._pending_clusters = 0
        self._writer: asyncio.Task[None] | None = None

    @property
    def file(self) -> Node:
        """The node with the metadata."""
        return self.file_edge.node

    @property
    def encrypted(self) -> bool:
        """Whether guest data is encrypted."""
        return self.header.crypt_method != 0

    @property
    def external_data(self) -> bool:
        """Whether data lives in a file of its own, at its guest offsets."""
        return self.data_edge is not self.file_edge

    async def load(self) -> None:
        """Read the L1 and refcount tables.

        Raises:
            OSError: Reading failed.
        """
        self.l1 = await self.read_l1(self.header.l1_table_offset, self.header.l1_size)
        await self.refcounts.open()
        self.high_water = self.file.length()
        await self.load_overlaps()

    async def load_overlaps(self) -> None:
        """Note where metadata lies."""
        header, overlaps = self.header, self.overlaps
        overlaps.load(header, self.l1, self.refcounts.table, self.snapshots)
        bitmaps = header.extension(layout.EXT_BITMAPS)
        if bitmaps is not None and header.autoclear_features & layout.AUTOCLEAR_BITMAPS:
            extension = layout.BitmapsExtension.parse(bitmaps)
            overlaps.add(extension.directory_offset, extension.directory_size, BITMAP_DIRECTORY)
        if overlaps.checks & INACTIVE_L2:
            for snapshot in self.snapshots:
                if snapshot.l1_size * 8 > layout.MAX_L1_BYTES:
                    continue
                for entry in await self.read_l1(snapshot.l1_table_offset, snapshot.l1_size):
                    offset = entry & OFFSET_MASK
                    if offset and overlaps.find(offset, 1) is None:
                        overlaps.add(offset, 1, INACTIVE_L2)

    async def read_l1(self, offset: int, entries: int) -> array[int]:
        """Read an L1 table."""
        raw = bytearray(entries * 8)
        if raw:
            await self.file.read_or_zero(offset, memoryview(raw))
        return layout.table_from_bytes(raw)

    # L2 tables

    def slice_offset(self, key: int) -> int:
        """Return the host offset of an L2 slice, 0 if its table does not exist."""
        shift = self.geometry.l2_span_bits - self.slice_bits
        index = key >> shift
        if index >= len(self.l1):
            return 0
        table = self.l1[index] & OFFSET_MASK
        if not table:
            return 0
        return table + (key & ((1 << shift) - 1)) * self.options.l2_entry_size

    async def _read_slice(self, key: int) -> array[int]:
        offset = self.slice_offset(key)
        table = offset & ~(self.geometry.cluster_size - 1)
        span = self.geometry.l2_span_bits - self.slice_bits
        if self.l1[key >> span] & OFFSET_MASK != table:
            raise await self.corrupt(
                f"L2 table offset {self.l1[key >> span] & OFFSET_MASK:#x} unaligned "
                f"(L1 index: {c_hex(key >> span)})"
            )
        self.file.driver.debug_event("l2_load")
        raw = bytearray(self.options.l2_entry_size)
        await self.file.read_or_zero(offset, memoryview(raw))
        slice_table = layout.table_from_bytes(raw)
        if self.is_guarded and self.overlaps.guards_any(slice_table):
            # Damaged: fast paths must not see it, the others look at every single entry.
            self.l2.keep_cold(key)
        return slice_table

    def guard(self) -> None:
        """Changes begin: from now on tables must not lead to metadata.

        Who only reads does not pay for it; what was read so far is read again.
        """
        if self.is_guarded or self.external_data:
            return
        self.is_guarded = True
        for key, table in self.l2.forget_clean().items():
            if self.overlaps.guards_any(table):
                self.l2.keep_cold(key)

    async def load_slice(self, key: int) -> array[int]:
        """Return an L2 slice; its table must exist.

        Raises:
            OSError: Reading failed.
        """
        table = self.l2.get(key)
        if table is None:
            if self.l2.needs_write_back:
                await self.write_back()
            table = await self.l2.load(key, self._read_slice)
        return table

    async def writable_slice(self, offset: int) -> array[int]:
        """Return the L2 slice for a guest offset for changing it.

        Makes the table if there is none, and copies it if a snapshot shares it.
        """
        key = offset >> self.slice_bits
        if self.lazy and not self.header.incompatible_features & layout.INCOMPAT_DIRTY:
            await self.set_dirty()
        entry = self.l1[offset >> self.geometry.l2_span_bits]
        if entry & COPIED:
            table = self.l2.get(key)
            if table is not None:
                return table
        else:
            async with self.change_lock:
                if not self.l1[offset >> self.geometry.l2_span_bits] & COPIED:
                    await self._make_l2(offset >> self.geometry.l2_span_bits)
        return await self.load_slice(key)

    async def _make_l2(self, index: int) -> None:
        """Make a new L2 table, empty or the copy of a shared one; `change_lock` is held."""
        size = self.geometry.cluster_size
        old = self.l1[index] & OFFSET_MASK
        if old % size:
            raise await self.corrupt(
                f"L2 table offset {old:#x} unaligned (L1 index: {c_hex(index)})"
            )
        if self.l2.needs_write_back:
            await self.write_back()
        first, count = await self.refcounts.take(1)
        offset = first << self.geometry.cluster_bits
        try:
            content = bytearray(size)
            if old:
                # No slice of a shared table is dirty: what is on disk is all there is.
                self.file.driver.debug_event("l2_alloc_cow_read")
                await self.file.read_or_zero(old, memoryview(content))
            self.file.driver.debug_event("l2_alloc_write")
            await self.file.write(offset, memoryview(content))
        except BaseException:
            self.free(first, count, FREE_SILENT)
            raise
        self.used(offset + size)
        self.l1[index] = offset | COPIED
        self._mark_l1(index, index + 1)
        if old:
            self.overlaps.remove(old, 1)
        self.overlaps.add(offset, 1, ACTIVE_L2)
        if old:
            self.free(old >> self.geometry.cluster_bits, 1, FREE_OTHER)
        self.needs_barrier = True

    def _mark_l1(self, start: int, end: int) -> None:
        if self._l1_dirty_from == self._l1_dirty_to:
            self._l1_dirty_from, self._l1_dirty_to = start, end
        else:
            self._l1_dirty_from = min(self._l1_dirty_from, start)
            self._l1_dirty_to = max(self._l1_dirty_to, end)

    def set_l1_entry(self, index: int, entry: int) -> None:
        """Change an L1 entry; it is written with the next write-back."""
        if self.l1[index] != entry:
            self.l1[index] = entry
            self._mark_l1(index, index + 1)

    def clear_l1_entry(self, index: int) -> None:
        """Drop the L2 table of an L1 entry that is not shared: nothing it maps exists any more."""
        offset = self.l1[index] & OFFSET_MASK
        self.l1[index] = 0
        self._mark_l1(index, index + 1)
        shift = self.geometry.l2_span_bits - self.slice_bits
        for key in range(index << shift, (index + 1) << shift):
            self.l2.drop(key)
        self.overlaps.remove(offset, 1)
        self.free(offset >> self.geometry.cluster_bits, 1, FREE_OTHER)

    # Space

    def announce_allocation(self) -> None:
        """Pass the points that have a name where clusters are taken (see blkdebug)."""
        debug_event = self.file.driver.debug_event
        debug_event("cluster_alloc")
        debug_event("refblock_alloc")

    def used(self, end: int) -> None:
        """Note that the file below has been used up to `end`."""
        if end > self.high_water:
            self.high_water = end

    def free(self, first: int, count: int, reason: int) -> None:
        """Drop one reference to each of some host clusters.

        It takes effect when the tables that changed before this call are durable.
        """
        if reason != FREE_SILENT:
            self.file.driver.debug_event("cluster_free")
        if first <= self.packing < first + count:
            self.packing = -1  # it may soon be somebody else's
        self._pending_clusters += count
        if self._pending_clusters > _MAX_PENDING_FREES and self._writer is None:
            self._start_writer()
        pending = self._pending
        if pending:
            last = pending[-1]
            if last.first + last.clusters == first and last.reason == reason:
                pending[-1] = Free(last.first, last.clusters + count, reason)
                return
        pending.append(Free(first, count, reason))

    def _start_writer(self) -> None:
        self._writer = self.node.graph.tasks.spawn(
            self._write_back_soon(), f"write back '{self.node.name}'"
        )

    async def _write_back_soon(self) -> None:
        try:
            await self.write_back()
        except OSError:
            pass  # everything is dirty still; the next flush meets the error and reports it
        finally:
            self._writer = None

    async def join_writer(self) -> None:
        """Wait for a write-back in the background."""
        while (writer := self._writer) is not None:
            await asyncio.wait([writer])

    def passes_discard(self, reason: int) -> bool:
        """Tell whether freed clusters are discarded in the file below."""
        return self.options.passes_discard[reason]

    async def discard_host(self, first: int, count: int) -> None:
        """Tell the file below that clusters are unused; failure only costs space."""
        bits = self.geometry.cluster_bits
        start, length = first << bits, count << bits
        length = min(length, self.file.length() - start)
        if length > 0:
            try:
                await self.file.discard(start, length)
            except OSError:
                pass

    # What lies where (see overlap.py)

    async def check_new(self, first: int, count: int, offset: int = -1, size: int = -1) -> None:
        """Refuse newly taken clusters that hold metadata: their counts are wrong.

        Args:
            first: First cluster.
            count: Number of clusters.
            offset: Host offset of what is to be written there, for the report.
            size: Its length.

        Raises:
            OSError: EIO; the image was marked corrupt.
        """
        bits = self.geometry.cluster_bits
        found = self.overlaps.find(first << bits, count << bits)
        if found is not None:
            raise await self.corrupt(
                f"Preventing invalid write on metadata (overlaps with {found})",
                offset if offset >= 0 else first << bits,
                size if size >= 0 else count << bits,
            )
        if not first:
            raise await self.corrupt("Preventing invalid allocation of data cluster at offset 0")

    def note_block(self, cluster: int) -> None:
        """A refcount block was made."""
        self.overlaps.add(cluster << self.geometry.cluster_bits, 1, REFCOUNT_BLOCK)
        self.used((cluster + 1) << self.geometry.cluster_bits)

    def note_reftable(self, old: tuple[int, int], new: tuple[int, int]) -> None:
        """The refcount table moved: (offset, clusters)."""
        bits = self.geometry.cluster_bits
        self.overlaps.remove(old[0], old[1] << bits)
        self.overlaps.add(new[0], new[1] << bits, REFCOUNT_TABLE)
        self.used(new[0] + (new[1] << self.geometry.cluster_bits))

    # Damage

    async def corrupt(
        self, text: str, offset: int = -1, size: int = -1, *, fatal: bool = True
    ) -> OSError:
        """Report damage; a writable image is marked corrupt and cannot be used any more.

        Returns:
            The error to raise.
        """
        from qsd.qapi.schema.block_events import BlockImageCorrupted

        fatal = fatal and not self.node.read_only
        if not self.broken and (fatal or not self.warned):
            self.warned = True
            sys.stderr.write(
                f"qcow2: Marking image as corrupt: {text}; further corruption events will be "
                "suppressed\n"
                if fatal
                else f"qcow2: Image is corrupt: {text}; further non-fatal corruption events will "
                "be suppressed\n"
            )
            self.node.graph.events.emit(
                BlockImageCorrupted(
                    device="",
                    node_name=self.node.name,
                    msg=text,
                    offset=offset if offset >= 0 else None,
                    size=size if size >= 0 else None,
                    fatal=fatal,
                )
            )
        if fatal and not self.broken:
            self.broken = True
            self.l2.clear()
            await self._set_corrupt_bit()
        return os_error(errno.EIO)

    async def _set_corrupt_bit(self) -> None:
        header = self.header
        if header.version < 3 or header.incompatible_features & layout.INCOMPAT_CORRUPT:
            return
        header.incompatible_features |= layout.INCOMPAT_CORRUPT
        try:
            await header_io.write_features(self.file, header)
        except OSError:
            pass  # the caller's request fails anyway

    async def set_dirty(self) -> None:
        """Set the dirty bit and make it durable, before refcounts become stale."""
        async with self.write_lock:
            if not self.header.incompatible_features & layout.INCOMPAT_DIRTY:
                features = self.header.incompatible_features
                self.header.incompatible_features |= layout.INCOMPAT_DIRTY
                try:
                    await header_io.write_features(self.file, self.header)
                except BaseException:
                    self.header.incompatible_features = features
                    raise

    async def set_clean(self) -> None:
        """Clear the dirty bit; everything was written and synced."""
        if self.header.incompatible_features & layout.INCOMPAT_DIRTY:
            self.header.incompatible_features &= ~layout.INCOMPAT_DIRTY
            await header_io.write_features(self.file, self.header)

    # Writing back

    async def sync(self) -> None:
        """Make everything written so far durable, in all files."""
        if self.external_data:
            await self.data_edge.node.flush()
        await self.file.flush()

    async def write_back_refcounts(self) -> None:
        """Write refcount blocks alone, which is safe at any time."""
        async with self.write_lock:
            if not self.broken:
                await self.refcounts.write()

    async def write_back(self, *, durable: bool = False, with_refcounts: bool = False) -> None:
        """Publish all changes made so far; see the module's docstring.

        Args:
            durable: Sync at the end (a guest's flush).
            with_refcounts: Write counts even if they are lazy, and free all that can be freed.

        Raises:
            OSError: Something could not be written; it stays dirty.
        """
        if with_refcounts:
            await self.loans.wait()
        async with self.write_lock:
            if self.broken:
                return
            # Atomic: the snapshot of what this round publishes.
            slices = self._take_slices()
            l1_from, l1_to = self._l1_dirty_from, self._l1_dirty_to
            l1_data = layout.table_to_bytes(self.l1[l1_from:l1_to])
            self._l1_dirty_from = self._l1_dirty_to = 0
            frees, self._pending = self._pending, []
            self._pending_clusters = 0
            barrier, self.needs_barrier = self.needs_barrier, False
            # End of the atomic section.
            try:
                if self.refcounts.is_dirty and (with_refcounts or not self.lazy):
                    await self.refcounts.write()
                    barrier = True
                if barrier and (slices or l1_data):
                    await self.sync()
                    barrier = False
                while slices:
                    slot, _dirty, at, data = slices[-1]
                    self.file.driver.debug_event("l2_update")
                    await self.file.write(at, memoryview(data))
                    self.l2.end_write(slot)
                    slices.pop()
                if l1_data:
                    await self.file.flush()
                    at = self.header.l1_table_offset + l1_from * 8
                    self.file.driver.debug_event("l1_update")
                    await self.file.write(at, memoryview(l1_data))
                    l1_data = b""
                if durable or frees:
                    await self.sync()
            except BaseException:
                for slot, dirty, _at, _data in slices:
                    self.l2.end_write(slot, dirty)
                if l1_data:
                    self._mark_l1(l1_from, l1_to)
                self._pending[:0] = frees
                self.needs_barrier |= barrier
                raise
            await self._release(frees)

    async def _release(self, frees: list[Free]) -> None:
        """Lower counts, unless clients may still look at pages of what would be free then."""
        frees = self._lent + frees
        self._lent = []
        if frees and self.loans.are_out():
            self._lent = frees
            self.loans.suspended = True
            return
        await self.refcounts.release(frees)
        self.loans.suspended = False

    def look_after_loans(self) -> None:
        """Free what waits for loans, in the background, if they are all returned."""
        if self._writer is None and not self.loans.are_out():
            self._start_writer()

    def _take_slices(self) -> list[tuple[Slot, tuple[int, int], int, bytes]]:
        """Take all dirty L2 slices: (slot, dirty entries, host offset, bytes)."""
        taken = []
        for slot in sorted(self.l2.dirty.values(), key=lambda slot: slot.key, reverse=True):
            dirty = self.l2.begin_write(slot)
            start, end = dirty[0] & ~63, (dirty[1] + 63) & ~63  # whole sectors of 512 bytes
            data = layout.table_to_bytes(slot.table[start:end])
            taken.append((slot, dirty, self.slice_offset(slot.key) + start * 8, data))
        return taken

    @property
    def is_clean(self) -> bool:
        """Whether nothing waits to be written."""
        return not (
            self.l2.dirty
            or self._pending
            or self._l1_dirty_from != self._l1_dirty_to
            or (self.refcounts.is_dirty and not self.lazy)
        )
