# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Block exports (QMP reference, "Block device exports")."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qsd.commands.context import Context
    from qsd.qapi.model import Struct
    from qsd.qapi.schema.block_export import (
        BlockExportDelArguments,
        BlockExportInfo,
        BlockExportOptions,
    )


async def block_export_add(ctx: Context, args: BlockExportOptions) -> None:
    """Export a node (QMP reference, "block-export-add")."""
    await ctx.exports.add(args, by_monitor=ctx.graph.by_monitor)


async def block_export_del(ctx: Context, args: BlockExportDelArguments) -> None:
    """Take an export away (QMP reference, "block-export-del")."""
    await ctx.exports.delete(args.id, args.mode)


async def query_block_exports(ctx: Context, args: Struct) -> list[BlockExportInfo]:
    """List all exports (QMP reference, "query-block-exports")."""
    del args
    infos: list[BlockExportInfo] = ctx.exports.query()
    return infos
