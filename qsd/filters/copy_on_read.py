# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The "copy-on-read" filter: what was read from a backing file is stored in the image itself (QMP
reference, "BlockdevOptionsCor").
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from qsd.block import perms
from qsd.block.mapping import ST_ALLOCATED
from qsd.block.status import backing_of, filtered_edge
from qsd.errors import QmpError
from qsd.filters.base import FilterDriver

if TYPE_CHECKING:
    from collections.abc import Iterator

    from qsd.block.graph import Edge
    from qsd.block.node import Node
    from qsd.block.open import ChildOpener
    from qsd.qapi.schema.block_options import BlockdevOptionsCor


class CopyOnReadDriver(FilterDriver):
    """Copies before it reads."""

    name: ClassVar[str] = "copy-on-read"
    passes_compressed: ClassVar[bool] = True

    __slots__ = ("_bottom",)

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self._bottom: Node | None = None

    async def open(self, options: BlockdevOptionsCor, opener: ChildOpener) -> None:
        """Attach the child and find the lowest layer whose data is copied."""
        await super().open(options, opener)
        if options.bottom is None:
            return
        bottom = self.node.graph.nodes.get(options.bottom)
        if bottom is None:
            raise QmpError(f"Bottom node '{options.bottom}' not found")
        if filtered_edge(bottom) is not None and bottom.driver.family == "filter":
            raise QmpError(f"Bottom node '{options.bottom}' is a filter")
        self._bottom = bottom

    def limit_to(self, bottom: Node) -> None:
        """Set the lowest layer whose data is copied, for a filter that a job made."""
        self._bottom = bottom

    def child_perms(self, edge: Edge, perm: int, shared: int) -> tuple[int, int]:
        """Write what is there already, also if the filter itself is read-only."""
        return perm & perms.ALL | perms.WRITE_UNCHANGED, shared & perms.ALL

    def read_nowait(self, offset: int, view: memoryview) -> bool:
        """Read at once what needs no copy."""
        node = self.edge.node
        return node.driver.is_own_nowait(offset, len(view)) and node.read_nowait(offset, view)

    async def read(self, offset: int, view: memoryview) -> None:
        """Copy what has to be copied, then read."""
        node = self.edge.node
        if self._bottom is None:
            await node.copy_up(offset, len(view))
        else:
            await self._copy_down_to_bottom(offset, len(view))
        await node.read(offset, view)

    async def _copy_down_to_bottom(self, offset: int, length: int) -> None:
        """Copy the parts of a range that a layer down to the bottom has allocated."""
        end = offset + length
        while offset < end:
            length = end - offset
            for depth, layer in enumerate(self._layers()):
                available = layer.length() - offset
                if available <= 0:
                    continue
                status = await layer.block_status(offset, min(length, available), False)
                length = status.length
                if status.flags & ST_ALLOCATED:
                    if depth:
                        await self.edge.node.copy_up(offset, length)
                    break
            offset += length

    def _layers(self) -> Iterator[Node]:
        """Iterate over the layers whose data is copied, after the one that is copied to."""
        layer: Node | None = self.edge.node
        while layer is not None:
            if layer.driver.family != "filter":
                yield layer
            if layer is self._bottom:
                return
            layer = backing_of(layer)
