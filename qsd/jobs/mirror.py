# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
r"""Mirror jobs: a target is made equal to a source and kept so, until the user switches over.

::

    users                       users                     users
      |       (start)             |          (complete)     |
    source    ------>        mirror_top      ---------->  target        source: closed, or its own
                                  |    \ job
                               source   target

What has to be copied stands in a bitmap.  A granule is cleared *before* its chunk is read, and set
*after* a guest's change was made; so a change that comes while the chunk is on its way is copied
again, and nothing gets lost.  A chunk that failed is set again.  The job is in sync when nothing is
set and nothing is in flight.

In the write-blocking mode guests' changes and chunks take turns by a lock over ranges, and a change
is made on both sides under it.

The work ends in sync, but guests go on writing until the transaction is finalized.  What they wrote
meanwhile is copied in :meth:`MirrorJob.prepare`, in the drained section in which the graph is
changed.  A failure there leaves everything as it was.

An active commit is a mirror of the topmost image of a chain into one further down.
"""

from __future__ import annotations

import asyncio
import errno
import sys
from typing import TYPE_CHECKING, ClassVar, Final

from qsd.aio.rangelock import RangeLock
from qsd.block import perms
from qsd.block.chain import chain, is_allocated_above, may_replace
from qsd.block.change import GraphChange
from qsd.block.copy import CopyError, RangeCopier
from qsd.block.dirty import WorkingSet
from qsd.block.drain import Drained
from qsd.block.reopen import set_read_only
from qsd.block.status import backing_of
from qsd.errors import QmpError, os_error
from qsd.filters.mirror_top import MirrorTopDriver
from qsd.jobs.block_job import BlockJob
from qsd.jobs.copying import IGNORE_REST, LOOK_AHEAD, SpeedLimit, Workers, rest, steady_chunk
from qsd.jobs.filters import drop_filter, insert_filter, make_backend
from qsd.util.bitmap import Bitmap
from qsd.util.ranges import align_down, align_up

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from typing import Any

    from qsd.block.graph import Edge, Graph
    from qsd.block.node import Node
    from qsd.jobs.job import JobRegistry
    from qsd.qapi.schema.block_job import BlockdevOnError
    from qsd.qapi.schema.job import JobType

#: Bytes; the longest chunk.  What is copied in the kernel costs by the call: 1 GiB takes 0.30 s of
#: processor time outside of the kernel in chunks of 2 MiB, and 0.10 s in chunks of 8.
CHUNK: Final = 8 << 20
#: Bytes; the longest chunk where guests' changes wait for chunks.
BLOCKING_CHUNK: Final = 1 << 20
#: Chunks in flight.
MAX_CHUNKS: Final = 16
#: Bytes; what the speed limit lets pass in one go, as in the C daemon.
BATCH: Final = 10 << 20
#: Bytes; what is looked for in one go where there is no limit.
FREE_BATCH: Final = 64 << 20


class MirrorOptions:
    """How to mirror; the defaults are those of the QMP reference.

    Attributes:
        base: With `copy_old`, the first layer whose data is not copied; None for all.
        copy_old: Whether to copy what is there at the start.
        zero_target: Whether the target must be told where the source has nothing.
        granularity: Bytes; what is copied together if a part of it changes.
        replaces: Name of the node that the target takes the place of, None for the source.
        finish: Called with the target before the switch, e.g. to give it a backing file.
    """

    def __init__(self) -> None:
        self.base: Node | None = None
        self.copy_old = True
        self.zero_target = True
        self.granularity = 65536
        self.is_blocking = False
        self.unmap = True
        self.replaces: str | None = None
        self.on_source_error: BlockdevOnError = "report"
        self.on_target_error: BlockdevOnError = "report"
        self.filter_name: str | None = None
        self.speed = 0
        self.auto_finalize = True
        self.auto_dismiss = True
        self.finish: Callable[[Node], Awaitable[None]] | None = None


class MirrorJob(BlockJob):
    """Copies a node to another and keeps them equal.

    Build it with :func:`start_mirror`.

    Attributes:
        is_blocking: Whether guests' changes go to both sides before they complete.
    """

    TYPE: ClassVar[JobType] = "mirror"
    IS_COMMIT: ClassVar[bool] = False

    __slots__ = (
        "_completing",
        "_copier",
        "_dirty",
        "_ending_soft",
        "_failure",
        "_filter",
        "_in_flight",
        "_options",
        "_ranges",
        "_replaced",
        "_rests",
        "_shown",
        "_source",
        "_source_user",
        "_target",
        "_target_user",
        "_target_ignored_discard",
        "_target_was_read_only",
        "_waits",
        "is_blocking",
    )

    def __init__(
        self,
        registry: JobRegistry,
        graph: Graph,
        job_id: str | None,
        top: Node,
        source: Node,
        target: Node,
        options: MirrorOptions,
    ) -> None:
        self._filter: Node | None = top
        self._source = source
        self._target = target
        self._options = options
        self.is_blocking = options.is_blocking
        self._dirty = Bitmap(source.length(), options.granularity)
        # Where changes wait for the target, the filter says what is to be copied again.
        self._shown = WorkingSet(self._dirty, not options.is_blocking)
        self._ranges = RangeLock()
        self._in_flight = 0
        self._completing = False
        self._replaced: Node | None = None
        self._ending_soft = False
        self._rests = False
        self._waits = False
        self._failure: OSError | None = None
        self._target_ignored_discard = False
        self._target_was_read_only = False
        self._target_user = make_backend(graph)
        super().__init__(
            registry,
            graph,
            job_id,
            speed=options.speed,
            auto_finalize=options.auto_finalize,
            auto_dismiss=options.auto_dismiss,
        )

    def set_up(self) -> None:
        """Attach the job to the graph.

        Raises:
            QmpError: Permissions conflict; what was attached must be released.
        """
        top, source, target = self._filter, self._source, self._target
        assert top is not None  # until the end
        shared = perms.ALL & ~perms.RESIZE
        self._source_user = self.use_node(top, "main node", perms.CONSISTENT_READ, shared)
        taken, target_shared = perms.WRITE, perms.WRITE_UNCHANGED
        if self.IS_COMMIT:
            target_shared |= perms.CONSISTENT_READ | perms.WRITE
            if target.length() < source.length():
                taken |= perms.RESIZE
        self._target_user.attach(target, taken, target_shared)
        self._copier = RangeCopier(self._source_user, self._target_user, unmap=self._options.unmap)
        self.use_node(source, "source", 0, shared)
        self.use_node(target, "target", 0, perms.ALL)
        if self.IS_COMMIT:
            for node in chain(backing_of(source)):
                if node is target:
                    break
                self.use_node(node, "intermediate node", 0, perms.WRITE_UNCHANGED | perms.WRITE)
        driver = top.driver
        assert isinstance(driver, MirrorTopDriver)  # the job's own filter
        driver.sink = self
        self._shown.show(source)
        if self._options.unmap and not target.discard_unmap:
            # As in the C daemon the job's "unmap" outweighs what the node says.
            self._target_ignored_discard = target.discard_unmap = True

    # Changes by others (called by the filter)

    def changed(self, offset: int, length: int) -> None:
        """Copy a range (again)."""
        self._dirty.set(offset, length)
        if self._waits:
            self.wake()

    def write_both_nowait(self, offset: int, view: memoryview) -> bool:
        """Fast: write to both sides where they are equal, nothing is copied and nobody waits.

        The plain way is :meth:`change_both`, which also finds out what is wrong with the target.
        A guest writes 4 KiB at a depth of 16 23,000 to 32,000 times a second, instead of 10,000.
        """
        length = len(view)
        end = offset + length
        ranges = self._ranges
        if (
            self._dirty.next_dirty(offset, end) is not None
            or (ranges and ranges.is_blocked(offset, end, True))
            or self._target_user.quiesced
        ):
            return False
        try:
            if not self._source.write_nowait(offset, view):
                return False
        except OSError:
            self.changed(offset, length)
            raise
        try:
            done = self._target.write_nowait(offset, view)
        except OSError:
            done = False
        if done:
            self.progress_total += length
            self.progress(length)
        else:
            # The request may be given up before its second try, and then both sides would differ.
            self.changed(offset, length)
        return done

    async def change_both(
        self, offset: int, length: int, change: Callable[[Node], Coroutine[Any, Any, None]]
    ) -> None:
        """Make a change on both sides.

        A failure on the target is the job's affair: the range will be copied, and the guest's
        request succeeds.
        """
        end = offset + length
        hold = await self._ranges.claim(offset, end, True)
        try:
            try:
                await change(self._source)
            except BaseException:
                self.changed(offset, length)
                raise
            self.progress_total += length
            try:
                await change(self._target)
            except OSError as exc:
                self.progress_total -= length
                self.changed(offset, length)
                self._judge(CopyError(False, offset, exc))
            else:
                self.progress(length)
                # Granules that were changed as a whole are equal now.
                unit = self._options.granularity
                start = align_up(offset, unit)
                stop = end if end >= self._dirty.length else align_down(end, unit)
                if start < stop:
                    self._dirty.clear(start, stop - start)
        finally:
            self._ranges.release(hold)

    def _judge(self, error: CopyError) -> None:
        options = self._options
        policy = options.on_source_error if error.is_read else options.on_target_error
        action = self.handle_error(policy, error.is_read, error.cause)
        if action == "report":
            self._failure = self._failure or error.cause
        elif action == "ignore":
            self._rests = True

    # The work

    async def run(self) -> None:
        """Copy until both are in sync, then follow until the user has enough."""
        await self._check_lengths()
        if self._options.copy_old:
            await self._find_old_data()
        workers = Workers(self, MAX_CHUNKS)
        limit = SpeedLimit()
        self._update_total()
        position = 0
        while True:
            await self._checkpoint(workers, limit)
            self._update_total()
            if self._dirty:
                position = await self._copy_batch(workers, limit, position)
            elif workers.in_flight:
                await workers.wait_one()
            elif await self._in_sync():
                return

    async def _check_lengths(self) -> None:
        source, target = self._source.length(), self._target.length()
        if self.IS_COMMIT:
            if target < source:
                try:
                    await self._target.truncate(source)
                except QmpError as exc:
                    raise os_error(errno.EIO) from exc
        elif source != target:
            raise QmpError("Source and target image have different sizes")

    async def _find_old_data(self) -> None:
        """Mark what is to be copied of what is there at the start."""
        source, options, dirty = self._source, self._options, self._dirty
        length = source.length()
        if options.zero_target and not await self._zero_target(length):
            dirty.set(0, length)
            return
        offset = 0
        while offset < length:
            await self.pause_point()
            count, allocated = await is_allocated_above(
                source, options.base, offset, min(LOOK_AHEAD, length - offset)
            )
            if allocated:
                dirty.set(offset, count)
            offset += count
            await asyncio.sleep(0)

    async def _zero_target(self, length: int) -> bool:
        """Make the target empty, if that takes no time; else everything must be copied."""
        target = self._target
        if self._target_ignored_discard or not target.discard_unmap:
            return False
        from qsd.block.mapping import MAY_UNMAP, NO_FALLBACK

        try:
            await self._target_user.zero(0, length, MAY_UNMAP | NO_FALLBACK)
        except OSError:
            return False
        return True

    def _update_total(self) -> None:
        self.set_remaining(self._dirty_bytes() + self._in_flight)

    def _dirty_bytes(self) -> int:
        dirty = self._dirty
        count = dirty.dirty_bytes()
        tail = dirty.length % dirty.granularity
        if tail and dirty.get(dirty.length - 1):
            count -= dirty.granularity - tail
        return count

    async def _checkpoint(self, workers: Workers, limit: SpeedLimit) -> None:
        """Pause, end, fail or wait for the speed limit, with nothing in flight."""
        loop = asyncio.get_running_loop()
        while True:
            if self._failure is not None:
                await workers.join()
                raise self._failure
            if self.pause_count or self.is_cancelled:
                await workers.join()
                self._update_total()
                await rest(self, limit)
            if self._rests:
                self._rests = False
                await workers.join()
                await self.sleep(IGNORE_REST)
                continue
            delay = limit.delay(loop.time(), self.speed)
            if not delay:
                return
            await workers.join()
            if self._failure is None:
                await rest(self, limit, delay)

    async def _copy_batch(self, workers: Workers, limit: SpeedLimit, position: int) -> int:
        """Start to copy what is dirty from `position` on; return where to go on."""
        dirty = self._dirty
        area = dirty.next_dirty_area(position, dirty.length) or dirty.next_dirty_area(
            0, dirty.length
        )
        assert area is not None  # the caller looked
        offset = align_down(area[0], dirty.granularity)
        batch = steady_chunk(BATCH, self.speed) if self.speed else FREE_BATCH
        chunk = BLOCKING_CHUNK if self.is_blocking else CHUNK
        end = min(area[0] + area[1], offset + max(batch, dirty.granularity))
        moved: list[int] = []
        while offset < end and not self.pause_count and not self.is_cancelled:
            length = min(max(chunk, dirty.granularity), end - offset)
            dirty.clear(offset, length)
            self._in_flight += length
            await workers.start(self._copy_chunk(offset, length, moved))
            offset += length
        if self.speed:
            await workers.join()
            limit.spend(asyncio.get_running_loop().time(), sum(moved), self.speed)
        return offset if offset < dirty.length else 0

    async def _copy_chunk(self, offset: int, length: int, moved: list[int]) -> None:
        """Copy a chunk whose granules were cleared."""
        hold = None
        try:
            # A granule may be dirty again while it is copied: the older content must not come last.
            hold = await self._ranges.claim(offset, offset + length, True)
            moved.append(await self._copier.copy(offset, length))
            self.progress(length)
        except CopyError as exc:
            self._dirty.set(offset, length)
            self._judge(exc)
        except BaseException:
            self._dirty.set(offset, length)
            raise
        finally:
            self._in_flight -= length
            if hold is not None:
                self._ranges.release(hold)

    async def _in_sync(self) -> bool:
        """Do what is to be done while nothing has to be copied; return whether the work is done."""
        if not self.is_ready:
            if await self._flush_target():
                self._update_total()
                self.becomes_ready()
            return False
        if self._completing or self._ending_soft:
            # In sync as of now: nothing was awaited since the caller looked.
            return True
        self._waits = True
        try:
            await self.sleep()
        finally:
            self._waits = False
        return False

    async def _flush_target(self) -> bool:
        try:
            await self._target_user.flush()
        except OSError as exc:
            self._judge(CopyError(False, 0, exc))
            return False
        return True

    # Steering

    def accept_cancel(self, force: bool) -> bool:
        """A soft request to a job in sync ends it there, with a good copy."""
        if force or not self.is_ready:
            return True
        self._ending_soft = True
        return False

    async def complete(self) -> None:
        """Switch to the target as soon as both are in sync.

        Raises:
            QmpError: The node that the target should replace is gone.
        """
        replaces = self._options.replaces
        if replaces is not None:
            self._replaced = self.graph.nodes.get(replaces)
            if self._replaced is None:
                raise QmpError(f"Node name '{replaces}' not found")
        self._completing = True
        self.wake()

    # The end

    async def prepare(self) -> None:
        """Copy the rest and let the users go over to the target."""
        top = self._filter
        assert top is not None  # until the end
        keeper, holder = make_backend(self.graph), make_backend(self.graph)
        try:
            async with Drained([top, self._target]):
                await self._copy_rest()
                # Nodes that only the job uses must outlive its edges.
                keeper.attach(self._target, 0, perms.ALL)
                holder.attach(top, 0, perms.ALL)
                try:
                    await self._give_over(top, holder.edge)
                finally:
                    await holder.detach()
        finally:
            await keeper.detach()

    async def _give_over(self, top: Node, holder: Edge | None) -> None:
        switches = self._completing and not self._ending_soft
        if switches:
            self._check_replaced()
        await self._detach()
        if switches:
            await self._switch(top, holder)

    def _check_replaced(self) -> None:
        """Check that what may be replaced has not come to be seen by others since the start."""
        replaced, target = self._replaced, self._target
        if replaced is not None and not may_replace(self._source, replaced):
            sys.stderr.write(
                f"Can no longer replace '{replaced.name}' by '{target.name}', because it can no "
                "longer be guaranteed that doing so would not lead to an abrupt change of visible "
                "data\n"
            )
            raise os_error(errno.EPERM)

    def keeps_busy(self, node: Node) -> str | None:
        """Say how the job uses a node; the one to be replaced must stay when that was decided."""
        if node is self._replaced:
            return "block device is in use by block-job-complete"
        return super().keeps_busy(node)

    async def _copy_rest(self) -> None:
        dirty = self._dirty
        try:
            while (area := dirty.next_dirty_area(0, dirty.length)) is not None:
                offset, length = area[0], min(area[1], CHUNK)
                dirty.clear(offset, length)
                await self._copier.copy_drained(offset, length)
                self.progress_total += length
                self.progress(length)
        except CopyError as exc:
            raise exc.cause from exc
        await self._target.flush()

    async def _switch(self, top: Node, holder: Edge | None) -> None:
        """Change the graph, in a drained section."""
        source, target = self._source, self._target
        if self._options.finish is not None:
            await self._options.finish(target)
        replaced = self._replaced or source
        change = GraphChange(self.graph)
        heir = target if replaced is source else source
        change.move_users(top, heir, keep=lambda edge: edge is holder)
        for edge in list(top.children.values()):
            change.unlink(edge)
        if replaced is not source:
            change.move_users(replaced, target)
        change.apply([target, heir])
        self._filter = None
        if replaced.read_only != target.read_only and not self.IS_COMMIT:
            try:
                await set_read_only(self.graph, target, replaced.read_only)
            except QmpError:
                pass  # its users want it so
        await change.finish()

    async def _detach(self) -> None:
        top = self._filter
        if top is not None:
            driver = top.driver
            assert isinstance(driver, MirrorTopDriver)  # the job's own filter
            driver.sink = None
        await self._target_user.detach()
        await self.release_nodes()

    async def abort(self) -> None:
        """Take the filter out; the graph is as it was."""
        await self._detach()
        top, self._filter = self._filter, None
        if top is not None:
            await drop_filter(self.graph, top)

    async def clean(self) -> None:
        """Let go of everything."""
        self._replaced = None
        self._shown.hide(self._source)
        if self._target_ignored_discard:
            self._target.discard_unmap = False
        await self.abort()
        if self._target_was_read_only and not self._target.closed and not self._target.parents:
            await set_read_only(self.graph, self._target, True)


class ActiveCommitJob(MirrorJob):
    """Commits the topmost image of a chain, which may be written to meanwhile."""

    TYPE: ClassVar[JobType] = "commit"
    IS_COMMIT: ClassVar[bool] = True

    __slots__ = ()


async def start_mirror(
    registry: JobRegistry,
    graph: Graph,
    job_id: str | None,
    source: Node,
    target: Node,
    options: MirrorOptions,
    cls: type[MirrorJob] = MirrorJob,
) -> MirrorJob:
    """Make and start a mirror job.

    Raises:
        QmpError: It cannot be done; nothing changed.
    """
    target_read_only = cls.IS_COMMIT and target.read_only
    if target_read_only:
        await set_read_only(graph, target, False)
    top: Node | None = None
    job: MirrorJob | None = None
    try:
        top = await insert_filter(
            graph, MirrorTopDriver, options.filter_name, source, read_only=False
        )
        driver = top.driver
        assert isinstance(driver, MirrorTopDriver)  # as asked for
        driver.is_commit = cls.IS_COMMIT
        job = cls(registry, graph, job_id, top, source, target, options)
        job._target_was_read_only = target_read_only
        job.set_up()
    except BaseException:
        if job is not None:
            await job.clean()
            job.discard()
        else:
            if top is not None:
                await drop_filter(graph, top)
            if target_read_only:
                await set_read_only(graph, target, True)
        raise
    await job.begin()
    return job


async def start_active_commit(
    registry: JobRegistry,
    graph: Graph,
    job_id: str | None,
    source: Node,
    base: Node,
    options: MirrorOptions,
) -> MirrorJob:
    """Make and start a job that commits the topmost image of a chain.

    Raises:
        QmpError: It cannot be done; nothing changed.
    """
    options.base = base
    options.zero_target = False
    options.unmap = False
    return await start_mirror(registry, graph, job_id, source, base, options, ActiveCommitJob)


__all__ = ["MirrorJob", "ActiveCommitJob", "MirrorOptions", "start_mirror", "start_active_commit"]
