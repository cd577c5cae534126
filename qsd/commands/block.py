# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The commands for nodes (QMP reference, "Block core").

What a command checks, and in which order, follows the C daemon.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qsd.block import perms
from qsd.block.backend import Backend
from qsd.block.drain import Drained
from qsd.block.info import named_nodes_info
from qsd.block.node import Node
from qsd.errors import QmpError
from qsd.jobs.block_job import BlockJob, reason_busy
from qsd.qapi.schema.block_graph import (
    XDbgBlockGraph,
    XDbgBlockGraphEdge,
    XDbgBlockGraphNode,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from qsd.block.graph import Edge
    from qsd.commands.context import Context
    from qsd.qapi.model import Empty
    from qsd.qapi.schema.block_create import BlockdevCreateArguments, XBlockdevAmendArguments
    from qsd.qapi.schema.block_graph import (
        BlockPermission,
        BlockResizeArguments,
        BlockSetWriteThresholdArguments,
        QueryNamedBlockNodesArguments,
        XBlockdevChangeArguments,
        XBlockdevSetIothreadArguments,
        XDbgBlockGraphNodeType,
    )
    from qsd.qapi.schema.block_info import BlockDeviceInfo, BlockInfo
    from qsd.qapi.schema.block_options import (
        BlockdevDelArguments,
        BlockdevOptions,
        BlockdevReopenArguments,
    )
    from qsd.qapi.schema.block_stats import BlockStats, QueryBlockstatsArguments

# Nodes come, go and change


async def blockdev_add(ctx: Context, args: BlockdevOptions) -> None:
    """Open a node (QMP reference, "blockdev-add")."""
    from qsd.block.open import open_node

    if args.node_name is None:
        raise QmpError("'node-name' must be specified for the root node")
    node = await open_node(ctx.graph, args)
    node.monitor_owned = True


async def blockdev_del(ctx: Context, args: BlockdevDelArguments) -> None:
    """Close a node that blockdev-add opened (QMP reference, "blockdev-del")."""
    node = ctx.graph.find(args.node_name)
    if _has_backend(node):
        raise QmpError(f"Node {node.name} is in use")
    blocker = _blocker(ctx, node)
    if blocker is not None:
        raise QmpError(f"Node '{node.name}' is busy: {blocker}")
    if not node.monitor_owned:
        raise QmpError(f"Node {node.name} is not owned by the monitor")
    if node.parents:
        raise QmpError(f"Block device {node.name} is in use")
    await ctx.graph.release(node)


async def blockdev_reopen(ctx: Context, args: BlockdevReopenArguments) -> None:
    """Give nodes new options (QMP reference, "blockdev-reopen")."""
    from qsd.block.reopen import reopen

    await reopen(ctx.graph, args.options)


async def block_resize(ctx: Context, args: BlockResizeArguments) -> None:
    """Change the length of a node (QMP reference, "block_resize")."""
    node = ctx.graph.lookup(args.device, args.node_name)
    if args.size < 0:
        raise QmpError("Parameter 'size' expects a >0 size")
    if _blocker(ctx, node) is not None:
        # There are no devices, so the name that the message wants does not exist.
        raise QmpError("Device '(null)' is in use")
    backend = Backend(ctx.graph, "", "an unnamed block device")
    backend.attach(node, perms.RESIZE, perms.ALL)
    try:
        async with Drained([node]):
            await node.truncate(args.size)
    finally:
        await backend.detach()


async def block_set_write_threshold(ctx: Context, args: BlockSetWriteThresholdArguments) -> None:
    """Ask for an event when a node is written past an offset (QMP reference,
    "block-set-write-threshold").
    """
    from qsd.qapi.schema.block_events import BlockWriteThreshold

    node = ctx.graph.nodes.get(args.node_name)
    if node is None:
        raise QmpError(f"Device '{args.node_name}' not found")
    name, threshold = node.name, args.write_threshold

    def exceeded(excess: int) -> None:
        ctx.events.emit(
            BlockWriteThreshold(node_name=name, amount_exceeded=excess, write_threshold=threshold)
        )

    node.on_threshold = exceeded
    node.write_threshold = threshold
    node.refresh_fast_paths()


async def x_blockdev_set_iothread(ctx: Context, args: XBlockdevSetIothreadArguments) -> None:
    """Say which thread serves a node (QMP reference, "x-blockdev-set-iothread").

    All nodes are served by the one event loop, so that a legal request changes nothing.
    """
    node = ctx.graph.find(args.node_name)
    if not args.force and _has_backend(node):
        raise QmpError(
            f"Node {node.name} is associated with a BlockBackend and could be in use "
            "(use force=true to override this check)"
        )
    if isinstance(args.iothread, str) and not _is_iothread(ctx, args.iothread):
        raise QmpError(f"Cannot find iothread {args.iothread}")


async def x_blockdev_change(ctx: Context, args: XBlockdevChangeArguments) -> None:
    """Add or remove a child of a node (QMP reference, "x-blockdev-change")."""
    parent = ctx.graph.nodes.get(args.parent)
    if parent is None:
        raise QmpError(f"Cannot find device='{args.parent}' nor node-name='{args.parent}'")
    if (args.child is None) == (args.node is None):
        if args.child is not None:
            raise QmpError("The parameters child and node are in conflict")
        raise QmpError("Either child or node must be specified")
    if args.child is not None:
        if args.child not in parent.children:
            raise QmpError(f"Node '{args.parent}' does not have child '{args.child}'")
        await parent.driver.remove_child(parent.children[args.child])
        return
    assert args.node is not None  # exactly one of the two is given
    child = ctx.graph.nodes.get(args.node)
    if child is None:
        raise QmpError(f"Node '{args.node}' not found")
    await parent.driver.add_child(child)


def _is_iothread(ctx: Context, path: str) -> bool:
    """Tell whether a QOM path, absolute or partial, leads to an iothread.

    The empty path is as partial as can be: it stands for the only iothread there is.
    """
    from qsd.objects.iothread import IOThread

    if not path:
        children = ctx.objects.objects.children()
        return sum(isinstance(child, IOThread) for child in children) == 1
    found, is_ambiguous = ctx.objects.find_path(path)
    return isinstance(found, IOThread) and not is_ambiguous


# Images


async def blockdev_create(ctx: Context, args: BlockdevCreateArguments) -> None:
    """Start a job that makes an image (QMP reference, "blockdev-create")."""
    from qsd.jobs.create import CreateJob

    driver = args.options.driver
    _check_driver_known(ctx, driver)
    creator = ctx.find_creator(driver)
    if creator is None:
        raise QmpError("Driver does not support blockdev-create")
    CreateJob(ctx.jobs, ctx.graph, args.job_id, creator, args.options.branch).start()


async def x_blockdev_amend(ctx: Context, args: XBlockdevAmendArguments) -> None:
    """Start a job that changes options of an image (QMP reference, "x-blockdev-amend")."""
    from qsd.jobs.amend import AmendJob

    node = ctx.graph.lookup(None, args.node_name)
    _check_driver_known(ctx, args.options.driver)
    if node.driver.name != args.options.driver:
        raise QmpError("x-blockdev-amend doesn't support changing the block driver")
    if args.options.branch is None:
        raise QmpError("Driver does not support x-blockdev-amend")
    job = AmendJob(ctx.jobs, node, args.job_id, args.options.branch, force=bool(args.force))
    try:
        node.driver.begin_amend()
    except QmpError:
        job.discard()
        raise
    job.start()


def _check_driver_known(ctx: Context, driver: str) -> None:
    if ctx.graph.find_driver(driver) is None:
        raise QmpError(f"Block driver '{driver}' not found or not supported")


# Queries


async def query_block(ctx: Context, args: Empty) -> list[BlockInfo]:
    """List the devices of a virtual machine, of which a storage daemon has none (QMP reference,
    "query-block").
    """
    del ctx, args
    return []


async def query_blockstats(ctx: Context, args: QueryBlockstatsArguments) -> list[BlockStats]:
    """Return I/O statistics of nodes, or of devices, of which there are none (QMP reference,
    "query-blockstats").
    """
    from qsd.block.stats import all_stats

    return all_stats(ctx.graph) if args.query_nodes else []


async def query_named_block_nodes(
    ctx: Context, args: QueryNamedBlockNodesArguments
) -> list[BlockDeviceInfo]:
    """Describe all nodes (QMP reference, "query-named-block-nodes")."""
    return named_nodes_info(ctx.graph, flat=bool(args.flat))


async def x_debug_query_block_graph(ctx: Context, args: Empty) -> XDbgBlockGraph:
    """Show nodes, their users, and who uses whom how (QMP reference,
    "x-debug-query-block-graph").

    Users and nodes are numbered from the outside and the oldest on, and listed the other way round.
    """
    del args
    jobs = [job for job in ctx.jobs if isinstance(job, BlockJob)]
    of_jobs = {backend for job in jobs for backend in job.backends}
    ids: dict[object, int] = {}
    nodes: list[XDbgBlockGraphNode] = []
    edges: list[XDbgBlockGraphEdge] = []

    def number(item: object) -> int:
        return ids.setdefault(item, len(ids) + 1)

    def add(item: object, kind: XDbgBlockGraphNodeType, name: str, uses: Iterable[Edge]) -> None:
        nodes.append(XDbgBlockGraphNode(id=number(item), type=kind, name=name))
        edges.extend(
            XDbgBlockGraphEdge(
                parent=number(item),
                child=number(edge.node),
                name=edge.name,
                perm=_permissions(edge.perm),
                shared_perm=_permissions(edge.shared),
            )
            for edge in uses
        )

    for backend in ctx.graph.backends:
        if backend not in of_jobs:
            add(backend, "block-backend", "", _edges_of([backend]))
    for job in jobs:
        add(job, "block-job", job.id or "", _edges_of(reversed(job.backends)))
    for node in ctx.graph.nodes.values():
        add(node, "block-driver", node.name, reversed(node.children.values()))
    nodes.reverse()
    edges.reverse()
    return XDbgBlockGraph(nodes=nodes, edges=edges)


def _edges_of(backends: Iterable[Backend]) -> Iterator[Edge]:
    for backend in backends:
        if backend.edge is not None:
            yield backend.edge


def _permissions(bits: int) -> list[BlockPermission]:
    names: list[Any] = perms.qmp_names(bits)
    names.reverse()
    return names


# Who stands in the way


def _has_backend(node: Node) -> bool:
    """Tell whether something outside the graph uses a node, other than a job for its own sake."""
    return any(isinstance(edge.user, Backend) and edge.name == "root" for edge in node.parents)


def check_not_blocked(ctx: Context, node: Node) -> None:
    """Refuse to change a node that must stay as it is.

    Raises:
        QmpError: It must.
    """
    blocker = _blocker(ctx, node)
    if blocker is not None:
        raise QmpError(f"Node '{node.name}' is busy: {blocker}")


def _blocker(ctx: Context, node: Node) -> str | None:
    """Say why a node must stay as it is, or return None."""
    reason = reason_busy(ctx.jobs, node)
    if reason is not None:
        return reason
    for edge in node.parents:
        if edge.role & perms.ROLE_COW and isinstance(edge.user, Node):
            return f"node is used as backing hd of '{edge.user.name}'"
    return None
