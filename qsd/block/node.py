# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""A node of the block graph, and the one door through which all I/O to its driver goes.

A request's way through one node::

    user (Backend, or the driver of a parent node)
      |  read_nowait(offset, view)      plain function; answers from memory or says False
      |  read(offset, view)             coroutine; the full pipeline below
      v
    Node:   range and state checks -> tracking -> alignment (read-modify-write) -> splitting to the
            driver's limits -> copy-on-read, zero detection, threshold, bitmaps (only where present)
      v
    Driver: its read/write/zero/discard/...

``read_nowait`` and ``write_nowait`` are instance attributes.  On a node without instrumentation
they are the driver's own methods, so a cached request costs one Python call per layer; on any
other node they always say False.  So is ``view_nowait``, which returns a range as memory that only
system calls may touch (see :mod:`qsd.aio.pagemap`), or None.  :meth:`Node.refresh_fast_paths`
decides; whoever adds or removes instrumentation calls it.

Invariants: `in_flight` counts requests that are suspended or running in this node; a request that
never suspends is not counted, because nothing else can run meanwhile.  Graph changes happen only
while `in_flight` is zero and the users are quiesced (:mod:`qsd.block.drain`).
"""

from __future__ import annotations

import asyncio
import errno
from typing import TYPE_CHECKING, Any

from qsd.block.mapping import (
    COMPRESSED,
    FUA,
    MAX_LENGTH,
    MAY_UNMAP,
    NO_FALLBACK,
    ZERO_NEW,
    Status,
)
from qsd.block.perms import ROLE_FILTERED, ROLE_PRIMARY
from qsd.block.piped import refuse_payload
from qsd.errors import QmpError, os_error
from qsd.util.ranges import align_down, align_up
from qsd.util.zeroes import ZERO_CHUNK, ZEROES, fill_zero, is_zero

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from qsd.aio.rangelock import RangeLock
    from qsd.block.dirty import DirtyBitmap, WorkingSet
    from qsd.block.driver import Driver, RunPath
    from qsd.block.graph import Edge, Graph
    from qsd.block.late import LatePath
    from qsd.block.mapping import Patch
    from qsd.block.piped import Payload
    from qsd.block.relay import RelayPath

#: Bytes; node lengths are multiples of it, as images are counted in sectors.
SECTOR = 512


def _refuse_read(offset: int, view: memoryview) -> bool:
    return False


def _refuse_views(offset: int, views: Sequence[memoryview], length: int) -> bool:
    """Refuse, like `_refuse_read`."""
    return False


def refuse_view(offset: int, length: int) -> memoryview | None:
    """Have no view of anything."""
    return None


class Node:
    """An open image, protocol connection or filter.

    Attributes:
        name: The node name; unique in the graph.
        driver: The driver instance (set by the opener).
        children: Edges to child nodes by child name, in the order of attaching.
        parents: Edges from users (nodes and backends) to this node.
        options: The typed BlockdevOptions it was opened with.
        monitor_owned: Whether a blockdev-add holds a reference.
        opening: Its driver is not ready yet; only nodes below it can meet it by its name.
        read_only: Whether writes are refused now.
        auto_read_only: Whether it may be opened read-only where writing is impossible.
        force_share: Opened without image locks against others.
        cache_direct, cache_no_flush: The cache options.
        discard_unmap: Whether discard requests are passed on.
        detect_zeroes: "off", "on" or "unmap".
        quiesced: Number of drained sections this node is in.
        status_is_remote: Block status is a question to another server, which takes as long as a
            short read does.
        in_flight: Number of suspended requests.
        wr_highest_offset: End of the highest write so far, bytes.
        shown_bitmaps: The dirty bitmaps and what is listed with them, the oldest first.
        write_threshold: Bytes; 0 if none is set.
        on_threshold: Called once with the excess when a write goes past the threshold.
    """

    __slots__ = (
        "__weakref__",
        "_idle",
        "_is_bound",
        "_length",
        "auto_read_only",
        "bitmaps",
        "cache_direct",
        "cache_no_flush",
        "children",
        "closed",
        "detect_zeroes",
        "discard_unmap",
        "driver",
        "force_share",
        "graph",
        "implicit",
        "in_flight",
        "monitor_owned",
        "name",
        "on_threshold",
        "opening",
        "options",
        "parents",
        "quiesced",
        "read_later",
        "read_nowait",
        "read_only",
        "receive_nowait",
        "rmw",
        "shown_bitmaps",
        "status_is_remote",
        "unflushed",
        "view_chunks",
        "view_nowait",
        "wr_highest_offset",
        "write_nowait",
        "write_threshold",
        "write_views_nowait",
    )

    def __init__(self, graph: Graph, name: str) -> None:
        self.graph = graph
        self.name = name
        self.driver: Driver
        self.children: dict[str, Edge] = {}
        self.parents: list[Edge] = []
        self.options: Any = None
        self.monitor_owned = False
        self.implicit = False
        self.closed = False
        self.opening = False
        self.read_only = False
        self.auto_read_only = False
        self.force_share = False
        self.cache_direct = False
        self.cache_no_flush = False
        self.discard_unmap = False
        self.detect_zeroes = "off"
        self.quiesced = 0
        self.status_is_remote = False
        self.in_flight = 0
        self.wr_highest_offset = 0
        self.write_threshold = 0
        self.on_threshold: Callable[[int], None] | None = None
        self.bitmaps: dict[str, DirtyBitmap] = {}
        self.shown_bitmaps: list[DirtyBitmap | WorkingSet] = []
        self.rmw: RangeLock | None = None
        # Since the last flush; writes by the fast path are not noted, which only debugging minds.
        self.unflushed = False
        self._idle: list[asyncio.Future[None]] = []
        self._length = -1
        self._is_bound = False  # only when the driver is open it knows its paths
        self.read_nowait: Callable[[int, memoryview], bool] = _refuse_read
        self.write_nowait: Callable[[int, memoryview], bool] = _refuse_read
        self.write_views_nowait: Callable[[int, Sequence[memoryview], int], bool] = _refuse_views
        self.receive_nowait: Callable[[int, Payload], bool] = refuse_payload
        self.view_nowait: Callable[[int, int], memoryview | None] = refuse_view
        self.view_chunks: dict[int, memoryview] = {}
        # Begins a read that ends without a coroutine, for data that is not in memory.
        self.read_later: Callable[[int, memoryview, Callable[[bool], None]], bool]
        self.read_later = self._read_later

    def __repr__(self) -> str:
        return f"<Node {self.name}>"

    # State

    def refresh_fast_paths(self) -> None:
        """Choose between the driver's own fast functions and the full pipeline."""
        driver = self.driver
        self._is_bound = True
        if self.closed or (driver.limits.request_alignment > 1 and not driver.checks_alignment):
            self.read_nowait = _refuse_read
            self.view_nowait = refuse_view
            self.view_chunks = {}
            self._bind_writes(False)
        else:
            self.read_nowait = driver.read_path()
            self.view_nowait = driver.view_path() or refuse_view
            self.view_chunks = driver.view_chunks()
            plain = not (
                self.read_only
                or self.write_threshold
                or self.detect_zeroes != "off"
                or driver.limits.write_alignment > 1
            )
            self._bind_writes(plain)
        self.read_later = (None if self.closed else driver.later_path()) or self._read_later
        for edge in self.parents:
            edge.user.rebind()

    def _read_later(self, offset: int, view: memoryview, done: Callable[[bool], None]) -> bool:
        """Do the work of `read_later`.

        The caller has checked the range and counts the request
        (:class:`~qsd.block.backend.Backend` does).

        Args:
            offset: Where.
            view: Where to.
            done: Called from the loop, never before this returns: True if `view` is full, False if
                :meth:`read` has to be called.

        Returns:
            Whether the read was begun.
        """
        limits = self.driver.limits
        length = len(view)
        align = limits.request_alignment
        if self.closed or offset % align or length % align:
            return False
        if limits.max_transfer and length > limits.max_transfer:
            return False
        return self.driver.read_later(offset, view, done)

    def write_later(self, offset: int, view: memoryview, done: Callable[[bool], None]) -> bool:
        """Begin a write that ends without a coroutine, where writing means waiting for a device.

        Like :meth:`read_later`.

        Args:
            offset: Where.
            view: What to write.
            done: Called from the loop, never before this returns: True if all is written, False if
                :meth:`write` has to be called.

        Returns:
            Whether the write was begun.
        """
        driver = self.driver
        limits = driver.limits
        length = len(view)
        align = max(limits.request_alignment, limits.write_alignment)
        if (
            self.closed
            or self.read_only
            or self.write_threshold
            or self.detect_zeroes != "off"
            or offset % align
            or length % align
            or (limits.max_transfer and length > limits.max_transfer)
        ):
            return False
        rmw = self._rmw_lock() if align > 1 else None
        hold = rmw.claim_nowait(offset, offset + length, False) if rmw is not None else None
        if rmw is not None and hold is None:
            return False

        def finished(full: bool) -> None:
            if rmw is not None and hold is not None:
                rmw.release(hold)
            if full:
                self.after_write(offset, length)
                self.unflushed = True
            done(full)

        if driver.write_later(offset, view, finished):
            return True
        if rmw is not None and hold is not None:
            rmw.release(hold)
        return False

    def late_path(self, is_write: bool) -> LatePath | None:
        """Return how many operations at once get from here to a descriptor, None if they cannot.

        The same requests that :meth:`read_later` and :meth:`write_later` begin one by one.
        """
        driver = self.driver
        limits = driver.limits
        if (
            self.closed
            or limits.max_transfer
            or (
                is_write and (self.read_only or self.write_threshold or self.detect_zeroes != "off")
            )
        ):
            return None
        path = driver.late_path(is_write)
        if path is None or not is_write:
            return path
        from qsd.block.late import WriteLayer

        align = max(limits.request_alignment, limits.write_alignment)
        return path.below(WriteLayer(self, align, self._rmw_lock()))

    def relay_path(self) -> RelayPath | None:
        """Return how NBD requests get from here to another server as they are, if they can.

        The same requests that :meth:`read_later` and :meth:`write_later` begin one by one.
        """
        limits = self.driver.limits
        if self.closed or limits.request_alignment > 1:
            return None
        path = self.driver.relay_path()
        if path is None:
            return None
        takes_writes = not (
            self.read_only
            or self.write_threshold
            or self.detect_zeroes != "off"
            or limits.write_alignment > 1
        )
        return path.below(self, takes_writes)

    def _rmw_lock(self) -> RangeLock:
        """Return the lock that keeps unaligned writes apart from all others."""
        if self.rmw is None:
            from qsd.aio.rangelock import RangeLock

            self.rmw = RangeLock()
        return self.rmw

    def _bind_writes(self, plain: bool) -> None:
        """Choose the fast functions that write; of a node with bitmaps, one around the other."""
        if not plain:
            self.write_nowait = _refuse_read
            self.write_views_nowait = _refuse_views
            self.receive_nowait = refuse_payload
            return
        driver = self.driver
        self.write_nowait = driver.write_nowait
        self.write_views_nowait = driver.write_views_nowait
        self.receive_nowait = driver.receive_nowait
        if self.bitmaps:
            from qsd.block.dirty import (
                recording_path,
                recording_payload_path,
                recording_views_path,
            )

            bitmaps = tuple(self.bitmaps.values())
            for bitmap in bitmaps:
                self.write_nowait = recording_path(self.write_nowait, bitmap)
            self.write_views_nowait = recording_views_path(self.write_views_nowait, bitmaps)
            self.receive_nowait = recording_payload_path(self.receive_nowait, bitmaps)

    def run_path(self) -> RunPath | None:
        """Return the driver's `run_path`; without its writes, if those are not for everybody."""
        if self.read_nowait is _refuse_read:
            return None
        path = self.driver.run_path()
        if path is None or self.write_nowait == self.driver.write_nowait:
            return path
        from qsd.block.dirty import RecordedRuns

        writes = self.write_nowait is not _refuse_read
        return RecordedRuns(path, tuple(self.bitmaps.values()) if writes else ())

    def length(self) -> int:
        """Return the length in bytes, a multiple of the sector size."""
        length = self._length
        if length < 0:
            length = self._length = align_up(self.driver.length(), SECTOR)
        return length

    def length_changed(self) -> None:
        """Forget the cached length and tell all users that it may have changed."""
        old = self._length
        self._length = align_up(self.driver.length(), SECTOR)
        if old != self._length:
            for bitmap in self.bitmaps.values():
                bitmap.resized(self._length)
            for edge in list(self.parents):
                edge.user.child_resized(edge)

    def primary_child(self) -> Node | None:
        """Return the child that makes the image, None for protocol nodes and the like."""
        for edge in self.children.values():
            if edge.role & (ROLE_PRIMARY | ROLE_FILTERED):
                return edge.node
        return None

    def rebind(self) -> None:
        """A child's fast paths changed: a driver that hands requests on may have bound them."""
        if self._is_bound:
            self.refresh_fast_paths()

    def child_resized(self, edge: Edge) -> None:
        """A child's length changed; nodes whose length follows their child pass it on."""
        # As long as nobody has asked for the length, the driver may be half open.
        if self._length >= 0 and self.driver.follows_children:
            self.length_changed()

    # Tracking

    def _leave(self) -> None:
        self.in_flight -= 1
        if not self.in_flight and self._idle:
            for future in self._idle:
                if not future.done():
                    future.set_result(None)
            self._idle.clear()

    async def wait_idle(self) -> None:
        """Wait until no request is in flight in this node."""
        while self.in_flight:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._idle.append(future)
            await future

    # The door

    def _check(self, offset: int, length: int) -> None:
        if self.closed:
            raise os_error(errno.ENOMEDIUM)
        if offset < 0 or length < 0 or (length and offset + length > self.length()):
            raise os_error(errno.EIO)

    def _check_write(self, offset: int, length: int) -> None:
        if self.read_only:
            raise os_error(errno.EPERM)
        # Formats write behind the end of a file to make it longer.
        self._check(offset, 0 if self.driver.grows else length)

    async def read(self, offset: int, view: memoryview) -> None:
        """Fill `view` with the node's content."""
        if self.read_nowait(offset, view):
            return
        length = len(view)
        self._check(offset, length)
        if not length:
            return
        self.in_flight += 1
        try:
            align = self.driver.limits.request_alignment
            if align > 1 and (offset % align or length % align):
                start = align_down(offset, align)
                bounce = memoryview(bytearray(align_up(offset + length, align) - start))
                await self._read_split(start, bounce)
                # The driver only reads whole blocks: the copy cuts out what was asked for.
                view[:] = bounce[offset - start : offset - start + length]
            else:
                await self._read_split(offset, view)
        finally:
            self._leave()

    async def _read_split(self, offset: int, view: memoryview) -> None:
        """Read an aligned range in pieces that the driver takes."""
        limits = self.driver.limits
        length = len(view)
        if limits.max_transfer and length > limits.max_transfer:
            step = align_down(limits.max_transfer, limits.request_alignment)
            for start in range(0, length, step):
                await self.driver.read(offset + start, view[start : start + step])
        else:
            await self.driver.read(offset, view)

    async def write(self, offset: int, view: memoryview, flags: int = 0) -> None:
        """Write `view`; flags are FUA, COMPRESSED, UNCHANGED."""
        if not flags and self.write_nowait(offset, view):
            return
        length = len(view)
        self._check_write(offset, length)
        driver = self.driver
        if flags & COMPRESSED and not (driver.supports_compressed or driver.passes_compressed):
            raise os_error(errno.ENOTSUP)
        if not length:
            if flags & FUA:
                await self.flush()
            return
        self.in_flight += 1
        try:
            try:
                if self.detect_zeroes != "off" and not flags & COMPRESSED and is_zero(view):
                    unmap = MAY_UNMAP if self.detect_zeroes == "unmap" else 0
                    await self._zero(offset, length, flags & FUA | unmap)
                else:
                    self.before_write(offset, length)
                    await self._write(offset, view, flags)
            finally:
                self.after_write(offset, length)  # a part may have been written, if it failed
            if flags & FUA and not self.driver.native_fua:
                await self.flush()
            self.unflushed = True
        finally:
            self._leave()

    async def _write(self, offset: int, view: memoryview, flags: int) -> None:
        driver = self.driver
        if not driver.native_fua:
            flags &= ~FUA
        length = len(view)
        limits = driver.limits
        align = max(limits.request_alignment, limits.write_alignment)
        if align > 1:
            await self._write_aligned(offset, view, flags, align)
        elif limits.max_transfer and length > limits.max_transfer:
            for start in range(0, length, limits.max_transfer):
                await driver.write(offset + start, view[start : start + limits.max_transfer], flags)
        else:
            await driver.write(offset, view, flags)

    async def write_from(self, offset: int, descriptor: int, host_offset: int, length: int) -> bool:
        """Write a range from a file; False if that is not possible here (see the driver's)."""
        if self.detect_zeroes != "off" or self.driver.limits.request_alignment > 1:
            return False
        self._check_write(offset, length)
        self.in_flight += 1
        try:
            self.before_write(offset, length)
            try:
                return await self.driver.write_from(offset, descriptor, host_offset, length)
            finally:
                self.after_write(offset, length)
                self.unflushed = True
        finally:
            self._leave()

    async def write_patches(
        self, offset: int, length: int, patches: Sequence[Patch], flags: int
    ) -> int:
        """Write the start of a range, some of it from files; return how much (see the driver's)."""
        if not self.discard_unmap:
            flags &= ~MAY_UNMAP
        if self.detect_zeroes != "off" or self.driver.limits.request_alignment > 1:
            return 0
        self._check_write(offset, length)
        self.in_flight += 1
        try:
            self.before_write(offset, length)
            try:
                return await self.driver.write_patches(offset, length, patches, flags)
            finally:
                self.after_write(offset, length)
                self.unflushed = True
        finally:
            self._leave()

    async def _write_aligned(self, offset: int, view: memoryview, flags: int, align: int) -> None:
        """Write to a driver that takes whole blocks only, by read-modify-write where needed.

        Unaligned writes exclude all others that touch their blocks; aligned ones exclude only
        unaligned ones.
        """
        rmw = self._rmw_lock()
        length = len(view)
        start = align_down(offset, align)
        end = align_up(offset + length, align)
        unaligned = start != offset or end != offset + length
        hold = await rmw.claim(start, end, unaligned)
        try:
            if unaligned:
                bounce = memoryview(bytearray(end - start))
                ends = []
                if start != offset:
                    ends.append("head")
                if end != offset + length:
                    ends.append("tail")
                if end - start == align:
                    await self._read_block(start, bounce, ends)
                else:
                    for place in ends:
                        part = bounce[:align] if place == "head" else bounce[-align:]
                        at = start if place == "head" else end - align
                        await self._read_block(at, part, [place])
                # The blocks at both ends must be written whole: new bytes into old blocks.
                bounce[offset - start : offset - start + length] = view
                view = bounce
            step = align_down(self.driver.limits.max_transfer, align) or len(view)
            for at in range(0, len(view), step):
                await self.driver.write(start + at, view[at : at + step], flags)
        finally:
            rmw.release(hold)

    async def _read_block(self, offset: int, view: memoryview, places: list[str]) -> None:
        """Read a block that is changed in part, at the head or tail of a write, or both."""
        debug_event = self.driver.debug_event
        for place in places:
            debug_event(f"pwritev_rmw_{place}")
        await self.driver.read(offset, view)
        for place in places:
            debug_event(f"pwritev_rmw_after_{place}")

    def after_write(self, offset: int, length: int) -> None:
        """Account a completed change of ``[offset, offset + length)``."""
        end = offset + length
        if end > self.wr_highest_offset:
            self.wr_highest_offset = end
        if end > self._length and self.driver.grows:
            self.length_changed()
        if self.bitmaps:
            for bitmap in self.bitmaps.values():
                bitmap.mark(offset, length)

    def before_write(self, offset: int, length: int) -> None:
        """Look at the write threshold, which fires for a write that is about to happen."""
        threshold = self.write_threshold
        if threshold and offset + length > threshold:
            self.write_threshold = 0
            self.refresh_fast_paths()
            if self.on_threshold is not None:
                self.on_threshold(offset + length - threshold)

    async def zero(self, offset: int, length: int, flags: int = 0) -> None:
        """Make a range read as zeroes; flags are FUA, MAY_UNMAP, NO_FALLBACK.

        Raises:
            OSError: ENOTSUP with NO_FALLBACK where it is not faster than writing.
        """
        self._check_write(offset, length)
        if not length:
            return
        if not self.discard_unmap:
            flags &= ~MAY_UNMAP
        self.in_flight += 1
        try:
            try:
                await self._zero(offset, length, flags)
            finally:
                self.after_write(offset, length)  # a part may have been written, if it failed
            if flags & FUA and not self.driver.native_fua:
                await self.flush()
            self.unflushed = True
        finally:
            self._leave()

    async def _zero(self, offset: int, length: int, flags: int) -> None:
        """Zero the aligned middle by the driver, head and tail by writing."""
        limits = self.driver.limits
        if not self.driver.native_fua:
            flags &= ~FUA  # the caller flushes behind it
        if flags & NO_FALLBACK and (offset | length) % limits.request_alignment:
            raise os_error(errno.ENOTSUP)  # its ends would be written, so nothing is touched
        self.before_write(offset, length)
        align = max(limits.zero_alignment, limits.request_alignment, limits.write_alignment)
        end = offset + length
        position = offset
        while position < end:
            head = -position % align if align > 1 else 0
            if head and end - position >= head:
                piece, aligned = head, False
            elif head:
                piece, aligned = end - position, False
            else:
                piece = align_down(end - position, align) or end - position
                aligned = piece >= align
                if limits.max_zero:
                    piece = min(piece, align_down(limits.max_zero, align) or limits.max_zero)
            await self._zero_piece(position, piece, flags, aligned or align <= 1)
            position += piece

    async def _zero_piece(self, offset: int, length: int, flags: int, native: bool) -> None:
        if native:
            try:
                await self.driver.zero(offset, length, flags)
                return
            except OSError as exc:
                if exc.errno not in (errno.ENOTSUP, errno.EOPNOTSUPP):
                    raise
        if flags & NO_FALLBACK:
            raise os_error(errno.ENOTSUP)
        for start in range(0, length, ZERO_CHUNK):
            piece = min(ZERO_CHUNK, length - start)
            await self._write(offset + start, ZEROES[:piece], flags & FUA)

    async def discard(self, offset: int, length: int) -> None:
        """Tell that a range is not needed; without discard=unmap that is ignored."""
        self._check_write(offset, length)
        if not self.discard_unmap or not length:
            return
        limits = self.driver.limits
        align = max(limits.discard_alignment, limits.request_alignment, limits.write_alignment)
        self.in_flight += 1
        try:
            self.before_write(offset, length)
            step = align_down(limits.max_discard, align) or length
            for start in range(offset, offset + length, step):
                piece = min(step, offset + length - start)
                await self.driver.discard(start, piece)
        except OSError as exc:
            if exc.errno not in (errno.ENOTSUP, errno.EOPNOTSUPP):
                raise
        finally:
            for bitmap in self.bitmaps.values():  # that it is no write shows in the highest offset
                bitmap.mark(offset, length)
            self._leave()

    async def copy_up(self, offset: int, length: int, flags: int = 0) -> None:
        """Let this layer take over what lies below it; the content stays the same."""
        self._check(offset, length)
        self.in_flight += 1
        try:
            await self.driver.copy_up(offset, length, flags)
        finally:
            self._leave()

    async def flush(self) -> None:
        """Make completed writes durable; with cache.no-flush only carried out of the format."""
        if self.closed:
            raise os_error(errno.ENOMEDIUM)
        if self.read_only:
            return
        self.in_flight += 1
        try:
            edge = self.children.get("file")
            if edge is not None:
                edge.node.driver.debug_event("flush_to_os")
                if self.unflushed:
                    edge.node.driver.debug_event("flush_to_disk")
            await self.driver.flush()
            self.unflushed = False
        finally:
            self._leave()

    async def flush_for_reopen(self) -> None:
        """Write everything back before the node becomes read-only; its state says so already."""
        read_only, self.read_only = self.read_only, False
        try:
            await self.driver.prepare_read_only()
            await self.flush()
        finally:
            self.read_only = read_only

    async def truncate(
        self, length: int, *, exact: bool = False, prealloc: str = "off", flags: int = 0
    ) -> None:
        """Change the length of the image; a longer backing file does not show through what is new.

        Raises:
            QmpError: With the text a user should read; the length may have changed in part.
        """
        if length < 0:
            raise QmpError("Image size cannot be negative")
        if length > MAX_LENGTH:
            raise QmpError(f"offset({length}) exceeds maximum({MAX_LENGTH})")
        if self.read_only:
            raise QmpError("Image is read-only")
        self.in_flight += 1
        try:
            backing = self.children.get("backing")
            if backing is not None and self.length() < min(length, backing.node.length()):
                flags |= ZERO_NEW
            await self.driver.truncate(length, exact, prealloc, flags)
        finally:
            self._leave()
            self.length_changed()

    async def amend(self, options: Any, *, force: bool) -> None:
        """Change options of the image itself (QMP reference, "x-blockdev-amend").

        Raises:
            QmpError: With the text a user should read.
        """
        self.in_flight += 1
        try:
            await self.driver.amend(options, force)
        finally:
            self._leave()

    async def block_status(self, offset: int, length: int, want_zero: bool = True) -> Status:
        """Describe the start of a range of this layer alone.

        A range beyond the end of the node is not the caller's to ask for; the answer never passes
        the end of what was asked.
        """
        self._check(offset, length)
        self.in_flight += 1
        try:
            return await self.driver.block_status(offset, length, want_zero)
        finally:
            self._leave()

    async def read_or_zero(self, offset: int, view: memoryview) -> None:
        """Read like :meth:`read`, but what lies beyond the end of the node is zero."""
        available = self.length() - offset
        if available >= len(view):
            await self.read(offset, view)
            return
        if available > 0:
            await self.read(offset, view[:available])
            fill_zero(view[available:])
        else:
            fill_zero(view)
