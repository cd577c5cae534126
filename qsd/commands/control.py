# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Commands about the monitor itself (QMP reference, "QMP monitor control")."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from qsd.qapi.schema import command_names
from qsd.qapi.schema.control import CommandInfo, VersionInfo, VersionTriple

if TYPE_CHECKING:
    from qsd.commands.context import Context
    from qsd.qapi.model import Empty

#: The release whose interface this is; clients decide by it what they may use.
VERSION: Final = (7, 2, 22)


def version_info() -> VersionInfo:
    """Return what greeting and ``query-version`` tell: QEMU's release, and who we are."""
    major, minor, micro = VERSION
    return VersionInfo(qemu=VersionTriple(major=major, minor=minor, micro=micro), package="qsd")


async def query_version(ctx: Context, args: Empty) -> VersionInfo:
    """Tell the version (QMP reference, "query-version")."""
    del ctx, args
    return version_info()


async def query_commands(ctx: Context, args: Empty) -> list[CommandInfo]:
    """List all commands of the schema (QMP reference, "query-commands")."""
    del ctx, args
    return [CommandInfo(name=name) for name in command_names()]


async def quit_(ctx: Context, args: Empty) -> None:
    """End the daemon (QMP reference, "quit").  The reply is sent first."""
    del args
    ctx.shutdown()
