# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The commands for snapshots and backing files (QMP reference, "Block core").

Those that can be actions of transactions are transactions of one action (see
:mod:`qsd.commands.actions_snapshot`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qsd.block.drain import Drained
from qsd.block.status import backing_of
from qsd.commands.actions_snapshot import (
    ExternalSnapshot,
    InternalSnapshot,
    SyncSnapshot,
    find_snapshot,
    listed,
    root_node,
    snapshot_holder,
)
from qsd.commands.transaction import run_alone
from qsd.errors import QmpError, describe

if TYPE_CHECKING:
    from qsd.commands.context import Context
    from qsd.qapi.schema.block_snapshot import (
        BlockdevSnapshot,
        BlockdevSnapshotDeleteInternalSyncArguments,
        BlockdevSnapshotInternal,
        BlockdevSnapshotSync,
        ChangeBackingFileArguments,
    )


async def blockdev_snapshot(ctx: Context, args: BlockdevSnapshot) -> None:
    """Put a node over another one (QMP reference, "blockdev-snapshot")."""
    await run_alone(ExternalSnapshot(ctx, args, None))


async def blockdev_snapshot_sync(ctx: Context, args: BlockdevSnapshotSync) -> None:
    """Put a new image over a node (QMP reference, "blockdev-snapshot-sync")."""
    await run_alone(SyncSnapshot(ctx, args, None))


async def blockdev_snapshot_internal_sync(ctx: Context, args: BlockdevSnapshotInternal) -> None:
    """Take a snapshot inside an image (QMP reference, "blockdev-snapshot-internal-sync")."""
    await run_alone(InternalSnapshot(ctx, args, None))


async def blockdev_snapshot_delete_internal_sync(
    ctx: Context, args: BlockdevSnapshotDeleteInternalSyncArguments
) -> dict[str, Any]:
    """Delete a snapshot inside an image (QMP reference, "blockdev-snapshot-delete-internal-sync").

    Returns:
        What the snapshot was.
    """
    device = args.device
    node = root_node(ctx, device)
    if args.id is None and args.name is None:
        raise QmpError("Name or id must be provided")
    holder = snapshot_holder(node)
    async with Drained([node]):
        snapshots = listed(holder)
        found = find_snapshot(snapshots, args.id, args.name)
        if found is None:
            wanted_id = args.id if args.id is not None else "null"
            wanted_name = args.name if args.name is not None else "null"
            raise QmpError(
                f"Snapshot with id '{wanted_id}' and name '{wanted_name}' does not exist on "
                f"device '{device}'"
            )
        assert holder is not None  # it has a list
        if holder.read_only:
            raise QmpError(
                f"Failed to delete snapshot with id '{found['id']}' and name '{found['name']}' on "
                f"device '{device}': Image is read-only"
            )
        try:
            await holder.driver.delete_snapshot(found["id"])
        except OSError as exc:
            raise QmpError(f"Failed to delete snapshot: {describe(exc)}") from exc
    return found


async def change_backing_file(ctx: Context, args: ChangeBackingFileArguments) -> None:
    """Record another backing file in an image (QMP reference, "change-backing-file")."""
    from qsd.block.chain import contains
    from qsd.block.reopen import set_read_only
    from qsd.jobs.filters import check_root

    top = ctx.graph.lookup(args.device, args.device)
    check_root(top)
    node = ctx.graph.lookup(None, args.image_node_name)
    backing = backing_of(node)
    if backing is None:
        raise QmpError("not allowing backing file change on an image without a backing file")
    if not contains(top, node):
        raise QmpError(f"'{args.device}' and image file are not in the same chain")
    was_read_only = node.read_only
    if was_read_only:
        await set_read_only(ctx.graph, node, False)
    try:
        async with Drained([node]):
            await node.driver.change_backing_file(args.backing_file, backing.driver.name)
            backing.implicit = False  # not what opening the image would bring along
            await node.flush()
    except OSError as exc:
        raise QmpError(
            f"Could not change backing file to '{args.backing_file}': {describe(exc)}"
        ) from exc
    finally:
        if was_read_only:
            await set_read_only(ctx.graph, node, True)
