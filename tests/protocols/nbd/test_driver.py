# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The driver against our own server, in one process."""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from qsd.aio.loop import run
from qsd.block.backend import Backend
from qsd.block.mapping import FUA, MAY_UNMAP, ST_DATA, ST_ZERO
from qsd.block.node import Node
from qsd.errors import QmpError
from qsd.protocols.nbd.driver import NbdDriver
from tests.exports.rig import NbdRig


async def add_client(rig: NbdRig, name: str = "c", **more: Any) -> Node:
    options = {"driver": "nbd", "node_name": name, "export": "s", "read_only": False}
    return await rig.add(server={"type": "unix", "path": rig.path}, **{**options, **more})


def case(test: Callable[[NbdRig, Node], Awaitable[None]], *, size: int = 1 << 20) -> None:
    async def main() -> None:
        async with NbdRig(nbd=NbdDriver) as rig:
            await rig.memory("s", size)
            await rig.export("s", name="s", writable=True)
            node = await add_client(rig, discard="unmap")
            await test(rig, node)
            await rig.graph.release(node)

    run(main())


def test_data_arrives() -> None:
    async def body(rig: NbdRig, node: Node) -> None:
        assert node.length() == 1 << 20
        data = bytes(range(256)) * 512
        await node.write(300, memoryview(data))
        buffer = bytearray(len(data))
        await node.read(300, memoryview(buffer))
        assert buffer == data
        await node.write(0, memoryview(b"durable"), FUA)
        await node.zero(300, 1000, MAY_UNMAP)
        await node.discard(1 << 16, 1 << 16)
        await node.flush()
        await node.read(0, memoryview(buffer))
        assert buffer[:7] == b"durable"
        assert buffer[300:1300] == bytes(1000)

    case(body)


def test_read_without_a_coroutine() -> None:
    async def body(rig: NbdRig, node: Node) -> None:
        import asyncio

        await node.write(0, memoryview(b"hello"))
        over: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        buffer = bytearray(5)
        assert node.read_later(0, memoryview(buffer), over.set_result)
        assert await over
        assert buffer == b"hello"

    case(body)


def test_block_status() -> None:
    async def body(rig: NbdRig, node: Node) -> None:
        await node.write(0, memoryview(b"x" * 4096))
        status = await node.block_status(0, 4096)
        assert status.flags & ST_DATA
        assert not status.flags & ST_ZERO

    case(body)


def test_name() -> None:
    async def body(rig: NbdRig, node: Node) -> None:
        assert node.driver.filename() == f"nbd+unix:///s?socket={rig.path}"

    case(body)


def test_length_is_the_servers() -> None:
    async def body(rig: NbdRig, node: Node) -> None:
        await node.truncate(1 << 20)
        await node.truncate(512)
        with pytest.raises(QmpError, match=r"^Cannot grow NBD nodes$"):
            await node.truncate(2 << 20)
        with pytest.raises(QmpError, match=r"^Cannot resize NBD nodes$"):
            await node.truncate(512, exact=True)
        assert node.length() == 1 << 20

    case(body)


def test_server_dies() -> None:
    async def body(rig: NbdRig, node: Node) -> None:
        await rig.server.stop()
        with pytest.raises(OSError) as caught:
            await node.read(0, memoryview(bytearray(512)))
        assert caught.value.errno == errno.EIO

    case(body)


def test_requests_wait_for_a_new_server() -> None:
    async def main() -> None:
        async with NbdRig(nbd=NbdDriver) as rig:
            await rig.memory("s")
            await rig.export("s", name="s", writable=True)
            node = await add_client(rig, reconnect_delay=30)
            backend = Backend(rig.graph, "b", "test")
            backend.attach(node, 3, 15)
            await backend.write(0, memoryview(b"before"))
            await rig.server.stop()
            rig.registry.servers.clear()
            await rig.registry.close_type("nbd")
            buffer = bytearray(6)
            reading = rig.tasks.spawn(backend.read(0, memoryview(buffer)), "read")
            await rig.start_server()
            await rig.export("s", name="s", writable=True)
            await reading
            assert buffer == b"before"
            await backend.detach()
            await rig.graph.release(node)

    run(main())


def test_refused() -> None:
    async def body(rig: NbdRig, node: Node) -> None:
        for more, message in (
            ({"export": "zz"}, "Requested export not available"),
            ({"export": "x" * 5000}, "export name too long to send to server"),
            ({"x_dirty_bitmap": "nope"}, "Could not open image: Invalid argument"),
        ):
            with pytest.raises(QmpError) as caught:
                await add_client(rig, "d", **more)
            assert caught.value.desc == message

    case(body)


def test_read_only_export() -> None:
    async def body(rig: NbdRig, node: Node) -> None:
        await rig.memory("t")
        await rig.export("t", name="t")
        with pytest.raises(QmpError, match="Permission denied"):
            await add_client(rig, "d", export="t")
        found = await add_client(rig, "d", export="t", auto_read_only=True)
        assert found.read_only
        await rig.graph.release(found)

    case(body)
