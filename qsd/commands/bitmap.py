# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The commands for dirty bitmaps, and the same as actions of transactions (QMP reference, "Block
core").
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qsd.block.dirty import (
    CHECK_BUSY,
    CHECK_INCONSISTENT,
    CHECK_READ_ONLY,
    DirtyBitmap,
    check_granularity,
    check_new,
    default_granularity,
    find_bitmap,
)
from qsd.commands.transaction import Action
from qsd.errors import QmpError
from qsd.qapi.schema.block_bitmap import BlockDirtyBitmapSha256

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qsd.commands.context import Context
    from qsd.qapi.schema.block_bitmap import (
        BlockDirtyBitmap,
        BlockDirtyBitmapAdd,
        BlockDirtyBitmapMerge,
        BlockDirtyBitmapOrStr,
    )
    from qsd.util.bitmap import Bitmap


async def _add(ctx: Context, args: BlockDirtyBitmapAdd) -> DirtyBitmap:
    if not args.name:
        raise QmpError("Bitmap name cannot be empty")
    node = ctx.graph.lookup(args.node, args.node)
    granularity = args.granularity
    if granularity is None:
        granularity = default_granularity(node)
    check_granularity(granularity)
    if args.persistent:
        await node.driver.check_storable_bitmap(args.name, granularity)
    check_new(node, args.name)
    bitmap = DirtyBitmap(node, args.name, granularity, enabled=not args.disabled)
    bitmap.persistent = bool(args.persistent)
    bitmap.attach()
    return bitmap


async def block_dirty_bitmap_add(ctx: Context, args: BlockDirtyBitmapAdd) -> None:
    """Make a bitmap (QMP reference, "block-dirty-bitmap-add")."""
    await _add(ctx, args)


async def block_dirty_bitmap_remove(ctx: Context, args: BlockDirtyBitmap) -> None:
    """Remove a bitmap, also from the image (QMP reference, "block-dirty-bitmap-remove")."""
    bitmap = find_bitmap(ctx.graph, args.node, args.name)
    bitmap.check(CHECK_BUSY | CHECK_READ_ONLY)
    await _remove(bitmap)


async def _remove(bitmap: DirtyBitmap) -> None:
    if bitmap.persistent and bitmap.name is not None:
        await bitmap.node.driver.remove_stored_bitmap(bitmap.name)
    bitmap.detach()


async def block_dirty_bitmap_clear(ctx: Context, args: BlockDirtyBitmap) -> None:
    """Forget what was recorded (QMP reference, "block-dirty-bitmap-clear")."""
    bitmap = find_bitmap(ctx.graph, args.node, args.name)
    bitmap.check()
    bitmap.bits.clear_all()


def _set_enabled(ctx: Context, args: BlockDirtyBitmap, enabled: bool) -> DirtyBitmap:
    bitmap = find_bitmap(ctx.graph, args.node, args.name)
    bitmap.check(CHECK_BUSY | CHECK_INCONSISTENT)
    bitmap.enabled = enabled
    return bitmap


async def block_dirty_bitmap_enable(ctx: Context, args: BlockDirtyBitmap) -> None:
    """Record from now on (QMP reference, "block-dirty-bitmap-enable")."""
    _set_enabled(ctx, args, enabled=True)


async def block_dirty_bitmap_disable(ctx: Context, args: BlockDirtyBitmap) -> None:
    """Stop to record (QMP reference, "block-dirty-bitmap-disable")."""
    _set_enabled(ctx, args, enabled=False)


def merge_bitmaps(
    ctx: Context, node: str, target: str, refs: Sequence[BlockDirtyBitmapOrStr]
) -> tuple[DirtyBitmap, Bitmap]:
    """Merge bitmaps into another; return that and its content before.

    Raises:
        QmpError: One is not there, in use or of another size; nothing changed.
    """
    found = find_bitmap(ctx.graph, node, target)
    before = found.bits
    merged = before.copy()
    for ref in refs:
        place = (node, ref) if isinstance(ref, str) else (ref.node, ref.name)
        source = find_bitmap(ctx.graph, *place)
        found.check()
        source.check(CHECK_BUSY | CHECK_INCONSISTENT)
        source.check_mergeable(before.length)
        merged.merge(source.bits)
    found.bits = merged
    return found, before


async def block_dirty_bitmap_merge(ctx: Context, args: BlockDirtyBitmapMerge) -> None:
    """Add what other bitmaps recorded (QMP reference, "block-dirty-bitmap-merge")."""
    merge_bitmaps(ctx, args.node, args.target, args.bitmaps)


async def x_debug_block_dirty_bitmap_sha256(
    ctx: Context, args: BlockDirtyBitmap
) -> BlockDirtyBitmapSha256:
    """Return a checksum of a bitmap (QMP reference, "x-debug-block-dirty-bitmap-sha256")."""
    bitmap = find_bitmap(ctx.graph, args.node, args.name)
    return BlockDirtyBitmapSha256(sha256=bitmap.sha256())


# Actions of transactions


class Add(Action):
    """Makes a bitmap."""

    __slots__ = ("_bitmap",)

    async def prepare(self) -> None:
        """Make it."""
        self._bitmap = await _add(self.ctx, self.data)

    async def abort(self) -> None:
        """Drop it."""
        self._bitmap.detach()


class Remove(Action):
    """Removes a bitmap."""

    __slots__ = ("_bitmap",)

    async def prepare(self) -> None:
        """Reserve it: until the end nobody else may use it, or its name."""
        bitmap = find_bitmap(self.ctx.graph, self.data.node, self.data.name)
        bitmap.check(CHECK_BUSY | CHECK_READ_ONLY)
        bitmap.busy = True
        self._bitmap = bitmap

    async def commit(self) -> None:
        """Remove it."""
        self._bitmap.busy = False
        await _remove(self._bitmap)

    async def abort(self) -> None:
        """Let others use it again."""
        self._bitmap.busy = False


class Clear(Action):
    """Forgets what was recorded."""

    __slots__ = ("_before", "_bitmap")

    async def prepare(self) -> None:
        """Clear it, but keep what was in it."""
        self._bitmap = find_bitmap(self.ctx.graph, self.data.node, self.data.name)
        self._bitmap.check()
        self._before = self._bitmap.bits.copy()
        self._bitmap.bits.clear_all()

    async def abort(self) -> None:
        """Bring back what was in it, without losing what was recorded since."""
        self._bitmap.bits.merge(self._before)


class _Switch(Action):
    """Starts or stops recording."""

    __slots__ = ("_bitmap", "_was_enabled")

    def _switch(self, enabled: bool) -> None:
        bitmap = find_bitmap(self.ctx.graph, self.data.node, self.data.name)
        was_enabled = bitmap.enabled
        _set_enabled(self.ctx, self.data, enabled)
        self._bitmap, self._was_enabled = bitmap, was_enabled

    async def abort(self) -> None:
        """Go back to what it was."""
        self._bitmap.enabled = self._was_enabled


class Enable(_Switch):
    """Records from now on."""

    __slots__ = ()

    async def prepare(self) -> None:
        """Enable it."""
        self._switch(enabled=True)


class Disable(_Switch):
    """Stops to record."""

    __slots__ = ()

    async def prepare(self) -> None:
        """Disable it."""
        self._switch(enabled=False)


class Merge(Action):
    """Adds what other bitmaps recorded."""

    __slots__ = ("_before", "_bitmap")

    async def prepare(self) -> None:
        """Merge them, but keep what was there before."""
        data = self.data
        self._bitmap, self._before = merge_bitmaps(self.ctx, data.node, data.target, data.bitmaps)

    async def abort(self) -> None:
        """Bring back what was there before."""
        self._bitmap.bits = self._before
