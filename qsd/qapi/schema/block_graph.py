# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The graph of nodes and operations on single nodes (QMP reference, "Block core")."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from qsd.qapi.model import UNSTABLE, Struct, command, commands

if TYPE_CHECKING:
    from qsd.qapi.model import UInt64
    from qsd.qapi.schema.common import StrOrNull


XDbgBlockGraphNodeType: TypeAlias = Literal["block-backend", "block-job", "block-driver"]
"""What a node of the debugging graph stands for (QMP reference, "XDbgBlockGraphNodeType")."""


class XDbgBlockGraphNode(Struct):
    """A node of the debugging graph (QMP reference, "XDbgBlockGraphNode")."""

    id: int
    type: XDbgBlockGraphNodeType
    name: str


BlockPermission: TypeAlias = Literal["consistent-read", "write", "write-unchanged", "resize"]
"""What the user of a node may do to it, or lets others do (QMP reference, "BlockPermission")."""


class XDbgBlockGraphEdge(Struct):
    """An edge of the debugging graph (QMP reference, "XDbgBlockGraphEdge")."""

    parent: int
    child: int
    name: str
    perm: list[BlockPermission]
    shared_perm: list[BlockPermission]


class XDbgBlockGraph(Struct):
    """All nodes and their users (QMP reference, "XDbgBlockGraph")."""

    nodes: list[XDbgBlockGraphNode]
    edges: list[XDbgBlockGraphEdge]


class BlockResizeArguments(Struct):
    """QMP reference, "block_resize": the arguments."""

    device: str | None = None
    node_name: str | None = None
    size: int


class QueryNamedBlockNodesArguments(Struct):
    """QMP reference, "query-named-block-nodes": the arguments."""

    flat: bool | None = None


class BlockSetWriteThresholdArguments(Struct):
    """QMP reference, "block-set-write-threshold": the arguments."""

    node_name: str
    write_threshold: UInt64


class XBlockdevChangeArguments(Struct):
    """QMP reference, "x-blockdev-change": the arguments."""

    parent: str
    child: str | None = None
    node: str | None = None


class XBlockdevSetIothreadArguments(Struct):
    """QMP reference, "x-blockdev-set-iothread": the arguments."""

    node_name: str
    iothread: StrOrNull
    force: bool | None = None


COMMANDS: Final = commands(
    __name__,
    command("block_resize", "BlockResizeArguments"),
    command(
        "query-named-block-nodes", "QueryNamedBlockNodesArguments", returns="list[BlockDeviceInfo]"
    ),
    command("x-debug-query-block-graph", returns="XDbgBlockGraph", features=UNSTABLE),
    command("block-set-write-threshold", "BlockSetWriteThresholdArguments"),
    command("x-blockdev-change", "XBlockdevChangeArguments", features=UNSTABLE),
    command("x-blockdev-set-iothread", "XBlockdevSetIothreadArguments", features=UNSTABLE),
)
"""The commands of this module."""
