# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""A mapping format with its tables in memory: exercises the engine without any on-disk detail.

Guest clusters of 4 KiB live anywhere in the "file" child.  Cluster states: absent (hole), zero, or
a host offset; `shared` clusters may not be overwritten in place (like those of a snapshot).
"""

from __future__ import annotations

import asyncio
from typing import Any

from qsd.block.mapped import MappedDriver
from qsd.block.mapping import DATA, HOLE, ZERO, Allocation, Mapping
from qsd.block.node import Node
from tests.support.memory import MemoryDriver, Rig

CLUSTER = 4096
#: Bytes; the length of the image.
SIZE = 64 * CLUSTER
ZERO_CLUSTER = -1


class ToyFormat(MappedDriver):
    """Serves as "qcow2" in test graphs; the image is 64 clusters long."""

    name = "qcow2"
    supports_backing = True

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self.table: dict[int, int] = {}
        self.shared: set[int] = set()
        self.next_free = 0
        self.abandoned: list[int] = []
        self.cached = True
        self.clusters = 64
        self.fail_commit = False
        self.max_run = 4

    async def open(self, options: Any, opener: Any) -> None:
        self.granularity = CLUSTER
        self.limits.zero_alignment = CLUSTER
        await opener.backing(options.backing, None, None)

    def length(self) -> int:
        return self.clusters * CLUSTER

    def data_edge(self) -> Any:
        return self.node.children["file"]

    def locate_data_nowait(self, offset: int, length: int) -> int:
        index, inside = divmod(offset, CLUSTER)
        host = self.table.get(index, -1)
        if not self.cached or host < 0 or inside + length > CLUSTER:
            return -1
        return host + inside

    def locate_writable_nowait(self, offset: int, length: int) -> int:
        if offset // CLUSTER in self.shared:
            return -1
        return self.locate_data_nowait(offset, length)

    def map_nowait(self, offset: int, length: int) -> Mapping | None:
        return self._map(offset, length) if self.cached else None

    async def map(self, offset: int, length: int) -> Mapping:
        await asyncio.sleep(0)
        return self._map(offset, length)

    def _map(self, offset: int, length: int) -> Mapping:
        index, inside = divmod(offset, CLUSTER)
        length = min(length, CLUSTER - inside)
        host = self.table.get(index)
        if host is None:
            return Mapping(HOLE, length)
        if host == ZERO_CLUSTER:
            return Mapping(ZERO, length)
        return Mapping(DATA, length, self.data_edge(), host + inside, index not in self.shared)

    async def allocate(self, offset: int, length: int) -> Allocation:
        first, inside = divmod(offset, CLUSTER)
        last = min((offset + length - 1) // CLUSTER, first + self.max_run - 1)
        end = first
        while end < last and not self._in_place(end + 1):
            end += 1
        length = min(length, (end + 1) * CLUSTER - offset)
        host = self.next_free
        self.next_free += (end + 1 - first) * CLUSTER
        tail = (end + 1) * CLUSTER - (offset + length)
        await asyncio.sleep(0)
        return Allocation(
            offset, length, self.data_edge(), host + inside, inside, tail, True, (first, end, host)
        )

    def _in_place(self, index: int) -> bool:
        return self.table.get(index, -1) >= 0 and index not in self.shared

    async def commit(self, allocation: Allocation) -> None:
        if self.fail_commit:
            self.abandon(allocation)
            raise OSError(5, "commit failed")
        first, end, host = allocation.token
        for index in range(first, end + 1):
            self.table[index] = host + (index - first) * CLUSTER
            self.shared.discard(index)

    def abandon(self, allocation: Allocation) -> None:
        self.abandoned.append(allocation.token[2])

    async def zero_aligned(self, offset: int, length: int, flags: int) -> None:
        for index in range(offset // CLUSTER, (offset + length) // CLUSTER):
            self.table[index] = ZERO_CLUSTER

    async def discard_aligned(self, offset: int, length: int) -> None:
        await self.zero_aligned(offset, length, 0)


def toy_rig() -> Rig:
    """Return a graph whose "qcow2" is the toy."""
    return Rig(qcow2=ToyFormat)


async def add_toy(rig: Rig, backing: bool = False) -> tuple[Node, ToyFormat, MemoryDriver]:
    """Open a toy image, over a backing file of half its length if wanted."""
    memory = await rig.memory("data", 4 << 20)
    if backing:
        base = await rig.memory("base", SIZE // 2)
        base.data[:] = bytes(range(256)) * (SIZE // 2 // 256)
        node = await rig.add(driver="qcow2", node_name="q", file="data", backing="base")
    else:
        node = await rig.add(driver="qcow2", node_name="q", file="data", discard="unmap")
    assert isinstance(node.driver, ToyFormat)
    return node, node.driver, memory


async def content(node: Node) -> bytes:
    """Read all of a node."""
    view = memoryview(bytearray(node.length()))
    await node.read(0, view)
    return bytes(view)
