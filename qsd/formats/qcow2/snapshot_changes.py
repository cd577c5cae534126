# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Taking and deleting internal snapshots ("Snapshots").

A snapshot is a copy of the L1 table.  Everything that the copy refers to is shared from then on: it
counts one reference more, and loses the COPIED flag that lets writers change it in place::

    taking                                deleting
    1. copy of the L1 table               1. new snapshot table, sync
    2. counts up, sync                    2. header points to it, sync
    3. COPIED flags off                   3. counts down
    4. new snapshot table, sync           4. COPIED flags on where nobody else is left
    5. header points to it, sync

The header's pointer decides whether the snapshot exists.  While it does, no cluster that it refers
to counts too low or may be written in place; before and after, clusters may count too high.

Counts and flags lie in different places and cannot change at once.  So the dirty bit is set
meanwhile ("incompatible_features"): whoever opens the image after a crash computes both anew.
Images of version 2 have no such bit; what a crash leaves in them costs space and copying, but no
data.

The node is drained: nobody else uses the image.
"""

from __future__ import annotations

import errno
import struct
import time
from typing import TYPE_CHECKING, Final

from qsd.errors import os_error
from qsd.formats.qcow2 import layout
from qsd.formats.qcow2.layout import COMPRESSED, COPIED, INCOMPAT_DIRTY, OFFSET_MASK
from qsd.formats.qcow2.refcount import FREE_OTHER, FREE_SILENT, FREE_SNAPSHOT
from qsd.formats.qcow2.snapshots import Snapshot

if TYPE_CHECKING:
    from array import array
    from collections.abc import Sequence

    from qsd.formats.qcow2.image import Image

#: Characters; longer names are cut off (the C daemon keeps them in 256 bytes).
MAX_NAME: Final = 255
_NO_ICOUNT: Final = (1 << 64) - 1
_EXTRA: Final = struct.Struct(">QQQ")
_ENTRY: Final = struct.Struct(">QIHHIIQII")


def pack(snapshot: Snapshot, image_size: int) -> bytes:
    """Return a snapshot table entry, padded.

    Args:
        snapshot: The snapshot.
        image_size: What to record where the snapshot has no size of its own.
    """
    id_str = snapshot.id_str.encode(errors="surrogateescape")
    name = snapshot.name.encode(errors="surrogateescape")
    extra = _EXTRA.pack(
        snapshot.vm_state_size,
        snapshot.disk_size if snapshot.disk_size is not None else image_size,
        snapshot.icount if snapshot.icount is not None else _NO_ICOUNT,
    )
    extra += snapshot.unknown_extra
    fixed = _ENTRY.pack(
        snapshot.l1_table_offset,
        snapshot.l1_size,
        len(id_str),
        len(name),
        snapshot.date_sec,
        snapshot.date_nsec,
        snapshot.vm_clock_nsec,
        # The field in the extra data replaces it where it does not fit.
        min(snapshot.vm_state_size, 0xFFFFFFFF),
        len(extra),
    )
    data = fixed + extra + id_str + name
    return data + bytes(-len(data) % 8)


def new_snapshot(image: Image, name: str) -> Snapshot:
    """Return an entry for a snapshot taken now, with an identifier of its own."""
    numbers = [int(s.id_str) for s in image.snapshots if s.id_str.isdecimal()]
    snapshot = Snapshot(str(max(numbers, default=0) + 1), name[:MAX_NAME])
    # There is no machine, and so no clock of its own; the C daemon takes the time of day too.
    now = time.time_ns() // 1000 * 1000
    snapshot.date_sec, snapshot.date_nsec = divmod(now, 1_000_000_000)
    snapshot.vm_clock_nsec = now
    snapshot.disk_size = image.header.size
    return snapshot


async def take(image: Image, name: str) -> Snapshot:
    """Take a snapshot.

    Raises:
        OSError: EINVAL if a reference count is too narrow, EFBIG if there are too many snapshots,
            errors of the file.  Without a snapshot nothing has changed but clusters that may be
            lost until the image is checked.
    """
    if len(image.snapshots) >= layout.MAX_SNAPSHOTS:
        raise os_error(errno.EFBIG)
    snapshot = new_snapshot(image, name)
    await _settle(image)
    marked = await _mark_dirty(image)
    bits = image.geometry.cluster_bits
    size = max(len(image.l1) * 8, 1)
    clusters = -(-size >> bits)
    try:
        first = await image.refcounts.take_exactly(clusters)
        added: list[tuple[int, int]] = [(first, clusters)]
        try:
            snapshot.l1_table_offset = first << bits
            snapshot.l1_size = len(image.l1)
            await _write_l1(image, snapshot)
            for run in await _references(image, image.l1):
                await image.refcounts.add(*run)
                added.append(run)
            await _settle(image)
            await refresh_flags(image, all_shared=True)
            await _replace_table(image, [*image.snapshots, snapshot])
        except OSError:
            for run in added:
                image.free(*run, FREE_SILENT)
            await _settle(image)  # the flags follow the counts
            await refresh_flags(image)
            raise
    finally:
        await _finish(image, marked)
    return snapshot


async def delete(image: Image, snapshot: Snapshot) -> None:
    """Delete a snapshot.

    Raises:
        OSError: It could not be written.
    """
    await _settle(image)
    marked = await _mark_dirty(image)
    try:
        l1 = await image.read_l1(snapshot.l1_table_offset, snapshot.l1_size)
        runs = await _references(image, l1)
        await _replace_table(image, [other for other in image.snapshots if other is not snapshot])
        for run in runs:
            image.free(*run, FREE_SNAPSHOT)
        bits = image.geometry.cluster_bits
        image.free(snapshot.l1_table_offset >> bits, -(-max(len(l1) * 8, 1) >> bits), FREE_SNAPSHOT)
        await _settle(image)
        await refresh_flags(image)
    finally:
        await _finish(image, marked)


async def _mark_dirty(image: Image) -> bool:
    """Set the dirty bit; return whether it is to be cleared at the end."""
    if image.header.version < 3 or image.header.incompatible_features & INCOMPAT_DIRTY:
        return False
    await image.set_dirty()
    return not image.lazy


async def _finish(image: Image, marked: bool) -> None:
    await _settle(image)
    if marked:
        await image.sync()
        await image.set_clean()


async def _settle(image: Image) -> None:
    """Make everything durable, counts included, and drop what was freed."""
    await image.join_writer()
    while True:
        await image.write_back(durable=True, with_refcounts=True)
        if image.broken or (image.is_clean and not image.refcounts.is_dirty):
            return


async def _write_l1(image: Image, snapshot: Snapshot) -> None:
    """Write the copy of the L1 table: of a snapshot, nothing may be written in place."""
    copy = image.l1[:]
    for index, entry in enumerate(copy):
        copy[index] = entry & ~COPIED
    data = layout.table_to_bytes(copy)
    await image.file.write(snapshot.l1_table_offset, memoryview(data))
    image.used(snapshot.l1_table_offset + len(data))


async def _read_table(image: Image, offset: int) -> array[int]:
    if offset % image.geometry.cluster_size:
        raise await image.corrupt(f"L2 table offset {offset:#x} unaligned")
    raw = bytearray(image.geometry.cluster_size)
    await image.file.read_or_zero(offset, memoryview(raw))
    return layout.table_from_bytes(raw)


async def _references(image: Image, l1: array[int]) -> list[tuple[int, int]]:
    """Return all references of an L1 table and its L2 tables, as runs of host clusters.

    A cluster with several compressed pieces is there as often as it has pieces.
    """
    bits = image.geometry.cluster_bits
    runs: list[tuple[int, int]] = []
    for entry in l1:
        offset = entry & OFFSET_MASK
        if not offset:
            continue
        table = await _read_table(image, offset)
        runs.append((offset >> bits, 1))
        start = length = 0
        for inner in table[:: image.geometry.entry_words]:
            if inner & COMPRESSED:
                at, size = image.geometry.compressed_range(inner)
                first = at >> bits
                runs.append((first, ((at + size - 1) >> bits) - first + 1))
                continue
            cluster = (inner & OFFSET_MASK) >> bits
            if not cluster:
                continue
            if length and cluster == start + length:
                length += 1
                continue
            if length:
                runs.append((start, length))
            start, length = cluster, 1
        if length:
            runs.append((start, length))
    return runs


async def refresh_flags(image: Image, *, all_shared: bool = False) -> None:
    """Set the COPIED flags of the active tables to what the counts say.

    L2 tables are written at once and not synced; the L1 table is left to the next write-back.

    Args:
        image: An image with nothing dirty in its L2 cache.
        all_shared: Nothing can be written in place, so that no count needs to be looked at.

    Raises:
        OSError: Reading or writing failed.
    """
    image.l2.clear()
    image.packing = -1
    words = image.geometry.entry_words
    bits = image.geometry.cluster_bits
    for index, entry in enumerate(image.l1):
        offset = entry & OFFSET_MASK
        if not offset:
            continue
        table = await _read_table(image, offset)
        old = table[:]
        for at in range(0, len(table), words):
            inner = table[at]
            if inner & COMPRESSED or not inner & OFFSET_MASK:
                continue
            own = not all_shared and await image.refcounts.get((inner & OFFSET_MASK) >> bits) == 1
            table[at] = inner | COPIED if own else inner & ~COPIED
        if table != old:
            await image.file.write(offset, memoryview(layout.table_to_bytes(table)))
        own = not all_shared and await image.refcounts.get(offset >> bits) == 1
        image.set_l1_entry(index, offset | (COPIED if own else 0))


async def _replace_table(image: Image, snapshots: Sequence[Snapshot]) -> None:
    """Write another snapshot table and let the header point to it."""
    bits = image.geometry.cluster_bits
    header = image.header
    entries = [pack(snapshot, header.size) for snapshot in snapshots]
    data = b"".join(entries)
    first = clusters = 0
    if data:
        clusters = -(-len(data) >> bits)
        first = await image.refcounts.take_exactly(clusters)
    try:
        if data:
            await image.file.write(first << bits, memoryview(data))
            image.used((first << bits) + len(data))
        await _settle(image)
        fields = layout.SNAPSHOT_FIELDS.pack(len(entries), first << bits)
        await image.file.write(layout.AT_SNAPSHOTS, memoryview(fields))
    except OSError:
        if data:
            image.free(first, clusters, FREE_SILENT)
        raise
    old_offset, old_length = header.snapshots_offset, sum(s.length for s in image.snapshots)
    header.nb_snapshots, header.snapshots_offset = len(entries), first << bits
    for snapshot, entry in zip(snapshots, entries, strict=True):
        snapshot.length = len(entry)
    image.snapshots = list(snapshots)
    await image.file.flush()
    await image.load_overlaps()
    if old_length:
        image.free(old_offset >> bits, -(-old_length >> bits), FREE_OTHER)
