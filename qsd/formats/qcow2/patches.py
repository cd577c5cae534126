# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Filling a range that has nothing yet, with data from files and zeroes between (a fast path).

The plain way is a zero request and an allocation for each piece (``changes.py``).  Here all data of
a range goes to one run of new clusters by one request to the file below, and then all entries are
changed together.  As there, data is written before anything refers to it.

The verdict stands in :mod:`qsd.block.patches`.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from qsd.formats.qcow2.layout import COPIED, ZERO_FLAG
from qsd.formats.qcow2.refcount import FREE_SILENT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qsd.block.mapping import Patch
    from qsd.formats.qcow2.image import Image

#: Start and length of what is data.
_Area = tuple[int, int]


async def write_patches(image: Image, offset: int, length: int, patches: Sequence[Patch]) -> int:
    """Fast: write the start of a range; the caller holds it, and the image may be changed.

    Returns:
        How much was written; 0 if the plain way has to be taken.
    """
    geometry = image.geometry
    size = geometry.cluster_size
    if image.header.version < 3 or geometry.extended or image.external_data or offset % size:
        return 0
    key = offset >> image.slice_bits
    end = min(offset + length, (key + 1) << image.slice_bits)
    patches, areas = _cut(patches, end)
    if any((start | count) % size for start, count in areas):
        return 0
    if end % size and end != image.header.size:
        return 0
    table = await image.writable_slice(offset)
    first = (offset >> geometry.cluster_bits) & (image.slice_entries - 1)
    stop = first + -(-(end - offset) >> geometry.cluster_bits)
    there = table[first:stop]
    if there.count(0) + there.count(ZERO_FLAG) != len(there):
        return 0
    total = sum(count for _, count in areas)
    host = await _write_data(image, patches, total) if total else 0
    if host < 0:
        return 0
    entries = _entries(offset, stop - first, areas, host, size)
    try:
        table = await image.writable_slice(offset)
    except BaseException:
        if total:
            image.free(host >> geometry.cluster_bits, total >> geometry.cluster_bits, FREE_SILENT)
        raise
    # Atomic from here on.
    table[first:stop] = entries
    image.l2.mark(key, first, stop)
    image.needs_barrier = True
    return end - offset


def _cut(patches: Sequence[Patch], end: int) -> tuple[list[Patch], list[_Area]]:
    """Return what comes before an end, and the areas that neighbours form together."""
    kept: list[Patch] = []
    areas: list[_Area] = []
    for patch in patches:
        if patch.offset >= end:
            break
        if patch.offset + patch.length > end:
            patch = patch._replace(length=end - patch.offset)
        kept.append(patch)
        if areas and sum(areas[-1]) == patch.offset:
            areas[-1] = areas[-1][0], areas[-1][1] + patch.length
        else:
            areas.append((patch.offset, patch.length))
    return kept, areas


async def _write_data(image: Image, patches: Sequence[Patch], total: int) -> int:
    """Write all patches side by side to new clusters; return where, -1 if that is impossible."""
    bits = image.geometry.cluster_bits
    image.announce_allocation()
    wanted = total >> bits
    run = image.refcounts.take_nowait(wanted) or await image.refcounts.take(wanted, check=False)
    done = 0
    try:
        host = run[0] << bits
        if run[1] == wanted:
            await image.check_new(*run)
            image.used(host + total)
            there, side_by_side = host, []
            for patch in patches:
                side_by_side.append(patch._replace(offset=there))
                there += patch.length
            done = await image.data_edge.node.write_patches(host, total, side_by_side, 0)
    finally:
        if done != total:
            image.free(*run, FREE_SILENT)
    return host if done == total else -1


def _entries(offset: int, count: int, areas: Sequence[_Area], host: int, size: int) -> array[int]:
    """Return table entries for so many clusters from `offset` on."""
    entries = array("Q", [ZERO_FLAG]) * count
    host |= COPIED
    for start, length in areas:
        first = (start - offset) // size
        clusters = length // size
        entries[first : first + clusters] = array("Q", range(host, host + length, size))
        host += length
    return entries


__all__ = ["write_patches"]
