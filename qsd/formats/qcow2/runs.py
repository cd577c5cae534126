# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Block status of many clusters at once: L2 entries looked at by the column.

The fast path of ``mapping.py`` for whoever wants to know of a long range what is data in it.  No
entry is looked at by itself (:mod:`qsd.formats.qcow2.columns`)::

    byte    7           6 .. 1                      0
    entry   .C......    bits of the host offset     .......Z
               |            |             |               |
            compressed   has offset   misaligned      zero flag     one bit each
               |____________|_____ OR ____|_______________|
                                    |
                           kind of the cluster

The map of an image with 32768 extents takes 10 ms of processor time, replies included, where a loop
over its entries takes 83 and asking for one extent after the other 930.
"""

from __future__ import annotations

from itertools import compress
from typing import TYPE_CHECKING, Final

from qsd.block.mapping import ST_DATA, ST_ZERO
from qsd.block.runs import Runs, split
from qsd.formats.qcow2.columns import IS_INSIDE, columns_between, columns_of, told_by
from qsd.formats.qcow2.layout import COMPRESSED, COPIED, OFFSET_MASK, ZERO_FLAG
from qsd.util.zeroes import is_zero

if TYPE_CHECKING:
    from array import array
    from collections.abc import Callable

    from qsd.formats.qcow2.columns import Column
    from qsd.formats.qcow2.image import Image

# What the columns tell of an entry, as bits.
_HAS_ZERO_FLAG: Final = 1
_HAS_OFFSET: Final = 2
_IS_COMPRESSED: Final = 4
_IS_MISALIGNED: Final = 8

# Kinds of clusters; the others are ST_DATA for plain data and ST_ZERO.
_HOLE: Final = 0
_COMPRESSED: Final = 5
_DAMAGED: Final = 255

#: Clusters; what is looked at first, and how many times more each time it was not in vain.
_FIRST_LOOK: Final = 64
_GROWTH: Final = 16


def _kind(told: int) -> int:
    """Return the kind of a cluster from what the columns tell."""
    if told & _IS_COMPRESSED:
        return _COMPRESSED
    if told & _IS_MISALIGNED:
        return _DAMAGED
    if told & _HAS_ZERO_FLAG:
        return ST_ZERO
    return ST_DATA if told & _HAS_OFFSET else _HOLE


_KINDS: Final = bytes(map(_kind, range(256)))
#: Kinds to status flags, by whether there is a backing file that decides what holes are.
_FLAGS: Final = (
    bytes((ST_ZERO, ST_DATA, ST_ZERO, 0, 0, ST_DATA)).ljust(256, b"\0"),
    bytes((0, ST_DATA, ST_ZERO, 0, 0, ST_DATA)).ljust(256, b"\0"),
)
#: Kinds to whether the image decides what is there.
_ALLOCATED: Final = bytes((0, 1, 1, 1, 1, 1)).ljust(256, b"\0")
_IS_PLAIN: Final = bytes(kind == ST_DATA for kind in range(256))


def _kind_columns(cluster_size: int, *, has_zero_flag: bool, external_data: bool) -> list[Column]:
    """Return the columns that tell of what kind clusters are.

    "Standard Cluster Descriptor": bit 0 is reserved in version 2, and ignored there.  An external
    data file can have a cluster at offset 0, and then bit 63 tells that there is one.
    """
    return columns_of(
        (
            (ZERO_FLAG if has_zero_flag else 0, _HAS_ZERO_FLAG),
            (OFFSET_MASK | (COPIED if external_data else 0), _HAS_OFFSET),
            (OFFSET_MASK & (cluster_size - 1), _IS_MISALIGNED),
            (COMPRESSED, _IS_COMPRESSED),
        )
    )


def _anything(entries: array[int], kinds: bytes) -> bool:
    """Trust entries as they are."""
    return True


class RunFinder:
    """Finds the runs of one image."""

    __slots__ = ("_columns", "_image", "_region", "_region_columns")

    def __init__(self, image: Image) -> None:
        self._image = image
        self._columns: list[Column] = []
        #: Where in the file most data lies, and no hole, as far as anybody has looked.
        self._region = (0, 0)
        self._region_columns: list[Column] = []

    def runs_nowait(self, offset: int, length: int, limit: int) -> Runs | None:
        """Fast: describe a range as far as one cached table does; see the driver's base."""
        flags = _FLAGS[self._image.node.children.get("backing") is not None]
        return self._find(offset, length, limit, flags, self._is_trusted)

    def allocated_nowait(self, offset: int, length: int, limit: int) -> Runs | None:
        """Fast: tell what is allocated, as far as one cached table does; see the driver's base."""
        return self._find(offset, length, limit, _ALLOCATED, _anything)

    def _find(
        self,
        offset: int,
        length: int,
        limit: int,
        flags: bytes,
        trusts: Callable[[array[int], bytes], bool],
    ) -> Runs | None:
        """Describe a range as far as one cached table does.

        Args:
            offset: Start.
            length: How far the caller is interested; positive.
            limit: Extents; how many the caller has room for.
            flags: What is said of each kind of cluster.
            trusts: Whether what these entries, which have those kinds, say is all there is to say.
        """
        image = self._image
        if image.broken:
            return None
        runs = Runs()
        key = offset >> image.slice_bits
        table = image.l2.get(key)
        if table is None:
            if image.slice_offset(key):
                return None
            span = 1 << image.slice_bits
            runs.add(min(length, span - (offset & (span - 1))), flags[_HOLE])
            return runs
        if image.geometry.extended:
            return None
        bits = image.geometry.cluster_bits
        size = 1 << bits
        within = offset & (size - 1)
        first = (offset >> bits) & (image.slice_entries - 1)
        wanted = table[first : first + ((within + length + size - 1) >> bits)]
        done = self._look(runs, wanted, limit, flags, trusts)
        if not done:
            return None
        runs.trim(within, max((done << bits) - within - length, 0))
        runs.cut(limit)
        return runs

    def _look(
        self,
        runs: Runs,
        entries: array[int],
        limit: int,
        flags: bytes,
        trusts: Callable[[array[int], bytes], bool],
    ) -> int:
        """Describe the first entries of some; return how many."""
        bits = self._image.geometry.cluster_bits
        done = 0
        step, growth = _FIRST_LOOK, _GROWTH
        while done < len(entries) and len(runs) <= limit:
            piece = entries[done : done + step]
            if is_zero(memoryview(piece).cast("B")):  # most of a thin image
                runs.add(len(piece) << bits, flags[_HOLE])
                done += len(piece)
                step *= growth
                continue
            kinds = self._kinds(piece)
            damaged = kinds.find(_DAMAGED)
            if damaged >= 0:
                kinds = kinds[:damaged]  # the plain way reports it
            if not trusts(piece, kinds):
                if step == 1:
                    break
                step, growth = max(step // _GROWTH, 1), 1
                continue
            runs.extend(*split(kinds.translate(flags), bits), len(kinds) << bits)
            done += len(kinds)
            if len(kinds) < len(piece):
                break
            step *= growth
        return done

    def _kinds(self, entries: array[int]) -> bytes:
        """Return the kind of each entry's cluster."""
        if not self._columns:
            image = self._image
            self._columns = _kind_columns(
                image.geometry.cluster_size,
                has_zero_flag=image.header.version >= 3,
                external_data=bool(image.external_data),
            )
        return told_by(entries.tobytes(), self._columns).translate(_KINDS)

    def _is_trusted(self, entries: array[int], kinds: bytes) -> bool:
        """Tell whether plain data is known not to lie in holes of the file.

        Data of an encrypted image is never zero, whatever the file has.
        """
        image = self._image
        if ST_DATA not in kinds or image.encrypted:
            return True
        if len(entries) > _FIRST_LOOK and self._is_in_region(entries, kinds):
            return True
        plain = list(compress(entries, kinds.translate(_IS_PLAIN)))
        low, high = min(plain), max(plain)
        if (low ^ high) & ~OFFSET_MASK:
            # Some have flags that others lack, so the order is not that of the places.
            hosts = [entry & OFFSET_MASK for entry in plain]
            low, high = min(hosts), max(hosts)
        start, end = low & OFFSET_MASK, (high & OFFSET_MASK) + image.geometry.cluster_size
        known_end = image.data_edge.node.driver.known_data_end(start)
        if known_end < end:
            return False
        if not self._region[0] <= start < self._region[1]:
            self._region = start, start
        return True

    def _is_in_region(self, entries: array[int], kinds: bytes) -> bool:
        """Fast: tell whether all plain data surely lies where data lay before.

        The plain way is to look at every entry: 0.1 ms for 8192 of them instead of 0.35.
        """
        image = self._image
        start, end = self._region
        known_end = image.data_edge.node.driver.known_data_end(start)
        if known_end != end:
            bits = image.geometry.cluster_bits
            self._region = start, known_end
            self._region_columns = columns_between(start, known_end, bits)
        inside = told_by(entries.tobytes(), self._region_columns).translate(IS_INSIDE)
        plain = int.from_bytes(kinds.translate(_IS_PLAIN), "little")
        return not plain & ~int.from_bytes(inside, "little")
