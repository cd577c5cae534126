# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Starting backups, as actions of transactions (QMP reference, "Transactions").

The source is drained from `prepare` to `clean`: what the backup shows is its content in between.
The jobs are made in `prepare` and started in `commit`; `abort` cancels jobs that never ran.

The checks and their order follow the C daemon.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from qsd.block import perms
from qsd.block.chain import stores_compressed
from qsd.block.status import backing_of
from qsd.commands.transaction import DrainedAction
from qsd.errors import QmpError, prefixed
from qsd.jobs.block_job import check_not_busy

if TYPE_CHECKING:
    from qsd.block.dirty import DirtyBitmap
    from qsd.block.node import Node
    from qsd.commands.context import Context
    from qsd.jobs.backup import BackupJob, BackupPlan
    from qsd.jobs.txn import JobTransaction
    from qsd.qapi.schema.block_job import BackupCommon

#: Count; what the interface allows.
_MAX_WORKERS: Final = (1 << 31) - 1


class _Backup(DrainedAction):
    """What both kinds of backups share."""

    __slots__ = ("_job",)

    def __init__(self, ctx: Context, data: Any, txn: JobTransaction | None) -> None:
        super().__init__(ctx, data, txn)
        self._job: BackupJob

    async def make_job(self, source: Node, target: Node) -> None:
        """Make the job; the source is drained.

        Raises:
            QmpError: That is impossible; nothing changed.
        """
        from qsd.jobs.backup import BackupJob, drop_filter, insert_filter

        args: BackupCommon = self.data
        plan = _plan(args, _find_bitmap(args, source))
        _check_nodes(self.ctx, args, source, target)
        _check_performance(args)
        if source.length() != target.length():
            raise QmpError("Source and target image have different sizes")
        node = await _open_filter(source, target, args.filter_node_name)
        try:
            await self.drain(node)
            insert_filter(node, source)
        except BaseException:
            await self.ctx.graph.close_node(node)
            raise
        try:
            _set_up_filter(node, args)
            self._job = BackupJob(
                self.ctx.jobs,
                args.job_id if args.job_id is not None else "",
                node,
                target,
                plan,
                speed=args.speed or 0,
                txn=self.txn,
                auto_finalize=args.auto_finalize is not False,
                auto_dismiss=args.auto_dismiss is not False,
            )
        except BaseException:
            await drop_filter(node)
            raise

    async def commit(self) -> None:
        """Start the job."""
        self._job.start()
        # It pauses at once, as its nodes are drained; only then they may go on.
        await asyncio.sleep(0)

    async def abort(self) -> None:
        """Give up the job, which was not started."""
        await self._job.cancel(force=True)


class BlockdevBackup(_Backup):
    """A backup to a node (QMP reference, "blockdev-backup")."""

    __slots__ = ()

    async def prepare_drained(self) -> None:
        """Make the job."""
        graph = self.ctx.graph
        source = graph.lookup(self.data.device, self.data.device)
        target = graph.lookup(self.data.target, self.data.target)
        await self.drain(source)
        await self.make_job(source, target)


class DriveBackup(_Backup):
    """A backup to an image that is made or opened for it (QMP reference, "drive-backup")."""

    __slots__ = ()

    async def prepare_drained(self) -> None:
        """Make and open the target, then make the job."""
        data = self.data
        source = self.ctx.graph.lookup(data.device, data.device)
        await self.drain(source)
        check_not_busy(self.ctx.jobs, source)
        sync = data.sync
        below: Node | None = None
        if sync == "top":
            below = backing_of(source)
            if below is None:
                sync = "full"
        elif sync == "none":
            below = source
        if data.mode != "existing":
            await self._make_image(source, below)
        target = await self._open(source, below if sync == "none" else None)
        try:
            if sync != data.sync:
                data.sync = sync
            await self.make_job(source, target)
        except BaseException:
            await self.ctx.graph.close_node(target)
            raise

    async def _make_image(self, source: Node, below: Node | None) -> None:
        from qsd.block.naming import filename
        from qsd.commands.new_image import Backing, make_image

        backing = Backing(filename(below), below.driver.name) if below is not None else None
        fmt = source.driver.name if self.data.format is None else self.data.format
        await make_image(self.ctx, self.data.target, fmt, source.length(), backing)

    async def _open(self, source: Node, backing: Node | None) -> Node:
        """Open the target; with `backing` as its backing file, whatever it records."""
        from qsd.block.filename import target_options
        from qsd.block.open import Inherited, open_node
        from qsd.qapi.model import NULL

        data, graph = self.data, self.ctx.graph
        fmt = data.format
        if fmt is None and data.mode != "existing":
            fmt = source.driver.name
        options = await target_options(data.target, fmt, source)
        branch: Any = options.branch
        if backing is not None and hasattr(branch, "backing"):
            branch.backing = NULL
        inherited = Inherited(
            cache_direct=source.cache_direct,
            cache_no_flush=source.cache_no_flush,
            discard_unmap=source.discard_unmap,
        )
        target = await open_node(graph, options, inherited)
        if backing is not None and target.driver.supports_backing:
            branch.backing = None
            try:
                graph.attach_child(target, backing, "backing", perms.ROLE_COW)
            except BaseException:
                await graph.close_node(target)
                raise
        return target


def _find_bitmap(args: BackupCommon, source: Node) -> DirtyBitmap | None:
    """Return the bitmap that a backup uses, after all checks that have to do with it.

    Raises:
        QmpError: One failed.
    """
    from qsd.block.dirty import DirtyBitmap

    if args.sync in ("bitmap", "incremental"):
        if args.bitmap is None:
            raise QmpError(f"must provide a valid bitmap name for '{args.sync}' sync mode")
        if args.sync == "incremental" and args.bitmap_mode not in (None, "on-success"):
            raise QmpError(
                "Bitmap sync mode must be 'on-success' when using sync mode 'incremental'"
            )
    if args.bitmap is None:
        if args.bitmap_mode is not None:
            raise QmpError("Cannot specify bitmap sync mode without a bitmap")
        return None
    bitmap = source.bitmaps.get(args.bitmap)
    if not isinstance(bitmap, DirtyBitmap):
        raise QmpError(f"Bitmap '{args.bitmap}' could not be found")
    if args.bitmap_mode is None and args.sync != "incremental":
        raise QmpError("Bitmap sync mode must be given when providing a bitmap")
    bitmap.check()
    if args.sync == "none":
        raise QmpError("sync mode 'none' does not produce meaningful bitmap outputs")
    if args.bitmap_mode == "never" and args.sync != "bitmap":
        raise QmpError(
            "Bitmap sync mode 'never' has no meaningful effect when combined with sync mode "
            f"'{args.sync}'"
        )
    return bitmap


def _plan(args: BackupCommon, bitmap: DirtyBitmap | None) -> BackupPlan:
    from qsd.jobs.backup import BackupPlan

    perf = args.x_perf
    workers = perf.max_workers if perf is not None else None
    return BackupPlan(
        "bitmap" if args.sync == "incremental" else args.sync,
        bitmap,
        args.bitmap_mode or "on-success",
        args.on_source_error or "report",
        args.on_target_error or "report",
        workers if workers is not None else 64,
        (perf.max_chunk if perf is not None else None) or 0,
        perf is None or perf.use_copy_range is not False,
    )


def _check_nodes(ctx: Context, args: BackupCommon, source: Node, target: Node) -> None:
    if source is target:
        raise QmpError("Source and target cannot be the same")
    if args.compress and not stores_compressed(target):
        raise QmpError("Compression is not supported for this drive ")
    check_not_busy(ctx.jobs, source)
    check_not_busy(ctx.jobs, target)


def _check_performance(args: BackupCommon) -> None:
    perf = args.x_perf
    if perf is None:
        return
    if perf.max_workers is not None and not 1 <= perf.max_workers <= _MAX_WORKERS:
        raise QmpError(f"max-workers must be between 1 and {_MAX_WORKERS}")
    if perf.max_chunk is not None and perf.max_chunk < 0:
        raise QmpError("max-chunk must be zero (which means no limit) or positive")


async def _open_filter(source: Node, target: Node, name: str | None) -> Node:
    """Open the filter above the source, without users."""
    from qsd.block.open import Inherited, open_node
    from qsd.qapi.schema.block_options import BlockdevOptions, BlockdevOptionsCbw

    options = BlockdevOptions(
        driver="copy-before-write",
        node_name=name,
        branch=BlockdevOptionsCbw(file=source.name, target=target.name),
    )
    try:
        return await open_node(source.graph, options, Inherited(read_only=source.read_only))
    except QmpError as exc:
        raise prefixed(exc, "Could not create node: ") from exc


def _set_up_filter(node: Node, args: BackupCommon) -> None:
    """Check what depends on the filter's clusters, and tell it how to copy."""
    driver: Any = node.driver
    size = driver.cluster_size
    perf = args.x_perf
    chunk = perf.max_chunk if perf is not None else None
    if chunk and chunk < size:
        raise QmpError(f"Required max-chunk ({chunk}) is less than backup cluster size ({size})")
    if args.compress:
        driver.copier.compress = True
        driver.copier.use_descriptors = False
