# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Persistent dirty bitmaps: from the image into memory, and back (qcow2 specification, "Bitmaps").

While an image is open for writing the bitmaps live in memory, and their entries in the directory
say "in use": after a crash nobody trusts what is stored.  Storing makes new tables beside the old
ones, and one write of the header switches over::

    new bitmap data, new tables, new directory  ->  refcounts  -- sync -->  header  -- sync -->
    old directory, tables and data are free

A bitmap that was in use when the image was opened is inconsistent: it can only be removed.
"""

from __future__ import annotations

import errno
import sys
from typing import TYPE_CHECKING, Final

from qsd.block.dirty import CHECK_INCONSISTENT, MAX_NAME, DirtyBitmap, bitmaps_of, check_free
from qsd.errors import QmpError, describe, os_error
from qsd.formats.qcow2 import bitmaps as directory_io
from qsd.formats.qcow2 import header as header_io
from qsd.formats.qcow2 import layout
from qsd.formats.qcow2.bitmaps import FLAG_AUTO, FLAG_IN_USE, BitmapEntry
from qsd.formats.qcow2.layout import OFFSET_MASK
from qsd.formats.qcow2.overlap import BITMAP_DIRECTORY
from qsd.formats.qcow2.refcount import FREE_OTHER
from qsd.util.bitmap import Bitmap
from qsd.util.ranges import align_up

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from qsd.formats.qcow2.image import Image

#: Bytes of bitmap data; more than that is not stored (the C daemon's limit).
_MAX_DATA: Final = 0x20000000
#: Granularities that the format allows, as powers of two.
_MIN_GRANULARITY_BITS: Final = 9
_MAX_GRANULARITY_BITS: Final = 31
#: Bytes of a directory (the C daemon's limit).
_MAX_DIRECTORY: Final = 65535 * 1024
#: A table entry without data: all bits of the cluster are set.
_ALL_ONES: Final = 1


def data_size(length: int, granularity: int) -> int:
    """Return the bytes that the data of a bitmap takes for an image of `length` bytes."""
    bits = -(-length // granularity)
    return -(-bits // 8)


def check_storable(
    image: Image, entries: Iterable[BitmapEntry], name: str, granularity: int
) -> None:
    """Refuse a new persistent bitmap that cannot be stored.

    Raises:
        QmpError: It cannot.
    """
    check_free(image.node, name)
    _check_room(image, entries, name, granularity)


def _check_room(image: Image, entries: Iterable[BitmapEntry], name: str, granularity: int) -> None:
    node = image.node
    problem = _problem(image, entries, name, granularity)
    if problem is not None:
        raise QmpError(f"Can't make bitmap '{name}' persistent in '{node.name}': {problem}")


def _problem(
    image: Image, entries: Iterable[BitmapEntry], name: str, granularity: int
) -> str | None:
    if image.header.version < 3:
        return "Cannot store dirty bitmaps in qcow2 v2 files"
    bits = granularity.bit_length() - 1
    if bits > _MAX_GRANULARITY_BITS:
        return f"Granularity exceeds maximum ({1 << _MAX_GRANULARITY_BITS} bytes)"
    if bits < _MIN_GRANULARITY_BITS:
        return f"Granularity is under minimum ({1 << _MIN_GRANULARITY_BITS} bytes)"
    if data_size(image.header.size, granularity) > _MAX_DATA:
        return "Too much space will be occupied by the bitmap. Use larger granularity"
    if len(name.encode()) > MAX_NAME:
        return f"Name length exceeds maximum ({MAX_NAME} characters)"
    stored = list(entries)
    names = {entry.name for entry in stored}
    for bitmap in bitmaps_of(image.node):
        if bitmap.persistent and bitmap.name is not None:
            names.add(bitmap.name)
    if name not in names and len(names) >= layout.MAX_BITMAPS:
        return f"Maximum number of persistent bitmaps is already reached: {len(names)}"
    return None


# Loading


async def load(image: Image, entries: Iterable[BitmapEntry]) -> None:
    """Make the stored bitmaps known to the node.

    Raises:
        QmpError: One cannot be read.
    """
    node = image.node
    for entry in entries:
        bitmap = DirtyBitmap(
            node, entry.name, 1 << entry.granularity_bits, enabled=bool(entry.flags & FLAG_AUTO)
        )
        bitmap.persistent = True
        if entry.flags & FLAG_IN_USE:
            bitmap.inconsistent = True
            bitmap.enabled = False
        else:
            try:
                await _read_data(image, entry, bitmap.bits)
            except OSError as exc:
                raise QmpError(
                    f"Could not read bitmap '{entry.name}' from image: {describe(exc)}"
                ) from exc
            bitmap.read_only = node.read_only
        bitmap.attach()


async def _read_data(image: Image, entry: BitmapEntry, bits: Bitmap) -> None:
    size = image.geometry.cluster_size
    clusters = -(-data_size(bits.length, bits.granularity) // size)
    if clusters != entry.bitmap_table_size:
        raise QmpError(f"Bitmap '{entry.name}' does not fit the size of the image")
    table = await image.read_l1(entry.bitmap_table_offset, entry.bitmap_table_size)
    buffer = memoryview(bytearray(size))
    for index, pointer in enumerate(table):
        offset = pointer & OFFSET_MASK
        if offset:
            await image.file.read_or_zero(offset, buffer)
            bits.or_bytes(index * size * 8, buffer)
        elif pointer & _ALL_ONES:
            start = index * size * 8 * bits.granularity
            bits.set(start, min(size * 8 * bits.granularity, bits.length - start))


# Storing


class _Taken:
    """Space that was taken for a new directory and what it refers to."""

    __slots__ = ("_image", "runs")

    def __init__(self, image: Image) -> None:
        self._image = image
        self.runs: list[tuple[int, int]] = []

    async def write(self, data: bytes | bytearray) -> int:
        """Write data to new clusters; return its host offset."""
        image = self._image
        bits = image.geometry.cluster_bits
        count = -(-len(data) >> bits)
        first = await image.refcounts.take_exactly(count)
        self.runs.append((first, count))
        offset = first << bits
        image.used((first + count) << bits)
        await image.file.write(offset, memoryview(data.ljust(align_up(len(data), 512), b"\0")))
        return offset

    def give_back(self) -> None:
        """Free everything again: nothing refers to it."""
        for first, count in self.runs:
            self._image.refcounts.release_nowait(first, count)
        self.runs.clear()


async def store(image: Image, entries: list[BitmapEntry]) -> list[BitmapEntry]:
    """Store all persistent bitmaps of the node; return the new directory.

    Bitmaps that are inconsistent keep what they have.  After a failure the old directory is in
    force, its bitmaps in use.

    Raises:
        OSError: Something could not be written.
        QmpError: A bitmap cannot be stored.
    """
    wanted = {
        bitmap.name: bitmap
        for bitmap in bitmaps_of(image.node)
        if bitmap.persistent and bitmap.name is not None and not bitmap.skip_store
    }
    fresh = {
        name: bitmap
        for name, bitmap in wanted.items()
        if not bitmap.inconsistent and not bitmap.read_only
    }
    if not fresh:
        return entries
    order = [entry.name for entry in entries]
    for name, bitmap in fresh.items():
        if name not in order:
            _check_room(image, entries, name, bitmap.granularity)
            order.append(name)
    old = {entry.name: entry for entry in entries}
    taken = _Taken(image)
    replaced: list[BitmapEntry] = []
    try:
        result: list[BitmapEntry] = []
        for name in order:
            if name not in fresh:
                result.append(old[name])
                continue
            result.append(await _store_one(image, taken, fresh[name]))
            if name in old:
                replaced.append(old[name])
        await _switch(image, taken, result)
    except BaseException:
        taken.give_back()
        raise
    await _free_entries(image, replaced)
    return result


async def _store_one(image: Image, taken: _Taken, bitmap: DirtyBitmap) -> BitmapEntry:
    """Store a bitmap and its table.

    Raises:
        OSError: Something could not be written; ENOMEM in an image without any byte, whose bitmaps
            would have tables without entries (the C daemon loses them, too).
    """
    bits = bitmap.bits
    if not bits.length:
        raise os_error(errno.ENOMEM)
    size = image.geometry.cluster_size
    table = [0] * -(-data_size(bits.length, bits.granularity) // size)
    for index, data in _clusters_of(bits, size):
        table[index] = await taken.write(data)
    assert bitmap.name is not None  # only named bitmaps are persistent
    entry = BitmapEntry(bitmap.name)
    entry.bitmap_table_size = len(table)
    entry.granularity_bits = bits.granularity.bit_length() - 1
    entry.flags = FLAG_AUTO if bitmap.enabled else 0
    entry.bitmap_table_offset = await taken.write(b"".join(map(layout.U64.pack, table)))
    return entry


def _clusters_of(bits: Bitmap, size: int) -> Iterator[tuple[int, bytearray]]:
    """Iterate over (table index, data) of the clusters that have a bit set."""
    current = -1
    data = bytearray()
    for bit, leaf in bits.leaf_bytes():
        index, at = divmod(bit // 8, size)
        if index != current:
            if current >= 0:
                yield current, data
            current, data = index, bytearray(size)
        data[at : at + len(leaf)] = leaf
    if current >= 0:
        yield current, data


async def _switch(image: Image, taken: _Taken, entries: list[BitmapEntry]) -> None:
    """Make a new directory effective, and the old one free.

    Raises:
        OSError: The old one is still in force.
    """
    header = image.header
    old = directory_io.active_extension(header)
    before = list(header.extensions), header.autoclear_features
    kept = [item for item in header.extensions if item.kind != layout.EXT_BITMAPS]
    directory = directory_io.pack_directory(entries)
    offset = 0
    if entries:
        if len(directory) > _MAX_DIRECTORY:
            raise QmpError("Bitmap directory is too large")
        offset = await taken.write(directory)
        extension = layout.BitmapsExtension(len(entries), 0, len(directory), offset)
        place = next(
            (n for n, item in enumerate(header.extensions) if item.kind == layout.EXT_BITMAPS),
            len(kept),
        )
        kept.insert(place, layout.Extension(layout.EXT_BITMAPS, extension.pack()))
    # The counts of everything new have to be there before the header refers to it.
    await image.write_back(durable=True, with_refcounts=True)
    await image.sync()
    header.extensions[:] = kept
    header.autoclear_features &= ~layout.AUTOCLEAR_BITMAPS
    if entries:
        header.autoclear_features |= layout.AUTOCLEAR_BITMAPS
    try:
        await header_io.write_whole(image.file, header)
        await image.file.flush()
    except BaseException:
        header.extensions[:], header.autoclear_features = before
        raise
    taken.runs.clear()
    if entries:
        image.overlaps.add(offset, len(directory), BITMAP_DIRECTORY)
    if old is not None:
        image.overlaps.remove(old.directory_offset, old.directory_size)
        _free(image, old.directory_offset, old.directory_size)


def _free(image: Image, offset: int, length: int) -> None:
    bits = image.geometry.cluster_bits
    if length and offset:
        image.free(offset >> bits, -(-length >> bits), FREE_OTHER)


async def _free_entries(image: Image, entries: Iterable[BitmapEntry]) -> None:
    """Free the tables and the data of bitmaps that nothing refers to any more."""
    size = image.geometry.cluster_size
    for entry in entries:
        table = await image.read_l1(entry.bitmap_table_offset, entry.bitmap_table_size)
        for pointer in table:
            _free(image, pointer & OFFSET_MASK, size)
        _free(image, entry.bitmap_table_offset, entry.bitmap_table_size * 8)


async def remove(image: Image, entries: list[BitmapEntry], name: str) -> list[BitmapEntry]:
    """Remove a bitmap from the image; return the new directory.

    Raises:
        OSError: It is still there.
    """
    gone = [entry for entry in entries if entry.name == name]
    if not gone:
        return entries
    rest = [entry for entry in entries if entry.name != name]
    taken = _Taken(image)
    try:
        await _switch(image, taken, rest)
    except BaseException:
        taken.give_back()
        raise
    await _free_entries(image, gone)
    return rest


def warn_lost(image: Image, why: str) -> None:
    """Say that persistent bitmaps could not be stored when the image was closed."""
    if any(bitmap.persistent and not bitmap.inconsistent for bitmap in bitmaps_of(image.node)):
        sys.stderr.write(
            "qemu-storage-daemon: Lost persistent bitmaps during inactivation of node "
            f"'{image.node.name}': {why}\n"
        )
        sys.stderr.flush()


def lost_if_read_only(image: Image) -> bool:
    """Tell whether there are persistent bitmaps that no image ever stored."""
    return any(
        bitmap.persistent and not bitmap.read_only and not bitmap.inconsistent
        for bitmap in bitmaps_of(image.node)
    )


def check_resizable(image: Image) -> None:
    """Refuse to resize an image with bitmaps whose content is lost: their length cannot follow.

    Raises:
        QmpError: It has one.
    """
    for bitmap in reversed(list(bitmaps_of(image.node))):
        if bitmap.persistent:
            bitmap.check(CHECK_INCONSISTENT)


def set_read_only(image: Image, read_only: bool) -> None:
    """Let the stored bitmaps follow the image."""
    for bitmap in bitmaps_of(image.node):
        if bitmap.persistent:
            bitmap.read_only = read_only
