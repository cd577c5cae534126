# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The base of all formats that map guest ranges onto a child.

Reading and writing are in :mod:`qsd.block.mapped_io`, with the vocabulary and the invariants.  Here
is the rest, which keeps to them: data that goes from file to file without passing through memory,
layers that take over what lies below them, zeroing, discarding, and status.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from qsd.block.copy import worthwhile
from qsd.block.mapped_io import MappedIo
from qsd.block.mapping import (
    COMPRESSED,
    DATA,
    HOLE,
    SPECIAL,
    ST_ALLOCATED,
    ST_COMPRESSED,
    ST_DATA,
    ST_OFFSET,
    ST_RECURSE,
    ST_ZERO,
    ZERO,
    Status,
)
from qsd.util.ranges import align_down, align_up
from qsd.util.zeroes import is_zero

if TYPE_CHECKING:
    from collections.abc import Callable

    from qsd.block.node import Node

#: Bytes; how much is copied from a backing file in one piece, if not by the kernel.
COPY_UP_CHUNK: Final = 512 << 10
#: Bytes; what is looked at to tell that a piece does not consist of zeroes.
_PROBE: Final = 4096


class MappedDriver(MappedIo):
    """Base of formats that map; what they must say stands in the class above."""

    __slots__ = ()

    # Copying between descriptors

    def pin_nowait(
        self, offset: int, length: int, holds: list[Callable[[], None]]
    ) -> tuple[int, int, int] | None:
        """Hold a run shared, so that its place is neither freed nor moved.

        What is not allocated here is looked for in the backing file.
        """
        mapping = self.map_nowait(offset, length)
        if mapping is None:
            return None
        end = offset + min(length, mapping.length)
        edge, host = mapping.edge, mapping.host_offset
        if mapping.kind == HOLE:
            edge, host = self.node.children.get("backing"), offset
            end = min(end, edge.node.length()) if edge is not None else 0
        elif mapping.kind != DATA or self.locate_data_nowait(offset, 1) < 0:
            return None  # zeroes, or not stored as it is
        hold = self.ranges.claim_nowait(offset, end, False) if offset < end else None
        if hold is None or edge is None:
            return None
        holds.append(lambda: self.ranges.release(hold))
        return edge.node.driver.pin_nowait(host, end - offset, holds)

    async def write_from(self, offset: int, descriptor: int, host_offset: int, length: int) -> bool:
        """Write data that lies in a file; whole units only where space must be allocated."""
        end = offset + length
        while offset < end:
            done = await self._write_from_in_place(offset, descriptor, host_offset, end - offset)
            if not done:
                done = await self._write_from_allocating(
                    offset, descriptor, host_offset, end - offset
                )
            if not done:
                return False
            offset += done
            host_offset += done
        return True

    async def _write_from_in_place(
        self, offset: int, descriptor: int, host_offset: int, length: int
    ) -> int:
        hold = await self.ranges.claim(offset, offset + length, False)
        try:
            mapping = self.map_nowait(offset, length) or await self.map(offset, length)
            if not (mapping.writable and mapping.kind == DATA and mapping.edge is not None):
                return 0
            child = mapping.edge.node
            if await child.write_from(mapping.host_offset, descriptor, host_offset, mapping.length):
                return mapping.length
            return 0
        finally:
            self.ranges.release(hold)

    async def _write_from_allocating(
        self, offset: int, descriptor: int, host_offset: int, length: int
    ) -> int:
        unit = self.granularity
        hold = await self.ranges.claim(
            align_down(offset, unit), align_up(offset + length, unit), True
        )
        try:
            mapping = self.map_nowait(offset, length) or await self.map(offset, length)
            if mapping.writable and mapping.kind == DATA:
                return 0
            return await self._allocate_from(offset, descriptor, host_offset, length)
        finally:
            self.ranges.release(hold)

    async def _allocate_from(
        self, offset: int, descriptor: int, host_offset: int, length: int
    ) -> int:
        """Do the work of `write_from` under an exclusive claim, for the start of a range."""
        allocation = await self.allocate(offset, length)
        written = False
        try:
            if not (allocation.head or allocation.tail):
                written = await allocation.edge.node.write_from(
                    allocation.host_offset, descriptor, host_offset, allocation.length
                )
        finally:
            if not written:
                self.abandon(allocation)
        if not written:
            return 0
        await self.commit(allocation)
        return allocation.length

    # Copying up

    async def copy_up(self, offset: int, length: int, flags: int) -> None:
        """Allocate what is a hole, with the content of the backing file.

        A hole is copied under an exclusive claim, so a concurrent write goes before or after it.
        """
        end = offset + length
        position = offset
        while position < end:
            mapping = self.map_nowait(position, end - position)
            if mapping is None:
                mapping = await self.map(position, end - position)
            if mapping.kind == HOLE:
                start = align_down(position, self.granularity)
                whole = align_up(position + mapping.length, self.granularity)
                await self._copy_up(start, min(whole, self.node.length()), flags)
            position += mapping.length

    async def _copy_up(self, offset: int, end: int, flags: int) -> None:
        hold = await self.ranges.claim(offset, align_up(end, self.granularity), True)
        try:
            while offset < end:
                left = end - offset
                mapping = self.map_nowait(offset, left) or await self.map(offset, left)
                if mapping.kind == HOLE:
                    offset += await self._copy_up_hole(offset, mapping.length, flags)
                else:
                    offset += mapping.length
        finally:
            self.ranges.release(hold)

    async def _copy_up_hole(self, offset: int, length: int, flags: int) -> int:
        """Fill the start of an aligned hole; return how much that was."""
        compress = flags & COMPRESSED
        if not compress and (done := await self._copy_up_descriptor(offset, length)):
            return done
        length = min(length, max(COPY_UP_CHUNK, self.granularity))
        view = memoryview(bytearray(length))
        await self.read_mapped(offset, view)
        if is_zero(view):
            try:
                await self.zero_aligned(offset, length, 0)
            except OSError as exc:
                if exc.errno != errno.ENOTSUP:
                    raise
            else:
                return length
        if compress:
            await self._write_units_compressed(offset, view)
            return length
        allocation = await self.allocate(offset, length)
        try:
            await self._fill(allocation, view[: allocation.length])
        except BaseException:
            self.abandon(allocation)
            raise
        await self.commit(allocation)
        return allocation.length

    async def _copy_up_descriptor(self, offset: int, length: int) -> int:
        """Fast: fill a hole in the kernel, unless it may read as zeroes, which are not stored.

        Returns:
            How much was filled; 0 if it must be done otherwise.
        """
        edge = self.node.children.get("backing")
        if edge is None or offset + length > edge.node.length():
            return 0
        holds: list[Callable[[], None]] = []
        try:
            place = edge.node.driver.pin_nowait(offset, length, holds)
            if place is None:
                return 0
            descriptor, host_offset, count = place
            length = worthwhile(offset, count, length, self.granularity)
            length = await self._length_before_zeroes(edge.node, offset, length)
            if length <= 0:
                return 0
            return await self._allocate_from(offset, descriptor, host_offset, length)
        except OSError:
            return 0  # the slow way finds out what is wrong
        finally:
            for release in holds:
                release()

    async def _length_before_zeroes(self, node: Node, offset: int, length: int) -> int:
        """Return how much of a range comes before a piece that may read as zeroes."""
        step = max(COPY_UP_CHUNK, self.granularity)
        probe = memoryview(bytearray(_PROBE))
        for position in range(0, length, step):
            await node.read_or_zero(offset + position, probe)
            if is_zero(probe):
                return position
        return length

    def is_own_nowait(self, offset: int, length: int) -> bool:
        """Only plain data in one piece is known to be here without a closer look."""
        return self.locate_data_nowait(offset, length) >= 0

    # Zeroing and discarding

    async def zero(self, offset: int, length: int, flags: int) -> None:
        """Zero a range; the engine has aligned it to `limits.zero_alignment` where it could."""
        unit = self.granularity
        hold = await self.ranges.claim(
            align_down(offset, unit), align_up(offset + length, unit), True
        )
        try:
            await self.zero_aligned(offset, length, flags)
        finally:
            self.ranges.release(hold)

    async def discard(self, offset: int, length: int) -> None:
        """Discard whole units; head and tail that do not fill a unit are kept."""
        unit = self.granularity
        start, end = align_up(offset, unit), offset + length
        if end != self.node.length():
            end = align_down(end, unit)
        if start >= end:
            return
        hold = await self.ranges.claim(start, align_up(end, unit), True)
        try:
            await self.discard_aligned(start, end - start)
        finally:
            self.ranges.release(hold)

    # Status

    async def block_status(self, offset: int, length: int, want_zero: bool) -> Status:
        """Translate the mapping."""
        mapping = self.map_nowait(offset, length) or await self.map(offset, length)
        length = min(length, mapping.length)
        if mapping.kind == DATA:
            return Status(
                length,
                ST_DATA | ST_OFFSET | ST_ALLOCATED | ST_RECURSE,
                mapping.host_offset,
                mapping.edge,
            )
        if mapping.kind == ZERO:
            flags = ST_ZERO | ST_ALLOCATED
            if mapping.host_offset >= 0:
                return Status(length, flags | ST_OFFSET, mapping.host_offset, mapping.edge)
            return Status(length, flags)
        if mapping.kind == SPECIAL:
            return Status(length, ST_DATA | ST_ALLOCATED | ST_COMPRESSED)
        return Status(length, 0)
