# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""I/O statistics (QMP reference, "query-blockstats").

Requests are counted by the devices of a virtual machine, and a storage daemon has none.  What it
has of each node are the end of the highest write and what drivers count themselves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from qsd.qapi.schema.block_stats import BlockDeviceStats, BlockStats

if TYPE_CHECKING:
    from qsd.block.graph import Graph
    from qsd.block.node import Node

_KINDS: Final = ("rd", "wr", "flush", "unmap")

_NOTHING_COUNTED: Final[dict[str, Any]] = {
    **{f"{kind}_bytes": 0 for kind in ("rd", "wr", "unmap")},
    **{f"{kind}_merged": 0 for kind in ("rd", "wr", "unmap")},
    **{f"{kind}_operations": 0 for kind in _KINDS},
    **{f"{kind}_total_time_ns": 0 for kind in _KINDS},
    **{f"failed_{kind}_operations": 0 for kind in _KINDS},
    **{f"invalid_{kind}_operations": 0 for kind in _KINDS},
    "account_invalid": False,
    "account_failed": False,
}


def node_stats(node: Node) -> BlockStats:
    """Return the statistics of a node and of the children that hold its data."""
    data_file = node.children.get("data-file")
    child = data_file.node if data_file is not None else node.primary_child()
    specific: Any = node.driver.driver_stats()
    return BlockStats(
        node_name=node.name,
        stats=BlockDeviceStats(
            wr_highest_offset=node.wr_highest_offset, timed_stats=[], **_NOTHING_COUNTED
        ),
        driver_specific=specific,
        parent=node_stats(child) if child is not None else None,
    )


def all_stats(graph: Graph) -> list[BlockStats]:
    """Return the statistics of all nodes, the oldest first."""
    return [node_stats(node) for node in graph.nodes.values()]
