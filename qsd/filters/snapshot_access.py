# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The "snapshot-access" driver: shows what a copy-before-write filter keeps (QMP reference,
"BlockdevDriver", snapshot-access).

Nothing is written through it, so it takes no permission on the filter below.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, ClassVar

from qsd.block import perms
from qsd.block.driver import Driver
from qsd.block.mapping import ST_ALLOCATED, Status
from qsd.errors import os_error
from qsd.filters.copy_before_write import CopyBeforeWriteDriver

if TYPE_CHECKING:
    from qsd.block.graph import Edge
    from qsd.block.node import Node
    from qsd.block.open import ChildOpener


class SnapshotAccessDriver(Driver):
    """Reads old data."""

    name: ClassVar[str] = "snapshot-access"
    file_role: ClassVar[int] = perms.ROLE_DATA

    __slots__ = ("_edge", "_length")

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self._edge: Edge
        self._length = 0

    async def open(self, options: Any, opener: ChildOpener) -> None:
        """Attach the node whose past is shown."""
        self._edge = await opener.child("file", options.file, perms.ROLE_DATA)
        self._length = self._edge.node.length()

    def child_perms(self, edge: Edge, perm: int, shared: int) -> tuple[int, int]:
        """Take nothing: the filter below has what it needs."""
        return 0, perms.ALL

    def length(self) -> int:
        """Return the length that the node below had then."""
        return self._length

    def _source(self) -> CopyBeforeWriteDriver:
        """Return the filter that keeps the old data.

        Raises:
            OSError: ENOTSUP if the node below is something else.
        """
        driver = self._edge.node.driver
        if not isinstance(driver, CopyBeforeWriteDriver):
            raise os_error(errno.ENOTSUP)
        return driver

    async def read(self, offset: int, view: memoryview) -> None:
        """Read old data."""
        await self._source().read_old(offset, view)

    async def discard(self, offset: int, length: int) -> None:
        """Tell that old data has been dealt with."""
        await self._source().discard_old(offset, length)

    async def flush(self) -> None:
        """There is nothing to be flushed."""

    async def block_status(self, offset: int, length: int, want_zero: bool) -> Status:
        """Describe old data."""
        status = await self._source().old_status(offset, length)
        return Status(status.length, status.flags | ST_ALLOCATED)
