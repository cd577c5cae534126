# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
r"""Backing chains: who is below whom, which layers count, and which of them holds a range.

A chain goes down from a node through backing files and, between them, through filters, which show
what they filter and have no data of their own::

    filter -> top -> filter -> mid -> base
              ~~~              ~~~    ~~~~      layers

Only layers own data, so only they are asked for allocation; ranges of the graph (what is committed,
what is streamed) are bounded by layers too, so that filters may come and go meanwhile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qsd.block.mapping import ST_ALLOCATED
from qsd.block.perms import ROLE_FILTERED
from qsd.block.status import backing_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from qsd.block.graph import Edge
    from qsd.block.node import Node


def is_filter(node: Node) -> bool:
    """Tell whether a node only shows what another one has."""
    return node.driver.family == "filter" and backing_of(node) is not None


def chain(node: Node | None) -> Iterator[Node]:
    """Iterate over a node and all that are below it in its chain, filters included."""
    while node is not None:
        yield node
        node = backing_of(node)


def skip_filters(node: Node | None) -> Node | None:
    """Return the first layer from a node on downwards."""
    while node is not None and is_filter(node):
        node = backing_of(node)
    return node


def layers(node: Node | None) -> Iterator[Node]:
    """Iterate over the layers of a chain."""
    return (member for member in chain(node) if not is_filter(member))


def cow_layer(node: Node) -> Node | None:
    """Return the next layer below a layer."""
    return skip_filters(backing_of(node))


def contains(top: Node, node: Node | None) -> bool:
    """Tell whether `node` is in the chain of `top` (or is `top`); None ends every chain."""
    return node is None or any(member is node for member in chain(top))


def overlay_of(active: Node, node: Node) -> Node | None:
    """Return the layer of the chain of `active` whose next layer is that of `node`, or None."""
    wanted = skip_filters(node)
    for member in layers(active):
        if cow_layer(member) is wanted:
            return member
    return None


async def is_allocated(layer: Node, offset: int, length: int) -> tuple[int, bool]:
    """Tell whether a layer itself decides about the start of a range.

    Returns:
        For how many bytes the answer holds, and the answer.
    """
    status = await layer.block_status(offset, length, False)
    return status.length, bool(status.flags & ST_ALLOCATED)


async def is_allocated_above(
    top: Node | None, base: Node | None, offset: int, length: int
) -> tuple[int, bool]:
    """Tell whether a layer from `top` down to above `base` decides about the start of a range.

    A layer that ends before the range decides too: what lies behind its end reads as zeroes, and
    nothing below it shows.

    Args:
        top: Where to start; with None there is no layer.
        base: The first layer that does not count; None for the whole chain.
        offset: Start of the range.
        length: Its length.

    Returns:
        For how many bytes the answer holds, and the answer.
    """
    for layer in layers(top):
        if layer is base:
            break
        available = layer.length() - offset
        if available <= 0:
            return length, True
        count, allocated = await is_allocated(layer, offset, min(length, available))
        length = min(length, count)
        if allocated:
            return length, True
    return length, False


__all__ = [
    "chain", "layers", "is_filter", "skip_filters", "cow_layer", "contains", "overlay_of",
    "is_allocated", "is_allocated_above",
]  # fmt: skip


def takes_compressed(node: Node) -> bool:
    """Tell whether a node takes requests to compress, be it only to pass them on."""
    driver = node.driver
    if driver.family == "filter":
        return driver.passes_compressed
    return driver.supports_compressed


def stores_compressed(node: Node) -> bool:
    """Tell whether a node, or what it passes such requests to, stores data compressed on demand."""
    while node.driver.passes_compressed:
        below = backing_of(node)
        if below is None:
            return False
        node = below
    return node.driver.family != "filter" and node.driver.supports_compressed


def may_replace(node: Node, wanted: Node) -> bool:
    """Tell whether a copy of `node` may take the place of `wanted`: the same node or one below it.

    Nobody may come to see other data.  A quorum would not notice that one of its children shows
    something else, but other users of that child would, and what stands between the two could have
    made them equal.
    """
    if node is wanted:
        return True
    if node.driver.name == "quorum":
        return any(edge.node is wanted and wanted.parents == [edge] for edge in _shown(node))
    if node.driver.name != "blkverify" and not is_filter(node):
        return False
    return any(may_replace(edge.node, wanted) for edge in _shown(node))


def _shown(node: Node) -> list[Edge]:
    """Return the edges to what a node shows, leaving out logs, targets and the like."""
    shows_all = node.driver.name in ("quorum", "blkverify")
    return [edge for edge in node.children.values() if shows_all or edge.role & ROLE_FILTERED]
