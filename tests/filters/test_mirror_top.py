# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

import pytest

from qsd.aio import loop
from qsd.block import perms
from qsd.filters.mirror_top import MirrorTopDriver
from qsd.jobs.filters import drop_filter, insert_filter
from tests.support.memory import Rig

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from qsd.block.node import Node


class Sink:
    """Notes what the filter tells it."""

    def __init__(self, is_blocking: bool) -> None:
        self.is_blocking = is_blocking
        self.seen: list[tuple[int, int]] = []
        self.nodes: list[Node] = []

    def changed(self, offset: int, length: int) -> None:
        self.seen.append((offset, length))

    async def change_both(
        self, offset: int, length: int, change: Callable[[Node], Coroutine[Any, Any, None]]
    ) -> None:
        for node in self.nodes:
            await change(node)


def test_background_changes_are_told_whether_they_succeed_or_not() -> None:
    async def main() -> None:
        async with Rig() as rig:
            memory = await rig.memory("m")
            node = await insert_filter(rig.graph, MirrorTopDriver, None, memory.node)
            driver = node.driver
            assert isinstance(driver, MirrorTopDriver)
            await node.write(0, memoryview(b"a" * 512))  # nobody listens yet
            sink = driver.sink = Sink(is_blocking=False)
            assert node.write_nowait(4096, memoryview(b"b" * 512))
            memory.fast = False
            await node.write(8192, memoryview(b"c" * 512))
            await node.zero(12288, 4096)
            memory.fail = lambda operation, offset: errno.EIO
            with pytest.raises(OSError, match="Input/output error"):
                await node.write(65536, memoryview(b"d" * 512))
            assert sink.seen == [(4096, 512), (8192, 512), (12288, 4096), (65536, 512)]
            memory.fail = lambda operation, offset: 0
            await node.discard(0, 4096)  # the child ignores discards
            assert len(sink.seen) == 4
            await drop_filter(rig.graph, node)

    loop.run(main())


def test_blocking_changes_go_to_all_nodes_of_the_sink() -> None:
    async def main() -> None:
        async with Rig() as rig:
            one, two = await rig.memory("one"), await rig.memory("two")
            node = await insert_filter(rig.graph, MirrorTopDriver, None, one.node)
            driver = node.driver
            assert isinstance(driver, MirrorTopDriver)
            sink = driver.sink = Sink(is_blocking=True)
            sink.nodes = [one.node, two.node]
            assert not node.write_nowait(0, memoryview(b"x" * 512))
            await node.write(0, memoryview(b"x" * 512))
            assert one.data[:512] == two.data[:512] == b"x" * 512
            await drop_filter(rig.graph, node)

    loop.run(main())


@pytest.mark.parametrize("is_commit", [False, True])
def test_permissions_are_passed_on(is_commit: bool) -> None:
    async def main() -> None:
        async with Rig() as rig:
            memory = await rig.memory("m")
            node = await insert_filter(rig.graph, MirrorTopDriver, "f", memory.node)
            driver = node.driver
            assert isinstance(driver, MirrorTopDriver)
            driver.is_commit = is_commit
            taken = perms.CONSISTENT_READ | perms.WRITE
            shared = perms.ALL & ~perms.RESIZE
            want = perms.WRITE if is_commit else taken
            assert driver.child_perms(driver.edge, taken, shared) == (want, shared)
            await drop_filter(rig.graph, node)

    loop.run(main())
