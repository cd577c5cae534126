# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The NBD server (QMP reference, "Block device exports": the nbd-server commands)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qsd.errors import QmpError
from qsd.exports.nbd_server import start_nbd_server, stop_nbd_server
from qsd.qapi.schema.block_export import BlockExportOptions, BlockExportOptionsNbd

if TYPE_CHECKING:
    from qsd.commands.context import Context
    from qsd.qapi.model import Struct
    from qsd.qapi.schema.block_export import (
        NbdServerAddOptions,
        NbdServerRemoveArguments,
        NbdServerStartArguments,
    )


async def nbd_server_start(ctx: Context, args: NbdServerStartArguments) -> None:
    """Start the NBD server (QMP reference, "nbd-server-start")."""
    await start_nbd_server(
        ctx.exports,
        args.addr,
        tls_creds=args.tls_creds,
        tls_authz=args.tls_authz,
        max_connections=args.max_connections,
        by_monitor=True,
    )


async def nbd_server_add(ctx: Context, args: NbdServerAddOptions) -> None:
    """Export a node by NBD; id and name are one (QMP reference, "nbd-server-add").

    Unlike with block-export-add, a node that is read-only is exported so whatever was asked for.
    """
    node = ctx.graph.nodes.get(args.device)
    if node is None:
        raise QmpError(f"Cannot find device='{args.device}' nor node-name='{args.device}'")
    name = args.device if args.name is None else args.name
    await ctx.exports.add(
        BlockExportOptions(
            type="nbd",
            id=name,
            node_name=node.name,
            writable=bool(args.writable) and not node.read_only,
            branch=BlockExportOptionsNbd(
                name=name,
                description=args.description,
                bitmaps=None if args.bitmap is None else [args.bitmap],
            ),
        )
    )


async def nbd_server_remove(ctx: Context, args: NbdServerRemoveArguments) -> None:
    """Take an NBD export away (QMP reference, "nbd-server-remove")."""
    export = ctx.exports.find(args.name)
    if export.TYPE != "nbd":
        raise QmpError(f"Block export '{args.name}' is not an NBD export")
    await ctx.exports.delete(args.name, args.mode)


async def nbd_server_stop(ctx: Context, args: Struct) -> None:
    """Stop the NBD server and take all its exports away (QMP reference, "nbd-server-stop")."""
    del args
    await stop_nbd_server(ctx.exports)
