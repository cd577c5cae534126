# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Dirty bitmaps (QMP reference, "Block core")."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

from qsd.qapi.model import UNSTABLE, Struct, command, commands

if TYPE_CHECKING:
    from qsd.qapi.model import UInt32


class BlockDirtyBitmap(Struct):
    """A bitmap, by its node and name (QMP reference, "BlockDirtyBitmap")."""

    node: str
    name: str


class BlockDirtyBitmapAdd(Struct):
    """A bitmap to be created (QMP reference, "BlockDirtyBitmapAdd")."""

    node: str
    name: str
    granularity: UInt32 | None = None
    persistent: bool | None = None
    disabled: bool | None = None


BlockDirtyBitmapOrStr: TypeAlias = "str | BlockDirtyBitmap"
"""A bitmap of any node, or the name of one of the node in question (QMP reference)."""


class BlockDirtyBitmapMerge(Struct):
    """Bitmaps to be merged into another (QMP reference, "BlockDirtyBitmapMerge")."""

    node: str
    target: str
    bitmaps: list[BlockDirtyBitmapOrStr]


class BlockDirtyBitmapSha256(Struct):
    """A checksum over a bitmap's content (QMP reference, "BlockDirtyBitmapSha256")."""

    sha256: str


COMMANDS: Final = commands(
    __name__,
    command("block-dirty-bitmap-add", "BlockDirtyBitmapAdd"),
    command("block-dirty-bitmap-remove", "BlockDirtyBitmap"),
    command("block-dirty-bitmap-clear", "BlockDirtyBitmap"),
    command("block-dirty-bitmap-enable", "BlockDirtyBitmap"),
    command("block-dirty-bitmap-disable", "BlockDirtyBitmap"),
    command("block-dirty-bitmap-merge", "BlockDirtyBitmapMerge"),
    command(
        "x-debug-block-dirty-bitmap-sha256",
        "BlockDirtyBitmap",
        returns="BlockDirtyBitmapSha256",
        features=UNSTABLE,
    ),
)
"""The commands of this module."""
