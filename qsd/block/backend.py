# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""A user of a node: exports, jobs and whatever else does I/O from outside the graph.

A backend is the root of an edge.  It takes permissions, counts its own requests, stops issuing new
ones while its node is drained, and learns of length changes.

Fast paths: ``read_nowait``, ``write_nowait`` and ``view_nowait`` are instance attributes bound to
the node's, or to a function that says no while the backend is drained.  The caller checks the range
before.
"""

from __future__ import annotations

import asyncio
import errno
import functools
from typing import TYPE_CHECKING, Any

from qsd.block.mapping import ST_ALLOCATED, ST_DATA, ST_ZERO, Status
from qsd.block.node import Node, _refuse_read, refuse_view
from qsd.errors import os_error

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from qsd.block.dirty import DirtyBitmap
    from qsd.block.driver import RunPath
    from qsd.block.graph import Edge, Graph
    from qsd.block.late import Route
    from qsd.block.piped import Payload
    from qsd.block.relay import RelayPath
    from qsd.block.runs import Runs

    UnrecordedPath = tuple[Callable[[int, memoryview], bool], Sequence[DirtyBitmap]]


@functools.cache
def _finders() -> tuple[Callable[[Node, int, int, int], Runs | None], ...]:
    """Import the fast paths of block status; not every daemon needs them."""
    from qsd.block.status import chain_runs_nowait, depth_runs_nowait

    return chain_runs_nowait, depth_runs_nowait


class BackendListener:
    """What a backend tells its owner; the defaults do nothing."""

    __slots__ = ()

    def shows_file_since(self) -> float:
        """Return the loop's time since when the node can be opened as a file; 0 if it cannot."""
        return 0.0

    def drained_begin(self) -> None:
        """No new request may be started from now on (requests of the backend itself just wait)."""

    def drained_end(self) -> None:
        """Requests may be started again."""

    def drained_poll(self) -> bool:
        """Tell whether the owner still has activity of its own to finish."""
        return False

    def resized(self) -> None:
        """The length of the node changed."""


class Backend:
    """One external user of a node.

    Attributes:
        description: How conflicts name this user, e.g. "block device 'exp0'".
        edge: The root edge, None while detached.
        quiesced: Number of drained sections it is in.
        in_flight: Requests started and not finished, beyond those that never suspended.
        force_writethrough: Every write is made durable before it completes.
        generation: Another number whenever the fast paths may have changed; see :meth:`route`.
    """

    __slots__ = (
        "_idle",
        "_resume",
        "description",
        "edge",
        "force_writethrough",
        "generation",
        "graph",
        "in_flight",
        "listener",
        "name",
        "quiesced",
        "read_nowait",
        "view_chunks",
        "view_nowait",
        "write_nowait",
    )

    def __init__(
        self, graph: Graph, name: str, description: str, listener: BackendListener | None = None
    ) -> None:
        self.graph = graph
        self.name = name
        self.description = description
        self.listener = listener or BackendListener()
        self.edge: Edge | None = None
        self.quiesced = 0
        self.in_flight = 0
        self.force_writethrough = False
        self.generation = 0
        self._idle: list[asyncio.Future[None]] = []
        self._resume: list[asyncio.Future[None]] = []
        self.read_nowait: Callable[[int, memoryview], bool] = _refuse_read
        self.write_nowait: Callable[[int, memoryview], bool] = _refuse_read
        self.view_nowait: Callable[[int, int], memoryview | None] = refuse_view
        self.view_chunks: dict[int, memoryview] = {}

    # Attachment

    @property
    def node(self) -> Node:
        """The node in use.

        Raises:
            OSError: ENOMEDIUM while detached.
        """
        if self.edge is None:
            raise os_error(errno.ENOMEDIUM)
        return self.edge.node

    def attach(self, node: Node, perm: int, shared: int, name: str = "root") -> None:
        """Start to use `node`; `name` is what conflicts call it.

        Raises:
            QmpError: Another user does not allow it; nothing changed.
        """
        self.edge = self.graph.attach_root(self, node, perm, shared, name)
        self.rebind()

    def set_perms(self, perm: int, shared: int) -> None:
        """Change what is taken and shared.

        Raises:
            QmpError: Another user does not allow it; nothing changed.
        """
        if self.edge is None:
            raise os_error(errno.ENOMEDIUM)
        self.graph.set_edge_perms(self.edge, perm, shared)

    async def detach(self) -> None:
        """Stop using the node after the requests in flight; the last user closes it."""
        edge = self.edge
        if edge is None:
            return
        await self.wait_idle()
        self.edge = None
        self.rebind()
        await self.graph.detach(edge)

    def rebind(self) -> None:
        """Choose the fast paths anew; called whenever edge, node or quiescence changed."""
        edge = self.edge
        self.generation += 1
        if edge is None or self.quiesced:
            self.read_nowait = self.write_nowait = _refuse_read
            self.view_nowait = refuse_view
            self.view_chunks = {}
        else:
            self.read_nowait = edge.node.read_nowait
            self.view_nowait = edge.node.view_nowait
            self.view_chunks = edge.node.view_chunks
            self.write_nowait = _refuse_read if self.force_writethrough else edge.node.write_nowait

    # Drain (called by qsd.block.drain)

    def drained_begin(self) -> None:
        """Enter a drained section."""
        self.quiesced += 1
        if self.quiesced == 1:
            self.rebind()
            self.listener.drained_begin()

    def drained_end(self) -> None:
        """Leave a drained section; waiting requests go on after the last one."""
        self.quiesced -= 1
        if not self.quiesced:
            self.rebind()
            for future in self._resume:
                if not future.done():
                    future.set_result(None)
            self._resume.clear()
            self.listener.drained_end()

    def child_resized(self, edge: Edge) -> None:
        """The node changed its length."""
        self.listener.resized()

    async def wait_idle(self) -> None:
        """Wait until no request of this backend is in flight."""
        while self.in_flight:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._idle.append(future)
            await future

    async def wait_resumed(self) -> None:
        """Wait until no drained section holds this backend."""
        while self.quiesced:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._resume.append(future)
            await future

    def begin_nowait(self, count: int = 1) -> None:
        """Count one more request of the owner's own, or several, to be undone by :meth:`end`.

        For work that consists of several requests and must not be cut in two by a drained section.
        The requests themselves then go to :attr:`node` directly.  The caller has just waited for
        :meth:`wait_resumed`.
        """
        self.in_flight += count

    def end(self, count: int = 1) -> None:
        """Undo :meth:`begin_nowait`, so many times."""
        self.in_flight -= count
        if not self.in_flight:
            self._wake_idle()

    async def _enter(self) -> Node:
        await self.wait_resumed()
        node = self.node
        self.in_flight += 1
        return node

    def _leave(self) -> None:
        self.in_flight -= 1
        if not self.in_flight:
            self._wake_idle()

    def _wake_idle(self) -> None:
        for future in self._idle:
            if not future.done():
                future.set_result(None)
        self._idle.clear()

    # I/O

    def length(self) -> int:
        """Return the length of the node in bytes."""
        return self.node.length()

    def route(self, is_write: bool, done: Callable[[list[Any]], None]) -> Route | None:
        """Return the fast path for many reads or writes that wait for a device.

        It refuses everything once :attr:`generation` has changed.

        Args:
            is_write: Writes, not reads.
            done: Called from the loop with operations (of one class, the owner's) that have ended
                together.

        Returns:
            None if there is none now: drained, no queue in the kernel, or a graph that cannot.
        """
        edge = self.edge
        if edge is None or self.quiesced or (is_write and self.force_writethrough):
            return None
        path = edge.node.late_path(is_write)
        if path is None or (queue := path.io.queue()) is None:
            return None
        from qsd.block.late import Route

        return Route(self, path, queue, is_write, done)

    def relay_path(self) -> RelayPath | None:
        """Return how NBD requests get to another server as they are, good for this generation.

        The owner counts them by :meth:`begin_nowait` and :meth:`end`.
        """
        edge = self.edge
        if edge is None or self.quiesced or self.force_writethrough:
            return None
        return edge.node.relay_path()

    def read_later(self, offset: int, view: memoryview, done: Callable[[bool], None]) -> bool:
        """Begin a read that ends without a coroutine; see :meth:`Node.read_later`."""
        edge = self.edge
        if edge is None or self.quiesced:
            return False

        def finished(full: bool) -> None:
            # The owner goes first: what it starts in turn keeps this backend busy.
            try:
                done(full)
            finally:
                self.in_flight -= 1
                if not self.in_flight:
                    self._wake_idle()

        if not edge.node.read_later(offset, view, finished):
            return False
        self.in_flight += 1
        return True

    def write_later(self, offset: int, view: memoryview, done: Callable[[bool], None]) -> bool:
        """Begin a write that ends without a coroutine; see :meth:`Node.write_later`."""
        edge = self.edge
        if edge is None or self.quiesced or self.force_writethrough:
            return False

        def finished(full: bool) -> None:
            try:
                done(full)
            finally:
                self._leave()

        if not edge.node.write_later(offset, view, finished):
            return False
        self.in_flight += 1
        return True

    def receive_nowait(self, offset: int, payload: Payload) -> bool:
        """Write data that nobody sees; see :mod:`qsd.block.piped`."""
        edge = self.edge
        if edge is None or self.quiesced or self.force_writethrough:
            return False
        return edge.node.receive_nowait(offset, payload)

    def run_path(self) -> RunPath | None:
        """Return the node's fast path for several requests at once, good for this generation."""
        edge = self.edge
        if edge is None or self.quiesced or self.force_writethrough:
            return None
        return edge.node.run_path()

    def unrecorded_path(self) -> UnrecordedPath | None:
        """Return a `write_nowait` that tells no bitmap of the node, and these bitmaps.

        Good for this generation; the caller tells them.
        """
        edge = self.edge
        if edge is None or self.write_nowait is _refuse_read:
            return None
        return edge.node.driver.write_nowait, tuple(edge.node.bitmaps.values())

    def views_path(self) -> Callable[[int, Sequence[memoryview], int], bool] | None:
        """Return the function that writes several buffers at once, good for this generation.

        See :meth:`qsd.block.driver.Driver.write_views_nowait`.
        """
        edge = self.edge
        if edge is None or self.quiesced or self.force_writethrough:
            return None
        return edge.node.write_views_nowait

    async def read(self, offset: int, view: memoryview) -> None:
        """Fill `view`."""
        node = await self._enter()
        try:
            await node.read(offset, view)
        finally:
            self._leave()

    async def write(self, offset: int, view: memoryview, flags: int = 0) -> None:
        """Write `view`; see mapping.py for flags."""
        node = await self._enter()
        try:
            await node.write(offset, view, flags | self.force_writethrough)
        finally:
            self._leave()

    async def zero(self, offset: int, length: int, flags: int = 0) -> None:
        """Make a range read as zeroes."""
        node = await self._enter()
        try:
            await node.zero(offset, length, flags | self.force_writethrough)
        finally:
            self._leave()

    async def discard(self, offset: int, length: int) -> None:
        """Tell that a range is not needed."""
        node = await self._enter()
        try:
            await node.discard(offset, length)
        finally:
            self._leave()

    async def copy_up(self, offset: int, length: int) -> None:
        """Let the image take over what it shows of a backing file, unless it is read-only."""
        node = await self._enter()
        try:
            if not node.read_only:
                await node.copy_up(offset, length)
        finally:
            self._leave()

    async def flush(self) -> None:
        """Make completed writes durable."""
        node = await self._enter()
        try:
            await node.flush()
        finally:
            self._leave()

    async def block_status(self, offset: int, length: int) -> Status:
        """Describe what a guest sees from `offset` on: the whole chain merged.

        Only ST_DATA, ST_ZERO and ST_ALLOCATED are set; ST_ALLOCATED if any layer decides.
        """
        node = await self._enter()
        try:
            from qsd.block.status import chain_status

            return await chain_status(node, offset, length)
        finally:
            self._leave()

    def runs_nowait(self, offset: int, length: int, limit: int) -> Runs | None:
        """Fast path of :meth:`block_status` for several extents; see `chain_runs_nowait`."""
        edge = self.edge
        if edge is None or self.quiesced:
            return None
        return _finders()[0](edge.node, offset, length, limit)

    def depths_nowait(self, offset: int, length: int, limit: int) -> Runs | None:
        """Fast path of :meth:`allocation_depth`; see `depth_runs_nowait`."""
        edge = self.edge
        if edge is None or self.quiesced:
            return None
        return _finders()[1](edge.node, offset, length, limit)

    async def runs(self, offset: int, length: int, limit: int) -> Runs | None:
        """Describe several extents by one question to whom the node asks; see the driver's."""
        node = await self._enter()
        try:
            return await node.driver.runs(offset, length, limit)
        finally:
            self._leave()

    async def allocation_depth(self, offset: int, length: int) -> tuple[int, int]:
        """Return (length, depth): 0 not allocated, 1 in the top layer, 2 in its backing, ..."""
        node = await self._enter()
        try:
            from qsd.block.status import allocation_depth

            return await allocation_depth(node, offset, length)
        finally:
            self._leave()


__all__ = ["ST_ALLOCATED", "ST_DATA", "ST_ZERO", "Backend", "BackendListener"]
