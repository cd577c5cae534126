# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

from typing import Any, ClassVar

import pytest

from qsd.aio.loop import run
from qsd.block import perms
from qsd.block.backend import Backend
from qsd.block.reopen import reopen
from qsd.errors import QmpError
from qsd.qapi.convert import from_json
from qsd.qapi.schema.block_options import BlockdevOptions
from tests.support.memory import MemoryDriver, Rig


def options(**tree: Any) -> BlockdevOptions:
    result: BlockdevOptions = from_json(
        BlockdevOptions, {key.replace("_", "-"): value for key, value in tree.items()}
    )
    return result


def test_options_not_given_go_back_to_their_defaults() -> None:
    async def main() -> None:
        async with Rig() as rig:
            memory = await rig.memory("n", read_only=True, discard="unmap")
            await reopen(rig.graph, [options(driver="null-co", node_name="n", size=1 << 20)])
            assert not memory.node.read_only
            assert not memory.node.discard_unmap
            assert memory.node.write_nowait(0, memoryview(b"x"))

    run(main())


def test_a_failure_at_the_second_node_undoes_the_first() -> None:
    class Stubborn(MemoryDriver):
        aborted: ClassVar[list[Any]] = []

        async def prepare_reopen(self, options: Any, read_only: bool) -> Any:
            if self.node.name == "b":
                raise QmpError("not me")
            return "token"

        async def abort_reopen(self, token: Any) -> None:
            self.aborted.append(token)

    async def main() -> None:
        async with Rig(null_co=Stubborn) as rig:
            first = await rig.memory("a")
            await rig.memory("b")
            with pytest.raises(QmpError, match="not me"):
                await reopen(
                    rig.graph,
                    [
                        options(driver="null-co", node_name="a", read_only=True),
                        options(driver="null-co", node_name="b", read_only=True),
                    ],
                )
            assert Stubborn.aborted == ["token"]
            assert not first.node.read_only
            assert first.node.write_nowait(0, memoryview(b"x"))

    run(main())


def test_permissions_are_checked_before_anything_changes() -> None:
    async def main() -> None:
        async with Rig() as rig:
            memory = await rig.memory("n")
            user = Backend(rig.graph, "u", "user")
            user.attach(memory.node, perms.WRITE, perms.ALL)
            with pytest.raises(
                QmpError, match=r"^Read-only block node 'n' cannot support read-write users"
            ):
                await reopen(rig.graph, [options(driver="null-co", node_name="n", read_only=True)])
            assert not memory.node.read_only
            assert user.write_nowait(0, memoryview(b"x"))
            await user.detach()

    run(main())


def test_who_lost_his_user_takes_nothing_any_more() -> None:
    async def main() -> None:
        async with Rig() as rig:
            one = (await rig.memory("one")).node
            below = await rig.add(driver="copy-on-read", node_name="g", file="one")
            top = await rig.add(driver="copy-on-read", node_name="f", file="g")
            user = Backend(rig.graph, "u", "user")
            user.attach(top, perms.WRITE, perms.ALL & ~perms.WRITE)
            assert below.children["file"].perm & perms.WRITE
            await reopen(rig.graph, [options(driver="copy-on-read", node_name="f", file="one")])
            assert not below.children["file"].perm & perms.WRITE
            assert below.children["file"].shared == perms.ALL
            assert len(one.parents) == 2
            await user.detach()

    run(main())


def test_children_can_be_replaced_by_reference() -> None:
    async def main() -> None:
        async with Rig() as rig:
            one, two = await rig.memory("one"), await rig.memory("two")
            top = await rig.add(driver="copy-on-read", node_name="f", file="one")
            user = Backend(rig.graph, "u", "user")
            user.attach(top, perms.CONSISTENT_READ, perms.ALL)
            two.data[:3] = b"two"
            await reopen(rig.graph, [options(driver="copy-on-read", node_name="f", file="two")])
            view = memoryview(bytearray(3))
            assert user.read_nowait(0, view)
            assert bytes(view) == b"two"
            assert not one.node.parents
            with pytest.raises(QmpError, match="Cannot find device='' nor node-name='x'"):
                await reopen(rig.graph, [options(driver="copy-on-read", node_name="f", file="x")])
            with pytest.raises(QmpError, match="would create a cycle"):
                await reopen(rig.graph, [options(driver="copy-on-read", node_name="f", file="f")])
            await user.detach()

    run(main())


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"driver": "null-co"}, "node-name not specified"),
        ({"driver": "null-co", "node_name": "x"}, "Failed to find node with node-name='x'"),
        ({"driver": "null-aio", "node_name": "n"}, "Cannot change the option 'driver'"),
    ],
)
def test_bad_requests(tree: dict[str, Any], message: str) -> None:
    async def main() -> None:
        async with Rig() as rig:
            await rig.memory("n")
            with pytest.raises(QmpError) as caught:
                await reopen(rig.graph, [options(**tree)])
            assert caught.value.desc == message

    run(main())


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        # The C daemon's order: own options, missing ones, backing, file, the others in its
        # own order of members.
        ({"driver": "null-aio"}, "Option 'size' cannot be reset to its default value"),
        ({"driver": "null-aio", "size": 1 << 20}, "Cannot change the option 'driver'"),
        ({"driver": "raw", "file": "n", "size": 1 << 20}, "Making 'n' a file child of 'n' would"),
        ({"driver": "raw", "file": "x"}, "Option 'size' cannot be reset to its default value"),
        (
            {"driver": "raw", "file": "x", "size": 1 << 20},
            "Cannot find device='' nor node-name='x'",
        ),
        ({"driver": "raw", "file": "o", "size": 1 << 20}, "Cannot set file child to format node"),
        ({"driver": "null-co", "size": 512}, "Cannot change the option 'size'"),
        (
            {"driver": "null-co", "size": 512, "force_share": True, "read_only": True},
            "Cannot change the option 'size'",
        ),
        (
            {"driver": "null-aio", "detect_zeroes": "unmap"},
            "setting detect-zeroes to unmap is not allowed without",
        ),
    ],
)
def test_the_first_of_several_reasons(tree: dict[str, Any], message: str) -> None:
    class Strict(MemoryDriver):
        resettable_options = frozenset()

    async def main() -> None:
        async with Rig(null_co=Strict) as rig:
            memory = await rig.memory("n")
            await rig.memory("o")
            memory.node.options = options(driver="null-co", node_name="n", size=1 << 20)
            with pytest.raises(QmpError) as caught:
                await reopen(rig.graph, [options(node_name="n", **tree)])
            assert caught.value.desc.startswith(message)
            assert memory.node.options.driver == "null-co"

    run(main())


def test_no_backing_file_where_there_can_be_none() -> None:
    async def main() -> None:
        async with Rig() as rig:
            memory = await rig.memory("n")
            await rig.memory("o")
            memory.node.options = options(driver="null-co", node_name="n")
            tree = options(driver="qcow2", node_name="n", backing="o", file="o")
            with pytest.raises(QmpError) as caught:
                await reopen(rig.graph, [tree])
            assert caught.value.desc == (
                "Driver 'null-co' of node 'n' does not support backing files"
            )

    run(main())


def test_children_defined_inside_follow() -> None:
    async def main() -> None:
        async with Rig() as rig:
            inner = {"driver": "null-co", "node-name": "i"}
            await rig.add(driver="copy-on-read", node_name="n", file=inner)
            child = rig.graph.nodes["i"]
            tree: dict[str, Any] = {"driver": "copy-on-read", "node_name": "n"}
            change = options(**tree, file="i", read_only=True, cache={"direct": True})
            await reopen(rig.graph, [change])
            assert [child.read_only, child.cache_direct] == [True, True]
            await reopen(rig.graph, [options(**tree, file=inner)])
            assert [child.read_only, child.cache_direct] == [False, False]

    run(main())


def test_children_given_by_name_do_not_follow() -> None:
    async def main() -> None:
        async with Rig() as rig:
            memory = await rig.memory("m")
            await rig.add(driver="copy-on-read", node_name="n", file="m")
            tree = {"driver": "copy-on-read", "node_name": "n", "read_only": True}
            await reopen(rig.graph, [options(**tree, file="m")])
            assert not memory.node.read_only
            with pytest.raises(QmpError, match=r"^Cannot change the option 'file.driver'$"):
                await reopen(rig.graph, [options(**tree, file={"driver": "null-co"})])

    run(main())


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ({}, {"force_share": True}, "Cannot change the option 'force-share'"),
        ({}, {"force_share": False}, "Cannot change the option 'force-share'"),
        (
            {"force_share": True},
            {},
            "Option 'force-share' cannot be reset to its default value",
        ),
    ],
)
def test_force_share_cannot_be_changed(
    before: dict[str, Any], after: dict[str, Any], message: str
) -> None:
    async def main() -> None:
        async with Rig() as rig:
            await rig.memory("n", read_only=True, **before)
            with pytest.raises(QmpError) as caught:
                await reopen(
                    rig.graph, [options(driver="null-co", node_name="n", read_only=True, **after)]
                )
            assert caught.value.desc == message

    run(main())


def test_another_child_cannot_be_defined_inside() -> None:
    async def main() -> None:
        async with Rig() as rig:
            await rig.add(driver="copy-on-read", node_name="n", file={"driver": "null-co"})
            other = {"driver": "null-co", "node-name": "other"}
            with pytest.raises(QmpError, match=r"^Cannot change the option 'node-name'$"):
                await reopen(rig.graph, [options(driver="copy-on-read", node_name="n", file=other)])

    run(main())
