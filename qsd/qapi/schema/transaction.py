# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Transactions: several actions that happen together (QMP reference, "Transactions")."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from qsd.qapi.model import DEPRECATED, Struct, Union, command, commands

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import ClassVar

    from qsd.qapi.schema.block_bitmap import (
        BlockDirtyBitmap,
        BlockDirtyBitmapAdd,
        BlockDirtyBitmapMerge,
    )
    from qsd.qapi.schema.block_job import BlockdevBackup, DriveBackup
    from qsd.qapi.schema.block_snapshot import (
        BlockdevSnapshot,
        BlockdevSnapshotInternal,
        BlockdevSnapshotSync,
    )


class Abort(Struct):
    """An action that always fails (QMP reference, "Abort")."""


ActionCompletionMode: TypeAlias = Literal["individual", "grouped"]
"""Whether the jobs of a transaction succeed or fail together (QMP reference)."""

TransactionActionKind: TypeAlias = Literal[
    "abort",
    "block-dirty-bitmap-add",
    "block-dirty-bitmap-remove",
    "block-dirty-bitmap-clear",
    "block-dirty-bitmap-enable",
    "block-dirty-bitmap-disable",
    "block-dirty-bitmap-merge",
    "blockdev-backup",
    "blockdev-snapshot",
    "blockdev-snapshot-internal-sync",
    "blockdev-snapshot-sync",
    "drive-backup",
]
"""What can be part of a transaction (QMP reference, "TransactionActionKind")."""


class AbortWrapper(Struct):
    """QMP reference, "AbortWrapper"."""

    data: Abort


class BlockDirtyBitmapAddWrapper(Struct):
    """QMP reference, "BlockDirtyBitmapAddWrapper"."""

    data: BlockDirtyBitmapAdd


class BlockDirtyBitmapWrapper(Struct):
    """QMP reference, "BlockDirtyBitmapWrapper"."""

    data: BlockDirtyBitmap


class BlockDirtyBitmapMergeWrapper(Struct):
    """QMP reference, "BlockDirtyBitmapMergeWrapper"."""

    data: BlockDirtyBitmapMerge


class BlockdevBackupWrapper(Struct):
    """QMP reference, "BlockdevBackupWrapper"."""

    data: BlockdevBackup


class BlockdevSnapshotWrapper(Struct):
    """QMP reference, "BlockdevSnapshotWrapper"."""

    data: BlockdevSnapshot


class BlockdevSnapshotInternalWrapper(Struct):
    """QMP reference, "BlockdevSnapshotInternalWrapper"."""

    data: BlockdevSnapshotInternal


class BlockdevSnapshotSyncWrapper(Struct):
    """QMP reference, "BlockdevSnapshotSyncWrapper"."""

    data: BlockdevSnapshotSync


class DriveBackupWrapper(Struct):
    """QMP reference, "DriveBackupWrapper"."""

    data: DriveBackup


class TransactionAction(Union):
    """One action (QMP reference, "TransactionAction")."""

    type: TransactionActionKind

    TAG: ClassVar[str] = "type"
    BRANCHES: ClassVar[Mapping[str, str]] = {
        "abort": "AbortWrapper",
        "block-dirty-bitmap-add": "BlockDirtyBitmapAddWrapper",
        "block-dirty-bitmap-remove": "BlockDirtyBitmapWrapper",
        "block-dirty-bitmap-clear": "BlockDirtyBitmapWrapper",
        "block-dirty-bitmap-enable": "BlockDirtyBitmapWrapper",
        "block-dirty-bitmap-disable": "BlockDirtyBitmapWrapper",
        "block-dirty-bitmap-merge": "BlockDirtyBitmapMergeWrapper",
        "blockdev-backup": "BlockdevBackupWrapper",
        "blockdev-snapshot": "BlockdevSnapshotWrapper",
        "blockdev-snapshot-internal-sync": "BlockdevSnapshotInternalWrapper",
        "blockdev-snapshot-sync": "BlockdevSnapshotSyncWrapper",
        "drive-backup": "DriveBackupWrapper",
    }


class TransactionProperties(Struct):
    """How a transaction is carried out (QMP reference, "TransactionProperties")."""

    completion_mode: ActionCompletionMode | None = None


class TransactionArguments(Struct):
    """QMP reference, "transaction": the arguments."""

    actions: list[TransactionAction]
    properties: TransactionProperties | None = None


ENUM_FEATURES: Final[Mapping[str, Mapping[str, tuple[str, ...]]]] = {
    "TransactionActionKind": {
        "drive-backup": DEPRECATED,
    },
}
"""Features of single values of the enums above."""


COMMANDS: Final = commands(
    __name__,
    command("transaction", "TransactionArguments"),
)
"""The commands of this module."""
