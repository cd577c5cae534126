# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

import asyncio

from qsd.aio.loop import run
from qsd.block import perms
from qsd.block.backend import Backend, BackendListener
from qsd.block.drain import Drained
from tests.support.memory import Rig


class Recorder(BackendListener):
    def __init__(self) -> None:
        self.calls: list[str] = []
        self.busy = 0

    def drained_begin(self) -> None:
        self.calls.append("begin")

    def drained_end(self) -> None:
        self.calls.append("end")

    def drained_poll(self) -> bool:
        self.busy -= 1
        return self.busy >= 0


def test_a_section_waits_for_requests_in_flight_and_holds_new_ones_back() -> None:
    async def main() -> None:
        async with Rig() as rig:
            memory = await rig.memory("n")
            top = await rig.add(driver="copy-on-read", node_name="f", file="n")
            listener = Recorder()
            user = Backend(rig.graph, "u", "user", listener)
            user.attach(top, perms.WRITE, perms.ALL)
            memory.gate = gate = asyncio.Event()
            order: list[str] = []

            async def request(name: str) -> None:
                await user.write(0, memoryview(name.encode()))
                order.append(name)

            async def change() -> None:
                async with Drained([memory.node]):
                    order.append("drained")
                    assert not memory.node.in_flight
                    assert not user.in_flight
                    rig.tasks.spawn(request("late"), "late")
                    await asyncio.sleep(0)
                    await asyncio.sleep(0)
                    assert not user.write_nowait(0, memoryview(b"x"))
                    order.append("leaving")

            rig.tasks.spawn(request("early"), "early")
            await asyncio.sleep(0)
            rig.tasks.spawn(change(), "change")
            await asyncio.sleep(0)
            assert order == []
            memory.gate = None
            gate.set()
            await rig.tasks.join()
            assert order == ["early", "drained", "leaving", "late"]
            assert listener.calls == ["begin", "end"]
            await user.detach()
            assert not rig.errors

    run(main())


def test_sections_nest_and_cover_backends_attached_inside() -> None:
    async def main() -> None:
        async with Rig() as rig:
            memory = await rig.memory("n")
            user = Backend(rig.graph, "u", "user")
            async with Drained([memory.node]), Drained([memory.node]):
                user.attach(memory.node, perms.CONSISTENT_READ, perms.ALL)
                assert user.quiesced == 2
            assert user.quiesced == 0
            assert memory.node.quiesced == 0
            assert user.read_nowait(0, memoryview(bytearray(8)))
            await user.detach()

    run(main())


def test_owners_with_activity_of_their_own_are_polled() -> None:
    async def main() -> None:
        async with Rig() as rig:
            memory = await rig.memory("n")
            listener = Recorder()
            listener.busy = 3
            user = Backend(rig.graph, "u", "user", listener)
            user.attach(memory.node, 0, perms.ALL)
            async with Drained([memory.node]):
                assert listener.busy < 0
            await user.detach()

    run(main())


class Shown(Recorder):
    """An export that shows a file since some time."""

    def __init__(self, since: float, order: list[str]) -> None:
        super().__init__()
        self._since = since
        self._order = order

    def shows_file_since(self) -> float:
        return self._since

    def drained_begin(self) -> None:
        self._order.append(f"shown since {self._since}")


def test_files_that_are_shown_are_quiesced_last_and_the_newest_first() -> None:
    """The node in a file ends its request only while the exports below still work."""

    async def order_of(in_file: bool) -> list[str]:
        async with Rig() as rig:
            order: list[str] = []
            users = []
            for since, name in ((1.0, "old"), (2.0, "new")):
                node = (await rig.memory(name)).node
                user = Backend(rig.graph, name, name, Shown(since, order))
                user.attach(node, 0, perms.ALL)
                users.append(user)
            top = await rig.memory("top")
            top.is_served = lambda: in_file  # type: ignore[method-assign]
            user = Backend(rig.graph, "u", "user")
            user.attach(top.node, perms.WRITE, perms.ALL)
            users.append(user)
            top.gate = gate = asyncio.Event()

            async def request() -> None:
                await user.write(0, memoryview(b"x"))
                order.append("written")

            async def stand_still() -> None:
                async with Drained(rig.graph.nodes.values()):
                    order.append("drained")

            rig.tasks.spawn(request(), "request")
            await asyncio.sleep(0)
            rig.tasks.spawn(stand_still(), "drain")
            await asyncio.sleep(0)
            gate.set()
            while "drained" not in order:
                await asyncio.sleep(0)
            for user in users:
                assert not user.quiesced
                await user.detach()
            return order

    newest_first = ["shown since 2.0", "shown since 1.0"]
    assert run(order_of(True)) == ["written", *newest_first, "drained"]
    anyhow = run(order_of(False))
    assert set(anyhow[:2]) == set(newest_first)
    assert anyhow[2:] == ["written", "drained"]
