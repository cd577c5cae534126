# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Taking snapshots, as actions of transactions (QMP reference, "Transactions").

An external snapshot puts an overlay over a node::

    users                     users
      |          becomes        |
    node                     overlay       writable, empty
                                |
                               node        read-only from now on

From `prepare` to `clean` the node is drained, so that all nodes of a transaction stand still at
one moment.  The graph changes in `prepare`, since that may fail; `abort` changes it back.

The checks and their order follow the C daemon.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

from qsd.block import perms
from qsd.block.change import GraphChange
from qsd.block.node import Node
from qsd.commands.block import check_not_blocked
from qsd.commands.transaction import DrainedAction
from qsd.errors import QmpError, describe
from qsd.jobs.block_job import BlockJob

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qsd.block.graph import Edge
    from qsd.commands.context import Context
    from qsd.jobs.txn import JobTransaction


class ExternalSnapshot(DrainedAction):
    """Puts an existing node over another one (QMP reference, "blockdev-snapshot")."""

    __slots__ = ("_change", "_node", "_overlay")

    def __init__(self, ctx: Context, data: Any, txn: JobTransaction | None) -> None:
        super().__init__(ctx, data, txn)
        self._node: Node
        self._overlay: Node
        self._change = GraphChange(ctx.graph)

    def find_node(self) -> Node:
        """Return the node to put something over."""
        return self.ctx.graph.lookup(self.data.node, self.data.node)

    def check(self) -> None:
        """Check what is left to check before the overlay is needed."""

    async def find_overlay(self) -> Node:
        """Return the node to put over it."""
        return self.ctx.graph.lookup(self.data.overlay, self.data.overlay)

    async def drop_overlay(self) -> None:
        """Undo `find_overlay`."""

    async def prepare_drained(self) -> None:
        """Put the overlay in its place."""
        node = self._node = self.find_node()
        await self.drain(node)
        check_not_blocked(self.ctx, node)
        if not node.read_only:
            try:
                await node.flush()
            except OSError as exc:
                raise QmpError("An IO error has occurred") from exc
        self.check()
        overlay = self._overlay = await self.find_overlay()
        try:
            await self.drain(overlay)
            _check_overlay(overlay)
            self._append(overlay, node)
        except BaseException:
            await self.clean()
            await self.drop_overlay()
            raise

    def _append(self, overlay: Node, node: Node) -> None:
        # Jobs stay where they are: it is that node they work on, whatever comes to stand over it.
        of_jobs = {
            backend
            for job in self.ctx.jobs
            if isinstance(job, BlockJob)
            for backend in job.backends
        }

        def stays(edge: Edge) -> bool:
            return edge.user in of_jobs

        try:
            self._change.link(overlay, node, "backing", perms.ROLE_COW)
            self._change.move_users(node, overlay, stays)
        except BaseException:
            self._change.undo()
            raise
        self._change.apply([overlay, node])

    async def commit(self) -> None:
        """Make the old node read-only: its content belongs to the overlay now."""
        from qsd.block.reopen import set_read_only

        await self._change.finish()
        try:
            await set_read_only(self.ctx.graph, self._node, True)
        except QmpError:
            pass  # somebody else writes to it, and may go on

    async def abort(self) -> None:
        """Take the overlay away."""
        self._change.rollback()

    async def clean(self) -> None:
        """Let requests go on."""
        await super().clean()


def _check_overlay(overlay: Node) -> None:
    """Refuse nodes that cannot be put over another one.

    Raises:
        QmpError: This one cannot.
    """
    # Only users that do not expect a valid image may see it become one (the target of a mirror).
    if any(edge.perm & perms.CONSISTENT_READ for edge in overlay.parents):
        raise QmpError("The overlay is already in use")
    if overlay.driver.family == "filter":
        raise QmpError("Filters cannot be used as overlays")
    if "backing" in overlay.children:
        raise QmpError("The overlay already has a backing image")
    if not overlay.driver.supports_backing:
        raise QmpError("The overlay does not support backing images")


class SyncSnapshot(ExternalSnapshot):
    """Puts a new image over a node (QMP reference, "blockdev-snapshot-sync")."""

    __slots__ = ()

    def find_node(self) -> Node:
        """Return the node by device or node name."""
        return self.ctx.graph.lookup(self.data.device, self.data.node_name)

    def check(self) -> None:
        """Check the new node's name."""
        name = self.data.snapshot_node_name
        if self.data.node_name is not None and name is None:
            raise QmpError("New overlay node-name missing")
        if name is not None and name in self.ctx.graph.nodes:
            raise QmpError("New overlay node-name already in use")

    async def find_overlay(self) -> Node:
        """Make the image, unless it is there, and open it without its backing file."""
        from qsd.block.naming import filename
        from qsd.commands.new_image import Backing, make_image

        data, node = self.data, self._node
        fmt = "qcow2" if data.format is None else data.format
        if data.mode != "existing":
            backing = Backing(filename(node), node.driver.name)
            await make_image(self.ctx, data.snapshot_file, fmt, node.length(), backing)
        return await self._open(fmt)

    async def _open(self, fmt: str) -> Node:
        from qsd.block.filename import format_over, options_for_filename
        from qsd.block.open import Inherited, open_node
        from qsd.qapi.model import NULL

        data, node, graph = self.data, self._node, self.ctx.graph
        options = await options_for_filename(data.snapshot_file, graph, fmt)
        options = await format_over(options, fmt, graph)
        options.node_name = data.snapshot_node_name
        branch: Any = options.branch
        if hasattr(branch, "backing"):
            branch.backing = NULL
        inherited = Inherited(
            read_only=node.read_only,
            auto_read_only=node.auto_read_only,
            cache_direct=node.cache_direct,
            cache_no_flush=node.cache_no_flush,
            discard_unmap=node.discard_unmap,
        )
        overlay = await open_node(graph, options, inherited)
        if hasattr(branch, "backing"):
            # The graph says what the backing file is; the option only kept it from being opened.
            branch.backing = None
        return overlay

    async def drop_overlay(self) -> None:
        """Close the new node; the image stays."""
        if not self._overlay.closed:
            await self.ctx.graph.close_node(self._overlay)

    async def abort(self) -> None:
        """Take the overlay away and close it."""
        await super().abort()
        await self.drop_overlay()

    async def clean(self) -> None:
        """Let requests go on; close the overlay if there was no user to give it to."""
        await super().clean()
        overlay: Node | None = getattr(self, "_overlay", None)
        if overlay is not None and not overlay.parents and not overlay.closed:
            await self.ctx.graph.close_node(overlay)


# Snapshots inside an image


def root_node(ctx: Context, device: str) -> Node:
    """Return the node that a command for whole images names.

    Raises:
        QmpError: There is none, something stands on it, or it is busy.
    """
    from qsd.jobs.filters import check_root

    node = ctx.graph.lookup(device, device)
    check_root(node)
    check_not_blocked(ctx, node)
    return node


_CONTENT_ROLES: Final = perms.ROLE_DATA | perms.ROLE_METADATA | perms.ROLE_FILTERED


def snapshot_holder(node: Node) -> Node | None:
    """Return the node that keeps the snapshots of `node`.

    That is the node itself or the one it stands on, if nothing else belongs to its content: a
    snapshot of one of several parts could not be gone back to.
    """
    holder: Node | None = node
    while holder is not None and not holder.driver.supports_snapshots:
        parts = [edge for edge in holder.children.values() if edge.role & _CONTENT_ROLES]
        alone = len(parts) == 1 and parts[0].role & perms.ROLE_PRIMARY
        holder = parts[0].node if alone else None
    return holder


def listed(holder: Node | None) -> list[dict[str, Any]]:
    """Return the snapshots that a node keeps.

    Raises:
        QmpError: It can have none.
    """
    snapshots = holder.driver.snapshots() if holder is not None else None
    if snapshots is None:
        raise QmpError("Failed to get a snapshot list: Operation not supported")
    return snapshots


def find_snapshot(
    snapshots: Sequence[dict[str, Any]], snapshot_id: str | None, name: str | None
) -> dict[str, Any] | None:
    """Return the first snapshot with identifier and name, None standing for any."""
    for snapshot in snapshots:
        if snapshot_id in (None, snapshot["id"]) and name in (None, snapshot["name"]):
            return snapshot
    return None


class InternalSnapshot(DrainedAction):
    """Takes a snapshot inside an image (QMP reference, "blockdev-snapshot-internal-sync")."""

    __slots__ = ("_holder", "_id")

    def __init__(self, ctx: Context, data: Any, txn: JobTransaction | None) -> None:
        super().__init__(ctx, data, txn)
        self._holder: Node
        self._id = ""

    async def prepare_drained(self) -> None:
        """Take it; taking it back is easier than making sure that it can be taken."""
        device, name = self.data.device, self.data.name
        node = root_node(self.ctx, device)
        await self.drain(node)
        if node.read_only:
            raise QmpError(f"Device '{device}' is read only")
        holder = snapshot_holder(node)
        if holder is None or holder.read_only:
            raise QmpError(
                f"Block format '{node.driver.name}' used by device '{device}' does not support "
                "internal snapshots"
            )
        if not name:
            raise QmpError("Name is empty")
        if find_snapshot(listed(holder), None, name) is not None:
            raise QmpError(f"Snapshot with name '{name}' already exists on device '{device}'")
        self._holder = holder
        try:
            self._id = await holder.driver.create_snapshot(name)
        except OSError as exc:
            raise QmpError(
                f"Failed to create snapshot '{name}' on device '{device}': {describe(exc)}"
            ) from exc

    async def abort(self) -> None:
        """Delete it again."""
        try:
            await self._holder.driver.delete_snapshot(self._id)
        except OSError as exc:
            sys.stderr.write(
                f"Failed to delete snapshot with id '{self._id}' and name '{self.data.name}' on "
                f"device '{self.data.device}' in abort: {describe(exc)}\n"
            )
