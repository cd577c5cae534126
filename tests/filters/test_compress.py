# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Compressing everything."""

from __future__ import annotations

import pytest

from qsd.aio.loop import run
from qsd.block.mapping import COMPRESSED
from tests.filters.support import LENGTH, Compressing, data, filter_rig, read, refuse

CLUSTER = 65536


def test_whole_clusters_are_written() -> None:
    async def main() -> None:
        async with filter_rig() as rig:
            await rig.add(driver="null-aio", node_name="c", size=LENGTH)
            driver = rig.graph.nodes["c"].driver
            assert isinstance(driver, Compressing)
            node = await rig.add(driver="compress", node_name="f", file="c")
            assert node.driver.limits.write_alignment == CLUSTER
            await node.write(0, data(1, 2 * CLUSTER))
            await node.write(CLUSTER - 10, data(2, 20))
            assert driver.log == [("compressed", 0, 2 * CLUSTER)] * 2
            expected = bytes([1]) * (CLUSTER - 10) + bytes([2]) * 20 + bytes([1]) * (CLUSTER - 10)
            assert await read(node, 0, 2 * CLUSTER) == expected
            view = memoryview(bytearray(10))
            assert node.read_nowait(CLUSTER, view)  # reading needs nothing of the filter
            assert view == bytes([2]) * 10

    run(main())


def test_children_that_cannot_compress() -> None:
    async def main() -> None:
        async with filter_rig() as rig:
            await rig.memory("n")
            await refuse(
                rig, "Compression is not supported for underlying format: null-co",
                driver="compress", node_name="f", file="n",
            )  # fmt: skip
            await rig.add(driver="null-aio", node_name="c", size=LENGTH)
            await rig.add(driver="copy-on-read", node_name="between", file="c")
            await rig.add(driver="compress", node_name="f", file="between")
            rig.graph.nodes["between"].monitor_owned = False

    run(main())


def test_filters_pass_compressed_writes_or_say_that_they_do_not() -> None:
    async def main() -> None:
        async with filter_rig() as rig:
            await rig.memory("m")
            inner = {"driver": "copy-on-read", "node-name": "c", "file": "m"}
            node = await rig.add(driver="compress", node_name="f", file=inner)
            with pytest.raises(OSError, match="not supported"):
                await node.write(0, data(1, 65536), 0)
            await refuse(
                rig, "Compression is not supported for underlying format: preallocate",
                driver="compress", file={"driver": "preallocate", "file": "m"},
            )  # fmt: skip

    run(main())


def test_what_is_copied_up_is_compressed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def copy_up(driver: Compressing, offset: int, length: int, flags: int) -> None:
        driver.log.append(("compressed" if flags & COMPRESSED else "plain", offset, length))

    monkeypatch.setattr(Compressing, "copy_up", copy_up)

    async def main() -> None:
        async with filter_rig() as rig:
            await rig.add(driver="null-aio", node_name="c", size=LENGTH)
            driver = rig.graph.nodes["c"].driver
            assert isinstance(driver, Compressing)
            node = await rig.add(driver="compress", node_name="f", file="c")
            await node.copy_up(0, CLUSTER)
            assert driver.log == [("compressed", 0, CLUSTER)]

    run(main())
