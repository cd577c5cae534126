# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""What queries say of nodes (QMP reference, "BlockDeviceInfo" and "ImageInfo").

A driver tells what it knows by :meth:`qsd.block.driver.Driver.image_info`; a key with the value
None says "unknown here" and keeps the engine from looking further.  The engine adds what it knows
itself and what shines through from children:

* filters and raw show the cluster size, the dirty flag and the snapshots of their child;
* a node takes as much space on disk as all its children but the backing file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from qsd.block import perms
from qsd.block.naming import filename, full_backing_filename
from qsd.qapi.schema.block_info import (
    BlockdevCacheInfo,
    BlockDeviceInfo,
    BlockDirtyInfo,
    ImageInfo,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from qsd.block.graph import Graph
    from qsd.block.node import Node

#: Members of ImageInfo that shine through.
_PASSED_ON: Final = ("cluster-size", "dirty-flag", "snapshots")


def filtered_or_backing(node: Node) -> Node | None:
    """Return the next node of the chain: what a filter filters, else the backing file."""
    for edge in node.children.values():
        if edge.role & perms.ROLE_COW:
            return edge.node
        if edge.role & perms.ROLE_FILTERED and node.driver.family == "filter":
            return edge.node
    return None


def driver_info(node: Node) -> dict[str, Any]:
    """Return what the driver says, completed by what shines through from its child."""
    info = node.driver.image_info()
    if node.driver.family == "filter" or node.driver.name == "raw":
        child = node.primary_child()
        if child is not None:
            below = driver_info(child)
            info = {**{key: below[key] for key in _PASSED_ON if key in below}, **info}
    return info


def allocated_size(node: Node, info: Mapping[str, Any] | None = None) -> int | None:
    """Return the bytes taken on disk, None if nobody knows.

    Args:
        node: The node.
        info: What its driver says, where the caller has asked already.
    """
    if info is None:
        info = node.driver.image_info()
    if "actual-size" in info:
        size: int | None = info["actual-size"]
        return size
    children = [edge.node for edge in node.children.values() if not edge.role & perms.ROLE_COW]
    if not children:
        return None
    total = 0
    for child in children:
        part = allocated_size(child)
        if part is None:
            return None
        total += part
    return total


def image_info(node: Node, backing_image: ImageInfo | None = None) -> ImageInfo:
    """Describe the image behind a node.

    Args:
        node: The node.
        backing_image: The description of what lies below, to be nested in this one.
    """
    info = driver_info(node)
    recorded = node.driver.backing_file()
    return ImageInfo(
        filename=filename(node),
        format=node.driver.name,
        dirty_flag=info.get("dirty-flag"),
        actual_size=allocated_size(node, info),
        virtual_size=node.length(),
        cluster_size=info.get("cluster-size") or None,
        encrypted=info.get("encrypted") or None,
        compressed=info.get("compressed"),
        backing_filename=recorded[0] if recorded is not None else None,
        full_backing_filename=full_backing_filename(node),
        backing_filename_format=recorded[1] if recorded is not None else None,
        snapshots=info.get("snapshots") or None,
        backing_image=backing_image,
        format_specific=info.get("format-specific"),
    )


def chain_of(node: Node) -> Iterator[Node]:
    """Iterate over a node and everything below it, through filters and backing files."""
    current: Node | None = node
    while current is not None:
        yield current
        current = filtered_or_backing(current)


def nested_image_info(node: Node) -> tuple[ImageInfo, int]:
    """Describe the image with all that lie below it; return that and how many those are."""
    chain = list(chain_of(node))
    info: ImageInfo | None = None
    for member in reversed(chain):
        info = image_info(member, info)
    assert info is not None  # the chain has at least the node itself
    return info, len(chain) - 1


def bitmaps_info(node: Node) -> list[BlockDirtyInfo] | None:
    """Describe the dirty bitmaps of a node, the newest first; None if it has none."""
    if not node.shown_bitmaps:
        return None
    from qsd.block.dirty import DirtyBitmap

    return [
        BlockDirtyInfo(
            name=bitmap.name,
            count=bitmap.bits.dirty_bytes(),
            granularity=bitmap.granularity,
            recording=bitmap.enabled,
            busy=bitmap.busy,
            persistent=bitmap.persistent,
            inconsistent=bitmap.inconsistent or None,
        )
        if isinstance(bitmap, DirtyBitmap)
        else BlockDirtyInfo(
            count=bitmap.bits.dirty_bytes(),
            granularity=bitmap.bits.granularity,
            recording=bitmap.recording,
            busy=False,
            persistent=False,
        )
        for bitmap in reversed(node.shown_bitmaps)
    ]


def node_info(node: Node, *, flat: bool) -> BlockDeviceInfo:
    """Describe a node.

    Args:
        node: The node.
        flat: Leave out what lies below.
    """
    image, depth = (image_info(node), 0) if flat else nested_image_info(node)
    edge = node.children.get("backing")
    backing = edge.node if edge is not None and edge.role & perms.ROLE_COW else None
    threshold = node.write_threshold
    return BlockDeviceInfo(
        file=image.filename,
        node_name=node.name,
        ro=node.read_only,
        drv=node.driver.name,
        backing_file=filename(backing) if backing is not None else None,
        backing_file_depth=depth,
        encrypted=bool(image.encrypted),
        detect_zeroes=node.detect_zeroes,  # type: ignore[arg-type] # set from the same enum
        bps=0,
        bps_rd=0,
        bps_wr=0,
        iops=0,
        iops_rd=0,
        iops_wr=0,
        image=image,
        dirty_bitmaps=bitmaps_info(node),
        cache=BlockdevCacheInfo(
            writeback=True, direct=node.cache_direct, no_flush=node.cache_no_flush
        ),
        # The schema says "int", though what was set is a uint64.
        write_threshold=threshold - (1 << 64) if threshold >= 1 << 63 else threshold,
    )


def named_nodes_info(graph: Graph, *, flat: bool) -> list[BlockDeviceInfo]:
    """Describe all nodes, the newest first (QMP reference, "query-named-block-nodes")."""
    return [node_info(node, flat=flat) for node in reversed(graph.nodes.values())]
