# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Reads and writes that wait for a device, many at a time: a fast path.

What :meth:`Backend.read_later` does for one request, a :class:`Route` does for all that a client
has sent together::

    owner ── begin ──▶ Route ── layer.begin ... layer.begin ──▶ ring        refused ones come back
    owner ◀─ finished ─ Route ◀─ layer.end  ...  layer.end  ◀── ring        all that ended together

Each layer is asked once for all of them: it claims what it must hold while the device is busy,
turns their offsets into what they mean below, and refuses what it cannot do like this (a cluster
whose table is not in memory, an unaligned range).  What is refused, or does not end well, the owner
carries out the plain way, by :meth:`Backend.read` and :meth:`Backend.write`.

Only graphs whose layers all know how have a route: files, raw, qcow2 without encryption.  It is
made anew whenever the graph, the permissions or the state of a node change
(:attr:`Backend.generation`); operations on their way hold the backend, so a drained section and a
change of the graph wait for them.

Measured: an NBD read of 4 KiB with O_DIRECT, without the kernel's part, takes 3 us where
`read_later` takes 8, a write 6 where it takes 21.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from qsd.aio.operations import READ, WRITE
from qsd.util.namedtuple import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from qsd.aio.fdio import FileIO
    from qsd.aio.operations import LateOperation, OperationPool, PooledOperation
    from qsd.aio.rangelock import RangeLock

AnyLate = TypeVar("AnyLate", bound="LateOperation")

_REFUSED: Final = -errno.EAGAIN


class User(Protocol):
    """Whose operations these are: a backend.

    Attributes:
        generation: Another number whenever routes may have changed.
        in_flight: Operations on their way.
    """

    generation: int
    in_flight: int

    def end(self, count: int = 1) -> None:
        """So many have ended."""


class Written(Protocol):
    """What is written to: a node.

    Attributes:
        unflushed: Something was written since the last flush.
        wr_highest_offset: End of the highest write so far.
        bitmaps: Who wants to know of each write.
    """

    unflushed: bool
    wr_highest_offset: int
    bitmaps: dict[str, Any]

    def after_write(self, offset: int, length: int) -> None:
        """Account for a change."""


class Starter(Protocol):
    """What operations begin in: a ring.

    Attributes:
        pool: Operations with memory.
    """

    pool: OperationPool

    def start_all(self, opcode: int, fd: int, operations: list[Any]) -> None:
        """Begin operations."""

    def advance(self) -> None:
        """Tell sinks what has ended by now."""


class LateLayer(Protocol):
    """What one node, or its driver, has to do with operations that pass it."""

    def begin(self, operations: Sequence[AnyLate]) -> list[AnyLate]:
        """Let operations pass; return those that may not, as they were."""

    def end(self, operations: Sequence[LateOperation]) -> None:
        """These, which passed, have ended, in whatever way: give up what is held for them."""


class LatePath(NamedTuple):
    """How operations get from a node to a descriptor.

    Attributes:
        io: The descriptor.
        layers: What they pass, from the top down.
    """

    io: FileIO
    layers: tuple[LateLayer, ...]

    def below(self, layer: LateLayer) -> LatePath:
        """Return the path that begins with one more layer."""
        return LatePath(self.io, (layer, *self.layers))


class WriteLayer:
    """A node that is written to: what its :meth:`Node.write` does around the driver."""

    __slots__ = ("_align", "_lock", "_node")

    def __init__(self, node: Written, align: int, lock: RangeLock) -> None:
        """Make the layer.

        Args:
            node: Whose.
            align: What offsets and lengths must be multiples of.
            lock: Keeps these writes apart from unaligned ones, which read first.
        """
        self._node = node
        self._align = align
        self._lock = lock

    def begin(self, operations: Sequence[AnyLate]) -> list[AnyLate]:
        """Claim the ranges."""
        claim, mask, refused = self._lock.claim_nowait, self._align - 1, []
        for operation in operations:
            offset, length = operation.offset, operation.length
            hold = None if (offset | length) & mask else claim(offset, offset + length, False)
            if hold is None:
                refused.append(operation)
            else:
                operation.holds.append(hold)
        return refused

    def end(self, operations: Sequence[LateOperation]) -> None:
        """Give up the claims and account for the changes."""
        node, release = self._node, self._lock.release
        for operation in operations:
            hold = operation.holds.pop()
            release(hold)
            if operation.result == operation.length:
                node.unflushed = True
                # None of these makes the node longer: often there is nothing to account for.
                if node.bitmaps or hold.end > node.wr_highest_offset:
                    node.after_write(hold.start, operation.length)


class MappedLayer:
    """A format: one extent of plain data whose mapping is in memory."""

    __slots__ = ("_locate", "_ranges")

    def __init__(self, ranges: RangeLock, locate: Callable[[int, int], int]) -> None:
        """Make the layer; `locate` is one of the driver's ``locate_*_nowait``."""
        self._locate = locate
        self._ranges = ranges

    def begin(self, operations: Sequence[AnyLate]) -> list[AnyLate]:
        """Find the extents, and hold them where they are."""
        locate, claim, refused = self._locate, self._ranges.claim_nowait, []
        for operation in operations:
            offset, length = operation.offset, operation.length
            host = locate(offset, length)
            hold = claim(offset, offset + length, False) if host >= 0 else None
            if hold is None:
                refused.append(operation)
            else:
                operation.holds.append(hold)
                operation.offset = host
        return refused

    def end(self, operations: Sequence[LateOperation]) -> None:
        """Let the extents be moved and freed."""
        release = self._ranges.release
        for operation in operations:
            release(operation.holds.pop())


class Route:
    """Begins the reads, or the writes, of one user of a backend.

    Attributes:
        is_direct: The page cache is passed by, so that there is no use in asking it.
        memory_align: What addresses must be multiples of.
    """

    __slots__ = (
        "_backend",
        "_done",
        "_generation",
        "_io",
        "_layers",
        "_opcode",
        "_ring",
        "is_direct",
        "memory_align",
    )

    def __init__(
        self,
        backend: User,
        path: LatePath,
        ring: Starter,
        is_write: bool,
        done: Callable[[list[Any]], None],
    ) -> None:
        """Make a route; see :meth:`Backend.route`."""
        self._backend = backend
        self._generation = backend.generation
        self._io = path.io
        self._layers = path.layers
        self._ring = ring
        self._opcode = WRITE if is_write else READ
        self._done = done
        self.is_direct = path.io.bounce is not None
        self.memory_align = path.io.memory_align

    def go_through(self, starter: Callable[[Any], Starter]) -> None:
        """Begin operations in what the function makes of the ring."""
        self._ring = starter(self._ring)

    def advance(self) -> None:
        """Tell owners what has ended by now, while there is more to begin."""
        self._ring.advance()

    def shelf(self, length: int) -> list[PooledOperation]:
        """Return the unused operations of a length; see :meth:`OperationPool.shelf`."""
        return self._ring.pool.shelf(length)

    def take(self, length: int, offset: int) -> PooledOperation:
        """Return an operation for :meth:`begin`; its owner gives it back by `drop`."""
        operation = self._ring.pool.take(length)
        operation.origin = operation.offset = offset
        operation.sink = self
        return operation

    def begin(self, operations: list[AnyLate]) -> list[AnyLate]:
        """Begin operations.

        Args:
            operations: Taken from here, or with their owner's memory, aligned to `memory_align`;
                each inside of the backend's length.

        Returns:
            Those that were not begun; the owner is told of the end of the others from the loop,
            never before this returns.
        """
        if self._generation != self._backend.generation:
            return operations
        refused: list[AnyLate] = []
        for index, layer in enumerate(self._layers):
            if stopped := layer.begin(operations):
                operations = self._stop(operations, stopped, index)
                refused += stopped
        bits = 0
        for operation in operations:
            bits |= operation.offset | operation.length
        mask = self._io.align - 1
        if bits & mask:
            stopped = [each for each in operations if (each.offset | each.length) & mask]
            operations = self._stop(operations, stopped, len(self._layers))
            refused += stopped
        if operations:
            self._backend.in_flight += len(operations)
            self._ring.start_all(self._opcode, self._io.fd, operations)
        return refused

    def _stop(self, operations: list[AnyLate], stopped: list[AnyLate], index: int) -> list[AnyLate]:
        """Take back operations that layer number `index` has refused; return the others."""
        for operation in stopped:
            operation.result = _REFUSED
        for layer in reversed(self._layers[:index]):
            layer.end(stopped)
        return [operation for operation in operations if operation not in stopped]

    def finished(self, operations: list[Any]) -> None:
        """Tell layers, then the owner, of operations that have ended."""
        for layer in reversed(self._layers):
            layer.end(operations)
        # The owner goes first: what it starts in turn keeps the backend busy.
        try:
            self._done(operations)
        finally:
            self._backend.end(len(operations))
