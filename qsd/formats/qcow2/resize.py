# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Changing the virtual size, and reserving space for new parts.

The size in the header changes last when an image grows, and after the data is dropped when it
shrinks, each time with everything else durable.  So after a crash an image has its old size or its
new one, and what lies beyond it is never seen.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from qsd.block.mapping import MAY_UNMAP, ST_ALLOCATED, ST_ZERO, ZERO_NEW
from qsd.errors import QmpError, describe, os_error
from qsd.formats.qcow2 import layout
from qsd.formats.qcow2.bitmap_store import check_resizable
from qsd.formats.qcow2.layout import ALL_ALLOCATED, ALL_ZERO, COPIED, OFFSET_MASK, ZERO_FLAG
from qsd.formats.qcow2.overlap import ACTIVE_L1
from qsd.formats.qcow2.refcount import FREE_OTHER, FREE_SILENT
from qsd.util.ranges import align_down, align_up
from qsd.util.zeroes import ZERO_CHUNK, ZEROES

if TYPE_CHECKING:
    from array import array

    from qsd.block.node import Node
    from qsd.formats.qcow2.changes import Changer
    from qsd.formats.qcow2.image import Image


async def resize(
    image: Image, changer: Changer, length: int, prealloc: str, flags: int = 0
) -> None:
    """Give an image a new size; nothing else runs in it meanwhile.

    Args:
        image: The image.
        changer: Changes its mapping.
        length: The new size, a multiple of 512.
        prealloc: "off", "metadata", "falloc" or "full"; for the new part.
        flags: ZERO_NEW if a longer backing file must not show through the new part.

    Raises:
        QmpError: With the C daemon's text; the old size stands.
    """
    header = image.header
    old = header.size
    if length % 512:
        raise QmpError("The new size must be a multiple of 512") from os_error(errno.EINVAL)
    if header.nb_snapshots and header.version < 3:
        raise QmpError("Can't resize a v2 image which has snapshots")
    check_resizable(image)
    if length < old:
        if prealloc != "off":
            raise QmpError("Preallocation can't be used for shrinking an image")
        await _shrink(image, changer, length)
    else:
        await _grow(image, changer, length, prealloc, flags)


async def _set_size(image: Image, length: int) -> None:
    """Write the size into the header once all before it is durable.

    Raises:
        QmpError: That failed.
    """
    try:
        await image.write_back(durable=True)
        await image.file.write(layout.AT_SIZE, memoryview(layout.U64.pack(length)))
        await image.file.flush()
    except OSError as exc:
        raise QmpError(f"Failed to update the image size: {describe(exc)}") from exc
    image.header.size = length


# Growing


async def _grow(image: Image, changer: Changer, length: int, prealloc: str, flags: int) -> None:
    header = image.header
    old = header.size
    try:
        await grow_l1(image, image.geometry.l1_entries(length))
    except OSError as exc:
        raise QmpError(f"Failed to grow the L1 table: {describe(exc)}") from exc
    if image.external_data:
        # Before anything refers to it; it may be longer already.
        if image.data_edge.node.length() < length or _is_raw(image):
            below = prealloc if prealloc in ("falloc", "full") else "off"
            await image.data_edge.node.truncate(length, prealloc=below)
    if flags & ZERO_NEW and image.node.children.get("backing") is not None:
        header.size = length  # in memory: the new part may be changed now
        try:
            await _hide_backing(image, changer, old)
        except OSError as exc:
            raise QmpError(f"Failed to zero out new clusters: {describe(exc)}") from exc
        finally:
            header.size = old
    if prealloc != "off" or _is_raw(image):
        await preallocate(image, old, length, prealloc)
    await _set_size(image, length)


def _is_raw(image: Image) -> bool:
    return bool(image.header.autoclear_features & layout.AUTOCLEAR_DATA_FILE_RAW)


async def _hide_backing(image: Image, changer: Changer, old: int) -> None:
    """Make everything behind the old end read as zeroes.

    That begins within a cluster, which holds what the backing file has behind the old end or
    shows it.
    """
    end = image.header.size
    start = min(align_up(old, image.geometry.subcluster_size), end)
    if start < end:
        await changer.zero(start, end - start, MAY_UNMAP)
    if old < start:
        await image.node.driver.write(old, ZEROES[: start - old], 0)


async def grow_l1(image: Image, entries: int) -> None:
    """Move the L1 table to a place with room for more entries.

    On disk: counts and the new table, sync, the header that points to it, sync; then the old table
    is free.

    Raises:
        OSError: EFBIG, or it could not be written; the old table stands.
    """
    if entries <= image.header.l1_size:
        return
    if entries * 8 > layout.MAX_L1_BYTES:
        raise os_error(errno.EFBIG)
    if image.lazy:
        await image.set_dirty()
    # No L1 entry changes while the lock is held, and what had changed is written back first.
    async with image.change_lock:
        await image.write_back()
        await _move_l1(image, entries)


async def _move_l1(image: Image, entries: int) -> None:
    header = image.header
    size = image.geometry.cluster_size
    bits = image.geometry.cluster_bits
    clusters = -(-entries * 8 // size)
    debug_event = image.file.driver.debug_event
    debug_event("l1_grow_alloc_table")
    first = await image.refcounts.take_exactly(clusters)
    grown = image.l1[:]
    grown.extend([0] * (entries - len(grown)))
    old = header.l1_table_offset, header.l1_size
    try:
        debug_event("l1_grow_write_table")
        await image.file.write(first << bits, memoryview(layout.table_to_bytes(grown)))
        image.used((first + clusters) << bits)
        if not image.lazy:
            await image.write_back_refcounts()
        await image.file.flush()
        fields = layout.L1_FIELDS.pack(entries, first << bits)
        debug_event("l1_grow_activate_table")
        await image.file.write(layout.AT_L1, memoryview(fields))
        await image.file.flush()
    except BaseException:
        image.free(first, clusters, FREE_SILENT)
        raise
    header.l1_size, header.l1_table_offset = entries, first << bits
    image.l1 = grown
    image.overlaps.add(first << bits, entries * 8, ACTIVE_L1)
    if old[1]:
        image.overlaps.remove(old[0], old[1] * 8)
        image.free(old[0] >> bits, -(-old[1] * 8 // size), FREE_OTHER)


async def preallocate(image: Image, start: int, end: int, mode: str) -> None:
    """Give guest clusters host clusters of their own, which read as zeroes.

    Clusters that are mapped already are left alone.

    Raises:
        QmpError: The space could not be reserved.
    """
    size = image.geometry.cluster_size
    offset = align_down(start, size)
    try:
        while offset < end:
            table = await image.writable_slice(offset)
            offset += await _preallocate_run(image, table, offset, end, mode)
        if not image.external_data:
            # Clusters without content belong to the file all the same.
            if image.file.length() < image.high_water:
                await image.file.truncate(image.high_water)
    except OSError as exc:
        raise QmpError(f"Could not preallocate metadata: {describe(exc)}") from exc


async def _preallocate_run(
    image: Image, table: array[int], offset: int, end: int, mode: str
) -> int:
    """Preallocate some clusters of one slice; return how many bytes are done."""
    geometry = image.geometry
    bits = geometry.cluster_bits
    words = geometry.entry_words
    index = (offset >> bits) & (image.slice_entries - 1)
    wanted = min(image.slice_entries - index, (end - offset + geometry.cluster_size - 1) >> bits)
    count = 0
    while count < wanted and not table[(index + count) * words] & ~ZERO_FLAG:
        count += 1
    if not count:
        return geometry.cluster_size
    if image.external_data:
        host = offset
    else:
        host, count = await _reserve(image, count, mode)
    # Without a backing file plain data entries do, as the space reads as zeroes; else, and for
    # extended entries, clusters are reserved but not in use.
    backed = image.node.children.get("backing") is not None or image.header.backing_file is not None
    table = await image.writable_slice(offset)
    for number in range(count):
        at = (index + number) * words
        zero = bool(table[at] & ZERO_FLAG) and words == 1
        entry = host + (number << bits) | COPIED
        if words == 2:
            table[at] = entry
            if mode in ("falloc", "full") and not backed and table[at + 1] != ALL_ZERO:
                table[at + 1] = ALL_ALLOCATED
        else:
            table[at] = entry | ZERO_FLAG if zero or backed or image.encrypted else entry
    image.l2.mark(offset >> image.slice_bits, index * words, (index + count) * words)
    image.needs_barrier = True
    return count << bits


async def _reserve(image: Image, count: int, mode: str) -> tuple[int, int]:
    """Take host clusters that read as zeroes; returns (host offset, clusters)."""
    bits = image.geometry.cluster_bits
    first, count = await image.refcounts.take(count)
    host, length = first << bits, count << bits
    fresh = host >= image.high_water
    image.used(host + length)
    try:
        if mode == "falloc":
            await image.file.zero(host, min(length, max(image.file.length() - host, 0)))
            if image.file.length() < host + length:
                await image.file.truncate(host + length, prealloc="falloc")
        elif mode == "full":
            await _write_zeroes(image.file, host, length)
        elif not fresh:
            await image.file.zero(host, min(length, max(image.file.length() - host, 0)), MAY_UNMAP)
    except BaseException:
        image.free(first, count, FREE_SILENT)
        raise
    return host, count


async def _write_zeroes(node: Node, offset: int, length: int) -> None:
    for at in range(0, length, ZERO_CHUNK):
        await node.write(offset + at, ZEROES[: min(ZERO_CHUNK, length - at)])


# Shrinking


async def _shrink(image: Image, changer: Changer, length: int) -> None:
    geometry = image.geometry
    try:
        await _clear_tail(image, length)
        start = align_up(length, geometry.cluster_size)
        if start < image.header.size:
            await changer.discard(start, image.header.size - start, full=True)
    except OSError as exc:
        raise QmpError(f"Failed to discard cropped clusters: {describe(exc)}") from exc
    try:
        needed = geometry.l1_entries(length)
        if needed < len(image.l1):
            image.file.driver.debug_event("l1_shrink_write_table")
        for index in range(needed, len(image.l1)):
            if image.l1[index] & OFFSET_MASK:
                image.file.driver.debug_event("l1_shrink_free_l2_clusters")
                image.clear_l1_entry(index)
        await image.write_back(durable=True)
        await _set_size(image, length)
        if image.external_data:
            await image.data_edge.node.truncate(length)
    except OSError as exc:
        raise QmpError(f"Failed to reduce the number of L2 tables: {describe(exc)}") from exc
    await _cut_file(image)


async def _clear_tail(image: Image, length: int) -> None:
    """Zero what the last cluster that stays holds beyond the new end.

    It must not reappear should the image grow again.  What a backing file holds there is hidden
    when that happens, so nothing is allocated for it here.
    """
    end = min(align_up(length, image.geometry.cluster_size), image.header.size)
    while length < end:
        status = await image.node.block_status(length, end - length)
        if status.flags & ST_ALLOCATED and not status.flags & ST_ZERO:
            await image.node.zero(length, status.length)
        length += status.length


async def _cut_file(image: Image) -> None:
    """Let the file end with the last cluster in use, whole; failure only costs space.

    A new image ends inside its last cluster.  After shrinking, the C daemon's file ends behind it.
    """
    if image.lazy:
        return  # counts on disk are stale: the place of the last cluster is not to be trusted
    try:
        await image.write_back(durable=True)
        last = await image.refcounts.last_used()
        end = (last + 1) << image.geometry.cluster_bits
        if end != image.file.length():
            await image.file.truncate(end)
            image.high_water = end
    except (OSError, QmpError):
        pass
