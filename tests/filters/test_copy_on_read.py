# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""What is read is kept."""

from __future__ import annotations

from typing import Any

import pytest

from qsd.aio.loop import run
from qsd.block import perms
from tests.filters.support import data, edges, filter_rig, read, refuse
from tests.support.toyformat import CLUSTER, ZERO_CLUSTER, ToyFormat


async def chain(rig: Any, **options: Any) -> tuple[Any, ToyFormat]:
    """Make base <- middle <- top, with a filter over the top one."""
    backing: str | None = None
    for name in ("base", "middle", "top"):
        await rig.memory(f"{name}-file")
        more: dict[str, Any] = {"backing": backing} if backing else {}
        await rig.add(driver="qcow2", node_name=name, file=f"{name}-file", **more)
        backing = name
    nodes = rig.graph.nodes
    await nodes["base"].write(0, data(1, CLUSTER))
    await nodes["middle"].write(CLUSTER, data(2, CLUSTER))
    await nodes["top"].write(2 * CLUSTER, data(3, CLUSTER))
    node = await rig.add(driver="copy-on-read", node_name="cor", file="top", **options)
    top = nodes["top"].driver
    assert isinstance(top, ToyFormat)
    return node, top


async def finish(rig: Any) -> None:
    for name in ("cor", "top", "middle", "base"):
        await rig.graph.release(rig.graph.nodes[name])


@pytest.mark.parametrize("cached", [True, False])
def test_reading_allocates(cached: bool) -> None:
    async def main() -> None:
        async with filter_rig() as rig:
            node, top = await chain(rig)
            top.cached = cached
            expected = b"".join(bytes([fill]) * CLUSTER for fill in (1, 2, 3, 0))
            assert await read(node, 100, 10) == bytes([1]) * 10
            assert sorted(top.table) == [0, 2]
            assert await read(node, 0, 4 * CLUSTER) == expected
            assert sorted(top.table) == [0, 1, 2, 3]
            assert top.table[3] == ZERO_CLUSTER
            assert await read(rig.graph.nodes["top"], 0, 4 * CLUSTER) == expected
            await finish(rig)

    run(main())


@pytest.mark.parametrize("offset", [0, CLUSTER])
def test_what_is_between_passes_it_on(offset: int) -> None:
    async def main() -> None:
        async with filter_rig() as rig:
            _, top = await chain(rig)
            await rig.add(driver="raw", node_name="window", file="top", offset=offset)
            node = await rig.add(driver="copy-on-read", node_name="over", file="window")
            assert await read(node, CLUSTER - offset, 10) == bytes([2]) * 10
            assert sorted(top.table) == [1, 2]
            view = memoryview(bytearray(10))
            assert node.read_nowait(CLUSTER - offset, view)  # it is there now
            assert not node.read_nowait(3 * CLUSTER - offset, view)
            await rig.graph.release(node)
            await rig.graph.release(rig.graph.nodes["window"])
            await finish(rig)

    run(main())


def test_bottom() -> None:
    async def main() -> None:
        async with filter_rig() as rig:
            node, top = await chain(rig, bottom="middle")
            expected = b"".join(bytes([fill]) * CLUSTER for fill in (1, 2, 3, 0))
            assert await read(node, 0, 4 * CLUSTER) == expected
            assert sorted(top.table) == [1, 2]
            await finish(rig)

    run(main())


def test_nobody_is_told_of_a_change() -> None:
    async def main() -> None:
        async with filter_rig() as rig:
            node, _ = await chain(rig)
            top = rig.graph.nodes["top"]
            before = top.wr_highest_offset
            await read(node, 4 * CLUSTER, CLUSTER)
            assert top.wr_highest_offset == before
            assert node.in_flight == top.in_flight == 0
            await finish(rig)

    run(main())


def test_permissions() -> None:
    async def main() -> None:
        async with filter_rig() as rig:
            node, _ = await chain(rig)
            assert edges(node) == {"file": (perms.WRITE_UNCHANGED, perms.ALL)}
            await finish(rig)

    run(main())


def test_unknown_bottom() -> None:
    async def main() -> None:
        async with filter_rig() as rig:
            await rig.memory("n")
            await refuse(
                rig, "Bottom node 'x' not found",
                driver="copy-on-read", node_name="f", file="n", bottom="x",
            )  # fmt: skip

    run(main())
