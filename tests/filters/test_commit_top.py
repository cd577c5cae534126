# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

from qsd.aio import loop
from qsd.block import perms
from qsd.filters.commit_top import CommitTopDriver
from qsd.jobs.filters import drop_filter, insert_filter
from tests.support.memory import Rig


def test_it_shows_the_child_and_takes_nothing() -> None:
    async def main() -> None:
        async with Rig() as rig:
            memory = await rig.memory("m")
            memory.data[:4] = b"data"
            node = await insert_filter(
                rig.graph, CommitTopDriver, None, memory.node, read_only=True
            )
            driver = node.driver
            assert isinstance(driver, CommitTopDriver)
            assert node.read_only
            assert node.length() == memory.node.length()
            view = memoryview(bytearray(4))
            await node.read(0, view)
            assert view == b"data"
            assert driver.child_perms(driver.edge, perms.CONSISTENT_READ, 0) == (0, perms.ALL)
            await drop_filter(rig.graph, node)

    loop.run(main())
