# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

import asyncio
from typing import Any

import pytest

from qsd.aio import loop
from qsd.errors import QmpError
from qsd.exports import base
from qsd.objects.iothread import IOThread
from qsd.qapi.convert import from_json
from qsd.qapi.schema.block_export import BlockExportOptions
from tests.exports.rig import READ, NbdRig


async def refusal(rig: NbdRig, **options: Any) -> str:
    tree = {"type": "nbd", "id": "e", "node-name": "m"}
    tree.update({key.replace("_", "-"): value for key, value in options.items()})
    before = rig.registry.query()
    with pytest.raises(QmpError) as caught:
        await rig.registry.add(from_json(BlockExportOptions, tree))
    assert rig.registry.query() == before
    return caught.value.desc


def test_what_add_refuses() -> None:
    async def main() -> None:
        async with NbdRig() as rig:
            await rig.memory("m")
            await rig.memory("r", read_only=True)
            await rig.export("m", id="taken")
            assert await refusal(rig, id="1e", node_name="nope") == "Invalid block export id"
            text = "Block export id 'taken' is already in use"
            assert await refusal(rig, id="taken", node_name="nope") == text
            text = "Block export type 'fuse' is not supported yet"
            assert await refusal(rig, type="fuse", mountpoint="x", node_name="nope") == text
            text = "Cannot find device='' nor node-name='nope'"
            assert await refusal(rig, node_name="nope", writable=True) == text
            text = "Cannot export read-only node as writable"
            assert await refusal(rig, node_name="r", writable=True, iothread="x") == text
            assert await refusal(rig, iothread="x") == 'iothread "x" not found'
            assert await refusal(rig) == "NBD server already has export named 'm'"
            long = "n" * 4097
            assert await refusal(rig, name=long) == f"export name '{long}' too long"
            assert await refusal(rig, description=long) == f"description '{long}' too long"
            assert rig.graph.backends == [rig.registry.find("taken").backend]
            assert rig.events.events == []

    loop.run(main())


def test_iothread_must_exist() -> None:
    async def main() -> None:
        async with NbdRig() as rig:
            await rig.memory("m")
            await rig.registry.objects.create(IOThread.TYPE, "io0")
            export = await rig.export("m", iothread="io0", fixed_iothread=True)
            assert export.state == base.RUNNING
            await rig.registry.delete(export.id, None)
            await rig.registry.objects.delete("io0")

    loop.run(main())


def test_permissions() -> None:
    async def main() -> None:
        async with NbdRig() as rig:
            await rig.memory("m")
            await rig.export("m", name="a", writable=True)
            await rig.export("m", name="b", writable=True)
            [edge, _] = rig.graph.nodes["m"].parents
            assert edge.perm == 1 | 2
            assert edge.shared == 1 | 2 | 4

    loop.run(main())


def test_delete() -> None:
    async def main() -> None:
        async with NbdRig() as rig:
            await rig.memory("m")
            await rig.export("m", id="e")
            with pytest.raises(QmpError, match=r"^Export 'nope' is not found$"):
                await rig.registry.delete("nope", None)
            client = await rig.go("m")
            for mode in (None, "safe"):
                with pytest.raises(QmpError, match=r"^export 'e' still in use$"):
                    await rig.registry.delete("e", mode)
            await rig.registry.delete("e", "hard")
            assert rig.events.events == []
            assert await client.at_end()
            export = rig.registry.query()
            while export:
                await asyncio.sleep(0)
                export = rig.registry.query()
            assert [event.id for event in rig.events.events] == ["e"]

    loop.run(main())


def test_shutting_down_takes_as_long_as_requests_do() -> None:
    async def main() -> None:
        async with NbdRig() as rig:
            disk = await rig.memory("m")
            disk.gate = asyncio.Event()
            export = await rig.export("m", id="e")
            client = await rig.go("m")
            client.request(READ, 0, 512)
            while not disk.log:
                await asyncio.sleep(0)
            await rig.registry.delete("e", "hard")
            assert await client.at_end()
            assert [info.shutting_down for info in rig.registry.query()] == [True]
            with pytest.raises(QmpError, match=r"^Export 'e' is already shutting down$"):
                await rig.registry.delete("e", "hard")
            # The name is free already, the id is not.
            await rig.export("m", id="f")
            assert await refusal(rig, id="e") == "Block export id 'e' is already in use"
            disk.gate.set()
            await export.wait_deleted()
            assert [event.id for event in rig.events.events] == ["e"]
            assert [info.id for info in rig.registry.query()] == ["f"]

    loop.run(main())


def test_query_lists_the_newest_first() -> None:
    async def main() -> None:
        async with NbdRig() as rig:
            await rig.memory("m")
            for name in "abc":
                await rig.export("m", id=name, name=name)
            assert [info.id for info in rig.registry.query()] == ["c", "b", "a"]
            await rig.registry.close()
            assert [event.id for event in rig.events.events] == ["a", "b", "c"]

    loop.run(main())


def test_illegal_moves_change_nothing() -> None:
    async def main() -> None:
        async with NbdRig() as rig:
            await rig.memory("m")
            export = await rig.export("m")
            with pytest.raises(RuntimeError):
                export._move(base.DELETED)
            assert export.state == base.RUNNING

    loop.run(main())
