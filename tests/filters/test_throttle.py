# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Nodes in throttle groups."""

from __future__ import annotations

import asyncio
from typing import Any

from qsd.aio.loop import run
from qsd.block.drain import Drained
from qsd.objects.throttle_group import ThrottleGroup
from tests.filters.support import data, driver_of, filter_rig, group, read, refuse


async def add(rig: Any, **limits: int) -> Any:
    await rig.memory("n")
    await group(rig, **limits)
    return await rig.add(driver="throttle", node_name="t", file="n", throttle_group="tg")


def test_without_limits_nothing_is_in_the_way() -> None:
    async def main() -> None:
        async with filter_rig() as rig:
            node = await add(rig)
            assert node.write_nowait(0, data(1, 10))
            view = memoryview(bytearray(10))
            assert node.read_nowait(0, view)
            assert view == bytes([1]) * 10

    run(main())


def test_requests_wait_and_a_drained_section_lets_them_go() -> None:
    async def main() -> None:
        async with filter_rig() as rig:
            node = await add(rig, bps_write=1000)
            assert node.write_nowait(0, data(1, 50_000))  # pays for almost a minute
            assert not node.write_nowait(0, data(1, 1))
            task = rig.tasks.spawn(node.write(0, data(2, 10)), "write")
            await asyncio.sleep(0)
            assert not task.done()
            assert await read(node, 0, 10) == bytes([1]) * 10  # reads have no limit
            async with Drained([node]):
                assert task.done()
                await node.zero(0, 10)
            assert driver_of(rig, "n").data[:10] == bytes(10)

    run(main())


def test_changing_groups() -> None:
    async def main() -> None:
        async with filter_rig() as rig:
            node = await add(rig)
            await group(rig, "other")
            first, second = (
                rig.graph.objects.resolve(name, ThrottleGroup) for name in ("tg", "other")
            )
            assert first.members == {node.driver}
            assert not first.can_be_deleted()
            options = type(node.options.branch)(file="n", throttle_group="other")
            await node.driver.commit_reopen(await node.driver.prepare_reopen(options, False))
            assert not first.members
            assert second.members == {node.driver}
            await rig.graph.release(node)
            assert not second.members

    run(main())


def test_unknown_group() -> None:
    async def main() -> None:
        async with filter_rig() as rig:
            await rig.memory("n")
            await refuse(
                rig, "Throttle group 'nope' does not exist",
                driver="throttle", node_name="t", file="n", throttle_group="nope",
            )  # fmt: skip

    run(main())
