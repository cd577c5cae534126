# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Buffers for payload, used again and again.

New memory costs a page fault for every 4 KiB at its first use, which halves the throughput of large
requests.  So buffers come from a pool of a few size classes and go back to it, last in first out: the
next user gets the one that is still in the processor's cache.

A buffer counts its holders.  Who takes it is the first; a request that goes on using a part of it
while it waits holds it too; the last one to let go gives it back.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Final

#: Bytes beyond the round size of a class: room for the headers around a payload of that size.
_MARGIN: Final = 4096
#: Bytes; the classes, smallest first.
CLASSES: Final = (
    (16 << 10) + _MARGIN,
    (128 << 10) + _MARGIN,
    (256 << 10) + _MARGIN,
    (2 << 20) + _MARGIN,
    (32 << 20) + _MARGIN,
)
#: Bytes; the class for a batch of requests or replies.
BATCH: Final = CLASSES[2]
#: Bytes of unused buffers that the pool keeps; what goes beyond is freed.
MAX_IDLE: Final = 48 << 20


class Buffer:
    """A piece of memory from a pool.

    Attributes:
        data: The memory itself.
        view: All of it as a memoryview, made once.
        size: Its length in bytes.
        holders: How many still use it.
    """

    __slots__ = ("_pool", "data", "holders", "size", "view")

    def __init__(self, pool: BufferPool, size: int) -> None:
        self._pool = pool
        self.data = bytearray(size)
        self.view = memoryview(self.data)
        self.size = size
        self.holders = 0

    def hold(self) -> None:
        """Keep the buffer from being given back."""
        self.holders += 1

    def drop(self) -> None:
        """Stop using the buffer."""
        self.holders -= 1
        if not self.holders:
            self._pool.give(self)


class BufferPool:
    """Unused buffers by class."""

    __slots__ = ("_idle", "_idle_bytes")

    def __init__(self) -> None:
        self._idle: tuple[list[Buffer], ...] = tuple([] for _ in CLASSES)
        self._idle_bytes = 0

    def take(self, length: int) -> Buffer:
        """Return a buffer of at least `length` bytes with unknown content and one holder."""
        index = bisect_left(CLASSES, length)
        if index == len(CLASSES):
            buffer = Buffer(self, length)
        elif self._idle[index]:
            buffer = self._idle[index].pop()
            self._idle_bytes -= buffer.size
        else:
            buffer = Buffer(self, CLASSES[index])
        buffer.holders = 1
        return buffer

    def give(self, buffer: Buffer) -> None:
        """Take a buffer back (called by the last holder's :meth:`Buffer.drop`)."""
        size = buffer.size
        if self._idle_bytes + size > MAX_IDLE or size not in CLASSES:
            return
        self._idle[CLASSES.index(size)].append(buffer)
        self._idle_bytes += size
