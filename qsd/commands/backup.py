# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The commands for backups (QMP reference, "Block core").

They are transactions of one action, see :mod:`qsd.commands.actions_backup`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qsd.commands import actions_backup
from qsd.commands.transaction import run_alone

if TYPE_CHECKING:
    from qsd.commands.context import Context
    from qsd.qapi.schema.block_job import BlockdevBackup, DriveBackup


async def blockdev_backup(ctx: Context, args: BlockdevBackup) -> None:
    """Start a backup to a node (QMP reference, "blockdev-backup")."""
    await run_alone(actions_backup.BlockdevBackup(ctx, args, None))


async def drive_backup(ctx: Context, args: DriveBackup) -> None:
    """Start a backup to an image that is opened for it (QMP reference, "drive-backup")."""
    await run_alone(actions_backup.DriveBackup(ctx, args, None))
