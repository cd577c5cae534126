# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Small writes to files whose cached pages are many to a folio.

What was read ahead, or written in large pieces, lies in the page cache in folios of up to 2 MiB.
Some file systems (ext4 since Linux 6.16) look at every block of a folio at each write to it, so
that 4 KiB take 35 to 55 us in place of 4.  Nothing but such a write shows it, and nothing but
smaller folios cures it.

The kernel takes a folio apart when a process that maps it says of a part of it that it will not be
needed soon (madvise(2), MADV_COLD): the rest should not share that part's fate.  All of it stays
cached; only the page that was named becomes an early candidate for reclaim, and as it is about to
be written to, that is soon forgotten.  A folio with changes that are not written back stays whole,
so it must be done before the first write to a folio::

    quiet ──slow small writes take 5% of the time──▶ splitting: each block is looked at
      ▲                                              before a small write to it, once in 5 s
      └────────── they have not for 10 s ────────────────┘

Measured on such a file, in us: writes of 4 KiB 35 before and 4 after, 64 KiB 51 and 33, 1 MiB 233
and 251; reads of 64 KiB 11 and 15, 1 MiB 159 and 193.  Taking a folio apart costs 50.  Where it
does not help, 21 us for every 1 MiB that small writes go to, once in 5 s, are lost.
"""

from __future__ import annotations

import functools
import mmap
from time import monotonic
from typing import TYPE_CHECKING, Final

from qsd.aio.pagecache import CacheProbe

if TYPE_CHECKING:
    from collections.abc import Callable

#: Bytes; what a small write is.  For longer ones the blocks around matter less.
SMALL: Final = 16 << 10
#: Seconds; a small write that takes longer may have met a large folio.
SLOW_SMALL: Final = 20e-6
#: Seconds; when such writes take so much of each `_SPAN`, something should be done.
_ENOUGH: Final = 0.005
_SPAN: Final = 0.1
#: Seconds; what takes longer waited for something else, and counts as this.
_LONGEST: Final = 100e-6
#: Seconds; how long folios are split after that.
_SPLITTING: Final = 10.0
#: Seconds after which a block is looked at again: it may have been written back since.
_AGAIN: Final = 5.0
#: Blocks are looked at once.  More often would help with smaller folios, which matter less.
_BLOCK_BITS: Final = 20
#: Blocks that are remembered.
_MAX_BLOCKS: Final = 1 << 15

#: linux/mman.h, asm-generic/mman-common.h.
_PROT_READ, _MAP_SHARED = 1, 1
_MADV_COLD, _MADV_POPULATE_READ = 20, 22


@functools.cache
def _splitter() -> Callable[[int, int], None]:
    """Return a function that splits the folio at an offset of a file.

    The page there is in the page cache, or it would be read now.  Python's own mmap keeps a
    duplicate of the descriptor meanwhile, which costs as much again.
    """
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    size_t, pointer, integer = ctypes.c_size_t, ctypes.c_void_p, ctypes.c_int
    map_memory = libc.mmap
    map_memory.restype = pointer
    map_memory.argtypes = (pointer, size_t, integer, integer, integer, ctypes.c_int64)
    advise = libc.madvise
    advise.argtypes = (pointer, size_t, integer)
    unmap = libc.munmap
    unmap.argtypes = (pointer, size_t)
    page, failed = mmap.PAGESIZE, pointer(-1).value

    def split(fd: int, offset: int) -> None:
        address = map_memory(None, page, _PROT_READ, _MAP_SHARED, fd, offset & -page)
        if address is None or address == failed:
            return
        # Nobody touches the memory, so nobody can be killed for it.
        if not advise(address, page, _MADV_POPULATE_READ):
            advise(address, page, _MADV_COLD)
        unmap(address, page)

    return split


class FolioSplitter:
    """Splits folios of one file for the sake of small writes.  Times are monotonic seconds.

    Attributes:
        until: Before this time, call :meth:`prepare` before each small write.
    """

    __slots__ = ("_looked_at", "_probe", "_remember_until", "_since", "_slow", "until")

    def __init__(self) -> None:
        self.until = 0.0
        self._slow = 0.0
        self._since = 0.0
        self._looked_at: set[int] = set()
        self._remember_until = 0.0
        self._probe = CacheProbe()

    def was_slow(self, before: float, after: float) -> None:
        """Take note of a small write that took longer than `SLOW_SMALL`."""
        if after - self._since > _SPAN:
            self._since = after
            self._slow = 0.0
        self._slow += min(after - before, _LONGEST)
        if self._slow >= _ENOUGH:
            self.until = after + _SPLITTING

    def prepare(self, fd: int, offset: int, now: float) -> float:
        """Split the folio that is about to be written to, unless that was tried of late.

        Returns:
            When the write begins.
        """
        seen = self._looked_at
        if now > self._remember_until or len(seen) >= _MAX_BLOCKS:
            seen.clear()
            self._remember_until = now + _AGAIN
        block = offset >> _BLOCK_BITS
        if block in seen:
            return now
        seen.add(block)
        if self._probe.is_cached(fd, offset, 1):
            _splitter()(fd, offset)
        return monotonic()
