# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Backing chains in memory, a guest that checks what it reads, and jobs on top of both."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any, Self

import pytest

from qsd.block import perms
from qsd.block.backend import Backend
from qsd.errors import QmpError
from qsd.filters.copy_on_read import CopyOnReadDriver
from qsd.filters.quorum import QuorumDriver
from qsd.jobs.block_job import BlockJob
from tests.commands.support import Daemon
from tests.support.memory import MemoryDriver, Rig
from tests.support.toyformat import CLUSTER, ToyFormat

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from qsd.block.node import Node

#: Bytes; the length of a toy image.
SIZE = 64 * CLUSTER


class SlowMemory(MemoryDriver):
    """Memory that lets others run in the middle of every request."""

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self.fast = False

    async def _enter(self, operation: str, offset: int, length: int) -> None:
        await asyncio.sleep(0)
        await super()._enter(operation, offset, length)
        await asyncio.sleep(0)


class RecordingFormat(ToyFormat):
    """A toy format whose images record their backing file."""

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self.record: tuple[str, str | None] | None = None
        self.record_error: OSError | None = None

    def backing_file(self) -> tuple[str, str | None] | None:
        return self.record

    async def prepare_reopen(self, options: Any, read_only: bool) -> Any:
        return None

    async def change_backing_file(self, filename: str | None, fmt: str | None) -> None:
        if self.record_error is not None:
            raise self.record_error
        self.record = (filename, fmt) if filename else None


class Guest:
    """A user of a node that knows what it must read."""

    def __init__(self, rig: Rig, node: Node) -> None:
        self.backend = Backend(rig.graph, "", "a guest")
        self.backend.attach(node, perms.CONSISTENT_READ | perms.WRITE, perms.ALL & ~perms.RESIZE)
        self.content = bytearray(node.length())

    async def learn(self) -> None:
        await self.backend.read(0, memoryview(self.content))

    async def write(self, offset: int, data: bytes) -> None:
        await self.backend.write(offset, memoryview(data))
        self.content[offset : offset + len(data)] = data

    async def zero(self, offset: int, length: int) -> None:
        await self.backend.zero(offset, length)
        self.content[offset : offset + length] = bytes(length)

    async def check(self) -> None:
        view = memoryview(bytearray(len(self.content)))
        await self.backend.read(0, view)
        assert view == self.content

    async def work(self, seed: int, count: int) -> None:
        """Write, zero and read at random; every read is checked."""
        dice = random.Random(seed)
        for _ in range(count):
            offset = dice.randrange(0, len(self.content) - 1)
            length = dice.randrange(1, min(3 * CLUSTER, len(self.content) - offset) + 1)
            choice = dice.randrange(8)
            if choice == 0:
                await self.zero(offset, length)
            elif choice < 5:
                await self.write(offset, dice.randbytes(length))
            else:
                view = memoryview(bytearray(length))
                await self.backend.read(offset, view)
                assert view == self.content[offset : offset + length]
            await asyncio.sleep(0)

    async def leave(self) -> None:
        await self.backend.detach()


class World(Daemon):
    """A daemon with chains of toy images over memory nodes."""

    def __init__(self) -> None:
        super().__init__(
            Rig(
                qcow2=RecordingFormat,
                copy_on_read=CopyOnReadDriver,
                null_co=SlowMemory,
                quorum=QuorumDriver,
            )
        )

    async def image(self, name: str, backing: str | None = None) -> Node:
        await self.rig.memory(f"{name}-file", 8 << 20)
        options: dict[str, Any] = {"driver": "qcow2", "node_name": name, "file": f"{name}-file"}
        if backing is not None:
            options["backing"] = backing
        return await self.rig.add(**options)

    async def chain(self) -> list[Node]:
        """Make base <- mid <- top with different data in each; return them from the top."""
        nodes: list[Node] = []
        for number, (name, backing) in enumerate([("base", None), ("mid", "base"), ("top", "mid")]):
            node = await self.image(name, backing)
            for index in range(number, 12, number + 2):
                await node.write(
                    index * CLUSTER, memoryview(bytes([16 * number + index + 1]) * CLUSTER)
                )
            nodes.insert(0, node)
        return nodes

    async def guest(self) -> Guest:
        """Make such a chain, and a guest that uses it."""
        top, *_ = await self.chain()
        guest = Guest(self.rig, top)
        await guest.learn()
        return guest

    async def refuses(self, command: str, cases: list[tuple[dict[str, Any], str]]) -> None:
        """Check what a command on "top" says to wrong arguments, and that it changes nothing."""
        for arguments, text in cases:
            before = self.edges()
            with pytest.raises(QmpError, match=text):
                await self.qmp(command, **{"job_id": "j", "device": "top", **arguments})
            assert self.edges() == before

    def driver(self, name: str) -> MemoryDriver:
        driver = self.rig.graph.nodes[name].driver
        assert isinstance(driver, MemoryDriver)
        return driver

    def job(self, job_id: str = "j") -> BlockJob:
        job = self.context.jobs.find(job_id)
        assert isinstance(job, BlockJob)
        return job

    async def status(self, *wanted: str, job_id: str = "j") -> None:
        """Wait until a job has one of these statuses; without any, until it is gone."""
        for _ in range(100000):
            job = self.context.jobs.find(job_id)
            if job is None:
                assert not wanted
                return
            if job.status in wanted:
                return
            await asyncio.sleep(0.001)
        raise AssertionError(f"the job stays {self.job(job_id)!r}")

    def take(self) -> list[str]:
        """Return the statuses and events so far."""
        events, self.rig.events.events = self.rig.events.events, []
        return [
            event.status if event.NAME == "JOB_STATUS_CHANGE" else event.NAME for event in events
        ]

    def edges(self) -> set[tuple[str, str, str]]:
        """Return (parent, child name, child) of all edges between nodes."""
        return {
            (node.name, name, edge.node.name)
            for node in self.rig.graph.nodes.values()
            for name, edge in node.children.items()
        }

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        return self


def tell(story: Callable[[World], Awaitable[None]]) -> None:
    """Tell a story in a world with a virtual clock."""
    from tests.jobs.support import run_virtual

    async def main() -> None:
        async with World() as world:
            await story(world)
            assert not world.rig.errors

    run_virtual(main())


async def content(node: Node) -> bytes:
    view = memoryview(bytearray(node.length()))
    await node.read(0, view)
    return bytes(view)
