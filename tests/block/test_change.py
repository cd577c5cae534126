# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

import pytest

from qsd.aio.loop import run
from qsd.block import perms
from qsd.block.backend import Backend
from qsd.block.change import GraphChange, make_internal_node
from qsd.block.drain import Drained
from qsd.errors import QmpError
from tests.support.memory import PassFilter, Rig


class PassTop(PassFilter):
    name = "pass_top"


def test_a_filter_goes_in_and_out_under_its_users() -> None:
    async def main() -> None:
        async with Rig() as rig:
            memory = await rig.memory("n")
            memory.data[:4] = b"data"
            user = Backend(rig.graph, "u", "user")
            user.attach(memory.node, perms.CONSISTENT_READ, perms.ALL)
            async with Drained([memory.node]):
                inner = make_internal_node(rig.graph, PassTop, None, memory.node, implicit=True)
                change = GraphChange(rig.graph)
                change.link(inner, memory.node, "file", perms.ROLE_FILTERED)
                change.move_users(memory.node, inner)
                change.apply([inner])
            assert user.node is inner
            assert inner.children["file"].perm == perms.CONSISTENT_READ
            view = memoryview(bytearray(4))
            assert user.read_nowait(0, view)
            assert bytes(view) == b"data"
            async with Drained([inner]):
                change = GraphChange(rig.graph)
                change.move_users(inner, memory.node)
                change.apply([memory.node])
                await change.finish()
            assert user.node is memory.node
            assert inner.closed
            assert set(rig.graph.nodes) == {"n"}
            await user.detach()

    run(main())


def test_a_conflict_undoes_every_move() -> None:
    async def main() -> None:
        async with Rig() as rig:
            one, two = await rig.memory("one"), await rig.memory("two", read_only=True)
            user = Backend(rig.graph, "u", "user")
            user.attach(one.node, perms.WRITE, perms.ALL)
            change = GraphChange(rig.graph)
            change.move_users(one.node, two.node)
            with pytest.raises(QmpError, match="Block node is read-only"):
                change.apply([two.node])
            assert user.node is one.node
            assert user.write_nowait(0, memoryview(b"x"))
            await change.finish()
            assert not one.node.closed
            await user.detach()

    run(main())


def test_rollback_after_apply_restores_links_and_order() -> None:
    async def main() -> None:
        async with Rig() as rig:
            await rig.memory("n")
            other = await rig.memory("o")
            top = await rig.add(driver="copy-on-read", node_name="f", file="n")
            change = GraphChange(rig.graph)
            change.unlink(top.children["file"])
            change.link(top, other.node, "file", perms.ROLE_FILTERED)
            change.apply([top])
            assert top.children["file"].node is other.node
            change.rollback()
            assert top.children["file"].node.name == "n"
            assert not other.node.parents

    run(main())


def test_moving_users_below_themselves_is_refused() -> None:
    async def main() -> None:
        async with Rig() as rig:
            memory = await rig.memory("n")
            low = await rig.add(driver="copy-on-read", node_name="low", file="n")
            top = await rig.add(driver="copy-on-read", node_name="top", file="low")
            change = GraphChange(rig.graph)
            with pytest.raises(QmpError, match="would create a cycle"):
                change.move_users(memory.node, top)
            assert low.children["file"].node is memory.node

    run(main())


def test_internal_names_are_checked() -> None:
    async def main() -> None:
        async with Rig() as rig:
            memory = await rig.memory("n")
            with pytest.raises(QmpError, match="Invalid node-name: '1'"):
                make_internal_node(rig.graph, PassTop, "1", memory.node, implicit=False)
            with pytest.raises(QmpError, match="Duplicate nodes"):
                make_internal_node(rig.graph, PassTop, "n", memory.node, implicit=False)

    run(main())
