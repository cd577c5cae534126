# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Memory for payload in huge pages, where the kernel has them.

A device moves 64 KiB that lie in a huge page in one piece.  In scattered pages they are sixteen,
each to be pinned, described and looked up, and 1 MiB is more than many devices take (254 pieces),
so that it becomes two requests.  Measured with direct reads at the disk of a virtual machine, in
turns with scattered pages: 64 KiB, 16 at a time, 14,100/s and 11,000/s, with 12 and 16 us of
processor time for each; 1 MiB, 8 at a time and sent through a socket, 868/s and 608/s.

Pieces are cut one behind the other.  A slab lives for as long as any piece of it.
"""

from __future__ import annotations

from mmap import MADV_DONTFORK, MADV_HUGEPAGE, MAP_ANONYMOUS, MAP_PRIVATE, mmap
from typing import Final

#: Bytes; what is mapped at a time.  It takes memory a huge page at a time, as pieces are used.
_SLAB: Final = 8 << 20
#: Bytes; a huge page of most architectures.  Where they are larger, there are none for slabs.
_HUGE: Final = 2 << 20


class Slabs:
    """Cuts pieces; belongs to one thread."""

    __slots__ = ("_address", "_rest")

    def __init__(self) -> None:
        self._rest = memoryview(b"")
        self._address = 0

    def cut(self, size: int) -> tuple[memoryview, int]:
        """Return fresh memory that starts at a page, and its address.

        Args:
            size: Bytes, a multiple of the size of a page; at most 8 MiB.
        """
        if len(self._rest) < size:
            self._map()
        piece, address = self._rest[:size], self._address
        self._rest = self._rest[size:]
        self._address += size
        return piece, address

    def _map(self) -> None:
        """Begin a slab, which starts at a huge page."""
        import ctypes

        mapped = mmap(-1, _SLAB + _HUGE, flags=MAP_PRIVATE | MAP_ANONYMOUS)
        address = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
        skipped = -address % _HUGE
        # Pages shared with a fork could be exchanged while a device is writing to them.
        mapped.madvise(MADV_DONTFORK)
        try:
            mapped.madvise(MADV_HUGEPAGE, skipped, _SLAB)
        except OSError:
            pass  # a kernel without them
        self._rest = memoryview(mapped)[skipped : skipped + _SLAB]
        self._address = address + skipped
