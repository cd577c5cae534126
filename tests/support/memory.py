# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""A real protocol driver over a bytearray, with gates, faults and a log: the engine's test rig.

``new_graph`` makes a graph whose "null-co" nodes are MemoryDrivers, so that tests build nodes from
ordinary options and look into the driver afterwards.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Sequence
from typing import Any, Self

from qsd.aio.tasks import TaskOwner
from qsd.aio.workers import WorkerPool
from qsd.block import perms
from qsd.block.driver import Driver
from qsd.block.graph import Graph
from qsd.block.mapping import ST_ALLOCATED, ST_DATA, ST_OFFSET, ST_ZERO, Status
from qsd.block.node import Node
from qsd.block.open import open_node
from qsd.errors import os_error
from qsd.qapi.schema.block_options import BlockdevOptions


class MemoryDriver(Driver):
    """Bytes in memory.

    Attributes:
        data: The content.
        log: (operation, offset, length) of every request that reached the driver.
        gate: While set, requests wait for the event; fast paths say False.
        fail: Given (operation, offset), returns an errno to fail with, or 0.
        fast: Whether the plain-function paths are served.
        later: Unless None, reads can be begun without a coroutine; the test ends them.
    """

    name = "null-co"
    resettable_options = frozenset(("size",))
    family = "protocol"

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self.data = bytearray()
        self.log: list[tuple[str, int, int]] = []
        self.gate: asyncio.Event | None = None
        self.fail: Callable[[str, int], int] = lambda operation, offset: 0
        self.fast = True
        self.can_zero = True
        self.later: list[Callable[[bool], None]] | None = None
        self.open_error: Exception | None = None
        self.closed = False

    async def open(self, options: Any, opener: Any) -> None:
        if self.open_error is not None:
            raise self.open_error
        self.data = bytearray(options.size if options.size is not None else 1 << 20)

    async def close(self) -> None:
        self.closed = True

    def length(self) -> int:
        return len(self.data)

    async def prepare_reopen(self, options: Any, read_only: bool) -> Any:
        return options

    async def _enter(self, operation: str, offset: int, length: int) -> None:
        self.log.append((operation, offset, length))
        if self.gate is not None:
            await self.gate.wait()
        if code := self.fail(operation, offset):
            raise os_error(code)

    def read_nowait(self, offset: int, view: memoryview) -> bool:
        if self.gate is not None or not self.fast:
            return False
        if offset < 0 or offset + len(view) > len(self.data):
            return False
        if self.fail("read", offset):
            return False
        view[:] = self.data[offset : offset + len(view)]
        return True

    def read_later(self, offset: int, view: memoryview, done: Callable[[bool], None]) -> bool:
        if self.later is None:
            return False

        def finish(full: bool) -> None:
            if full:
                view[:] = self.data[offset : offset + len(view)]
            done(full)

        self.later.append(finish)
        return True

    def write_later(self, offset: int, view: memoryview, done: Callable[[bool], None]) -> bool:
        if self.later is None:
            return False

        def finish(full: bool) -> None:
            if full:
                self._put(offset, view)
            done(full)

        self.later.append(finish)
        return True

    async def read(self, offset: int, view: memoryview) -> None:
        await self._enter("read", offset, len(view))
        part = self.data[offset : offset + len(view)]
        view[:] = part.ljust(len(view), b"\0")

    def _put(self, offset: int, data: bytes | memoryview) -> None:
        end = offset + len(data)
        if end > len(self.data):
            self.data.extend(bytes(end - len(self.data)))
            self.node.length_changed()
        self.data[offset:end] = data

    def write_nowait(self, offset: int, view: memoryview) -> bool:
        if self.gate is not None or not self.fast or self.fail("write", offset):
            return False
        if offset < 0 or (offset + len(view) > len(self.data) and not self.grows):
            return False
        self._put(offset, view)
        self.node.wr_highest_offset = max(self.node.wr_highest_offset, offset + len(view))
        return True

    def write_views_nowait(self, offset: int, views: Sequence[memoryview], length: int) -> bool:
        for view in views:
            if not self.write_nowait(offset, view):
                return False
            offset += len(view)
        return True

    async def write(self, offset: int, view: memoryview, flags: int) -> None:
        await self._enter("write", offset, len(view))
        self._put(offset, view)

    async def zero(self, offset: int, length: int, flags: int) -> None:
        await self._enter("zero", offset, length)
        if not self.can_zero:
            raise os_error(errno.ENOTSUP)
        self._put(offset, bytes(length))

    async def discard(self, offset: int, length: int) -> None:
        await self._enter("discard", offset, length)
        self._put(offset, bytes(length))

    async def flush(self) -> None:
        await self._enter("flush", 0, 0)

    async def truncate(self, length: int, exact: bool, prealloc: str, flags: int) -> None:
        await self._enter("truncate", length, 0)
        del self.data[length:]
        self.data.extend(bytes(length - len(self.data)))

    async def block_status(self, offset: int, length: int, want_zero: bool) -> Status:
        page = 4096
        end = min(length, page - offset % page)
        flags = ST_ALLOCATED | ST_OFFSET
        zero = not any(self.data[offset : offset + end])
        return Status(end, flags | (ST_ZERO if zero else ST_DATA), offset)


class PassFilter(Driver):
    """A filter that changes nothing; serves as "copy-on-read" in test graphs."""

    name = "copy-on-read"
    family = "filter"
    file_role = perms.ROLE_FILTERED

    async def open(self, options: Any, opener: Any) -> None:
        await opener.child("file", options.file, perms.ROLE_FILTERED)

    @property
    def _child(self) -> Node:
        return self.node.children["file"].node

    def length(self) -> int:
        return self._child.length()

    def read_nowait(self, offset: int, view: memoryview) -> bool:
        return self._child.read_nowait(offset, view)

    async def read(self, offset: int, view: memoryview) -> None:
        await self._child.read(offset, view)

    async def write(self, offset: int, view: memoryview, flags: int) -> None:
        await self._child.write(offset, view, flags)

    async def prepare_reopen(self, options: Any, read_only: bool) -> Any:
        return None


class EventLog:
    """An event sink that remembers."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def emit(self, event: Any) -> None:
        self.events.append(event)


class Rig:
    """A graph with everything it needs; ``async with Rig() as rig``."""

    def __init__(self, **drivers: type[Driver]) -> None:
        table: dict[str, type[Driver]] = {"null-co": MemoryDriver, "copy-on-read": PassFilter}
        table.update({name.replace("_", "-"): cls for name, cls in drivers.items()})
        self.pool = WorkerPool()
        self.errors: list[BaseException] = []
        self.tasks = TaskOwner("test", lambda name, exc: self.errors.append(exc))
        self.events = EventLog()
        self.graph = Graph(self.pool, self.tasks, self.events, None, table.get)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, exc_type: object, *_: object) -> None:
        for node in list(self.graph.nodes.values()):
            if node.monitor_owned:
                await self.graph.release(node)
        await self.tasks.close()
        await self.pool.close()
        if exc_type is None:
            assert not self.graph.nodes
            assert not self.graph.backends

    async def add(self, **tree: Any) -> Node:
        """Do a blockdev-add with plain values."""
        from qsd.qapi.convert import from_json

        options: BlockdevOptions = from_json(
            BlockdevOptions, {key.replace("_", "-"): value for key, value in tree.items()}
        )
        node = await open_node(self.graph, options)
        node.monitor_owned = True
        return node

    async def reopen(self, node: Node, **change: Any) -> None:
        """Reopen a node with its own options but for the ones given; None leaves one out."""
        from qsd.block.reopen import reopen
        from qsd.qapi.convert import from_json, to_json

        tree = {**to_json(node.options), **change}
        given = {name: value for name, value in tree.items() if value is not None}
        await reopen(self.graph, [from_json(BlockdevOptions, given)])

    async def memory(self, name: str, size: int = 1 << 20, **more: Any) -> MemoryDriver:
        """Add a memory node."""
        node = await self.add(driver="null-co", node_name=name, size=size, **more)
        assert isinstance(node.driver, MemoryDriver)
        return node.driver
