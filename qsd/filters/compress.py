# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The "compress" filter: everything is written compressed (QEMU's manual, "Filter drivers").

Formats compress whole clusters only, so the filter completes what is written to them by reading the
rest.  Reading needs nothing of the filter and takes the child's fast path.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from qsd.aio.rangelock import RangeLock
from qsd.block.chain import takes_compressed
from qsd.block.info import driver_info
from qsd.block.mapping import COMPRESSED
from qsd.errors import QmpError
from qsd.filters.base import FilterDriver
from qsd.util.ranges import align_down, align_up

if TYPE_CHECKING:
    from qsd.block.node import Node
    from qsd.block.open import ChildOpener


class CompressDriver(FilterDriver):
    """Writes compressed."""

    name: ClassVar[str] = "compress"
    supports_compressed: ClassVar[bool] = True

    __slots__ = ("_cluster", "_ranges")

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self._cluster = 1
        self._ranges = RangeLock()

    async def open(self, options: Any, opener: ChildOpener) -> None:
        """Attach the child and see whether it compresses."""
        await super().open(options, opener)
        child = self.edge.node
        if not takes_compressed(child):
            raise QmpError(
                f"Compression is not supported for underlying format: {child.driver.name}"
            )
        self._cluster = driver_info(child).get("cluster-size") or 1

    def write_nowait(self, offset: int, view: memoryview) -> bool:
        """Refuse: compressing takes time."""
        return False

    async def write(self, offset: int, view: memoryview, flags: int) -> None:
        """Write whole clusters compressed, completing those at both ends."""
        cluster = self._cluster
        start = align_down(offset, cluster)
        end = min(align_up(offset + len(view), cluster), self.length())
        # Unaligned writes read what others may be writing, so all writes to a cluster take turns.
        hold = await self._ranges.claim(start, end, True)
        try:
            if start != offset or end != offset + len(view):
                view = await self._completed(offset, view, start, end)
            await self.edge.node.write(start, view, flags | COMPRESSED)
        finally:
            self._ranges.release(hold)

    async def copy_up(self, offset: int, length: int, flags: int) -> None:
        """Let the child store compressed what it takes over."""
        await self.edge.node.copy_up(offset, length, flags | COMPRESSED)

    async def _completed(self, offset: int, view: memoryview, start: int, end: int) -> memoryview:
        """Return new data with the old data around it."""
        whole = memoryview(bytearray(end - start))
        child = self.edge.node
        tail = offset + len(view)
        if start < offset:
            await child.read(start, whole[: offset - start])
        if tail < end:
            await child.read(tail, whole[tail - start :])
        # A cluster is compressed in one piece: new bytes go between the old ones.
        whole[offset - start : tail - start] = view
        return whole
