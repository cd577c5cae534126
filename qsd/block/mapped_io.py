# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
r"""Reading and writing of formats that map guest ranges onto a child.

A format says where a range lives (:meth:`MappedIo.map`), reserves space for new data
(:meth:`MappedIo.allocate`) and makes a reservation visible (:meth:`MappedIo.commit`).  This module
does the rest once for every format: splitting requests, reading several extents in parallel, zero
fill, backing-chain reads, copy on write.  :mod:`qsd.block.mapped` adds what does not pass through
memory: copies inside the kernel, zeroing, discarding, status.

Vocabulary and invariants:

* `ranges` is a lock over guest ranges.  Who uses a mapping across an await holds its range at least
  shared, so the space behind it can be neither freed nor moved meanwhile.  Who changes the mapping
  of a range (allocation, zeroing, discard) holds it exclusively, aligned to the allocation
  granularity.
* Data of an allocation is written before the allocation is committed: a concurrent reader sees the
  old content or the new, never a cluster half written.
* A plain-function read or write needs no claim, since nothing else runs before it returns.
  In-place writes only look whether *any* exclusive claim exists, which is a safe
  over-approximation.
* On failure or cancellation an allocation is abandoned: its space is free again and the old mapping
  stands.

::

    write(offset, view)
      |  in place?   shared claim  -> child.write(host, ...)
      |  else        exclusive claim -> allocate -> read old head/tail -> child.write(all) -> commit
      v                                                  \\ failure ------------------> abandon
"""

from __future__ import annotations

import asyncio
import errno
from typing import TYPE_CHECKING, Any, ClassVar

from qsd.aio import eager
from qsd.aio.rangelock import RangeLock
from qsd.block.driver import Driver
from qsd.block.mapping import (
    COMPRESSED,
    DATA,
    FUA,
    HOLE,
    SPECIAL,
    Allocation,
    Mapping,
)
from qsd.errors import os_error
from qsd.util.ranges import align_down, align_up
from qsd.util.zeroes import fill_zero, is_zero

if TYPE_CHECKING:
    from collections.abc import Callable

    from qsd.aio.tasks import TaskOwner
    from qsd.block.graph import Edge
    from qsd.block.late import LatePath
    from qsd.block.node import Node


class MappedIo(Driver):
    """How formats that map read and write.

    A subclass sets `granularity` in `open` and implements the methods of the first two sections.

    Attributes:
        granularity: Bytes; the unit of allocation (cluster or subcluster).
        ranges: The lock over guest ranges.
    """

    #: An image says how long it is.
    follows_children: ClassVar[bool] = False

    __slots__ = ("granularity", "ranges")

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self.granularity = 65536
        self.ranges = RangeLock()

    # What a format must say: reading

    def locate_data_nowait(self, offset: int, length: int) -> int:
        """Return the host offset of a range that is plain DATA in one piece of the data child.

        -1 if it is anything else or not known without waiting.  The hottest function of a format:
        no allocation of objects, no exception.
        """
        return -1

    def locate_writable_nowait(self, offset: int, length: int) -> int:
        """Like `locate_data_nowait`, for a range that may be overwritten in place."""
        return -1

    def data_edge(self) -> Edge:
        """Return the child that `locate_*_nowait` speak of."""
        raise NotImplementedError

    def map_nowait(self, offset: int, length: int) -> Mapping | None:
        """Map the start of a range from cached tables; None if a table must be loaded first."""
        return None

    async def map(self, offset: int, length: int) -> Mapping:
        """Map the start of a range.  The answer may be shorter than `length`, never empty."""
        raise NotImplementedError

    async def read_special(self, offset: int, view: memoryview, mapping: Mapping) -> None:
        """Fill `view` from a SPECIAL mapping (compressed, encrypted)."""
        raise os_error(errno.ENOTSUP)

    # Where data is not stored as it is (encryption), a format overrides these two, and says nothing
    # in `locate_*_nowait`.

    async def read_data(self, offset: int, edge: Edge, host: int, view: memoryview) -> None:
        """Read an extent of plain data; what lies beyond the end of the child is zero."""
        await edge.node.read_or_zero(host, view)

    async def write_data(
        self, offset: int, edge: Edge, host: int, view: memoryview, flags: int
    ) -> None:
        """Write an extent of plain data."""
        await edge.node.write(host, view, flags)

    # What a format must do: writing.  The engine holds the exclusive claim on the range.

    async def allocate(self, offset: int, length: int) -> Allocation:
        """Reserve space for new data at `offset`; the reservation may be shorter than `length`.

        Raises:
            OSError: ENOSPC and the like; nothing was reserved.
        """
        raise os_error(errno.ENOTSUP)

    async def commit(self, allocation: Allocation) -> None:
        """Make written data visible under its guest range.

        On failure the space is freed as by `abandon` before the error is raised.
        """
        raise os_error(errno.ENOTSUP)

    def abandon(self, allocation: Allocation) -> None:
        """Give reserved space back.  Plain function: it must work while being cancelled."""

    async def zero_aligned(self, offset: int, length: int, flags: int) -> None:
        """Make an aligned range (or one that ends at the end of the image) read as zeroes.

        Raises:
            OSError: ENOTSUP if the format cannot express zeroes here.
        """
        raise os_error(errno.ENOTSUP)

    async def discard_aligned(self, offset: int, length: int) -> None:
        """Drop an aligned range."""
        raise os_error(errno.ENOTSUP)

    async def write_compressed(self, offset: int, view: memoryview) -> None:
        """Store one compressed cluster."""
        raise os_error(errno.ENOTSUP)

    # Reading

    def read_nowait(self, offset: int, view: memoryview) -> bool:
        """Fast path: one extent of plain data whose mapping is cached, or several of any kind."""
        host = self.locate_data_nowait(offset, len(view))
        if host < 0:
            return self.read_pieces_nowait(offset, view)
        return self.data_edge().node.read_nowait(host, view)

    def view_nowait(self, offset: int, length: int) -> memoryview | None:
        """Fast path: see one extent of plain data whose mapping is cached."""
        host = self.locate_data_nowait(offset, length)
        return None if host < 0 else self.data_edge().node.view_nowait(host, length)

    def view_path(self) -> Callable[[int, int], memoryview | None] | None:
        """Return the function above."""
        return self.view_nowait

    def read_pieces_nowait(self, offset: int, view: memoryview) -> bool:
        """Fast path: extents whose mappings are cached and whose content is in memory.

        The plain way is :meth:`read_mapped`.  A 4 KiB read through an empty overlay takes 14 us of
        processor time where the plain way takes 42.
        """
        position = 0
        length = len(view)
        while position < length:
            start = offset + position
            mapping = self.map_nowait(start, length - position)
            if mapping is None or mapping.kind == SPECIAL:
                return False
            piece = view[position : position + mapping.length]
            if mapping.kind == DATA:
                assert mapping.edge is not None  # by definition of DATA
                if not mapping.edge.node.read_nowait(mapping.host_offset, piece):
                    return False
            elif mapping.kind == HOLE and (edge := self.node.children.get("backing")) is not None:
                backing = edge.node
                if start + len(piece) > backing.length() or not backing.read_nowait(start, piece):
                    return False
            else:
                fill_zero(piece)
            position += mapping.length
        return True

    def read_later(self, offset: int, view: memoryview, done: Callable[[bool], None]) -> bool:
        """Fast path: one extent of plain data whose mapping is cached, but not its content."""
        host = self.locate_data_nowait(offset, len(view))
        begin = self.data_edge().node.read_later
        return host >= 0 and self._begin_later(begin, offset, host, view, done)

    def late_path(self, is_write: bool) -> LatePath | None:
        """Return the data child's path, behind a look at the mapping."""
        path = self.data_edge().node.late_path(is_write)
        if path is None:
            return None
        from qsd.block.late import MappedLayer

        locate = self.locate_writable_nowait if is_write else self.locate_data_nowait
        return path.below(MappedLayer(self.ranges, locate))

    def _begin_later(
        self,
        begin: Callable[[int, memoryview, Callable[[bool], None]], bool],
        offset: int,
        host: int,
        view: memoryview,
        done: Callable[[bool], None],
    ) -> bool:
        """Begin to read or write at `host`; the mapping is held until the device is done."""
        ranges = self.ranges
        hold = ranges.claim_nowait(offset, offset + len(view), False)
        if hold is None:
            return False

        def finished(full: bool) -> None:
            ranges.release(hold)
            done(full)

        if begin(host, view, finished):
            return True
        ranges.release(hold)
        return False

    def locate_nowait(self, offset: int, length: int) -> tuple[int, int] | None:
        """Resolve through the data child down to a descriptor."""
        host = self.locate_data_nowait(offset, length)
        if host < 0:
            return None
        return self.data_edge().node.driver.locate_nowait(host, length)

    async def read(self, offset: int, view: memoryview) -> None:
        """Read any range."""
        end = offset + len(view)
        hold = await self.ranges.claim(offset, end, False)
        try:
            await self.read_mapped(offset, view)
        finally:
            self.ranges.release(hold)

    async def read_mapped(self, offset: int, view: memoryview) -> None:
        """Read a range that the caller holds."""
        position = 0
        length = len(view)
        pending: list[asyncio.Task[None]] = []
        try:
            while position < length:
                mapping = self.map_nowait(offset + position, length - position)
                if mapping is None:
                    mapping = await self.map(offset + position, length - position)
                piece = view[position : position + mapping.length]
                if mapping.length == length:
                    await self._read_extent(offset, piece, mapping)
                    return
                task = eager.start(
                    self._read_extent(offset + position, piece, mapping),
                    self._tasks,
                    "read",
                    awaited=True,
                )
                if task is not None:
                    pending.append(task)
                position += mapping.length
        finally:
            await _settle(pending)

    async def _read_extent(self, offset: int, view: memoryview, mapping: Mapping) -> None:
        kind = mapping.kind
        if kind == DATA:
            assert mapping.edge is not None  # by definition of DATA
            mapping.edge.node.driver.debug_event("read_aio")
            await self.read_data(offset, mapping.edge, mapping.host_offset, view)
        elif kind == HOLE and (backing := self.node.children.get("backing")) is not None:
            self.debug_event_of_file("read_backing_aio")
            await backing.node.read_or_zero(offset, view)
        elif kind == SPECIAL:
            await self.read_special(offset, view, mapping)
        else:
            fill_zero(view)

    def debug_event_of_file(self, event: str) -> None:
        """Tell the file below that a point with a name was reached (see blkdebug)."""
        self.node.children["file"].node.driver.debug_event(event)

    @property
    def _tasks(self) -> TaskOwner:
        return self.node.graph.tasks

    # Writing

    def write_nowait(self, offset: int, view: memoryview) -> bool:
        """Fast path: overwrite one allocated extent in place."""
        if self.ranges.exclusive_count:
            return False
        length = len(view)
        host = self.locate_writable_nowait(offset, length)
        if host < 0 or not self.data_edge().node.write_nowait(host, view):
            return False
        node = self.node
        if offset + length > node.wr_highest_offset:
            node.wr_highest_offset = offset + length
        return True

    def write_later(self, offset: int, view: memoryview, done: Callable[[bool], None]) -> bool:
        """Fast path: overwrite one allocated extent in place, on a device."""
        host = self.locate_writable_nowait(offset, len(view))
        begin = self.data_edge().node.write_later
        return host >= 0 and self._begin_later(begin, offset, host, view, done)

    async def write(self, offset: int, view: memoryview, flags: int) -> None:
        """Write any range."""
        if flags & COMPRESSED:
            await self._write_compressed(offset, view)
            return
        position = 0
        length = len(view)
        while position < length:
            position += await self._write_in_place(offset + position, view[position:], flags)
            if position < length:
                position += await self._write_allocating(offset + position, view[position:], flags)

    async def _write_in_place(self, offset: int, view: memoryview, flags: int) -> int:
        """Overwrite allocated extents from `offset` on; return how many bytes were served."""
        length = len(view)
        done = 0
        hold = await self.ranges.claim(offset, offset + length, False)
        try:
            while done < length:
                mapping = self.map_nowait(offset + done, length - done)
                if mapping is None:
                    mapping = await self.map(offset + done, length - done)
                if not (mapping.writable and mapping.kind == DATA):
                    break
                assert mapping.edge is not None  # by definition of DATA
                mapping.edge.node.driver.debug_event("write_aio")
                await self.write_data(
                    offset + done,
                    mapping.edge,
                    mapping.host_offset,
                    view[done : done + mapping.length],
                    flags & ~FUA,
                )
                done += mapping.length
        finally:
            self.ranges.release(hold)
        return done

    async def _write_allocating(self, offset: int, view: memoryview, flags: int) -> int:
        """Write the start of a range that needs new space; return how many bytes were served."""
        length = len(view)
        unit = self.granularity
        start, end = align_down(offset, unit), align_up(offset + length, unit)
        hold = await self.ranges.claim(start, end, True)
        try:
            mapping = self.map_nowait(offset, length) or await self.map(offset, length)
            if mapping.writable and mapping.kind == DATA:
                return 0  # somebody else allocated it while this request waited for its claim
            allocation = await self.allocate(offset, length)
            try:
                await self._fill(allocation, view[: allocation.length])
            except BaseException:
                self.abandon(allocation)
                raise
            await self.commit(allocation)
            return allocation.length
        finally:
            self.ranges.release(hold)

    async def _fill(self, allocation: Allocation, data: memoryview) -> None:
        """Write new data together with the old content around it into reserved space."""
        edge = allocation.edge
        offset, length = allocation.offset, allocation.length
        debug_event = edge.node.driver.debug_event
        if not (allocation.head or allocation.tail):
            debug_event("write_aio")
            await self.write_data(offset, edge, allocation.host_offset, data, 0)
            return
        debug_event("cow_read")
        # Copy on write: one buffer and one write make the cluster complete.
        head = await self._old_content(offset - allocation.head, allocation.head, allocation.zeroed)
        tail = await self._old_content(offset + length, allocation.tail, allocation.zeroed)
        host = allocation.host_offset
        whole = memoryview(bytearray(len(head) + length + len(tail)))
        whole[: len(head)] = head
        whole[len(head) : len(head) + length] = data
        whole[len(head) + length :] = tail
        debug_event("cow_write")
        debug_event("write_aio")
        await self.write_data(offset - len(head), edge, host - len(head), whole, 0)

    async def _old_content(self, offset: int, length: int, may_skip_zeroes: bool) -> memoryview:
        """Read what a guest sees in a range; empty if it is zero and needs no write."""
        if not length:
            return memoryview(b"")
        view = memoryview(bytearray(length))
        inside = min(length, self.node.length() - offset)
        if inside > 0:
            await self.read_mapped(offset, view[:inside])
        if may_skip_zeroes and is_zero(view):
            return memoryview(b"")
        return view

    async def _write_compressed(self, offset: int, view: memoryview) -> None:
        unit = self.granularity
        end = offset + len(view)
        if offset % unit or (len(view) % unit and end != self.node.length()):
            raise os_error(errno.EINVAL)
        hold = await self.ranges.claim(offset, align_up(end, unit), True)
        try:
            await self._write_units_compressed(offset, view)
        finally:
            self.ranges.release(hold)

    async def _write_units_compressed(self, offset: int, view: memoryview) -> None:
        """Store whole units compressed; the caller holds them."""
        unit = self.granularity
        for start in range(0, len(view), unit):
            await self.write_compressed(offset + start, view[start : start + unit])


async def _settle(tasks: list[asyncio.Task[Any]]) -> None:
    """Wait for all tasks, then raise the first failure there was.

    All are waited for even on failure: they write into the caller's buffer.
    """
    if not tasks:
        return
    await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled() and (exc := task.exception()) is not None:
            raise exc
