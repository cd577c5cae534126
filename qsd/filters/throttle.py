# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The "throttle" filter: requests wait until the group's limits let them go (QEMU's manual,
"The QEMU throttling infrastructure").

Reads, writes, zero and discard requests count; flushes and queries pass.  In a drained section
nothing waits, since the section waits for what is in flight.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from qsd.filters.base import FilterDriver
from qsd.objects.throttle_group import ThrottleGroup

if TYPE_CHECKING:
    from qsd.block.node import Node
    from qsd.block.open import ChildOpener
    from qsd.qapi.schema.block_options import BlockdevOptionsThrottle


class ThrottleDriver(FilterDriver):
    """A member of a throttle group."""

    name: ClassVar[str] = "throttle"
    passes_compressed: ClassVar[bool] = True
    changeable_options: ClassVar[frozenset[str]] = frozenset(("throttle-group",))

    __slots__ = ("_group",)

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self._group: ThrottleGroup

    async def open(self, options: BlockdevOptionsThrottle, opener: ChildOpener) -> None:
        """Join the group."""
        await super().open(options, opener)
        self._group = self._find(options)
        self._group.join(self)

    def _find(self, options: BlockdevOptionsThrottle) -> ThrottleGroup:
        group: ThrottleGroup = self.node.graph.objects.resolve(
            options.throttle_group, ThrottleGroup
        )
        return group

    async def close(self) -> None:
        """Leave the group."""
        self._group.queue.release(self)
        self._group.leave(self)

    async def prepare_reopen(
        self, options: BlockdevOptionsThrottle, read_only: bool
    ) -> ThrottleGroup:
        """Look for the group that is wanted now."""
        return self._find(options)

    async def commit_reopen(self, token: ThrottleGroup) -> None:
        """Change groups."""
        if token is not self._group:
            self._group.leave(self)
            token.join(self)
            self._group = token

    def drained_begin(self) -> None:
        """Let what waits go."""
        self._group.queue.release(self)

    async def _enter(self, is_write: bool, length: int) -> None:
        """Wait until the limits allow a request."""
        if self.node.quiesced:
            self._group.queue.account(is_write, length)
        else:
            await self._group.queue.enter(self, is_write, length)

    def read_nowait(self, offset: int, view: memoryview) -> bool:
        """Read at once what may go at once."""
        queue = self._group.queue
        if not queue.may_go(False) or not self.edge.node.read_nowait(offset, view):
            return False
        queue.account(False, len(view))
        return True

    async def read(self, offset: int, view: memoryview) -> None:
        """Wait, then read."""
        await self._enter(False, len(view))
        await self.edge.node.read(offset, view)

    def write_nowait(self, offset: int, view: memoryview) -> bool:
        """Write at once what may go at once."""
        queue = self._group.queue
        if not queue.may_go(True) or not super().write_nowait(offset, view):
            return False
        queue.account(True, len(view))
        return True

    async def write(self, offset: int, view: memoryview, flags: int) -> None:
        """Wait, then write."""
        await self._enter(True, len(view))
        await self.edge.node.write(offset, view, flags)

    async def zero(self, offset: int, length: int, flags: int) -> None:
        """Wait, then zero."""
        await self._enter(True, length)
        await self.edge.node.zero(offset, length, flags)

    async def discard(self, offset: int, length: int) -> None:
        """Wait, then discard."""
        await self._enter(True, length)
        await self.edge.node.discard(offset, length)

    def locate_nowait(self, offset: int, length: int) -> tuple[int, int] | None:
        """Refuse: bytes that do not come this way cannot be counted."""
        return None
