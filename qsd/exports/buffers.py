# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Buffers for payload, used again and again.

New memory costs a page fault for every 4 KiB at its first use, which halves the throughput of large
requests.  So buffers come from a pool of a few size classes and go back to it, last in first out:
the next user gets the one that is still in the processor's cache.

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
_BATCH_CLASS: Final = 2
#: Bytes; the class for a batch of requests or replies.
BATCH: Final = CLASSES[_BATCH_CLASS]
#: Bytes of unused buffers that the pool keeps in each class; what goes beyond is freed.
MAX_IDLE: Final = (1 << 20, 4 << 20, 16 << 20, 16 << 20, 40 << 20)


class Buffer:
    """A piece of memory from a pool.

    Attributes:
        data: The memory itself.
        view: All of it as a memoryview, made once.
        size: Its length in bytes.
        holders: How many still use it.
    """

    __slots__ = ("_home", "_limit", "data", "holders", "size", "view")

    def __init__(self, size: int, home: list[Buffer], limit: int) -> None:
        """Make a buffer.

        Args:
            size: Bytes.
            home: Where it goes when nobody uses it.
            limit: How many may be there; beyond it is freed.
        """
        self._home = home
        self._limit = limit
        self.data = bytearray(size)
        self.view = memoryview(self.data)
        self.size = size
        self.holders = 1

    def hold(self, count: int = 1) -> None:
        """Keep the buffer from being given back, until it is dropped so many times more."""
        self.holders += count

    def drop(self) -> None:
        """Stop using the buffer."""
        self.holders -= 1
        if not self.holders:
            home = self._home
            if len(home) < self._limit:
                home.append(self)


class BufferPool:
    """Unused buffers by class.

    Attributes:
        batches: Those of the class for batches.  Who is done before anybody else can run may use
            the last one where it is.
    """

    __slots__ = ("_idle", "batches")

    def __init__(self) -> None:
        self._idle: tuple[list[Buffer], ...] = tuple([] for _ in CLASSES)
        self.batches = self._idle[_BATCH_CLASS]

    def take_batch(self) -> Buffer:
        """Return a buffer of the class for batches with unknown content and one holder."""
        if self.batches:
            buffer = self.batches.pop()
            buffer.holders = 1
            return buffer
        return self.take(BATCH)

    def take(self, length: int) -> Buffer:
        """Return a buffer of at least `length` bytes with unknown content and one holder."""
        index = bisect_left(CLASSES, length)
        if index == len(CLASSES):
            return Buffer(length, [], 0)
        idle = self._idle[index]
        if idle:
            buffer = idle.pop()
            buffer.holders = 1
            return buffer
        size = CLASSES[index]
        return Buffer(size, idle, MAX_IDLE[index] // size or 1)

    def idle_bytes(self) -> int:
        """Return how many bytes of unused buffers are kept."""
        return sum(buffer.size for idle in self._idle for buffer in idle)
