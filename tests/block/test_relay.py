# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Which nodes let requests through as they are, and what they note of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from qsd.aio import loop
from qsd.block import perms
from qsd.block.backend import Backend
from qsd.block.drain import Drained
from qsd.block.node import Node
from qsd.block.relay import RelayConnection, Relayed, RelayPath
from qsd.formats.raw import RawDriver
from tests.support.marks import Marks
from tests.support.memory import MemoryDriver, Rig


class FarDriver(MemoryDriver):
    """Memory that says it is on another server."""

    def relay_path(self) -> RelayPath:
        return RelayPath(self, self.length(), 1 << 20, takes_writes=True)

    def relay_connection(self) -> RelayConnection | None:
        return None


class Unmarked:
    """Memory that a write lies in."""

    view = memoryview(b"")

    def drop(self) -> None:
        raise AssertionError("that is its owner's to do")


def case(test: Callable[[Rig, Node], Awaitable[None]], **raw: Any) -> None:
    async def main() -> None:
        async with Rig(null_co=FarDriver, raw=RawDriver) as rig:
            await rig.memory("m")
            await test(rig, await rig.add(driver="raw", node_name="r", file="m", **raw))

    loop.run(main())


def test_a_path_passes_nodes() -> None:
    async def body(rig: Rig, node: Node) -> None:
        path = node.relay_path()
        assert path is not None
        assert path.nodes == (node, rig.graph.nodes["m"])
        assert path.takes_writes
        assert (path.size, path.longest) == (1 << 20, 1 << 20)

    case(body)


def test_a_window_has_none() -> None:
    async def body(rig: Rig, node: Node) -> None:
        assert node.relay_path() is None

    case(body, offset=512)


def test_other_drivers_have_none() -> None:
    async def main() -> None:
        async with Rig() as rig:
            memory = await rig.memory("m")
            assert memory.node.relay_path() is None

    loop.run(main())


@pytest.mark.parametrize("below", [False, True])
@pytest.mark.parametrize(
    ("name", "value"), [("read_only", True), ("write_threshold", 5), ("detect_zeroes", "on")]
)
def test_writes_that_need_a_look(name: str, value: Any, below: bool) -> None:
    async def body(rig: Rig, node: Node) -> None:
        which = rig.graph.nodes["m"] if below else node
        before = getattr(which, name)
        setattr(which, name, value)
        path = node.relay_path()
        assert path is not None
        assert not path.takes_writes
        setattr(which, name, before)

    case(body)


@pytest.mark.parametrize(
    ("limit", "goes"), [("request_alignment", False), ("write_alignment", True)]
)
def test_alignment(limit: str, goes: bool) -> None:
    """Who must take whole blocks looks at each request."""

    async def body(rig: Rig, node: Node) -> None:
        setattr(rig.graph.nodes["m"].driver.limits, limit, 4096)
        path = node.relay_path()
        assert (path is not None) is goes
        assert path is None or not path.takes_writes

    case(body)


def test_backends() -> None:
    async def body(rig: Rig, node: Node) -> None:
        user = Backend(rig.graph, "u", "user")
        assert user.relay_path() is None
        user.attach(node, perms.CONSISTENT_READ, perms.ALL)
        assert user.relay_path() is not None
        before = user.generation
        async with Drained([node]):
            assert user.generation != before
            assert user.relay_path() is None
        assert user.relay_path() is not None
        user.force_writethrough = True
        assert user.relay_path() is None
        await user.detach()

    case(body)


def test_what_is_noted_of_writes() -> None:
    async def body(rig: Rig, node: Node) -> None:
        below = rig.graph.nodes["m"]
        marks: Any = Marks()
        below.bitmaps["b"] = marks
        path = node.relay_path()
        assert path is not None
        owner: Any = None
        held = Unmarked()
        requests: list[Relayed] = [
            (owner, 1, 4096, 512, held, 0),
            (owner, 2, 8192, 512, None, 0),
            (owner, 3, 1024, 512, held, 0),
        ]
        path.account(requests[1:2])
        assert [node.unflushed, marks.ranges] == [False, []]
        path.account(requests)
        assert marks.ranges == [(4096, 512), (1024, 512)]
        assert node.wr_highest_offset == below.wr_highest_offset == 4608
        assert [node.unflushed, below.unflushed] == [True, True]

    case(body)
