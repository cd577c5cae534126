# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Reading what a copy-before-write filter keeps."""

from __future__ import annotations

import errno

import pytest

from qsd.aio.loop import run
from qsd.block import perms
from tests.filters.support import LENGTH, data, edges, filter_rig, read


def test_the_past() -> None:
    async def main() -> None:
        async with filter_rig() as rig:
            source = await rig.memory("n")
            await rig.memory("t")
            source.data[:] = bytes([1]) * LENGTH
            below = await rig.add(driver="copy-before-write", node_name="f", file="n", target="t")
            node = await rig.add(driver="snapshot-access", node_name="s", file="f", discard="unmap")
            await below.write(0, data(2, 100))
            assert await read(node, 0, 200) == bytes([1]) * 200
            assert await read(below, 0, 200) == bytes([2]) * 100 + bytes([1]) * 100
            assert (await node.block_status(0, LENGTH)).length > 0
            with pytest.raises(OSError) as info:
                await node.write(0, data(3, 512))
            assert info.value.errno == errno.ENOTSUP
            await node.discard(0, 65536)
            with pytest.raises(OSError) as info:
                await read(node, 0, 1)
            assert info.value.errno == errno.EACCES
            assert edges(node) == {"file": (0, perms.ALL)}
            await below.truncate(2 * LENGTH)
            assert node.length() == LENGTH
            rig.graph.nodes["f"].monitor_owned = False

    run(main())


def test_nodes_without_a_past() -> None:
    async def main() -> None:
        async with filter_rig() as rig:
            await rig.memory("n")
            node = await rig.add(driver="snapshot-access", node_name="s", file="n")
            for request in (read(node, 0, 1), node.block_status(0, 1)):
                with pytest.raises(OSError) as info:
                    await request
                assert info.value.errno == errno.ENOTSUP

    run(main())
