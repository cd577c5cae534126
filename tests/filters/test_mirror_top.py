# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The filter above a mirror's source tells of every change, and of failed ones too."""

from __future__ import annotations

import errno
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from qsd.block import perms
from qsd.block.node import Node
from qsd.filters.mirror_top import MirrorTopDriver
from qsd.jobs.filters import drop_filter, insert_filter
from tests.jobs.chains import Guest, World, tell
from tests.support.toyformat import CLUSTER


class Notes:
    """Keeps what it is told."""

    def __init__(self, target: Node, *, is_blocking: bool) -> None:
        self.target = target
        self.is_blocking = is_blocking
        self.ranges: list[tuple[int, int]] = []
        self.at_once: list[int] = []

    def write_both_nowait(self, offset: int, view: memoryview) -> bool:
        self.at_once.append(offset)
        return offset > 0

    def changed(self, offset: int, length: int) -> None:
        self.ranges.append((offset, length))

    async def change_both(
        self, offset: int, length: int, change: Callable[[Node], Coroutine[Any, Any, None]]
    ) -> None:
        self.ranges.append((offset, length))
        await change(self.target)


async def _filter(world: World, below: Node) -> tuple[Node, MirrorTopDriver]:
    node = await insert_filter(world.rig.graph, MirrorTopDriver, "f", below)
    assert isinstance(node.driver, MirrorTopDriver)
    return node, node.driver


@pytest.mark.parametrize("fast", [False, True])
def test_changes_are_noted(fast: bool) -> None:
    async def story(world: World) -> None:
        node = (await world.rig.memory("m", 1 << 20, discard="unmap")).node
        world.driver("m").fast = fast
        guest = Guest(world.rig, node)
        filter_, driver = await _filter(world, node)
        await guest.write(0, b"a" * 4096)  # nobody wants to know
        driver.sink = notes = Notes(node, is_blocking=False)
        await guest.write(4096, b"b" * 512)
        if fast:
            assert filter_.write_nowait(8192, memoryview(b"c" * 512))
            guest.content[8192:8704] = b"c" * 512
        await guest.zero(65536, 4096)
        await filter_.discard(131072, 4096)
        expected = [(4096, 512), (8192, 512), (65536, 4096), (131072, 4096)]
        if not fast:
            del expected[1]
        assert notes.ranges == expected
        await guest.check()
        driver.sink = None
        await drop_filter(world.rig.graph, filter_)
        await guest.check()
        await guest.leave()

    tell(story)


def test_a_failed_change_is_noted_too() -> None:
    async def story(world: World) -> None:
        node = (await world.rig.memory("m", 1 << 20)).node
        memory = world.driver("m")
        memory.fail = lambda what, offset: errno.EIO if what == "write" else 0
        filter_, driver = await _filter(world, node)
        driver.sink = notes = Notes(node, is_blocking=False)
        with pytest.raises(OSError, match="Input/output error"):
            await filter_.write(512, memoryview(b"x" * 512))
        assert notes.ranges == [(512, 512)]
        driver.sink = None
        await drop_filter(world.rig.graph, filter_)

    tell(story)


def test_blocking_changes_are_the_jobs_business() -> None:
    async def story(world: World) -> None:
        node = (await world.rig.memory("m", 1 << 20)).node
        world.driver("m").fast = True
        other = (await world.rig.memory("o", 1 << 20)).node
        filter_, driver = await _filter(world, node)
        driver.sink = notes = Notes(other, is_blocking=True)
        assert not filter_.write_nowait(0, memoryview(b"x" * 512))
        assert filter_.write_nowait(4096, memoryview(b"x" * 512))
        assert notes.at_once == [0, 4096]
        assert filter_.wr_highest_offset == 4608
        assert not notes.ranges
        await filter_.write(0, memoryview(b"x" * 512))
        assert notes.ranges == [(0, 512)]
        # The sink decides where the change goes; ours went to the other node only.
        assert world.driver("m").data[:512] == bytes(512)
        assert world.driver("o").data[:512] == b"x" * 512
        driver.sink = None
        await drop_filter(world.rig.graph, filter_)

    tell(story)


def test_a_commit_takes_no_consistent_reads() -> None:
    async def story(world: World) -> None:
        (top, *_) = await world.chain()
        filter_, driver = await _filter(world, top)
        edge = filter_.children["backing"]
        wanted = perms.CONSISTENT_READ | perms.WRITE
        assert driver.child_perms(edge, wanted, perms.ALL) == (wanted, perms.ALL)
        driver.is_commit = True
        assert driver.child_perms(edge, wanted, perms.ALL) == (perms.WRITE, perms.ALL)
        await filter_.write(CLUSTER, memoryview(b"y" * CLUSTER))
        assert driver.filename() == top.driver.filename()
        await drop_filter(world.rig.graph, filter_)

    tell(story)
