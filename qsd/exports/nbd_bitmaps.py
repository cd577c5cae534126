# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Dirty bitmaps as an NBD export shows them: ``qemu:dirty-bitmap:NAME``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, cast

from qsd.block.status import backing_of
from qsd.errors import QmpError
from qsd.wire.nbd import messages as nbd

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qsd.block.graph import Graph
    from qsd.block.node import Node
    from qsd.block.runs import Runs
    from qsd.qapi.schema.block_bitmap import BlockDirtyBitmap, BlockDirtyBitmapOrStr


class Bitmap(Protocol):
    """What an export needs of a dirty bitmap.

    Attributes:
        name: Its name.
        busy: Whether an operation uses it, so that nobody else may change it.
        inconsistent: Whether its content is worthless.
    """

    name: str
    busy: bool
    inconsistent: bool

    @property
    def takes_writes(self) -> bool:
        """Whether writes change what it shows."""

    def runs(self, offset: int, length: int, limit: int) -> Runs:
        """Describe the start of a range in at most `limit` extents; flags are 1 for dirty, or 0."""


class ExportedBitmap:
    """One bitmap of an export; busy as long as the export is there."""

    __slots__ = ("_bitmap",)

    def __init__(self, bitmap: Bitmap) -> None:
        self._bitmap = bitmap
        bitmap.busy = True

    @property
    def name(self) -> str:
        """The bitmap's name."""
        return self._bitmap.name

    def release(self) -> None:
        """Let others change the bitmap again."""
        self._bitmap.busy = False

    def runs(self, offset: int, length: int, limit: int) -> Runs:
        """Describe the start of a range in at most `limit` extents; flags are their states."""
        return self._bitmap.runs(offset, length, limit)


def _find_below(node: Node, name: str) -> tuple[Node, Bitmap]:
    """Return the bitmap of that name in a node or in what it filters or is based on."""
    layer: Node | None = node
    while layer is not None:
        if name in layer.bitmaps:
            return layer, cast("Bitmap", layer.bitmaps[name])
        layer = backing_of(layer)
    raise QmpError(f"Bitmap '{name}' is not found")


def _find(graph: Graph, ref: BlockDirtyBitmap) -> Bitmap:
    other = graph.nodes.get(ref.node)
    if other is None:
        raise QmpError(f"Node '{ref.node}' not found")
    if ref.name not in other.bitmaps:
        raise QmpError(f"Dirty bitmap '{ref.name}' not found")
    return cast("Bitmap", other.bitmaps[ref.name])


def take_bitmaps(
    graph: Graph, node: Node, refs: Sequence[BlockDirtyBitmapOrStr], *, read_only: bool
) -> list[ExportedBitmap]:
    """Reserve the bitmaps that an export of `node` shall show.

    Raises:
        QmpError: One is not there, in use, or may change under a read-only export; none is taken.
    """
    found: list[Bitmap] = []
    for ref in refs:
        changes = False
        if isinstance(ref, str):
            layer, bitmap = _find_below(node, ref)
            changes = bitmap.takes_writes and not layer.read_only
        else:
            bitmap = _find(graph, ref)
        if read_only and changes:
            # A read-only client may trust in what it reads once.  Who names the node knows better.
            raise QmpError(f"Enabled bitmap '{bitmap.name}' incompatible with readonly export")
        if bitmap.busy:
            raise QmpError(
                f"Bitmap '{bitmap.name}' is currently in use by another operation and cannot be "
                "used"
            )
        if bitmap.inconsistent:
            raise QmpError(f"Bitmap '{bitmap.name}' is inconsistent and cannot be used")
        if len(bitmap.name) > nbd.MAX_STRING - 64:
            raise QmpError(f"Bitmap '{bitmap.name}' name too long for an export")
        found.append(bitmap)
    return [ExportedBitmap(bitmap) for bitmap in found]
