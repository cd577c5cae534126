# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Where guest data lies, by tables that are in memory: a fast path.

The hottest functions of the format: no call and no object beyond arithmetic.  What they do not find
is left to :mod:`qsd.formats.qcow2.mapping`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from qsd.formats.qcow2.layout import COPIED

if TYPE_CHECKING:
    from array import array

#: All bits of an entry but COPIED.
PLAIN: Final = (1 << 64) - 1 - COPIED


class Lookups:
    """Finds clusters; a part of what has the attributes.

    Attributes (those of the image, as :mod:`qsd.formats.qcow2.layout` has them, unless said
    otherwise):
        _hot: The tables that are in memory, by number of the slice.
        _not_plain: An entry without PLAIN's bit and without these is the offset of plain data.
        _ready: Whether clusters may be written to at once.
    """

    __slots__ = ()

    _bits: int
    _extended: bool
    _hot: dict[int, array[int]]
    _index_mask: int
    _not_plain: int
    _ready: bool
    _slice_bits: int
    _within_mask: int

    def locate_data_nowait(self, offset: int, length: int) -> int:
        """Fast: find plain data in one piece, in a cached table."""
        table = self._hot.get(offset >> self._slice_bits)
        if table is None:
            return -1
        if self._extended:
            return self._locate_extended(table, offset, length, writable=False)
        index = (offset >> self._bits) & self._index_mask
        host = table[index] & PLAIN
        if not host or host & self._not_plain:
            return -1
        within = offset & self._within_mask
        end = within + length
        if end > self._within_mask + 1 and not self._is_run(table, index, end):
            return -1
        return host + within

    def locate_writable_nowait(self, offset: int, length: int) -> int:
        """Fast: like `locate_data_nowait`, for clusters that nobody shares."""
        table = self._hot.get(offset >> self._slice_bits)
        if table is None or not self._ready:
            return -1
        if self._extended:
            return self._locate_extended(table, offset, length, writable=True)
        index = (offset >> self._bits) & self._index_mask
        entry = table[index]
        if entry <= COPIED:
            return -1
        host = entry - COPIED
        if host & self._not_plain:
            return -1
        within = offset & self._within_mask
        end = within + length
        if end > self._within_mask + 1 and not self._is_run(table, index, end):
            return -1
        return host + within

    def _is_run(self, table: array[int], index: int, end: int) -> bool:
        """Tell whether the clusters that reach to `end` behind entry `index` follow each other."""
        size = self._within_mask + 1
        last = index + ((end - 1) >> self._bits)
        if last > self._index_mask:
            return False
        expected = table[index]
        for entry in table[index + 1 : last + 1]:
            expected += size
            if entry != expected:
                return False
        return True

    def _locate_extended(
        self, table: array[int], offset: int, length: int, *, writable: bool
    ) -> int:
        """Fast: the same for extended entries, inside one cluster."""
        index = 2 * ((offset >> self._bits) & self._index_mask)
        entry = table[index]
        host = entry & PLAIN
        if not host or host & self._not_plain or (writable and entry == host):
            return -1
        within = offset & self._within_mask
        if within + length > self._within_mask + 1:
            return -1
        unit_bits = self._bits - 5
        first = within >> unit_bits
        count = ((within + length - 1) >> unit_bits) - first + 1
        wanted = ((1 << count) - 1) << first
        bitmap = table[index + 1]
        if bitmap & wanted != wanted or bitmap >> 32 & wanted:
            return -1
        return host + within


class EncryptedLookups(Lookups):
    """Finds encrypted clusters, which those that want plain data must not find."""

    __slots__ = (
        "_bits", "_extended", "_hot", "_index_mask", "_not_plain", "_ready", "_slice_bits",
        "_within_mask",
    )  # fmt: skip

    def __init__(self, driver: Lookups, hot: dict[int, array[int]]) -> None:
        """Find in `hot` what `driver`, whose image it is, does not."""
        for name in self.__slots__:
            setattr(self, name, getattr(driver, name))
        self._hot = hot
        self._ready = True  # the driver asks its own
