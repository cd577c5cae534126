# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Buffers aligned in memory, for I/O that goes around the page cache.

With O_DIRECT the kernel wants the address of a buffer to be a multiple of the device's block size
(open(2), "O_DIRECT").  Callers bring buffers of any address, so their bytes pass through one of
these.  A buffer is an anonymous mapping and therefore starts at a page.

Buffers are kept for the next request: fresh memory has to be zeroed and mapped page by page, which
costs more than copying through memory that is already there.
"""

from __future__ import annotations

import mmap
from collections import deque
from typing import Final, Self

#: Bytes; the smallest buffer is one page.
_SMALLEST: Final = mmap.PAGESIZE
#: Bytes; larger buffers are not kept.
_LARGEST_KEPT: Final = 4 << 20
#: Bytes per size that are kept at most; 64 MiB in all for the eleven sizes there are at worst.
_KEPT_PER_SIZE: Final = 6 << 20


class AlignedBuffer(mmap.mmap):
    """A buffer that starts at a page.

    Attributes:
        address: Where in memory.
        view: All of it, made once.
    """

    address: int
    view: memoryview

    def __new__(cls, size: int) -> Self:
        """Map `size` bytes of fresh memory."""
        import ctypes

        self = super().__new__(cls, -1, size)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self))
        self.view = memoryview(self)
        return self

    def close(self) -> None:
        """Unmap the memory."""
        self.view.release()
        super().close()


class BouncePool:
    """Aligned buffers, by powers of two.  Its methods may be called from any thread.

    The deques' own operations are atomic, which is all that is needed here.
    """

    __slots__ = ("_free",)

    def __init__(self) -> None:
        self._free: dict[int, deque[AlignedBuffer]] = {}

    def take(self, length: int) -> AlignedBuffer:
        """Return a buffer of at least `length` bytes with unknown content."""
        size = max(_SMALLEST, 1 << (length - 1).bit_length())
        try:
            return self._free[size].pop()
        except LookupError:
            return AlignedBuffer(size)

    def give(self, buffer: AlignedBuffer) -> None:
        """Give a buffer back.  The caller must have released all views of it."""
        size = len(buffer)
        if size <= _LARGEST_KEPT:
            free = self._free.get(size)
            if free is None:
                free = self._free.setdefault(size, deque())
            if (len(free) + 1) * size <= _KEPT_PER_SIZE:
                free.append(buffer)
                return
        buffer.close()

    def kept(self) -> int:
        """Return the number of bytes kept for later."""
        return sum(size * len(free) for size, free in self._free.items())
