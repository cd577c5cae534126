# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The commands that start block jobs, and what belongs to backing chains (QMP reference, "Block
core").

What a command checks, and in which order, follows the C daemon.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import TYPE_CHECKING, Any, Final

from qsd.block.chain import (
    chain,
    contains,
    cow_layer,
    is_filter,
    layers,
    may_replace,
    overlay_of,
    skip_filters,
)
from qsd.block.filename import protocol_of, resolve_relative
from qsd.block.naming import filename, full_backing_filename, is_backing_overridden
from qsd.block.perms import ROLE_COW
from qsd.block.status import backing_of
from qsd.errors import DEVICE_NOT_FOUND, QmpError, os_error
from qsd.jobs.block_job import check_not_busy
from qsd.jobs.filters import check_root

if TYPE_CHECKING:
    from qsd.block.node import Node
    from qsd.commands.context import Context
    from qsd.jobs.copying import ChunkedJobOptions
    from qsd.jobs.mirror import MirrorOptions
    from qsd.qapi.schema.block_job import (
        BlockCommitArguments,
        BlockdevMirrorArguments,
        BlockStreamArguments,
        DriveMirror,
    )

#: Bytes; bounds of the granularity of a mirror (QMP reference, "blockdev-mirror").
MIN_GRANULARITY: Final = 512
MAX_GRANULARITY: Final = 64 << 20


def on_or_off(value: bool | None) -> bool:
    """Return the value of an option that is on by default."""
    return value is None or value


def find_device(ctx: Context, name: str) -> Node:
    """Return the node that a `device` argument names.

    Raises:
        QmpError: There is none.
    """
    node = ctx.graph.nodes.get(name)
    if node is None:
        raise QmpError(f"Cannot find device='{name}' nor node-name='{name}'")
    return node


def _names_of(node: Node) -> set[str]:
    """Return the names that an image goes by: its own, and that of the file it is in."""
    names = {filename(node)}
    edge = node.children.get("file")
    own = edge.node.driver.filename() if edge is not None else None
    if own is not None:
        names.add(own)
    return names


async def find_in_chain(top: Node, name: str) -> Node | None:
    """Return the node below `top` whose image goes by the file name `name`, or None.

    As in the C daemon: where an image has the backing file that it records, any path that leads to
    that file will do, relative ones from where the image is; where it was given another one,
    nothing but the name of that node.
    """
    for layer in layers(top):
        below = backing_of(layer)
        if below is None:
            return None
        recorded = layer.driver.backing_file()
        if recorded is None or is_backing_overridden(layer):
            is_meant = name == filename(skip_filters(below) or below)
        elif protocol_of(name) is not None or protocol_of(recorded[0]) is not None:
            is_meant = name == recorded[0]
        else:
            place = full_backing_filename(layer), _seen_from(layer, name)
            is_meant = await layer.graph.pool.run(_is_same_file, *place)
        if is_meant:
            return below
    return None


def _seen_from(layer: Node, name: str) -> str | None:
    """Return the path that a name stands for where an image is, None if that is no place."""
    try:
        return resolve_relative(layer, name)
    except QmpError:
        return None


def _is_same_file(one: str | None, other: str | None) -> bool:
    """Tell whether two paths lead to the same place, where there is a file.  Blocks."""
    try:
        return (
            one is not None
            and other is not None
            and os.path.realpath(one, strict=True) == os.path.realpath(other, strict=True)
        )
    except OSError:
        return False


# block-commit


async def block_commit(ctx: Context, args: BlockCommitArguments) -> None:
    """Merge images into the one below them (QMP reference, "block-commit")."""
    from qsd.jobs.commit import start_commit

    active = ctx.graph.nodes.get(args.device)
    if active is None:
        raise QmpError(f"Device '{args.device}' not found", DEVICE_NOT_FOUND)
    check_root(active)
    top = await _commit_top(ctx, args, active)
    base = await _commit_base(ctx, args, top)
    for node in chain(top):
        check_not_busy(ctx.jobs, node)
        if node is base:
            break
    if top is base:
        raise QmpError("cannot commit an image into itself")
    if skip_filters(top) is skip_filters(active):
        if args.backing_file is not None:
            raise QmpError("'backing-file' specified, but 'top' is the active layer")
        await _commit_active(ctx, args, active, base)
        return
    if overlay_of(active, top) is None:
        raise QmpError(f"'{top.name}' is not in this backing file chain")
    await start_commit(
        ctx.jobs, ctx.graph, args.job_id or "", active, top, base, _chunked_options(args)
    )


def _chunked_options(args: BlockCommitArguments | BlockStreamArguments) -> ChunkedJobOptions:
    from qsd.jobs.copying import ChunkedJobOptions

    return ChunkedJobOptions(
        args.filter_node_name,
        args.backing_file,
        args.on_error or "report",
        args.speed or 0,
        on_or_off(args.auto_finalize),
        on_or_off(args.auto_dismiss),
    )


async def _commit_top(ctx: Context, args: BlockCommitArguments, active: Node) -> Node:
    if args.top_node is not None and args.top is not None:
        raise QmpError("'top-node' and 'top' are mutually exclusive")
    if args.top_node is not None:
        top = ctx.graph.lookup(None, args.top_node)
        if not contains(active, top):
            raise QmpError(f"'{args.top_node}' is not in this backing file chain")
        return top
    if args.top is not None and args.top not in _names_of(active):
        found = await find_in_chain(active, args.top)
        if found is None:
            raise QmpError(f"Top image file {args.top} not found")
        return found
    return active


async def _commit_base(ctx: Context, args: BlockCommitArguments, top: Node) -> Node:
    if args.base_node is not None and args.base is not None:
        raise QmpError("'base-node' and 'base' are mutually exclusive")
    if args.base_node is not None:
        base = ctx.graph.lookup(None, args.base_node)
        if not contains(top, base):
            raise QmpError(f"'{args.base_node}' is not in this backing file chain")
        return base
    if args.base is not None:
        found = await find_in_chain(top, args.base)
        if found is None:
            raise QmpError(f"Can't find '{args.base}' in the backing chain")
        return found
    return list(chain(top))[-1]


async def _commit_active(
    ctx: Context, args: BlockCommitArguments, active: Node, base: Node
) -> None:
    from qsd.jobs.mirror import MirrorOptions, start_active_commit

    options = MirrorOptions()
    options.speed = args.speed or 0
    options.on_source_error = options.on_target_error = args.on_error or "report"
    options.filter_name = args.filter_node_name
    options.auto_finalize = on_or_off(args.auto_finalize)
    options.auto_dismiss = on_or_off(args.auto_dismiss)
    options.granularity = default_granularity(base)
    await start_active_commit(ctx.jobs, ctx.graph, args.job_id or "", active, base, options)


# block-stream


async def block_stream(ctx: Context, args: BlockStreamArguments) -> None:
    """Copy data from backing files into the image above them (QMP reference, "block-stream")."""
    from qsd.jobs.stream import start_stream

    _check_stream_bounds(args)
    node = find_device(ctx, args.device)
    bottom, ends_above = await _stream_bounds(ctx, args, node)
    for member in chain(node):
        if ends_above is not None and member is ends_above:
            break
        check_not_busy(ctx.jobs, member)
        if member is bottom:
            break
    if args.backing_file is not None and ends_above is None:
        raise QmpError("backing file specified, but streaming the entire chain")
    await start_stream(ctx.jobs, ctx.graph, args.job_id or "", node, bottom, _chunked_options(args))


def _check_stream_bounds(args: BlockStreamArguments) -> None:
    """Refuse more than one way to say where to stop."""
    if args.base is not None and args.base_node is not None:
        raise QmpError("'base' and 'base-node' cannot be specified at the same time")
    if args.base is not None and args.bottom is not None:
        raise QmpError("'base' and 'bottom' cannot be specified at the same time")
    if args.bottom is not None and args.base_node is not None:
        raise QmpError("'bottom' and 'base-node' cannot be specified at the same time")


async def _stream_bounds(
    ctx: Context, args: BlockStreamArguments, node: Node
) -> tuple[Node, Node | None]:
    """Return the last layer to stream, and the base if the user named that instead."""
    base: Node | None = None
    if args.base is not None:
        base = await find_in_chain(node, args.base)
        if base is None:
            raise QmpError(f"Can't find '{args.base}' in the backing chain")
    elif args.base_node is not None:
        base = ctx.graph.lookup(None, args.base_node)
        if base is node or not contains(node, base):
            raise QmpError(f"Node '{args.base_node}' is not a backing image of '{node.name}'")
    elif args.bottom is not None:
        bottom = ctx.graph.lookup(None, args.bottom)
        if is_filter(bottom):
            raise QmpError(f"Node '{args.bottom}' is a filter, use a non-filter node as 'bottom'")
        if not contains(node, bottom):
            raise QmpError(f"Node '{args.bottom}' is not in a chain starting from '{node.name}'")
        return bottom, None
    if base is None:
        return list(layers(node))[-1], None
    above = overlay_of(node, base)
    if above is None:  # there are but filters above it
        raise QmpError(f"'{base.name}' is not in the backing chain of '{node.name}'")
    return above, base


# blockdev-mirror


async def blockdev_mirror(ctx: Context, args: BlockdevMirrorArguments) -> None:
    """Copy a node to another and keep them equal (QMP reference, "blockdev-mirror")."""
    from qsd.jobs.mirror import MirrorOptions, start_mirror

    source = find_device(ctx, args.device)
    check_root(source)
    target = find_device(ctx, args.target)
    options = MirrorOptions()
    options.filter_name = args.filter_node_name
    options.zero_target = args.sync == "full"
    _check_mirror(ctx, args, source, target, options)
    await start_mirror(ctx.jobs, ctx.graph, args.job_id or "", source, target, options)


def _check_mirror(
    ctx: Context,
    args: BlockdevMirrorArguments | DriveMirror,
    source: Node,
    target: Node,
    options: MirrorOptions,
) -> None:
    """Check what both ways to start a mirror have in common, and fill in the options."""
    granularity = args.granularity or 0
    if granularity and not MIN_GRANULARITY <= granularity <= MAX_GRANULARITY:
        raise QmpError("Parameter 'granularity' expects a value in range [512B, 64MB]")
    if granularity & (granularity - 1):
        raise QmpError("Parameter 'granularity' expects a power of 2")
    _check_target(ctx, target)
    sync = args.sync
    base = cow_layer(skip_filters(source) or source)
    if args.replaces is not None:
        _check_replaces(ctx, args.replaces, source)
    if sync in ("incremental", "bitmap"):
        raise QmpError(f"Sync mode '{sync}' not supported")
    if args.buf_size is not None and args.buf_size < 0:
        raise QmpError("Invalid parameter 'buf-size'")
    if source is target:
        raise QmpError("Can't mirror node into itself")
    options.copy_old = sync != "none"
    options.base = base if sync == "top" else None
    options.granularity = granularity or default_granularity(target)
    options.is_blocking = args.copy_mode == "write-blocking"
    options.replaces = args.replaces
    options.on_source_error = args.on_source_error or "report"
    options.on_target_error = args.on_target_error or "report"
    options.speed = args.speed or 0
    options.auto_finalize = on_or_off(args.auto_finalize)
    options.auto_dismiss = on_or_off(args.auto_dismiss)


def default_granularity(target: Node) -> int:
    """Return the granularity for a target: its cluster size, within sensible bounds."""
    from qsd.block.info import driver_info

    cluster = driver_info(target).get("cluster-size") or 0
    return max(4096, min(65536, cluster)) if cluster else 65536


def _check_target(ctx: Context, target: Node) -> None:
    check_not_busy(ctx.jobs, target)
    for edge in target.parents:
        if edge.role & ROLE_COW:
            raise QmpError(
                f"Node '{target.name}' is busy: node is used as backing hd of "
                f"'{getattr(edge.user, 'name', '')}'"
            )


def _check_replaces(ctx: Context, name: str, source: Node) -> None:
    """Refuse to replace a node whose users could notice.

    Only a node that shows exactly what the source shows, through filters and the like, can be
    replaced by a copy of it.
    """
    replaced = ctx.graph.find(name)
    for edge in replaced.parents:
        if edge.role & ROLE_COW:
            raise QmpError(
                f"Node '{name}' is busy: node is used as backing hd of "
                f"'{getattr(edge.user, 'name', '')}'"
            )
    if not may_replace(source, replaced):
        raise QmpError(
            f"Cannot replace '{name}' by a node mirrored from '{source.name}', because it cannot "
            "be guaranteed that doing so would not lead to an abrupt change of visible data"
        )
    if replaced.length() != source.length():
        raise QmpError("cannot replace image with a mirror image of different size")


# drive-mirror


async def drive_mirror(ctx: Context, args: DriveMirror) -> None:
    """Copy a node to an image that is made or opened for it (QMP reference, "drive-mirror")."""
    from qsd.jobs.mirror import MirrorOptions, start_mirror

    source = find_device(ctx, args.device)
    check_root(source)
    layer = skip_filters(source) or source
    below = cow_layer(layer)
    if args.sync == "top" and below is None:
        args.sync = "full"
    elif args.sync == "none":
        below = layer
    elif args.sync != "top":
        below = None
    if args.replaces is not None and args.node_name is None:
        raise QmpError("a node-name must be provided when replacing a named node of the graph")
    is_new = args.mode != "existing"
    if is_new:
        await _make_mirror_image(ctx, args, source, below)
    target = await _open_mirror_target(ctx, args, source)
    options = MirrorOptions()
    options.unmap = on_or_off(args.unmap)
    options.zero_target = args.sync == "full" and not is_new
    heir = below if is_new else None
    if target.driver.supports_backing and (heir is not None or not is_new):
        options.finish = lambda target: _give_backing(ctx, target, heir)
    try:
        _check_mirror(ctx, args, source, target, options)
        await start_mirror(ctx.jobs, ctx.graph, args.job_id or "", source, target, options)
    except BaseException:
        if not target.closed:
            await ctx.graph.close_node(target)
        raise


async def _make_mirror_image(
    ctx: Context, args: DriveMirror, source: Node, below: Node | None
) -> None:
    from qsd.commands.new_image import Backing, make_image

    backing = Backing(filename(below), below.driver.name) if below is not None else None
    fmt = source.driver.name if args.format is None else args.format
    await make_image(ctx, args.target, fmt, source.length(), backing)


async def _open_mirror_target(ctx: Context, args: DriveMirror, source: Node) -> Node:
    """Open the target, whose backing file must wait: it may be in use until the source goes."""
    from qsd.block.filename import target_options
    from qsd.block.open import Inherited, open_node
    from qsd.qapi.model import NULL

    fmt = args.format
    if fmt is None and args.mode != "existing":
        fmt = source.driver.name
    if fmt is not None and ctx.graph.find_driver(fmt) is None:
        raise QmpError(f"Unknown driver '{fmt}'")
    options = await target_options(args.target, fmt, source)
    options.node_name = args.node_name
    branch: Any = options.branch
    if hasattr(branch, "backing"):
        branch.backing = NULL
    inherited = Inherited(
        cache_direct=source.cache_direct,
        cache_no_flush=source.cache_no_flush,
        discard_unmap=on_or_off(args.unmap),
    )
    return await open_node(ctx.graph, options, inherited)


async def _give_backing(ctx: Context, target: Node, heir: Node | None) -> None:
    """Give a target its backing file: the one of the source, or the one that it records.

    Raises:
        OSError: That cannot be opened; the reason is in the log.
    """
    from qsd.block.open import open_recorded_backing

    if heir is not None:
        target.options.branch.backing = None
        ctx.graph.attach_child(target, heir, "backing", ROLE_COW)
        return
    try:
        await open_recorded_backing(ctx.graph, target)
    except QmpError as exc:
        sys.stderr.write(f"{exc.desc}\n{exc.hint or ''}".rstrip("\n") + "\n")
        raise os_error(errno.EINVAL) from exc
