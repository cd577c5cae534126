# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Making an image by its file name alone, for commands that make one along the way.

Such commands name a file and a format.  The file is made (or emptied) first and the format put into
it, both by the creators that ``blockdev-create`` uses.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, Final

from qsd.errors import QmpError, prefixed
from qsd.util.namedtuple import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qsd.commands.context import Context
    from qsd.qapi.schema.block_options import BlockdevOptions

FORMATS: Final[Mapping[str, str]] = {
    "parallels": "{size}{backing} cluster_size=1048576",
    "qcow": "{size}{backing}",
    "qcow2": (
        "cluster_size=65536 extended_l2=off compression_type=zlib {size}{backing} "
        "lazy_refcounts=off refcount_bits=16"
    ),
    "qed": "{size}{backing} cluster_size=65536",
    "raw": "{size}",
    "vdi": "{size} static=off",
    "vhdx": "{size} log_size=1048576 block_size=0",
    "vmdk": "{size}{backing} compat6=off hwversion=undefined",
    "vpc": "{size}",
}
"""What is announced of a new image, by format: its options in the C daemon's order."""


_DEVICES: Final = ("host_device", "host_cdrom")
_PLAIN: Final = frozenset({"raw", "file", "nbd", *_DEVICES})
"""The formats that have no structures: the file is the image."""

_NEVER_MADE: Final = frozenset({"null-co", "null-aio", "blkdebug", "blkverify"})
"""The protocols that images cannot be made by, not even if there is something already."""


class Backing(NamedTuple):
    """The backing file that a new image is to record."""

    filename: str
    format: str


async def make_image(
    ctx: Context, filename: str, fmt: str, size: int, backing: Backing | None = None
) -> None:
    """Make an image, over whatever the file had before.

    Args:
        ctx: The daemon.
        filename: A path, or a name with a protocol prefix.
        fmt: The format; also "raw", which needs no structures.
        size: Length of the image, bytes.
        backing: What it records as its backing file.

    Raises:
        QmpError: With the C daemon's text.
    """
    await check_makeable(ctx, filename, fmt, backing)
    _announce(filename, fmt, size, backing)
    file_options = await _find_place(ctx, filename, fmt)
    is_plain = fmt in _PLAIN
    await _make_file(ctx, filename, file_options, size if is_plain else 0)
    if not is_plain:
        await _format(ctx, fmt, file_options, size, backing)


async def check_makeable(ctx: Context, filename: str, fmt: str, backing: Backing | None) -> None:
    """Check what can be checked beforehand, in the C daemon's order.

    Raises:
        QmpError: With the C daemon's text.
    """
    from qsd.block.filename import NBD_PROTOCOLS, options_for_filename, protocol_of

    cls = ctx.graph.find_driver(fmt)
    if cls is None:
        raise QmpError(f"Unknown file format '{fmt}'")
    protocol = protocol_of(filename)
    if protocol == "json":
        raise QmpError("Unknown protocol 'json'")
    if protocol not in _NEVER_MADE and protocol not in NBD_PROTOCOLS:
        await options_for_filename(filename, ctx.graph)
    if ctx.find_creator(fmt) is None and fmt not in _PLAIN:
        raise QmpError(f"Format driver '{fmt}' does not support image creation")
    if protocol in _NEVER_MADE:
        raise QmpError(f"Protocol driver '{protocol}' does not support image creation")
    if backing is not None:
        if not cls.supports_backing:
            raise QmpError(f"Backing file not supported for file format '{fmt}'")
        if backing.filename == filename:
            raise QmpError(
                "Error: Trying to create an image with the same filename as the backing file"
            )


async def _find_place(ctx: Context, filename: str, fmt: str) -> BlockdevOptions:
    """Return the options of the file's own node.

    Raises:
        QmpError: The name of an NBD export makes no sense.
    """
    from qsd.block.filename import options_for_filename

    try:
        return await options_for_filename(filename, ctx.graph, fmt)
    except QmpError as exc:
        # Of all that gets here, only NBD knows names that make no sense.
        raise _not_opened("nbd", exc) from exc


def _not_opened(protocol: str, exc: QmpError) -> QmpError:
    """Return the error of a place that cannot be made, and is not there."""
    return prefixed(
        exc,
        f"Protocol driver '{protocol}' does not support image creation, and opening the image "
        "failed: ",
    )


def _announce(filename: str, fmt: str, size: int, backing: Backing | None) -> None:
    """Say what is being made, as the C daemon does on its standard output."""
    below = ""
    if backing is not None:
        # Commas are doubled as on command lines, where such options come from.
        name = backing.filename.replace(",", ",,")
        below = f" backing_file={name} backing_fmt={backing.format}"
    text = FORMATS.get(fmt, "{size}").format(size=f"size={size}", backing=below)
    sys.stdout.write(f"Formatting '{filename}', fmt={fmt} {text}\n")
    sys.stdout.flush()


async def _make_file(ctx: Context, filename: str, options: BlockdevOptions, size: int) -> None:
    from qsd.qapi.model import branch_type
    from qsd.qapi.schema.block_create import BlockdevCreateOptions

    creator = ctx.find_creator(options.driver)
    if creator is None:
        await _check_existing(ctx, options, size)
        return
    branch = branch_type(BlockdevCreateOptions, options.driver)
    assert branch is not None  # whatever has a creator is in the schema
    members: dict[str, Any] = {"size": size}
    if options.driver == "file":
        members["filename"] = os.fspath(getattr(options.branch, "filename", filename))
    else:
        members["location"] = options.branch
    await creator(ctx.graph, branch(**members))


async def _check_existing(ctx: Context, options: BlockdevOptions, size: int) -> None:
    """Make sure that a place that cannot be made is there and long enough."""
    from qsd.block.open import open_node

    try:
        node = await open_node(ctx.graph, options)
    except QmpError as exc:
        raise _not_opened(options.driver, exc) from exc
    try:
        if node.length() < size:
            if options.driver in _DEVICES:
                raise QmpError("Cannot grow device files")
            raise QmpError(
                f"The image file '{node.name}' already exists, but is too small for {size} bytes"
            )
    finally:
        await ctx.graph.close_node(node)


async def _format(
    ctx: Context,
    fmt: str,
    file_options: BlockdevOptions,
    size: int,
    backing: Backing | None,
) -> None:
    from qsd.qapi.model import branch_type, members
    from qsd.qapi.schema.block_create import BlockdevCreateOptions

    creator = ctx.find_creator(fmt)
    branch = branch_type(BlockdevCreateOptions, fmt)
    assert creator is not None  # the caller looked
    assert branch is not None
    given: dict[str, Any] = {"file": file_options, "size": size}
    if backing is not None:
        given["backing_file"] = backing.filename
        if any(item.attr == "backing_fmt" for item in members(branch)):
            given["backing_fmt"] = backing.format
    await creator(ctx.graph, branch(**given))
