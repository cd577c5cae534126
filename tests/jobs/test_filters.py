# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""A filter goes into the graph and out of it, and the users of the node do not notice."""

from __future__ import annotations

import pytest

from qsd.errors import QmpError
from qsd.filters.mirror_top import MirrorTopDriver
from qsd.jobs.filters import check_root, drop_filter, insert_filter
from tests.jobs.chains import Guest, World, tell


def test_in_and_out() -> None:
    async def story(world: World) -> None:
        top, mid, base = await world.chain()
        guest = Guest(world.rig, top)
        await guest.learn()
        before = world.edges()
        graph = world.rig.graph
        filter_ = await insert_filter(graph, MirrorTopDriver, "f", top)
        assert world.edges() == before | {("f", "backing", "top")}
        assert guest.backend.node is filter_
        assert [edge.user for edge in top.parents] == [filter_]
        await guest.work(1, 20)
        lower = await insert_filter(graph, MirrorTopDriver, None, base, child_name="file")
        assert mid.children["backing"].node is lower
        assert lower.children["file"].node is base
        await guest.check()
        await drop_filter(graph, lower)
        await drop_filter(graph, filter_)
        assert world.edges() == before
        assert guest.backend.node is top
        assert filter_.closed
        assert lower.closed
        await drop_filter(graph, filter_)
        await guest.check()
        await guest.leave()

    tell(story)


def test_nobody_above_it() -> None:
    async def story(world: World) -> None:
        (top, *_) = await world.chain()
        before = world.edges()
        filter_ = await insert_filter(world.rig.graph, MirrorTopDriver, "f", top)
        await drop_filter(world.rig.graph, filter_)
        assert filter_.closed
        assert "f" not in world.rig.graph.nodes
        assert world.edges() == before

    tell(story)


def test_a_name_that_is_taken() -> None:
    async def story(world: World) -> None:
        (top, *_) = await world.chain()
        before = world.edges()
        nodes = dict(world.rig.graph.nodes)
        with pytest.raises(QmpError, match="Duplicate nodes with node-name='mid'"):
            await insert_filter(world.rig.graph, MirrorTopDriver, "mid", top)
        assert world.edges() == before
        assert world.rig.graph.nodes == nodes

    tell(story)


def test_only_roots_will_do() -> None:
    async def story(world: World) -> None:
        top, mid, _ = await world.chain()
        guest = Guest(world.rig, top)
        check_root(top)
        with pytest.raises(QmpError, match="Need a root block node"):
            check_root(mid)
        await guest.leave()

    tell(story)
