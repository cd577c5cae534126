# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from qsd.aio import loop
from qsd.block import chain as chains
from qsd.block import perms
from qsd.block.backend import Backend
from qsd.filters.blkverify import BlkverifyDriver
from qsd.filters.quorum import QuorumDriver
from qsd.formats.raw import RawDriver
from tests.support.memory import Rig
from tests.support.toyformat import CLUSTER, ToyFormat

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from qsd.block.node import Node


def in_chain(story: Callable[[Node, Node, Node, Node], Awaitable[None]]) -> None:
    """Make base <- mid <- filter <- top."""

    async def main() -> None:
        async with Rig(qcow2=ToyFormat) as rig:
            below: str | None = None
            nodes = []
            for name in ("base", "mid", "cor", "top"):
                if name == "cor":
                    node = await rig.add(driver="copy-on-read", node_name=name, file=below)
                else:
                    more = {} if below is None else {"backing": below}
                    node = await rig.add(
                        driver="qcow2",
                        node_name=name,
                        file={"driver": "null-co", "size": 1 << 20},
                        **more,
                    )
                nodes.append(node)
                below = name
            await story(*reversed(nodes))
            for node in reversed(nodes):
                await rig.graph.release(node)

    loop.run(main())


def test_filters_are_members_but_no_layers() -> None:
    async def story(top: Node, cor: Node, mid: Node, base: Node) -> None:
        assert list(chains.chain(top)) == [top, cor, mid, base]
        assert list(chains.layers(top)) == [top, mid, base]
        assert chains.is_filter(cor)
        assert not chains.is_filter(mid)
        assert chains.skip_filters(cor) is mid
        assert chains.skip_filters(None) is None
        assert chains.cow_layer(top) is mid
        assert chains.cow_layer(base) is None

    in_chain(story)


def test_who_is_above_whom() -> None:
    async def story(top: Node, cor: Node, mid: Node, base: Node) -> None:
        assert chains.contains(top, base)
        assert chains.contains(top, top)
        assert chains.contains(base, None)
        assert not chains.contains(mid, top)
        assert chains.overlay_of(top, mid) is top
        assert chains.overlay_of(top, cor) is top
        assert chains.overlay_of(top, base) is mid
        assert chains.overlay_of(mid, top) is None

    in_chain(story)


def test_allocation_above_a_base() -> None:
    async def story(top: Node, cor: Node, mid: Node, base: Node) -> None:
        for number, node in enumerate((top, mid, base)):
            await node.write(number * CLUSTER, memoryview(b"x" * CLUSTER))
        assert await chains.is_allocated(mid, CLUSTER, CLUSTER) == (CLUSTER, True)

        async def where(base: Node | None) -> list[bool]:
            return [
                (await chains.is_allocated_above(top, base, index * CLUSTER, CLUSTER))[1]
                for index in range(4)
            ]

        assert await where(None) == [True, True, True, False]
        assert await where(base) == [True, True, False, False]
        assert await where(mid) == [True, False, False, False]
        assert await chains.is_allocated_above(None, None, 0, CLUSTER) == (CLUSTER, False)

    in_chain(story)


def test_a_short_layer_hides_what_is_below_its_end() -> None:
    async def story(top: Node, cor: Node, mid: Node, base: Node) -> None:
        driver = mid.driver
        assert isinstance(driver, ToyFormat)
        driver.clusters = 2
        mid.length_changed()
        assert await chains.is_allocated_above(top, base, 2 * CLUSTER, CLUSTER) == (CLUSTER, True)
        length, allocated = await chains.is_allocated_above(top, base, CLUSTER, 2 * CLUSTER)
        assert (length, allocated) == (CLUSTER, False)

    in_chain(story)


def shape(driver: str, below: list[str]) -> dict[str, Any]:
    """Return the options of a node over others."""
    if driver == "quorum":
        return {"driver": driver, "children": below, "vote-threshold": 1}
    if driver == "blkverify":
        return {"driver": driver, "test": below[0], "raw": below[1]}
    return {"driver": driver, "file": below[0]}


def voters() -> Rig:
    return Rig(quorum=QuorumDriver, blkverify=BlkverifyDriver, raw=RawDriver)


#: Trees over the memory nodes a, b and c; and which nodes a copy of the topmost may replace.
REPLACEABLE = [
    ([("quorum", "q", "a", "b")], "qab"),
    ([("copy-on-read", "t", "a"), ("quorum", "q", "t", "b")], "qtb"),
    ([("quorum", "q", "a", "b"), ("copy-on-read", "t", "q")], "tqab"),
    ([("quorum", "q", "a", "b"), ("quorum", "r", "q", "c")], "rqc"),
    ([("copy-on-read", "t", "a"), ("blkverify", "v", "t", "b")], "vtab"),
    ([("raw", "w", "a"), ("copy-on-read", "t", "w")], "tw"),
]


@pytest.mark.parametrize(("tree", "may"), REPLACEABLE)
def test_what_a_copy_may_replace(tree: list[tuple[str, ...]], may: str) -> None:
    async def main() -> None:
        async with voters() as rig:
            for name in "abc":
                await rig.memory(name)
            for driver, name, *below in tree:
                await rig.add(node_name=name, **shape(driver, below))
            nodes = rig.graph.nodes
            top = nodes[tree[-1][1]]
            assert {n for n in nodes if chains.may_replace(top, nodes[n])} == set(may)

    loop.run(main())


def test_what_others_see_must_not_be_replaced_behind_a_quorum() -> None:
    async def main() -> None:
        async with voters() as rig:
            for name in "ab":
                await rig.memory(name)
            top = await rig.add(node_name="q", **shape("quorum", ["a", "b"]))
            reader = Backend(rig.graph, "", "a reader")
            reader.attach(rig.graph.nodes["a"], 0, perms.ALL)
            assert not chains.may_replace(top, rig.graph.nodes["a"])
            assert chains.may_replace(top, rig.graph.nodes["b"])
            await reader.detach()
            assert chains.may_replace(top, rig.graph.nodes["a"])

    loop.run(main())
