# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Block exports and the NBD server (QMP reference, "Block device exports")."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from qsd.qapi.model import DEPRECATED, Event, Struct, Union, command, commands

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import ClassVar

    from qsd.qapi.model import Size, UInt16, UInt32
    from qsd.qapi.schema.block_bitmap import BlockDirtyBitmapOrStr
    from qsd.qapi.schema.sockets import SocketAddress, SocketAddressLegacy


class NbdServerOptions(Struct):
    """The NBD server, on the command line (QMP reference, "NbdServerOptions")."""

    addr: SocketAddress
    tls_creds: str | None = None
    tls_authz: str | None = None
    max_connections: UInt32 | None = None


class NbdServerStartArguments(Struct):
    """QMP reference, "nbd-server-start": the arguments."""

    addr: SocketAddressLegacy
    tls_creds: str | None = None
    tls_authz: str | None = None
    max_connections: UInt32 | None = None


class BlockExportOptionsNbdBase(Struct):
    """How an export looks to NBD clients (QMP reference, "BlockExportOptionsNbdBase")."""

    name: str | None = None
    description: str | None = None


class BlockExportOptionsNbd(BlockExportOptionsNbdBase):
    """An export by the NBD server (QMP reference, "BlockExportOptionsNbd")."""

    bitmaps: list[BlockDirtyBitmapOrStr] | None = None
    allocation_depth: bool | None = None


class BlockExportOptionsVhostUserBlk(Struct):
    """An export to virtual machines by vhost-user (QMP reference)."""

    addr: SocketAddress
    logical_block_size: Size | None = None
    num_queues: UInt16 | None = None


FuseExportAllowOther: TypeAlias = Literal["off", "on", "auto"]
"""Whether other users may access the file (QMP reference, "FuseExportAllowOther")."""


class BlockExportOptionsFuse(Struct):
    """An export as a file (QMP reference, "BlockExportOptionsFuse")."""

    mountpoint: str
    growable: bool | None = None
    allow_other: FuseExportAllowOther | None = None


class BlockExportOptionsVduseBlk(Struct):
    """An export as a virtio device of the host (QMP reference, "BlockExportOptionsVduseBlk")."""

    name: str
    num_queues: UInt16 | None = None
    queue_size: UInt16 | None = None
    logical_block_size: Size | None = None
    serial: str | None = None


class NbdServerAddOptions(BlockExportOptionsNbdBase):
    """An export, by the deprecated command (QMP reference, "NbdServerAddOptions")."""

    device: str
    writable: bool | None = None
    bitmap: str | None = None


BlockExportRemoveMode: TypeAlias = Literal["safe", "hard"]
"""Whether an export in use is removed (QMP reference, "BlockExportRemoveMode")."""


class NbdServerRemoveArguments(Struct):
    """QMP reference, "nbd-server-remove": the arguments."""

    name: str
    mode: BlockExportRemoveMode | None = None


BlockExportType: TypeAlias = Literal["nbd", "vhost-user-blk", "fuse", "vduse-blk"]
"""The kinds of exports (QMP reference, "BlockExportType")."""


class BlockExportOptions(Union):
    """An export (QMP reference, "BlockExportOptions")."""

    type: BlockExportType
    id: str
    fixed_iothread: bool | None = None
    iothread: str | None = None
    node_name: str
    writable: bool | None = None
    writethrough: bool | None = None

    TAG: ClassVar[str] = "type"
    BRANCHES: ClassVar[Mapping[str, str]] = {
        "nbd": "BlockExportOptionsNbd",
        "vhost-user-blk": "BlockExportOptionsVhostUserBlk",
        "fuse": "BlockExportOptionsFuse",
        "vduse-blk": "BlockExportOptionsVduseBlk",
    }


class BlockExportDelArguments(Struct):
    """QMP reference, "block-export-del": the arguments."""

    id: str
    mode: BlockExportRemoveMode | None = None


class BlockExportDeleted(Event):
    """An export is gone (QMP reference, "BLOCK_EXPORT_DELETED")."""

    NAME: ClassVar[str] = "BLOCK_EXPORT_DELETED"

    id: str


class BlockExportInfo(Struct):
    """One export, as query-block-exports shows it (QMP reference, "BlockExportInfo")."""

    id: str
    type: BlockExportType
    node_name: str
    shutting_down: bool


COMMANDS: Final = commands(
    __name__,
    command("nbd-server-start", "NbdServerStartArguments"),
    command("nbd-server-add", "NbdServerAddOptions", features=DEPRECATED),
    command("nbd-server-remove", "NbdServerRemoveArguments", features=DEPRECATED),
    command("nbd-server-stop"),
    command("block-export-add", "BlockExportOptions"),
    command("block-export-del", "BlockExportDelArguments"),
    command("query-block-exports", returns="list[BlockExportInfo]"),
)
"""The commands of this module."""
