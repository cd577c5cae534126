# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Reads and writes of a guest that wait for a device, many at a time: a fast path.

What :meth:`VirtioBlk.begin` does for one request, this does for all the usual ones of a batch, by
the backend's route (:mod:`qsd.block.late`).  The device moves the data to and from the guest's
memory itself: nothing is copied.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from qsd.aio.fdio import address_of
from qsd.aio.operations import LateOperation
from qsd.wire.virtio import blk

if TYPE_CHECKING:
    from collections.abc import Callable

    from qsd.block.backend import Backend
    from qsd.block.late import Route
    from qsd.wire.virtio.memory import Region
    from qsd.wire.virtio.usual import Shape

_header = blk.TYPE_AND_SECTOR.unpack_from


class GuestOperation(LateOperation):
    """An operation on a guest's memory.

    Attributes:
        head: Its chain.
        shape: What that is.
        memory: The region that it lies in.
    """

    __slots__ = ("head", "memory", "shape")

    def __init__(
        self, route: Route, head: int, shape: Shape, memory: memoryview, address: int, offset: int
    ) -> None:
        super().__init__(address + shape.place, shape.payload)
        self.sink = route
        self.origin = self.offset = offset
        self.length = shape.length
        self.head = head
        self.shape = shape
        self.memory = memory

    @property
    def written(self) -> int:
        """Bytes that are written to the guest's memory, the status among them."""
        return self.length + 1 if self.shape.is_read else 1

    def request(self) -> blk.Request:
        """Return the request, for the plain path."""
        shape = self.shape
        payload = [shape.payload]
        readable, writable = ([], payload) if shape.is_read else (payload, [])
        kind = blk.IN if shape.is_read else blk.OUT
        status = self.memory[shape.status : shape.status + 1]
        return blk.Request(self.head, kind, self.origin // blk.SECTOR, readable, writable, status)


class Device(Protocol):
    """What is served: see :class:`qsd.exports.virtio_blk.VirtioBlk`."""

    backend: Backend
    block_size: int
    writable: bool


class LateShapes:
    """Begins usual requests of one queue in one region of memory."""

    __slots__ = ("_address", "_device", "_ended", "_generation", "_reads", "_writes")

    def __init__(
        self, device: Device, region: Region, ended: Callable[[list[GuestOperation]], None]
    ) -> None:
        """Begin nothing yet.

        Args:
            device: The device.
            region: Where usual requests lie.
            ended: Called from the loop with operations that ended together.
        """
        self._device = device
        self._ended = ended
        self._address = address_of(region.view)
        self._generation = -1
        self._reads: Route | None = None
        self._writes: Route | None = None

    def begin(
        self, chains: list[tuple[int, Shape | None]], memory: memoryview
    ) -> list[tuple[int, Shape | None]]:
        """Begin what can be begun in company.

        Args:
            chains: Chains, and what they are.
            memory: The region.

        Returns:
            The others.
        """
        backend = self._device.backend
        if self._generation != backend.generation:
            self._generation = backend.generation
            self._reads = backend.route(False, self._ended)
            self._writes = backend.route(True, self._ended)
        reads: list[GuestOperation] = []
        writes: list[GuestOperation] = []
        left: list[tuple[int, Shape | None]] = []
        for head, shape in chains:
            operation = None if shape is None else self._operation(head, shape, memory)
            if operation is None:
                left.append((head, shape))
            elif operation.shape.is_read:
                reads.append(operation)
            else:
                writes.append(operation)
        for route, operations in ((self._reads, reads), (self._writes, writes)):
            if route is not None and operations:
                left += [(each.head, each.shape) for each in route.begin(operations)]
        return left

    def _operation(self, head: int, shape: Shape, memory: memoryview) -> GuestOperation | None:
        """Return what moves the payload, None if this is not the way."""
        device = self._device
        kind, sector = _header(memory, shape.header)
        offset = sector * blk.SECTOR
        route = self._reads if shape.is_read else self._writes
        if (
            route is None
            or kind != (blk.IN if shape.is_read else blk.OUT)
            or not (shape.is_read or device.writable)
            or offset % device.block_size
            or offset + shape.length > device.backend.length()
            or (self._address + shape.place) % route.memory_align
        ):
            return None
        return GuestOperation(route, head, shape, memory, self._address, offset)
