# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The "compress" filter: everything is written compressed (QEMU's manual, "Filter drivers").

Formats compress whole clusters only, so that is what the filter wants to get.  Reading needs
nothing of it and takes the child's fast path.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from qsd.block.chain import takes_compressed
from qsd.block.info import driver_info
from qsd.block.mapping import COMPRESSED
from qsd.errors import QmpError
from qsd.filters.base import FilterDriver

if TYPE_CHECKING:
    from qsd.block.open import ChildOpener


class CompressDriver(FilterDriver):
    """Writes compressed."""

    name: ClassVar[str] = "compress"
    supports_compressed: ClassVar[bool] = True

    __slots__ = ()

    async def open(self, options: Any, opener: ChildOpener) -> None:
        """Attach the child and see whether it compresses."""
        await super().open(options, opener)
        child = self.edge.node
        if not takes_compressed(child):
            raise QmpError(
                f"Compression is not supported for underlying format: {child.driver.name}"
            )
        # Formats compress whole clusters only, so the engine completes what is written.
        self.limits.write_alignment = driver_info(child).get("cluster-size") or 1

    def write_nowait(self, offset: int, view: memoryview) -> bool:
        """Refuse: compressing takes time."""
        return False

    async def write(self, offset: int, view: memoryview, flags: int) -> None:
        """Write compressed; a last cluster that is not whole is cut at the end."""
        room = self.length() - offset
        await self.edge.node.write(offset, view[:room], flags | COMPRESSED)

    async def copy_up(self, offset: int, length: int, flags: int) -> None:
        """Let the child store compressed what it takes over."""
        await self.edge.node.copy_up(offset, length, flags | COMPRESSED)
