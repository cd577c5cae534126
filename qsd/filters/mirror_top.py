# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The filter that a mirror puts above its source, to learn of every change.

In the background mode a change only marks what has to be copied (again), after it was made, even
one that failed half way.  In the write-blocking mode the change is made on the target too before
the request completes; the job decides what an error there means, and the guest never sees it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Protocol

from qsd.block import perms
from qsd.block.status import chain_runs_nowait
from qsd.filters.base import FilterDriver, filtered_filename

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from qsd.block.graph import Edge
    from qsd.block.node import Node
    from qsd.block.runs import Runs


class ChangeSink(Protocol):
    """What a mirror job wants to know."""

    #: Whether changes go to the target at once.
    is_blocking: bool

    def changed(self, offset: int, length: int) -> None:
        """The source changed, or may have."""

    def write_both_nowait(self, offset: int, view: memoryview) -> bool:
        """Write to the source and the target at once; False if that must be done otherwise."""

    async def change_both(
        self, offset: int, length: int, change: Callable[[Node], Coroutine[Any, Any, None]]
    ) -> None:
        """Make a change on the source and then on the target."""


class MirrorTopDriver(FilterDriver):
    """Passes everything on and tells the job of changes.

    Attributes:
        sink: The job; None before it has started and when it has ended.
        is_commit: Whether the job commits into a backing file, so that consistent reads must not
            be taken from the images between.
    """

    name: ClassVar[str] = "mirror_top"
    filtered_is_backing: ClassVar[bool] = True

    __slots__ = ("is_commit", "sink")

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self.sink: ChangeSink | None = None
        self.is_commit = False

    def child_perms(self, edge: Edge, perm: int, shared: int) -> tuple[int, int]:
        """Take what the users take; those of a commit must do without consistent reads."""
        if self.is_commit:
            perm &= ~perms.CONSISTENT_READ
        return perm & perms.ALL, shared & perms.ALL

    def filename(self) -> str | None:
        """Go by the name of the filtered image."""
        return filtered_filename(self.edge)

    def pin_nowait(
        self, offset: int, length: int, holds: list[Callable[[], None]]
    ) -> tuple[int, int, int] | None:
        """Ask the child: reads go through."""
        return self.edge.node.driver.pin_nowait(offset, length, holds)

    def runs_nowait(self, offset: int, length: int, limit: int) -> Runs | None:
        """Ask the child and what is below it."""
        return chain_runs_nowait(self.edge.node, offset, length, limit)

    def write_nowait(self, offset: int, view: memoryview) -> bool:
        """Fast: write to the child, and to the target where that is to be equal at any time."""
        sink = self.sink
        if sink is not None and sink.is_blocking:
            if not sink.write_both_nowait(offset, view):
                return False
            node = self.node
            if offset + len(view) > node.wr_highest_offset:
                node.wr_highest_offset = offset + len(view)
            return True
        if not super().write_nowait(offset, view):
            return False
        if sink is not None:
            sink.changed(offset, len(view))
        return True

    async def write(self, offset: int, view: memoryview, flags: int) -> None:
        """Write to the child."""
        await self._change(offset, len(view), lambda node: node.write(offset, view, flags))

    async def zero(self, offset: int, length: int, flags: int) -> None:
        """Zero a part of the child."""
        await self._change(offset, length, lambda node: node.zero(offset, length, flags))

    async def discard(self, offset: int, length: int) -> None:
        """Discard a part of the child; what the child ignores the target need not know."""
        if self.edge.node.discard_unmap:
            await self._change(offset, length, lambda node: node.discard(offset, length))

    async def _change(
        self, offset: int, length: int, change: Callable[[Node], Coroutine[Any, Any, None]]
    ) -> None:
        sink = self.sink
        if sink is not None and sink.is_blocking:
            await sink.change_both(offset, length, change)
            return
        try:
            await change(self.edge.node)
        finally:
            # The job may have begun or ended while the request was on its way.
            if self.sink is not None:
                self.sink.changed(offset, length)
