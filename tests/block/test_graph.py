# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

import pytest

from qsd.aio.loop import run
from qsd.block import perms
from qsd.block.backend import Backend
from qsd.errors import PermissionConflict, QmpError
from tests.support.memory import MemoryDriver, Rig

READ, WRITE, RESIZE = perms.CONSISTENT_READ, perms.WRITE, perms.RESIZE


def backend(rig: Rig, name: str = "") -> Backend:
    return Backend(rig.graph, name, "an unnamed block device")


def test_conflict_names_both_users_and_changes_nothing() -> None:
    async def main() -> None:
        async with Rig() as rig:
            memory = await rig.memory("n")
            one, two = backend(rig), backend(rig)
            one.attach(memory.node, READ | WRITE, perms.ALL & ~RESIZE)
            with pytest.raises(PermissionConflict) as caught:
                two.attach(memory.node, READ | RESIZE, perms.ALL)
            assert caught.value.desc == (
                "Permission conflict on node 'n': permissions 'resize' are both required by an "
                "unnamed block device (uses node 'n' as 'root' child) and unshared by an unnamed "
                "block device (uses node 'n' as 'root' child)."
            )
            assert rig.graph.backends == [one]
            assert [edge.user for edge in memory.node.parents] == [one]
            await one.detach()

    run(main())


def test_conflict_through_a_filter_reaches_the_child() -> None:
    async def main() -> None:
        async with Rig() as rig:
            memory = await rig.memory("n")
            top = await rig.add(driver="copy-on-read", node_name="f", file="n")
            user, other = backend(rig), backend(rig)
            user.attach(top, READ, READ)
            with pytest.raises(PermissionConflict, match="unshared by node 'f'"):
                other.attach(memory.node, READ | WRITE, perms.ALL)
            await user.detach()
            other.attach(memory.node, READ | WRITE, perms.ALL)
            await other.detach()

    run(main())


def test_a_driver_that_refuses_leaves_all_others_prepared_and_aborted() -> None:
    calls: list[str] = []

    class Picky(MemoryDriver):
        def check_perms(self, perm: int, shared: int) -> None:
            calls.append(f"check {self.node.name} {perm}")
            if perm & WRITE:
                raise QmpError("no lock")

        def set_perms(self, perm: int, shared: int) -> None:
            calls.append(f"set {self.node.name}")

        def abort_perms(self) -> None:
            calls.append(f"abort {self.node.name}")

    async def main() -> None:
        async with Rig(null_co=Picky) as rig:
            await rig.memory("n")
            top = await rig.add(driver="copy-on-read", node_name="f", file="n")
            calls.clear()
            user = backend(rig)
            with pytest.raises(QmpError, match="no lock"):
                user.attach(top, READ | WRITE, perms.ALL)
            assert calls == [f"check n {READ | WRITE}"]
            assert top.children["file"].perm == 0

    run(main())


def test_writing_to_a_read_only_node_is_refused() -> None:
    async def main() -> None:
        async with Rig() as rig:
            memory = await rig.memory("n", read_only=True)
            with pytest.raises(QmpError, match="Block node is read-only"):
                backend(rig).attach(memory.node, WRITE, perms.ALL)

    run(main())


def test_cycles_are_refused() -> None:
    async def main() -> None:
        async with Rig() as rig:
            await rig.memory("n")
            low = await rig.add(driver="copy-on-read", node_name="low", file="n")
            top = await rig.add(driver="copy-on-read", node_name="top", file="low")
            with pytest.raises(
                QmpError, match="Making 'top' a backing child of 'low' would create a cycle"
            ):
                rig.graph.attach_child(low, top, "backing", perms.ROLE_COW)

    run(main())


def test_a_user_who_goes_is_gone_whatever_drivers_say() -> None:
    class Stubborn(MemoryDriver):
        refuses = False

        def check_perms(self, perm: int, shared: int) -> None:
            if self.refuses:
                raise QmpError("no file")

    async def main() -> None:
        async with Rig(null_co=Stubborn) as rig:
            node = (await rig.memory("n")).node
            reader, writer = backend(rig), backend(rig)
            reader.attach(node, READ, perms.ALL)
            writer.attach(node, READ | WRITE, perms.ALL)
            Stubborn.refuses = True
            await writer.detach()
            assert [edge.user for edge in node.parents] == [reader]
            assert writer not in rig.graph.backends
            await reader.detach()

    run(main())


def test_nodes_live_as_long_as_somebody_holds_them() -> None:
    async def main() -> None:
        async with Rig() as rig:
            top = await rig.add(
                driver="copy-on-read",
                node_name="top",
                file={"driver": "null-co", "node-name": "inner"},
            )
            inner = rig.graph.nodes["inner"]
            user = backend(rig)
            user.attach(top, READ, perms.ALL)
            await rig.graph.release(top)
            assert set(rig.graph.nodes) == {"top", "inner"}
            await user.detach()
            assert not rig.graph.nodes
            assert isinstance(inner.driver, MemoryDriver)
            assert inner.driver.closed

    run(main())


def test_descend_puts_parents_before_children_in_a_diamond() -> None:
    async def main() -> None:
        async with Rig() as rig:
            await rig.memory("n")
            left = await rig.add(driver="copy-on-read", node_name="l", file="n")
            right = await rig.add(driver="copy-on-read", node_name="r", file="n")
            order = [node.name for node in rig.graph.descend([left, right])]
            assert order.index("n") == 2
            assert set(order) == {"l", "r", "n"}

    run(main())


def test_made_names_are_unique_and_no_user_can_take_them() -> None:
    async def main() -> None:
        async with Rig() as rig:
            names = {rig.graph.make_name() for _ in range(100)}
            assert len(names) == 100
            assert all(name.startswith("#block") for name in names)

    run(main())
