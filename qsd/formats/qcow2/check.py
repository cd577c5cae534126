# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Counting references anew: consistency checks, and the repair of images with the dirty bit.

With lazy refcounts the counts on disk are stale while an image is in use; the dirty bit says so.
If it is found set when an image is opened for writing, the counts are computed from what the tables
refer to.  The rest of the metadata is sound by the order in which it is written.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Final

from qsd.errors import QmpError
from qsd.formats.qcow2 import bitmaps as bitmap_io
from qsd.formats.qcow2 import header as header_io
from qsd.formats.qcow2 import layout
from qsd.formats.qcow2.layout import COMPRESSED, COPIED, OFFSET_MASK, REFTABLE_MASK

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qsd.formats.qcow2.bitmaps import BitmapEntry
    from qsd.formats.qcow2.image import Image

#: Bytes of an L1 table of a snapshot; what exceeds it belongs to no sound image.
_MAX_L1: Final = layout.MAX_L1_BYTES


class References:
    """How often each host cluster is referred to.

    Attributes:
        counts: By cluster number, up to the end of the file.
        outside: Number of references to places beyond the end of the file.
        misaligned: Number of table entries that point between clusters.
    """

    __slots__ = ("_image", "counts", "misaligned", "outside")

    def __init__(self, image: Image) -> None:
        self._image = image
        size = image.geometry.cluster_size
        self.counts = array("Q", bytes(8 * -(-image.file.length() // size)))
        self.outside = 0
        self.misaligned = 0

    def add(self, offset: int, length: int) -> None:
        """Count a reference to every cluster of a byte range."""
        if not length:
            return
        bits = self._image.geometry.cluster_bits
        counts = self.counts
        end = ((offset + length - 1) >> bits) + 1
        if end > len(counts):
            self.outside += 1
            if end > len(counts) + (layout.MAX_L1_BYTES >> bits) + 1:
                return
            # A table that ends beyond the end of the file is there: what is missing reads as zero.
            counts.extend([0] * (end - len(counts)))
        for cluster in range(offset >> bits, end):
            counts[cluster] += 1

    def add_table(self, offset: int, length: int) -> None:
        """Count a reference to a table, which must start with a cluster."""
        if offset % self._image.geometry.cluster_size:
            self.misaligned += 1
        else:
            self.add(offset, length)


async def count_references(image: Image, bitmaps: Sequence[BitmapEntry]) -> References:
    """Walk through all metadata of an image.

    Raises:
        OSError: Something could not be read.
    """
    found = References(image)
    header = image.header
    size = image.geometry.cluster_size
    found.add(0, size)
    found.add_table(header.refcount_table_offset, header.refcount_table_clusters * size)
    for entry in image.refcounts.table:
        if entry & REFTABLE_MASK:
            found.add_table(entry & REFTABLE_MASK, size)
    found.add_table(header.l1_table_offset, header.l1_size * 8)
    await _count_l1(image, found, image.l1)
    if image.snapshots:
        found.add(header.snapshots_offset, max(sum(s.length for s in image.snapshots), 1))
    for snapshot in image.snapshots:
        length = snapshot.l1_size * 8
        if length > _MAX_L1 or snapshot.l1_table_offset % size:
            found.misaligned += 1
            continue
        found.add_table(snapshot.l1_table_offset, length)
        await _count_l1(
            image, found, await image.read_l1(snapshot.l1_table_offset, snapshot.l1_size)
        )
    if header.crypt_method == 2:
        body = header.extension(layout.EXT_CRYPTO)
        if body is not None and len(body) >= 16:
            found.add_table(*(layout.U64.unpack_from(body, at)[0] for at in (0, 8)))
    extension = bitmap_io.active_extension(header)
    if extension is not None:
        found.add_table(extension.directory_offset, extension.directory_size)
        for bitmap in bitmaps:
            found.add_table(bitmap.bitmap_table_offset, bitmap.bitmap_table_size * 8)
            if bitmap.bitmap_table_offset % size == 0:
                table = await image.read_l1(bitmap.bitmap_table_offset, bitmap.bitmap_table_size)
                for entry in table:
                    if entry & OFFSET_MASK:
                        found.add_table(entry & OFFSET_MASK, size)
    return found


async def _count_l1(image: Image, found: References, l1: array[int]) -> None:
    size = image.geometry.cluster_size
    for entry in l1:
        offset = entry & OFFSET_MASK
        if not offset:
            continue
        found.add_table(offset, size)
        if offset % size == 0:
            raw = bytearray(size)
            await image.file.read_or_zero(offset, memoryview(raw))
            _count_l2(image, found, layout.table_from_bytes(raw))


def _count_l2(image: Image, found: References, table: array[int]) -> None:
    size = image.geometry.cluster_size
    for entry in table[:: image.geometry.entry_words]:
        if entry & COMPRESSED:
            offset, length = image.geometry.compressed_range(entry)
            # The last sector counted may lie beyond the end of the file: data ends before it.
            found.add(offset, min(length, max(image.file.length() - offset, 1)))
        elif entry & OFFSET_MASK and not image.external_data:
            found.add_table(entry & OFFSET_MASK, size)


class CheckResult:
    """The difference between counts and references.

    Attributes:
        corruptions: Clusters counted too low, misplaced tables, wrong COPIED flags.
        leaks: Clusters counted too high.
    """

    __slots__ = ("corruptions", "leaks")

    def __init__(self) -> None:
        self.corruptions = 0
        self.leaks = 0


async def check(image: Image, bitmaps: Sequence[BitmapEntry]) -> CheckResult:
    """Compare what is counted with what is referred to; everything must be written back before.

    Raises:
        OSError: Something could not be read.
    """
    found = await count_references(image, bitmaps)
    result = CheckResult()
    result.corruptions = found.misaligned + found.outside
    for cluster, references in enumerate(found.counts):
        count = await image.refcounts.get(cluster)
        if count < references:
            result.corruptions += 1
        elif count > references:
            result.leaks += 1
    result.corruptions += await _wrong_flags(image)
    return result


async def _wrong_flags(image: Image) -> int:
    """Count active entries whose COPIED flag does not agree with the count."""
    wrong = 0
    bits = image.geometry.cluster_bits
    for entry in image.l1:
        offset = entry & OFFSET_MASK
        if not offset:
            continue
        wrong += bool(entry & COPIED) != (await image.refcounts.get(offset >> bits) == 1)
        raw = bytearray(image.geometry.cluster_size)
        await image.file.read_or_zero(offset, memoryview(raw))
        table = layout.table_from_bytes(raw)
        for inner in table[:: image.geometry.entry_words]:
            if inner & COMPRESSED or not inner & OFFSET_MASK or image.external_data:
                continue
            count = await image.refcounts.get((inner & OFFSET_MASK) >> bits)
            wrong += bool(inner & COPIED) != (count == 1)
    return wrong


async def repair_refcounts(image: Image, bitmaps: Sequence[BitmapEntry]) -> None:
    """Compute all counts anew and clear the dirty bit.

    Raises:
        QmpError: The image has damage that counting does not repair.
        OSError: Something could not be read or written.
    """
    found = await count_references(image, bitmaps)
    if found.misaligned:
        header = image.header
        header.incompatible_features |= layout.INCOMPAT_CORRUPT
        await header_io.write_features(image.file, header)
        raise QmpError("Could not repair dirty image: Input/output error")
    await image.refcounts.rebuild(found.counts)
    await image.write_back_refcounts()
    if not image.external_data:
        from qsd.formats.qcow2.snapshot_changes import refresh_flags

        # What is shared now may not be known as such: a snapshot was being taken or deleted.
        await refresh_flags(image)
        await image.write_back(durable=True, with_refcounts=True)
    await image.file.flush()
    image.high_water = max(image.high_water, image.file.length())
    await image.set_clean()
