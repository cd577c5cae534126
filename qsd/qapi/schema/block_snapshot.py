# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Snapshots: overlays, internal snapshots, backing files (QMP reference, "Block core")."""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

from qsd.qapi.model import Struct, command, commands

NewImageMode: TypeAlias = Literal["existing", "absolute-paths"]
"""Whether a command creates the image file itself (QMP reference, "NewImageMode")."""


class BlockdevSnapshotSync(Struct):
    """Put a new overlay image over a node (QMP reference, "BlockdevSnapshotSync")."""

    device: str | None = None
    node_name: str | None = None
    snapshot_file: str
    snapshot_node_name: str | None = None
    format: str | None = None
    mode: NewImageMode | None = None


class BlockdevSnapshot(Struct):
    """Put an existing node over another one (QMP reference, "BlockdevSnapshot")."""

    node: str
    overlay: str


class ChangeBackingFileArguments(Struct):
    """QMP reference, "change-backing-file": the arguments."""

    device: str
    image_node_name: str
    backing_file: str


class BlockdevSnapshotInternal(Struct):
    """An internal snapshot to be taken (QMP reference, "BlockdevSnapshotInternal")."""

    device: str
    name: str


class BlockdevSnapshotDeleteInternalSyncArguments(Struct):
    """QMP reference, "blockdev-snapshot-delete-internal-sync": the arguments."""

    device: str
    id: str | None = None
    name: str | None = None


COMMANDS: Final = commands(
    __name__,
    command("blockdev-snapshot-sync", "BlockdevSnapshotSync"),
    command("blockdev-snapshot", "BlockdevSnapshot", features=("allow-write-only-overlay",)),
    command("change-backing-file", "ChangeBackingFileArguments"),
    command("blockdev-snapshot-internal-sync", "BlockdevSnapshotInternal"),
    command(
        "blockdev-snapshot-delete-internal-sync",
        "BlockdevSnapshotDeleteInternalSyncArguments",
        returns="SnapshotInfo",
    ),
)
"""The commands of this module."""
