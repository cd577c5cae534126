# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Putting a job's own filter into the graph and taking it out again.

::

    users          users                       users
      |              |                           |
     node    ->    filter      ->   (job ends)  node
                     |
                    node

Both moves happen in a drained section, so no request is on its way through an edge that changes.
Jobs that use the node for its own sake, whose edges have names of their own, stay with the node.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qsd.block import perms
from qsd.block.backend import Backend
from qsd.block.change import GraphChange, make_internal_node
from qsd.block.drain import Drained
from qsd.block.reopen import set_read_only
from qsd.errors import QmpError

if TYPE_CHECKING:
    from qsd.block.graph import Edge, Graph
    from qsd.block.node import Node
    from qsd.filters.base import FilterDriver
    from qsd.qapi.schema.block_options import BlockdevOptions


def is_job_edge(edge: Edge) -> bool:
    """Tell whether a job uses the node for its own sake, as "target" for example."""
    return isinstance(edge.user, Backend) and edge.name != "root"


def check_root(node: Node) -> None:
    """Refuse a node that has parents other than exports and the like.

    Raises:
        QmpError: It has.
    """
    if any(is_job_edge(edge) or not isinstance(edge.user, Backend) for edge in node.parents):
        raise QmpError("Need a root block node")


async def insert_filter(
    graph: Graph,
    cls: type[FilterDriver],
    name: str | None,
    below: Node,
    *,
    read_only: bool | None = None,
    child_name: str = "backing",
    options: BlockdevOptions | None = None,
) -> Node:
    """Put a filter above a node, for all its users.

    Args:
        graph: The graph.
        cls: The filter's driver.
        name: Name for the filter node, None if the user gave none.
        below: The node.
        read_only: Whether the filter is; None to take it over from the node.
        child_name: "backing" or "file".
        options: How a user would have opened it; needed where the driver is in the schema.

    Raises:
        QmpError: The name cannot be used, or permissions conflict; nothing changed.
    """
    node = make_internal_node(graph, cls, name, below, implicit=name is None, options=options)
    if read_only is not None:
        node.read_only = read_only
    try:
        async with Drained([below]):
            change = GraphChange(graph)
            role = perms.ROLE_FILTERED | perms.ROLE_PRIMARY
            edge = change.link(node, below, child_name, role)
            node.driver.edge = edge  # type: ignore[attr-defined] # a FilterDriver
            change.move_users(below, node, keep=lambda edge: edge.user is node or is_job_edge(edge))
            change.apply([node])
            await change.finish()
    except BaseException:
        node.closed = True
        del graph.nodes[node.name]
        raise
    return node


def remove_filter(change: GraphChange, node: Node, successor: Node) -> None:
    """Add to a change that all users of a filter use another node, and that the filter goes.

    The filter's driver must be ready for having no permissions.
    """
    change.move_users(node, successor)
    for edge in list(node.children.values()):
        change.unlink(edge)


async def drop_filter(graph: Graph, node: Node) -> None:
    """Take a filter out of the graph.  Must not fail, and does not: users keep what they had.

    A filter that the job was the only user of is gone already.
    """
    if node.closed:
        return
    edge = next(iter(node.children.values()))
    below = edge.node
    async with Drained([node, below]):
        change = GraphChange(graph)
        remove_filter(change, node, below)
        change.apply([below])
        await change.finish()
    if not node.closed:  # nobody used it, so nothing was moved
        await graph.close_node(node)


async def make_read_only_again(graph: Graph, node: Node) -> None:
    """Undo that a job made a node writable, unless somebody writes to it by now."""
    if node.closed:
        return
    try:
        await set_read_only(graph, node, True)
    except QmpError:
        pass


def make_backend(graph: Graph) -> Backend:
    """Return a backend for a job's own requests."""
    return Backend(graph, "", "an unnamed block device")
