# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Block status across layers: what a guest sees, and which layer decides it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from qsd.block.mapping import (
    ST_ALLOCATED,
    ST_DATA,
    ST_OFFSET,
    ST_RECURSE,
    ST_ZERO,
    Status,
)
from qsd.block.perms import ROLE_FILTERED
from qsd.block.runs import Runs
from qsd.util.namedtuple import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from qsd.block.graph import Edge
    from qsd.block.node import Node

#: Depths are told in bytes where there are many of them; who is deeper counts as this deep.
MAX_DEPTH: Final = 255


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


def chain_runs_nowait(node: Node, offset: int, length: int, limit: int) -> Runs | None:
    """Fast: describe several extents as the user of `node` sees them.

    Args:
        node: Whose content.
        offset: Start.
        length: How far the caller is interested; positive.
        limit: Extents; how many the caller has room for.

    Returns:
        What is known from `offset` on without waiting, not empty; flags are ST_DATA and ST_ZERO as
        :func:`chain_status` would tell.  The last extent may go on behind its end.  None if
        something must be waited for.
    """
    if node.closed:
        return None
    runs = node.driver.runs_nowait(offset, length, limit)
    if runs is None or not runs.flags.count(0):
        return runs
    return _decided_below(runs, backing_of(node), offset, limit, _CONTENT)


def depth_runs_nowait(node: Node, offset: int, length: int, limit: int) -> Runs | None:
    """Fast: tell of several extents which layer decides, as :func:`allocation_depth` would.

    Args:
        node: The top of the chain.
        offset: Start.
        length: How far the caller is interested; positive.
        limit: Extents; how many the caller has room for.

    Returns:
        What is known from `offset` on without waiting, not empty; "flags" are depths.  The last
        extent may go on behind its end.  None if something must be waited for.
    """
    if node.closed:
        return None
    runs = node.driver.allocated_nowait(offset, length, limit)
    below = backing_of(node)
    if runs is None or below is None or not runs.flags.count(0):
        return runs
    return _decided_below(runs, below, offset, limit, _DEPTH)


def _deeper_runs_nowait(node: Node, offset: int, length: int, limit: int) -> Runs | None:
    """Tell depths as they are seen from the layer above `node`."""
    runs = depth_runs_nowait(node, offset, length, limit)
    if runs is not None:
        runs.flags = runs.flags.translate(_ONE_DEEPER)
    return runs


class _Question(NamedTuple):
    """What a chain is asked.

    Attributes:
        ask: Asks a backing file.
        beyond: The answer where a backing file is too short to give one.
    """

    ask: Callable[[Node, int, int, int], Runs | None]
    beyond: int


_CONTENT: Final = _Question(chain_runs_nowait, ST_ZERO)
_DEPTH: Final = _Question(_deeper_runs_nowait, 2)
#: Depths of a backing file to depths of what is above it.
_ONE_DEEPER: Final = bytes((0, *range(2, 256), MAX_DEPTH))


def _decided_below(
    runs: Runs, below: Node | None, offset: int, limit: int, question: _Question
) -> Runs | None:
    """Put what a backing file says in the places where one layer, from `offset` on, says 0."""
    merged = Runs()
    for run, flags in zip(runs.lengths, runs.flags, strict=True):
        if flags:
            merged.add(run, flags)
        elif below is None or not _add_below(merged, below, offset, run, limit, question):
            break
        offset += run
        if len(merged) > limit:
            break
    merged.cut(limit)
    return merged if merged.flags else None


def _add_below(
    merged: Runs, node: Node, offset: int, length: int, limit: int, question: _Question
) -> bool:
    """Append what a backing file says of a range; False if not all of it was described."""
    end = offset + length
    while offset < end:
        available = node.length() - offset
        if available <= 0:
            merged.add(end - offset, question.beyond)
            return True
        room = limit + 1 - len(merged)
        if room <= 0:
            return False
        runs = question.ask(node, offset, min(end - offset, available), room)
        if runs is None:
            return False
        merged.extend_by(runs)
        offset += runs.total
    return True


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
