# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Where metadata lies, so that nothing else is written there (the overlap-check option).

A damaged image may count clusters as free, or map guest ranges to clusters, that hold metadata.
Writing there would destroy the rest of the image; so every newly allocated range, and every range
that an L2 table says may be overwritten, is looked up here first.

The places of all guarded structures are one dict by cluster.  It is looked into when clusters are
allocated and when an L2 table is loaded, not when a request finds its mapping in a cached table.
While nothing was ever changed, tables are loaded without that (:meth:`Image.guard` begins it): the
look takes longer than all else that the status of a table's clusters needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from qsd.formats.qcow2.layout import COPIED, OFFSET_MASK, REFTABLE_MASK
from qsd.util.zeroes import is_zero

if TYPE_CHECKING:
    from array import array
    from collections.abc import Sequence

    from qsd.formats.qcow2.layout import Geometry, Header
    from qsd.formats.qcow2.snapshots import Snapshot

# What is checked, as bits; names as the messages have them.
MAIN_HEADER: Final = 1
ACTIVE_L1: Final = 2
ACTIVE_L2: Final = 4
REFCOUNT_TABLE: Final = 8
REFCOUNT_BLOCK: Final = 16
SNAPSHOT_TABLE: Final = 32
INACTIVE_L1: Final = 64
INACTIVE_L2: Final = 128
BITMAP_DIRECTORY: Final = 256

TEXTS: Final = {
    MAIN_HEADER: "qcow2_header",
    ACTIVE_L1: "active L1 table",
    ACTIVE_L2: "active L2 table",
    REFCOUNT_TABLE: "refcount table",
    REFCOUNT_BLOCK: "refcount block",
    SNAPSHOT_TABLE: "snapshot table",
    INACTIVE_L1: "inactive L1 table",
    INACTIVE_L2: "inactive L2 table",
    BITMAP_DIRECTORY: "bitmap directory",
}

#: The checks of each template (QMP reference, "Qcow2OverlapCheckMode").
TEMPLATES: Final = {
    "none": 0,
    "constant": MAIN_HEADER | REFCOUNT_TABLE | SNAPSHOT_TABLE | ACTIVE_L1 | BITMAP_DIRECTORY,
    "cached": 0x1FF & ~INACTIVE_L2,
    "all": 0x1FF,
}


#: Clusters that are kept in mind at most; count.  A sound image has far fewer, and a hostile one,
#: with its tens of thousands of huge snapshot tables, gets no more memory out of us.
_MAX_PLACES: Final = 1 << 20
#: Entries that are looked at in one go.
_PIECE: Final = 1024


class Overlaps:
    """The places of metadata in one image.

    Attributes:
        checks: Which structures are guarded.
        end: Of the last place that was ever guarded, bytes; nothing is behind it.
    """

    __slots__ = ("_bits", "_places", "checks", "end")

    def __init__(self, geometry: Geometry, checks: int) -> None:
        self.checks = checks
        self._bits = geometry.cluster_bits
        # Keys are L2 entries that would map a guest cluster there, so that a whole table can be
        # compared with them at once; values are the kinds.
        self._places: dict[int, int] = {}
        self.end = 0

    def load(
        self,
        header: Header,
        l1: array[int],
        reftable: array[int],
        snapshots: Sequence[Snapshot],
    ) -> None:
        """Take note of everything that an image has."""
        self._places.clear()
        bits = self._bits
        self.add(0, 1 << bits, MAIN_HEADER)
        self.add(header.l1_table_offset, header.l1_size * 8, ACTIVE_L1)
        length = header.refcount_table_clusters << bits
        self.add(header.refcount_table_offset, length, REFCOUNT_TABLE)
        # Both tables are mostly zeroes, and long: the refcount table is a cluster at least.
        for entry in filter(None, l1):
            if entry & OFFSET_MASK:
                self.add(entry & OFFSET_MASK, 1, ACTIVE_L2)
        for entry in filter(None, reftable):
            if entry & REFTABLE_MASK:
                self.add(entry & REFTABLE_MASK, 1, REFCOUNT_BLOCK)
        if snapshots:
            length = sum(snapshot.length for snapshot in snapshots)
            self.add(header.snapshots_offset, length, SNAPSHOT_TABLE)
        for snapshot in snapshots:
            self.add(snapshot.l1_table_offset, snapshot.l1_size * 8, INACTIVE_L1)

    def add(self, offset: int, length: int, kind: int) -> None:
        """Guard a table, if its kind is to be guarded."""
        if not self.checks & kind or not length:
            return
        places = self._places
        size = 1 << self._bits
        start = offset & -size
        if (length >> self._bits) + len(places) > _MAX_PLACES:
            return
        self.end = max(self.end, (offset + length + size - 1) & -size)
        for place in range(start | COPIED, (offset + length) | COPIED, size):
            places[place] = kind

    def remove(self, offset: int, length: int) -> None:
        """Stop guarding what stands at a place."""
        size = 1 << self._bits
        for place in range(offset | COPIED, (offset + length) | COPIED, size):
            self._places.pop(place, None)

    def find(self, offset: int, length: int) -> str | None:
        """Return what a host range overlaps with, None if nothing."""
        size = 1 << self._bits
        first = offset & -size
        if offset + length <= first + size:  # most are one cluster
            kind = self._places.get(first | COPIED)
            return None if kind is None else TEXTS[kind]
        for place in range(first | COPIED, (offset + length) | COPIED, size):
            kind = self._places.get(place)
            if kind is not None:
                return TEXTS[kind]
        return None

    def guards_any(self, table: array[int]) -> bool:
        """Tell whether an L2 table maps a guest cluster, as writable, to metadata."""
        places = self._places.keys()
        for start in range(0, len(table), _PIECE):
            piece = table[start : start + _PIECE]
            # The tables of a thin image are empty for the most part.
            if not (is_zero(memoryview(piece).cast("B")) or places.isdisjoint(piece)):
                return True
        return False
