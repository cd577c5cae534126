# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
r"""The backup job: a copy of a node as it was when the job started (QMP reference,
"blockdev-backup").

While the job runs, a "copy-before-write" filter stands above the node (:mod:`qsd.filters.
copy_before_write`).  It owns the set of clusters that are still to be copied, and copies those that
the guest is about to change.  The job goes through the set and copies the rest::

    users
      |
    filter ---- target          pending clusters:  "full"    all
      |                                            "top"     those that the top layer has
    node                                           "bitmap"  those that are dirty in a bitmap
                                                   "none"    all, but the job copies none itself

A failure of the job's own copying is judged by the user's policies; one of the filter's fails the
guest's request, so that the backup stays good.

A bitmap stands still meanwhile, with a successor that records what the guest writes (see
:mod:`qsd.block.dirty`).  What becomes of it is decided together with the job's result::

                   success                   failure
    on-success     successor                 both
    always         successor                 successor, and what was not copied
    never          both                      both
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, ClassVar, Final

from qsd.block import perms
from qsd.block.chain import is_allocated, skip_filters
from qsd.block.change import GraphChange
from qsd.block.copy import CopyError, begin_all
from qsd.block.drain import Drained
from qsd.block.node import Node
from qsd.errors import QmpError
from qsd.jobs.block_job import BlockJob
from qsd.jobs.copying import (
    IGNORE_REST,
    MAX_CHUNKS,
    SpeedLimit,
    Workers,
    checkpoint,
    steady_chunk,
)
from qsd.util.namedtuple import NamedTuple
from qsd.util.ranges import align_down

if TYPE_CHECKING:
    from qsd.block.dirty import DirtyBitmap
    from qsd.block.graph import Edge
    from qsd.filters.copy_before_write import CopyBeforeWriteDriver
    from qsd.jobs.job import JobRegistry
    from qsd.jobs.txn import JobTransaction
    from qsd.qapi.schema.block_job import BitmapSyncMode, BlockdevOnError, MirrorSyncMode
    from qsd.qapi.schema.job import JobType

#: Bytes; how much is copied with one request where the speed is limited.
CHUNK: Final = 1 << 20
#: Bytes; how much is copied with one request otherwise.  Guests' changes to it wait for that.
LARGE_CHUNK: Final = 4 << 20
#: Bytes; how much of zeroes is dealt with at once.
ZERO_CHUNK: Final = 1 << 30


class BackupPlan(NamedTuple):
    """What the user wants of a backup.

    Attributes:
        sync: What is copied; "incremental" is "bitmap" here.
        bitmap: What is copied with "bitmap", and what to clear at the end.
        bitmap_mode: What becomes of it.
        on_source_error, on_target_error: Policies.
        max_workers: How many chunks may be copied at the same time.
        max_chunk: Bytes of a chunk at most, 0 for no limit.
        use_copy_range: Whether the kernel may copy from file to file.
    """

    sync: MirrorSyncMode
    bitmap: DirtyBitmap | None = None
    bitmap_mode: BitmapSyncMode = "never"
    on_source_error: BlockdevOnError = "report"
    on_target_error: BlockdevOnError = "report"
    max_workers: int = 64
    max_chunk: int = 0
    use_copy_range: bool = True


class BackupJob(BlockJob):
    """Copies a node as it was when the job was made."""

    TYPE: ClassVar[JobType] = "backup"

    __slots__ = ("_ahead", "_cbw", "_failures", "_filter", "_plan", "_target")

    def __init__(
        self,
        registry: JobRegistry,
        job_id: str,
        filter_node: Node,
        target: Node,
        plan: BackupPlan,
        *,
        speed: int = 0,
        txn: JobTransaction | None = None,
        auto_finalize: bool = True,
        auto_dismiss: bool = True,
    ) -> None:
        """Make the job.

        Args:
            registry: The jobs.
            job_id: Its identifier.
            filter_node: The filter, which has its place in the graph; from now on it is the job's.
            target: Where the copy goes.
            plan: What is wanted.
            speed: Bytes per second at most, 0 for no limit.
            txn: The transaction it belongs to.
            auto_finalize: Whether it goes from pending to concluded by itself.
            auto_dismiss: Whether it goes from concluded to null by itself.

        Raises:
            QmpError: The identifier cannot be used, or permissions conflict.
        """
        super().__init__(
            registry,
            filter_node.graph,
            job_id,
            speed=speed,
            txn=txn,
            auto_finalize=auto_finalize,
            auto_dismiss=auto_dismiss,
        )
        cbw: CopyBeforeWriteDriver = filter_node.driver  # type: ignore[assignment]
        self._filter = filter_node
        self._cbw = cbw
        self._plan = plan
        self._failures: list[CopyError] = []
        self._ahead = ZERO_CHUNK
        if not plan.use_copy_range:
            cbw.copier.use_descriptors = False
        self._target = target
        cbw.copier.flush_follows = has_tables(target)
        try:
            self.use_node(filter_node, "main node", 0, perms.ALL)
            self.use_node(target, "target", 0, perms.ALL)
        except QmpError:
            self._unuse()
            self.discard()
            raise
        if plan.bitmap is not None:
            if plan.sync == "bitmap":
                cbw.pending.clear_all()
                cbw.pending.merge(plan.bitmap.bits)
            plan.bitmap.freeze()
        cbw.on_saved = self.progress
        self._count()

    @property
    def _source(self) -> Node:
        """The node below the filter: what is copied, or by now another filter above that."""
        return self._cbw.edge.node

    def _unuse(self) -> None:
        """Detach from nodes at once: nothing was done with them yet."""
        for backend in self.backends:
            edge = backend.edge
            if edge is not None:
                backend.edge = None
                edge.node.parents.remove(edge)
                self.graph.backends.remove(backend)
                self.graph.update([edge.node])
        self.backends.clear()

    def _count(self) -> None:
        """State how much is pending."""
        self.set_remaining(self._cbw.pending.count() * self._cbw.cluster_size)

    # The work

    async def run(self) -> None:
        """Copy what the plan asks for."""
        if self._plan.sync == "none":
            while True:  # the filter does all the work, until the job is cancelled
                await self.sleep()
        if self._plan.sync == "top":
            await self._leave_out_unallocated()
        await self._copy_pending()

    async def _leave_out_unallocated(self) -> None:
        """Take from the set what the top layer does not have."""
        length = self._source.length()
        size = self._cbw.cluster_size
        offset = 0
        while offset < length:
            await self.pause_point()
            main = self.backends[0]
            await begin_all(main)
            try:
                layer = skip_filters(self._source) or self._source
                count, allocated = await is_allocated(layer, offset, length - offset)
            finally:
                main.end()
            end = offset + count
            if allocated:
                offset = min(-(-end // size) * size, length)
                continue
            if end < length:
                end = align_down(end, size)
                if end == offset:  # the rest of the cluster may be there
                    end = offset + await self._hollow_cluster(layer, offset, size)
                    if end == offset:
                        offset += size
                        continue
            self._cbw.pending.clear(offset, end - offset)
            offset = end
        self._count()

    async def _hollow_cluster(self, layer: Node, offset: int, size: int) -> int:
        """Return the length of a cluster if the layer has nothing of it, else 0."""
        end = min(offset + size, layer.length())
        position = offset
        while position < end:
            count, allocated = await is_allocated(layer, position, end - position)
            if allocated:
                return 0
            position += count
        return end - offset

    async def _copy_pending(self) -> None:
        pending = self._cbw.pending
        length = self._source.length()
        workers = Workers(self, max(1, min(self._plan.max_workers, MAX_CHUNKS)))
        limit = SpeedLimit()
        position = 0
        while True:
            if self._failures:
                await workers.join()
                await self._judge()
                position = 0
            # What was copied last is not waited for.
            await checkpoint(self, workers, limit if pending else SpeedLimit(), self._failures)
            start = pending.next_dirty(position, length)
            if start is None:
                if workers.in_flight:
                    await workers.wait_one()
                elif not self._failures:
                    if not pending and await self._write_tables():
                        return
                    position = 0
                continue
            # No further than is dealt with at once: the end of the pending ones may be far.
            stop = pending.next_clean(start, start + ZERO_CHUNK) or start + ZERO_CHUNK
            offset, extent = start, min(stop, length) - start
            count = await self._chunk(offset, extent)
            if self.pause_count:
                continue  # the drained section that paused us may have changed everything
            limit.spend(asyncio.get_running_loop().time(), count, self.speed)
            position = offset + count
            await workers.start(self._save(offset, count))

    async def _write_tables(self) -> bool:
        """Leave no table of the target in memory only; return whether that succeeded.

        What ends as a success should be there.  Bytes of plain files are where they belong, if not
        durable, and the C daemon leaves it at that.
        """
        if has_tables(self._target):
            try:
                await self._target.flush()
            except OSError as exc:
                self._failures.append(CopyError(False, 0, exc))
                return False
        return True

    async def _chunk(self, offset: int, extent: int) -> int:
        """Return how much to copy with one request."""
        cbw = self._cbw
        main = self.backends[0]
        await begin_all(main)
        try:
            count, is_zero = await cbw.look_ahead(offset, min(extent, self._ahead))
        except CopyError:
            return min(extent, cbw.cluster_size)  # copying finds it again, and reports it
        finally:
            main.end()
        limit = steady_chunk(CHUNK, self.speed) if self.speed else LARGE_CHUNK
        if self._plan.max_chunk:
            limit = min(limit, self._plan.max_chunk)
        limit = max(align_down(limit, cbw.cluster_size), cbw.cluster_size)
        # Looking far saves time where there is nothing, and costs it where there is much.
        self._ahead = ZERO_CHUNK if is_zero else limit
        if is_zero and (self.speed or count > limit):
            return count
        # What is in short pieces goes with one request: each has a price of its own.
        return min(count if self.speed else extent, limit)

    async def _save(self, offset: int, length: int) -> None:
        backends = self.backends
        await begin_all(*backends)
        try:
            await self._cbw.save(offset, length)
        except CopyError as exc:
            self._failures.append(exc)
        finally:
            for backend in backends:
                backend.end()

    async def _judge(self) -> None:
        """Apply the policy to the first of the failures; the others will come again.

        Raises:
            OSError: It was fatal.
        """
        error = min(self._failures, key=lambda failure: failure.offset)
        self._failures.clear()
        plan = self._plan
        policy = plan.on_source_error if error.is_read else plan.on_target_error
        action = self.handle_error(policy, error.is_read, error.cause)
        if action == "report":
            raise error.cause
        if action == "ignore":
            await self.sleep(IGNORE_REST)

    # The end

    async def commit(self) -> None:
        """Settle the bitmap after success."""
        self._settle_bitmap(is_success=True)

    async def abort(self) -> None:
        """Settle the bitmap after failure."""
        self._settle_bitmap(is_success=False)

    def _settle_bitmap(self, *, is_success: bool) -> None:
        bitmap, mode = self._plan.bitmap, self._plan.bitmap_mode
        if bitmap is None:
            return
        if mode == "always" or (mode == "on-success" and is_success):
            bitmap.abdicate()
        else:
            bitmap.reclaim()
        if mode == "always" and not is_success:
            bitmap.bits.merge(self._cbw.pending)

    async def clean(self) -> None:
        """Take the filter out of the graph."""
        self._cbw.on_saved = None
        node = self._filter
        async with Drained([node]):
            # The job may be its only user, but it must not be closed by that.
            node.monitor_owned = True
            await self.release_nodes()
            await drop_filter(node)


def has_tables(node: Node) -> bool:
    """Tell whether a node may keep in memory where its data is."""
    return any(
        edge.role & perms.ROLE_METADATA
        for member in node.graph.descend([node])
        for edge in member.children.values()
    )


async def drop_filter(filter_node: Node) -> None:
    """Give all users of a filter to the node below, and close it; both are drained."""
    graph = filter_node.graph
    cbw: CopyBeforeWriteDriver = filter_node.driver  # type: ignore[assignment]
    source = cbw.edge.node
    change = GraphChange(graph)
    change.move_users(filter_node, source)
    change.apply([source, filter_node])
    filter_node.monitor_owned = False
    # Flushing is up to those who use the nodes below, which do not close with the filter.
    await graph.close_node(filter_node, flush=False)
    await change.finish()


def insert_filter(filter_node: Node, source: Node) -> None:
    """Give all users of a node to a filter above it; both are drained.

    Jobs stay with the node, and so do nodes below the filter: its target may show what the source
    has.

    Raises:
        QmpError: Permissions conflict; nothing changed.
    """
    graph = filter_node.graph
    below = set(graph.descend([filter_node]))

    def stays(edge: Edge) -> bool:
        return edge.user in below if isinstance(edge.user, Node) else edge.name != "root"

    change = GraphChange(graph)
    change.move_users(source, filter_node, stays)
    change.apply([filter_node, source])
