# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The "copy-before-write" filter: old data goes to a target before it is overwritten, and stays
readable as it was when the filter was made (QMP reference, "BlockdevOptionsCbw").

The image is divided into clusters of one size.  Two sets of clusters tell where the old data is::

    pending   the old data is still in the file, and is to be copied before it changes
    done      the old data is in the target

    readable (as of then)  =  pending + done  -  what the reader discarded

* A write claims its clusters exclusively, copies those that are pending, and lets go; then it
  writes.
* A reader of the old data claims its range shared while it reads from the file, so that no write
  changes the file below it.  What is in the target does not change any more.

If copying fails, either the write fails (and the snapshot stays good), or the snapshot is given up
and the write goes on ("on-cbw-error").
"""

from __future__ import annotations

import asyncio
import errno
import sys
from typing import TYPE_CHECKING, Any, ClassVar, Final

from qsd.aio.rangelock import RangeLock
from qsd.block import perms
from qsd.block.copy import COPY_UNIT, CopyError, NodeCopier, next_extent
from qsd.block.dirty import CHECK_BUSY, CHECK_INCONSISTENT, WorkingSet
from qsd.block.info import driver_info
from qsd.block.mapping import ST_DATA, ST_ZERO, Status
from qsd.block.outlook import Outlook
from qsd.block.status import chain_status
from qsd.errors import QmpError, os_error, prefixed
from qsd.filters.base import FilterDriver, filtered_filename
from qsd.util.bitmap import Bitmap
from qsd.util.ranges import align_down, align_up

if TYPE_CHECKING:
    from collections.abc import Callable

    from qsd.block.dirty import DirtyBitmap
    from qsd.block.graph import Edge
    from qsd.block.node import Node
    from qsd.block.open import ChildOpener
    from qsd.qapi.schema.block_bitmap import BlockDirtyBitmap
    from qsd.qapi.schema.block_options import BlockdevOptionsCbw

_MIN_CLUSTER: Final = 65536
#: Bytes; more than that is never copied with one request.
_MAX_COPY: Final = 4 << 20

_WARNING: Final = (
    "warning: The target block device doesn't provide information about the block size and it "
    "doesn't have a backing file. The default block size of {0} bytes is used. If the actual "
    "block size of the target exceeds this default, the backup may be unusable\n"
)


def cluster_size_of(target: Node) -> int:
    """Return the unit of copying to a target, bytes; warn where it is a guess."""
    info = driver_info(target)
    size = info.get("cluster-size")
    if not size:
        # Files have no clusters, and say so; who does not know the dirty flag says nothing at all.
        if "dirty-flag" not in info and "backing" not in target.children:
            sys.stderr.write(_WARNING.format(_MIN_CLUSTER))
            sys.stderr.flush()
        return _MIN_CLUSTER
    return max(_MIN_CLUSTER, int(size))


class CopyBeforeWriteDriver(FilterDriver):
    """Saves old data.

    Attributes:
        cluster_size: The unit of copying, bytes.
        pending: Clusters whose old data is to be saved before they change.
        copier: What copies.
        on_saved: Called with the number of bytes, in whole clusters, that were saved.
    """

    name: ClassVar[str] = "copy-before-write"

    __slots__ = (
        "_break_snapshot", "_done", "_error", "_outlook", "_ranges", "_readable", "_shown",
        "_target", "_timeout", "cluster_size", "copier", "on_saved", "pending",
    )  # fmt: skip

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self._target: Edge
        self.cluster_size = _MIN_CLUSTER
        self._ranges = RangeLock()
        self._break_snapshot = False
        self._timeout: int | None = None
        self._error = 0
        self.pending: Bitmap
        self.copier: NodeCopier
        self._outlook: Outlook
        self.on_saved: Callable[[int], None] | None = None
        self._shown: tuple[WorkingSet, Node] | None = None
        self._done: Bitmap
        self._readable: Bitmap

    async def open(self, options: BlockdevOptionsCbw, opener: ChildOpener) -> None:
        """Attach file and target; from now on the file's content is kept."""
        await super().open(options, opener)
        self._target = await opener.child("target", options.target, perms.ROLE_DATA)
        source = None
        if options.bitmap is not None:
            source = _find_bitmap(self.node, options.bitmap)
        self._break_snapshot = options.on_cbw_error == "break-snapshot"
        self._timeout = options.cbw_timeout or None
        self.cluster_size = cluster_size_of(self._target.node)
        self.copier = NodeCopier(unit=max(COPY_UNIT, self.cluster_size))
        self.copier.flush_follows = False
        self._outlook = Outlook(1, self.cluster_size, takes_unknown=True)
        length = self.length()
        self.pending = Bitmap(length, self.cluster_size)
        self._done = Bitmap(length, self.cluster_size)
        if source is None:
            self.pending.set(0, length)
        else:
            _merge_bitmap(source, self.pending)
        self._readable = self.pending.copy()
        for shown in (self._done, self._readable):
            WorkingSet(shown, False).show(self.node)
        self._shown = WorkingSet(self.pending, False), self.edge.node
        self._shown[0].show(self._shown[1])

    async def close(self) -> None:
        """Keep nothing of the file any more."""
        if self._shown is not None:
            self._shown[0].hide(self._shown[1])

    def child_perms(self, edge: Edge, perm: int, shared: int) -> tuple[int, int]:
        """Write to the target, and keep others from writing to the file past the filter."""
        if edge is self.node.children.get("target"):
            return perms.WRITE, perms.ALL & ~perms.RESIZE
        taken, shared = perm & perms.ALL, shared & perms.ALL
        if taken & perms.WRITE:
            taken |= perms.CONSISTENT_READ  # old data has to be read first
        if self.node.parents:
            shared &= ~(perms.WRITE | perms.RESIZE)
        return taken, shared

    def filename(self) -> str | None:
        """Go by the name of what is filtered."""
        return filtered_filename(self.edge)

    def image_info(self) -> dict[str, Any]:
        """Do not count the target."""
        from qsd.block.info import allocated_size

        return {"actual-size": allocated_size(self.edge.node)}

    # Copying

    async def _save(self, offset: int, length: int) -> None:
        """Copy the old data of a range that is about to change.

        Raises:
            OSError: It could not be saved, and the options say that the write must fail.
        """
        if self._error or self.pending.next_dirty(offset, offset + length) is None:
            return
        try:
            if self._timeout is None:
                await self.save(offset, length)
            else:
                await self._save_in_time(offset, length, self._timeout)
        except CopyError as exc:
            self._fail(exc.cause.errno or errno.EIO, exc)
        except TimeoutError as exc:
            self._fail(errno.ETIMEDOUT, exc)

    async def _save_in_time(self, offset: int, length: int, seconds: float) -> None:
        """Save, but give up after a while.

        Raises:
            TimeoutError: It took too long.
            CopyError: It failed.
        """
        task = self.node.graph.tasks.spawn(self.save(offset, length), "save", awaited=True)
        done, _ = await asyncio.wait([task], timeout=seconds)
        if not done:
            task.cancel()
            await asyncio.wait([task])
            raise TimeoutError
        task.result()

    def _fail(self, code: int, exc: Exception) -> None:
        """Give up the snapshot, or fail the guest's request."""
        if not self._break_snapshot:
            raise os_error(code) from exc
        self._error = code

    async def save(self, offset: int, length: int) -> None:
        """Save what is pending in the clusters of a range.

        Raises:
            CopyError: One side failed; what could not be saved is pending still.
        """
        size = self.cluster_size
        start = align_down(offset, size)
        end = min(align_up(offset + length, size), self.length())
        hold = await self._ranges.claim(start, end, True)
        try:
            while (area := self.pending.next_dirty_area(start, end)) is not None:
                at, extent = area
                extent = await self._copy_piece(at, extent)
                # A reader may have given the clusters up meanwhile, but not while we hold them.
                self.pending.clear(at, extent)
                self._done.set(at, extent)
                if self.on_saved is not None:
                    self.on_saved(align_up(extent, size))
                start = at + extent
        finally:
            self._ranges.release(hold)

    async def _copy_piece(self, offset: int, length: int) -> int:
        """Copy the start of a range of whole clusters; return how much.

        A cluster is data if any of it is; zeroes are left to the target.
        """
        size = self.cluster_size
        source, target = self.edge.node, self._target.node
        at_once = min(length, max(size, _MAX_COPY))
        count, _ = await self.copier.move_pieces(source, target, offset, at_once, self._outlook)
        if count:
            return count
        count, is_zero = await self.look_ahead(offset, length)
        if is_zero:
            await self.copier.zero_node(target, offset, count)
            return count
        count = min(count, at_once)
        return await self.copier.move_some(source, target, offset, count)

    async def look(self, offset: int, length: int) -> tuple[int, bool]:
        """Tell for how many whole clusters from `offset` on all is zero, or not.

        Raises:
            CopyError: The source cannot tell.
        """
        size = self.cluster_size
        # What is pending has not changed since it was asked about, however long ago.
        known = self._outlook.look(offset, length)
        if known is not None:
            return known[0], not known[1]
        count, is_data = await next_extent(self.edge.node, offset, length, size, takes_unknown=True)
        if count < length:
            # A cluster is data if any of it is.
            count = align_up(count, size) if is_data else align_down(count, size)
        if count:
            return min(count, length), not is_data
        return min(size, length), False

    async def look_ahead(self, offset: int, length: int) -> tuple[int, bool]:
        """Do what :meth:`look` does for somebody who is going to ask about what follows, too.

        Raises:
            CopyError: The source cannot tell.
        """
        if self._outlook.look(offset, length) is None:
            self._outlook.learn(self.edge.node, offset, length)
        return await self.look(offset, length)

    # What the guest does

    def write_nowait(self, offset: int, view: memoryview) -> bool:
        """Write at once where there is nothing to be saved and nobody reads old data."""
        if self._ranges or self.pending.next_dirty(offset, offset + len(view)) is not None:
            return False
        return super().write_nowait(offset, view)

    async def _claim(self, offset: int, length: int) -> Any:
        """Save old data, then wait for readers of the old data in the file to finish."""
        await self._save(offset, length)
        return await self._ranges.claim(offset, offset + length, True)

    async def write(self, offset: int, view: memoryview, flags: int) -> None:
        """Save, then write."""
        hold = await self._claim(offset, len(view))
        try:
            await self.edge.node.write(offset, view, flags)
        finally:
            self._ranges.release(hold)

    async def zero(self, offset: int, length: int, flags: int) -> None:
        """Save, then zero."""
        hold = await self._claim(offset, length)
        try:
            await self.edge.node.zero(offset, length, flags)
        finally:
            self._ranges.release(hold)

    async def discard(self, offset: int, length: int) -> None:
        """Save, then discard."""
        hold = await self._claim(offset, length)
        try:
            await self.edge.node.discard(offset, length)
        finally:
            self._ranges.release(hold)

    async def flush(self) -> None:
        """Flush the target too, but do not let its failure hurt the guest."""
        try:
            await self._target.node.flush()
        except OSError:
            pass  # what was saved can be read; whether it survives a crash is the target's affair
        await self.edge.node.flush()

    # What the reader of the old data does (qsd.filters.snapshot_access)

    def _check_readable(self, offset: int, length: int) -> None:
        """Refuse what is not kept.

        Raises:
            OSError: EACCES.
        """
        if self._error or not self._readable.is_all_dirty(offset, length):
            raise os_error(errno.EACCES)

    async def read_old(self, offset: int, view: memoryview) -> None:
        """Read what was there when the filter was made."""
        length = len(view)
        hold = await self._ranges.claim(offset, offset + length, False)
        try:
            position = 0
            while position < length:
                at = offset + position
                piece, is_saved = self._run(at, length - position)
                self._check_readable(at, piece)
                source = self._target if is_saved else self.edge
                await source.node.read(at, view[position : position + piece])
                position += piece
        finally:
            self._ranges.release(hold)

    def _run(self, offset: int, length: int) -> tuple[int, bool]:
        """Return how far a range is in one place, and whether that is the target."""
        area = self._done.next_dirty_area(offset, offset + length)
        if area is None:
            return length, False
        start, extent = area
        if start > offset:
            return start - offset, False
        return extent, True

    async def old_status(self, offset: int, length: int) -> Status:
        """Describe what was there when the filter was made."""
        hold = await self._ranges.claim(offset, offset + length, False)
        try:
            piece, is_saved = self._run(offset, length)
            self._check_readable(offset, min(piece, 1))
            end = self._readable.next_clean(offset, offset + piece)
            piece = piece if end is None else end - offset
            source = self._target if is_saved else self.edge
            status = await chain_status(source.node, offset, piece)
        finally:
            self._ranges.release(hold)
        return Status(status.length, status.flags | (0 if status.flags & ST_ZERO else ST_DATA))

    async def discard_old(self, offset: int, length: int) -> None:
        """Give up old data: whole clusters need not be saved any more, and what is, is dropped."""
        size = self.cluster_size
        start = align_up(offset, size)
        end = offset + length
        if end < self.length():
            end = align_down(end, size)
        if start >= end:
            return
        hold = await self._ranges.claim(start, end, True)
        try:
            self._readable.clear(start, end - start)
            self.pending.clear(start, end - start)
            while (area := self._done.next_dirty_area(start, end)) is not None:
                await self._target.node.discard(*area)
                self._done.clear(*area)
        finally:
            self._ranges.release(hold)


def _merge_bitmap(source: DirtyBitmap, pending: Bitmap) -> None:
    """Take what is dirty in a bitmap for what is to be saved.

    Raises:
        QmpError: The bitmap is in use, inconsistent or of another size.
    """
    try:
        source.check(CHECK_BUSY | CHECK_INCONSISTENT)
        source.check_mergeable(pending.length)
    except QmpError as exc:
        raise prefixed(
            exc,
            "Cannot create block-copy-state: "
            f"Failed to merge bitmap '{source.name}' to internal copy-bitmap: ",
        ) from exc
    pending.merge(source.bits)


def _find_bitmap(node: Node, wanted: BlockDirtyBitmap) -> DirtyBitmap:
    """Return a bitmap by node and name.

    Raises:
        QmpError: There is none.
    """
    from qsd.block.dirty import find_bitmap

    return find_bitmap(node.graph, wanted.node, wanted.name)
