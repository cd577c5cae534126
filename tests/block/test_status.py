# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

from qsd.aio.loop import run
from qsd.block.mapping import ST_ALLOCATED, ST_DATA, ST_ZERO
from qsd.block.status import allocation_depth, chain_status
from tests.support.memory import Rig
from tests.support.toyformat import CLUSTER, ToyFormat


def test_chain_and_depth() -> None:
    async def main() -> None:
        async with Rig(qcow2=ToyFormat) as rig:
            await rig.memory("data", 1 << 20)
            base = await rig.memory("base", 8 * CLUSTER)
            base.data[: 2 * CLUSTER] = b"b" * 2 * CLUSTER
            top = await rig.add(driver="qcow2", node_name="q", file="data", backing="base")
            await top.write(0, memoryview(b"t" * CLUSTER))
            await top.zero(3 * CLUSTER, CLUSTER)
            seen = []
            for index in (0, 1, 2, 3, 20):
                status = await chain_status(top, index * CLUSTER, CLUSTER)
                depth = await allocation_depth(top, index * CLUSTER, CLUSTER)
                seen.append((status.flags & (ST_DATA | ST_ZERO), depth[1]))
            assert seen == [(ST_DATA, 1), (ST_DATA, 2), (ST_ZERO, 2), (ST_ZERO, 1), (ST_ZERO, 2)]

    run(main())


def test_allocated_data_in_a_hole_of_the_file_reads_as_zeroes() -> None:
    async def main() -> None:
        async with Rig(qcow2=ToyFormat) as rig:
            memory = await rig.memory("data", 1 << 20)
            top = await rig.add(driver="qcow2", node_name="q", file="data")
            await top.write(0, memoryview(b"t" * CLUSTER))
            memory.data[:CLUSTER] = bytes(CLUSTER)
            status = await chain_status(top, 0, CLUSTER)
            assert status.flags == ST_DATA | ST_ZERO | ST_ALLOCATED

    run(main())
