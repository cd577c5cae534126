# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Reads and writes as objects with memory of their own, used again and again.

For requests that wait for a device and end without a coroutine.  An operation goes down the graph
in company (:mod:`qsd.block.late`), into the kernel (:mod:`qsd.aio.uring`), and back in the company
of those that ended together.  So each step is a loop in one function instead of a call, and nothing
is allocated for a request.

::

      ┌──────── a page ────────┐┌── payload: starts at a page, as O_DIRECT wants it ──┐
      │                [header]││[data ...                                            │
      └────────────────────────┘└─────────────────────────────────────────────────────┘

What belongs in front of the payload, e.g. the header of a reply, finds its place there, and the
whole is sent in one piece, without a copy.
"""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING, Any, Final, Protocol

from qsd.aio.slabs import Slabs

if TYPE_CHECKING:
    from collections.abc import Callable

#: Bytes in front of the payload.
HEAD: Final = mmap.PAGESIZE
#: Bytes; the longest payload of an operation from a pool.
LONGEST: Final = 2 << 20
#: Bytes; the smallest.
_SMALLEST: Final = mmap.PAGESIZE
#: Bytes of payload of unused operations that are kept for each of the ten sizes.
_KEPT: Final = 4 << 20

#: So many operations go to the kernel together at most.  A device that gets all requests of a
#: client in one go often answers them in one go: then client, daemon and device take turns instead
#: of working side by side.  Measured with 32 of 4 KiB in flight, beside other work: 22,000/s by
#: slices of 8, 24,900/s of 16, 19,500/s without; 8 had the best round.
SLICE: Final = 8

READ: Final = 22
WRITE: Final = 23


class Sink(Protocol):
    """Who is told about the end of operations."""

    def finished(self, operations: list[Any]) -> None:
        """These have ended; each one's result says how."""


class Operation:
    """One read or write.

    Attributes:
        offset: Where, bytes; each layer of the graph changes it to what it means below.
        length: Bytes.
        address: Of the payload in memory.
        result: Bytes that were moved, which may be few, or a negative errno.
        sink: Who is told.
        keep: Owner of the memory; it lives for as long as the kernel uses it.
    """

    __slots__ = ("address", "keep", "length", "offset", "result", "sink")

    def __init__(self, sink: Sink, address: int, length: int, offset: int, keep: object) -> None:
        self.sink = sink
        self.address = address
        self.length = length
        self.offset = offset
        self.keep = keep
        self.result = 0


class LateOperation(Operation):
    """An operation that goes down the graph before it gets to the kernel.

    Attributes:
        holds: What layers claimed for it, the lowest one's last.
        origin: The offset that its owner meant.
    """

    __slots__ = ("holds", "origin")

    def __init__(self, address: int, keep: object) -> None:
        super().__init__(_NOBODY, address, 0, 0, keep)
        self.holds: list[Any] = []
        self.origin = 0

    @property
    def is_full(self) -> bool:
        """Whether all was moved."""
        return self.result == self.length


class PooledOperation(LateOperation):
    """An operation with memory of its own.

    Attributes:
        memory: A page, then the payload.
        piece: The payload as its owner last wanted it, with some bytes in front; see :meth:`cut`.
        tag: Its owner's, e.g. whose reply it is.
        flags: Its owner's.
        size: Bytes of payload that there is room for.
    """

    __slots__ = ("_home", "flags", "memory", "piece", "size", "tag")

    def __init__(self, memory: memoryview, address: int, home: list[PooledOperation]) -> None:
        super().__init__(address + HEAD, memory)
        self.memory = memory
        self.size = len(memory) - HEAD
        self.tag = 0
        self.flags = 0
        self.piece = memory[:0]
        self._home = home

    def payload(self) -> memoryview:
        """Return what was read, or what is to be written."""
        return self.memory[HEAD : HEAD + self.length]

    def cut(self, header: int) -> None:
        """Let `piece` be the payload with so many bytes in front of it.

        It stays like that, so who uses operations of one length only looks at the length of it.
        """
        self.piece = self.memory[HEAD - header : HEAD + self.length]

    def drop(self) -> None:
        """Give the operation back to its pool.  Nothing uses its memory any more."""
        home = self._home
        if (len(home) + 1) * self.size <= _KEPT:
            home.append(self)


def _size(length: int) -> int:
    return max(_SMALLEST, 1 << (length - 1).bit_length())


class OperationPool:
    """Unused operations by size; belongs to the thread of one event loop."""

    __slots__ = ("_idle", "_slabs")

    def __init__(self) -> None:
        self._idle: dict[int, list[PooledOperation]] = {}
        self._slabs = Slabs()

    def shelf(self, length: int) -> list[PooledOperation]:
        """Return the unused operations for so many bytes: who takes the last one saves a call."""
        return self._idle.setdefault(_size(length), [])

    def take(self, length: int) -> PooledOperation:
        """Return an operation for a payload of so many bytes, at most `LONGEST`."""
        idle = self.shelf(length)
        if idle:
            operation = idle.pop()
        else:
            operation = PooledOperation(*self._slabs.cut(HEAD + _size(length)), idle)
        operation.length = length
        return operation

    def idle_bytes(self) -> int:
        """Return how many bytes of payload are kept for later."""
        return sum(size * len(idle) for size, idle in self._idle.items())


class _Nobody:
    """Where operations end that nobody started."""

    def finished(self, operations: list[Any]) -> None:
        """Nothing to do."""


_NOBODY: Final = _Nobody()


class CallbackSink:
    """Tells each operation's own function."""

    def finished(self, operations: list[CalledOperation]) -> None:
        """Tell them one by one."""
        for operation in operations:
            operation.done(operation.result)


_CALLBACKS: Final = CallbackSink()


class CalledOperation(Operation):
    """An operation on somebody's memory that calls a function with its result.

    Attributes:
        done: That function.
    """

    __slots__ = ("done",)

    def __init__(
        self, address: int, length: int, offset: int, keep: object, done: Callable[[int], None]
    ) -> None:
        super().__init__(_CALLBACKS, address, length, offset, keep)
        self.done = done
