# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Large requests, and those in several pieces, of a guest: a fast path.

To answer a large read is to copy memory, and one processor copies only so much.  So while this
thread copies for one request, the kernel copies for others: io_uring hands what is marked with
IOSQE_ASYNC to a thread of its own at once, even if all is cached.  There is no Python in that
thread, hence no fight for the interpreter lock.  Who is free takes the next request::

    requests of a batch ─▶ is the kernel free? ─ yes ─▶ ring ─▶ ... ended, in some turn of the loop
                                └─ no ─▶ copied here and now

Writes are copied here: a file system lets one writer at a time into a file.

Verdict of the benchmark, on two processors: reads of 1 MiB, eight at a time, 4,240/s with and
2,320/s without the kernel's threads, where two threads with nothing but preadv(2) to do reach
4,700/s; of 256 KiB 13,000/s and 9,000/s; of 128 KiB no difference; of 64 KiB 37,000/s and 43,000/s,
because to wake a thread, and to be told by it, costs some 25 us.  Reads of 64 KiB that are given
back four by four instead of sixteen: 41,000/s and 28,000/s.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, Any, Final

from qsd.aio.fdio import address_of
from qsd.aio.operations import LateOperation, Operation
from qsd.wire.virtio import blk
from qsd.wire.virtio.usual import Shape

if TYPE_CHECKING:
    from collections.abc import Callable

    from qsd.aio.uring import Ring
    from qsd.block.late import Route
    from qsd.exports.virtio_blk import VirtioBlk
    from qsd.exports.virtio_views import CachedReads
    from qsd.wire.virtio.memory import Region
    from qsd.wire.virtio.usual import Scattered

#: Bytes; from this length on a request is large.
LARGE: Final = 64 << 10
#: Bytes; from this length on the kernel may copy for a read.
ASIDE: Final = 256 << 10
#: Vectors that are remembered.
_MAX_VECTORS: Final = 512
#: Bytes that are given back together: a driver that has its data early asks for more early.
_TOGETHER: Final = 256 << 10
_header = blk.TYPE_AND_SECTOR.unpack_from


class Vector:
    """The places of a request in several pieces, as the kernel wants them.

    Attributes:
        address: Where the list of struct iovec lies.
        count: How many there are.
        shape: What they belong to.
    """

    __slots__ = ("_memory", "address", "count", "shape")

    def __init__(self, shape: Scattered, region: int) -> None:
        """Make it for a region of memory at an address."""
        lengths = map(len, shape.pieces)
        pairs = zip(shape.places, lengths, strict=True)
        words = [word for place, length in pairs for word in (region + place, length)]
        self._memory = bytearray(struct.pack(f"={len(words)}Q", *words))
        self.address = address_of(memoryview(self._memory))
        self.count = len(shape.places)
        self.shape = shape


class LargeRead(LateOperation):
    """A read on its way through the kernel.

    Attributes:
        head: Its chain.
        shape: What that is.
        memory: The region that it lies in.
        vector: Where to, if that is in several places.
        written: Bytes that are written to the guest's memory, the status among them.
    """

    __slots__ = ("head", "memory", "shape", "vector", "written")

    def __init__(
        self, route: Route, head: int, shape: Shape | Scattered, memory: memoryview, offset: int
    ) -> None:
        super().__init__(0, memory)
        self.sink = route
        self.origin = self.offset = offset
        self.length = shape.length
        self.head = head
        self.shape = shape
        self.memory = memory
        self.vector: Vector | None = None
        self.written = shape.length + 1

    def request(self) -> blk.Request:
        """Return the request, for the plain path."""
        shape = self.shape
        pieces = [shape.payload] if isinstance(shape, Shape) else list(shape.pieces)
        status = self.memory[shape.status : shape.status + 1]
        return blk.Request(self.head, blk.IN, self.origin // blk.SECTOR, [], pieces, status)


class _VectoredRead(Operation):
    """What the ring is given for a read to several places."""

    __slots__ = ()

    def __init__(self, read: LargeRead, vector: Vector) -> None:
        super().__init__(_VECTORED, vector.address, vector.count, read.offset, read)


class _VectoredSink:
    """Tells the reads behind them."""

    def finished(self, operations: list[_VectoredRead]) -> None:
        """Tell them one by one."""
        for operation in operations:
            read: Any = operation.keep
            read.result = operation.result
            read.sink.finished([read])


_VECTORED: Final = _VectoredSink()


class _AsideRing:
    """Begins reads in threads of the kernel, at once."""

    __slots__ = ("_ring", "pool")

    def __init__(self, ring: Ring) -> None:
        self._ring = ring
        self.pool = ring.pool

    def advance(self) -> None:
        """Take what has ended."""
        self._ring.advance()

    def start_all(self, _: int, fd: int, operations: list[LargeRead]) -> None:
        """Begin reads."""
        for operation in operations:
            vector = operation.vector
            if vector is None:
                self._ring.start_aside(fd, (operation,))
            else:
                self._ring.start_aside(fd, (_VectoredRead(operation, vector),), vectored=True)


class LargeRequests:
    """Serves large requests of one queue in one region of memory."""

    __slots__ = (
        "_address",
        "_began",
        "_busy",
        "_cached",
        "_device",
        "_ended",
        "_generation",
        "_give_back",
        "_limit",
        "_route",
        "_vectors",
    )

    def __init__(
        self,
        device: VirtioBlk,
        region: Region,
        cached: CachedReads,
        began: Callable[[], None],
        ended: Callable[[list[LargeRead]], None],
        give_back: Callable[[list[int]], None],
    ) -> None:
        """Serve nothing yet.

        Args:
            device: The device.
            region: Where usual requests lie.
            cached: What reads can be copied from.
            began: Called when a request is on its way.
            ended: Called, maybe within :meth:`serve`, with operations that have ended.
            give_back: Called with (head, bytes written) of what is done, one after the other.
        """
        self._device = device
        self._cached = cached
        self._address = address_of(region.view)
        self._began = began
        self._ended = ended
        self._give_back = give_back
        self._generation = -1
        self._route: Route | None = None
        self._busy = 0
        # By identity of what they belong to, which they keep alive.
        self._vectors: dict[int, Vector] = {}
        processors = len(os.sched_getaffinity(0))
        self._limit = processors if processors > 1 else 0

    def serve(
        self, chains: list[tuple[int, Shape | Scattered]], memory: memoryview
    ) -> list[tuple[int, Shape | Scattered]]:
        """Serve what is but copying.

        Args:
            chains: Chains, and what they are.
            memory: The region.

        Returns:
            The others.
        """
        route = self._find_route()
        finished: list[int] = []
        together = 0
        left: list[tuple[int, Shape | Scattered]] = []
        more = len(chains)
        for head, shape in chains:
            more -= 1
            offset = self._offset(shape, memory)
            if offset is None:
                left.append((head, shape))
                continue
            if (
                shape.length >= ASIDE
                and self._busy < self._limit
                and (more or self._busy)
                and shape.is_read
                and route is not None
                and self._begin(route, LargeRead(route, head, shape, memory, offset))
            ):
                continue
            if not self._copy(shape, offset):
                left.append((head, shape))
                continue
            memory[shape.status] = blk.OK
            finished += head, shape.length + 1 if shape.is_read else 1
            together += shape.length
            if together >= _TOGETHER:
                self._give_back(finished)
                finished, together = [], 0
            if self._busy and route is not None:
                route.advance()
        if finished:
            self._give_back(finished)
        return left

    def _begin(self, route: Route, read: LargeRead) -> bool:
        """Let the kernel carry out a read; return whether it does."""
        shape = read.shape
        if isinstance(shape, Shape):
            read.address = self._address + shape.place
        else:
            read.vector = self._vectors.get(id(shape)) or self._add_vector(shape)
        self._busy += 1
        if route.begin([read]):
            self._busy -= 1
            return False
        self._began()
        return True

    def _add_vector(self, shape: Scattered) -> Vector:
        if len(self._vectors) >= _MAX_VECTORS:
            self._vectors.clear()
        vector = self._vectors[id(shape)] = Vector(shape, self._address)
        return vector

    def _find_route(self) -> Route | None:
        backend = self._device.backend
        if self._generation != backend.generation:
            self._generation = backend.generation
            route = backend.route(False, self._have_read) if self._limit else None
            self._route = None if route is None or route.is_direct else route
            if self._route is not None:
                self._route.go_through(_AsideRing)
        return self._route

    def _have_read(self, operations: list[LargeRead]) -> None:
        self._busy -= len(operations)
        self._ended(operations)

    def _offset(self, shape: Shape | Scattered, memory: memoryview) -> int | None:
        """Return where a request begins, None if something is wrong with it."""
        device = self._device
        kind, sector = _header(memory, shape.header)
        offset: int = sector * blk.SECTOR
        if (
            kind != (blk.IN if shape.is_read else blk.OUT)
            or not (shape.is_read or device.writable)
            or offset % device.block_size
            or offset + shape.length > device.backend.length()
        ):
            return None
        return offset

    def _copy(self, shape: Shape | Scattered, offset: int) -> bool:
        """Carry a request out if that is but a memory copy."""
        device = self._device
        if shape.is_read:
            pieces = [shape.payload] if isinstance(shape, Shape) else shape.pieces
            if self._cached.fill(offset, shape.length, pieces):
                return True
        try:
            if isinstance(shape, Shape):
                if shape.is_read:
                    return device.backend.read_nowait(offset, shape.payload)
                return device.backend.write_nowait(offset, shape.payload)
            if shape.is_read:
                return device.read_pieces_nowait(offset, shape.length, shape.pieces)
            return device.write_pieces_nowait(offset, shape.pieces)
        except OSError:
            return False  # the plain path meets the same error and reports it
