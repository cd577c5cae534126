# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Block status across layers: what a guest sees, and which layer decides it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qsd.block.mapping import (
    ST_ALLOCATED,
    ST_DATA,
    ST_OFFSET,
    ST_RECURSE,
    ST_ZERO,
    Status,
)
from qsd.block.perms import ROLE_FILTERED

if TYPE_CHECKING:
    from qsd.block.graph import Edge
    from qsd.block.node import Node


async def layer_status(node: Node, offset: int, length: int, want_zero: bool = True) -> Status:
    """Describe the start of a range of one layer, asking below for zeroes the format cannot know.

    Data of a format may lie in a hole of its file: then it reads as zeroes although it is
    allocated.
    """
    status = await node.block_status(offset, length, want_zero)
    if not (want_zero and status.flags & ST_RECURSE and status.edge is not None):
        return status
    if status.flags & ST_ZERO or not status.flags & ST_OFFSET:
        return status
    child = status.edge.node
    available = child.length() - status.host_offset
    if available <= 0:
        return status._replace(flags=status.flags | ST_ZERO)
    below = await layer_status(child, status.host_offset, min(status.length, available))
    if below.flags & ST_ZERO:
        return status._replace(length=below.length, flags=status.flags | ST_ZERO)
    return status._replace(length=min(status.length, below.length))


def backing_of(node: Node) -> Node | None:
    """Return the node that decides where `node` has nothing allocated."""
    edge = node.children.get("backing")
    if edge is None and node.driver.family == "filter":
        edge = filtered_edge(node)
    return edge.node if edge is not None else None


def filtered_edge(node: Node) -> Edge | None:
    """Return the edge to the child that a filter filters, None for any other node."""
    for edge in node.children.values():
        if edge.role & ROLE_FILTERED:
            return edge
    return None


async def chain_status(node: Node, offset: int, length: int) -> Status:
    """Describe the start of a range as the user of `node` sees it.

    Returns:
        A status with ST_DATA, ST_ZERO and ST_ALLOCATED only.
    """
    depth_limit = length
    layer: Node | None = node
    bottom = node
    while layer is not None:
        available = layer.length() - offset
        if available <= 0:
            # A shorter backing file: what lies behind its end reads as zeroes.
            return Status(depth_limit, ST_ZERO | ST_ALLOCATED)
        status = await layer_status(layer, offset, min(depth_limit, available))
        depth_limit = min(depth_limit, status.length)
        if status.flags & (ST_ALLOCATED | ST_DATA | ST_ZERO):
            return Status(depth_limit, status.flags & (ST_DATA | ST_ZERO | ST_ALLOCATED))
        bottom, layer = layer, backing_of(layer)
    # What an image with room for a backing file does not have reads as zeroes; of anything else
    # nothing is known.
    return Status(depth_limit, ST_ZERO if bottom.driver.supports_backing else 0)


async def allocation_depth(node: Node, offset: int, length: int) -> tuple[int, int]:
    """Return (length, depth): which layer decides, 1 for `node` itself, 0 for none."""
    depth = 0
    layer: Node | None = node
    while layer is not None:
        depth += 1
        available = layer.length() - offset
        if available <= 0:
            return length, depth
        status = await layer.block_status(offset, min(length, available), False)
        length = min(length, status.length)
        if status.flags & ST_ALLOCATED:
            return length, depth
        layer = backing_of(layer)
    return length, 0
