# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The driver against our own server, in one process."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from qsd.aio.loop import run
from qsd.block.backend import Backend
from qsd.block.drain import Drained
from qsd.block.mapping import FUA, MAY_UNMAP, ST_DATA, ST_ZERO
from qsd.block.node import Node
from qsd.errors import QmpError
from qsd.formats.raw import RawDriver
from qsd.protocols.nbd.connection import Connection
from qsd.protocols.nbd.driver import NbdDriver
from qsd.protocols.nbd.request import Request
from qsd.qapi.convert import from_json
from qsd.qapi.schema.block_protocols import BlockdevOptionsNbd
from qsd.wire.nbd import messages as nbd
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
        assert node.status_is_remote
        status = await node.block_status(0, 4096)
        assert status.flags & ST_DATA
        assert not status.flags & ST_ZERO

    case(body)


def test_writing_without_a_coroutine() -> None:
    async def body(rig: NbdRig, node: Node) -> None:
        over: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        assert node.write_later(3, memoryview(b"hello"), over.set_result)
        assert await over
        buffer = bytearray(5)
        await node.read(3, memoryview(buffer))
        assert buffer == b"hello"
        await rig.server.stop()
        lost: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        if node.write_later(3, memoryview(b"hello"), lost.set_result):
            assert not await lost

    case(body)


def test_many_extents_by_one_question() -> None:
    async def body(rig: NbdRig, node: Node) -> None:
        for at in range(0, 8 * 8192, 8192):
            await node.write(at, memoryview(b"x" * 4096))
        asked: list[int] = []
        submit = Connection.submit

        def note(self: Connection, request: Request) -> None:
            asked.append(request.command)
            submit(self, request)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Connection, "submit", note)
            runs = await node.driver.runs(0, 8 * 8192, 100)
        assert runs is not None
        assert asked == [nbd.CMD_BLOCK_STATUS]
        single = []
        at = 0
        while at < 8 * 8192:
            status = await node.block_status(at, 8 * 8192 - at)
            single.append((status.length, status.flags & (ST_DATA | ST_ZERO)))
            at += status.length
        assert list(zip(runs.lengths, runs.flags, strict=True)) == single
        some = await node.driver.runs(0, 8 * 8192, 2)
        assert some is not None
        assert len(some) <= 2

    case(body)


def test_status_at_any_place_of_a_server_with_large_blocks() -> None:
    async def main() -> None:
        async with NbdRig(nbd=NbdDriver) as rig:
            memory = await rig.memory("s", 1 << 16)
            await rig.export("s", name="s", writable=True)
            memory.limits.request_alignment = 4096
            node = await add_client(rig)
            assert node.driver.limits.request_alignment == 4096
            await node.write(0, memoryview(b"x" * 4096))
            status = await node.block_status(4095, 100)
            assert 0 < status.length <= 100
            assert status.flags & ST_DATA
            await rig.graph.release(node)

    run(main())


def test_behind_the_end() -> None:
    """A last sector that the server does not have in full: read as zeroes, never written."""

    async def main() -> None:
        async with NbdRig(nbd=NbdDriver) as rig:
            await rig.memory("s", 1024)
            export = await rig.export("s", name="s", writable=True)
            export.size = 1000
            node = await add_client(rig)
            assert node.length() == 1024
            await node.write(0, memoryview(b"x" * 1000))
            buffer = bytearray(b"?" * 1024)
            await node.read(0, memoryview(buffer))
            assert buffer == b"x" * 1000 + bytes(24)
            for change in (
                node.write(990, memoryview(b"y" * 11)),
                node.zero(990, 11),
                node.write(1000, memoryview(b"y" * 24)),
                node.write(1000, memoryview(b"y" * 24), FUA),
            ):
                with pytest.raises(OSError) as caught:
                    await change
                assert caught.value.errno in (errno.ENOSPC, errno.EINVAL)
            status = await node.block_status(1000, 24)
            assert status.flags & ST_ZERO
            await rig.graph.release(node)

    run(main())


def test_name() -> None:
    async def body(rig: NbdRig, node: Node) -> None:
        assert node.driver.filename() == f"nbd+unix:///s?socket={rig.path}"

    case(body)


@pytest.mark.parametrize(
    ("server", "export", "name"),
    [
        ({"type": "unix", "path": "p"}, None, "nbd+unix://?socket=p"),
        ({"type": "unix", "path": "p"}, "", "nbd+unix:///?socket=p"),
        ({"type": "inet", "host": "h", "port": "1", "keep-alive": True}, "e", "nbd://h:1/e"),
        ({"type": "inet", "host": "h", "port": "1", "ipv4": False}, "e", None),
        ({"type": "inet", "host": "h", "port": "1", "to": 9}, "e", None),
        ({"type": "fd", "str": "3"}, "e", None),
    ],
)
def test_names_of_addresses(server: dict[str, Any], export: str | None, name: str | None) -> None:
    tree = {"server": server} if export is None else {"server": server, "export": export}
    driver = NbdDriver.__new__(NbdDriver)
    driver._options = from_json(BlockdevOptionsNbd, tree)
    assert driver.filename() == name


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


def test_what_was_in_flight_is_asked_again() -> None:
    """The connection breaks while the server deals with a request."""

    async def main() -> None:
        async with NbdRig(nbd=NbdDriver) as rig:
            source = (await rig.memory("s")).node
            await rig.export("s", name="s", writable=True)
            node = await add_client(rig, reconnect_delay=30)
            await node.write(0, memoryview(b"before"))
            assert isinstance(node.driver, NbdDriver)
            link = node.driver._link
            first, buffer = link.connection, bytearray(6)
            (peer,) = rig.server._clients
            async with Drained([source]):
                reading = rig.tasks.spawn(node.read(0, memoryview(buffer)), "read", awaited=True)
                while first is not None and not first.requests:
                    await asyncio.sleep(0)
                await asyncio.sleep(0.01)  # it has reached the server, which holds it back
                peer._raw.shutdown(socket.SHUT_RDWR)
                while link.connection is first or link.connection is None:
                    await asyncio.sleep(0.001)
                assert not reading.done()
            await reading
            assert buffer == b"before"
            await rig.graph.release(node)

    run(main())


def test_a_cancelled_job_waits_for_no_server() -> None:
    async def main() -> None:
        async with NbdRig(nbd=NbdDriver, raw=RawDriver) as rig:
            await rig.memory("s")
            await rig.export("s", name="s", writable=True)
            node = await add_client(rig, reconnect_delay=3000)
            raw = await rig.add(driver="raw", node_name="r", file="c")
            await rig.server.stop()
            writing = rig.tasks.spawn(node.write(0, memoryview(b"x")), "write", awaited=True)
            assert isinstance(node.driver, NbdDriver)
            while not node.driver._link._waiters:
                await asyncio.sleep(0)
            raw.driver.cancel_in_flight()
            with pytest.raises(OSError) as caught:
                await writing
            assert caught.value.errno == errno.EIO
            await rig.graph.release(raw)
            await rig.graph.release(node)

    run(main())


def test_refused() -> None:
    async def body(rig: NbdRig, node: Node) -> None:
        for more, message in (
            ({"export": "zz"}, "Requested export not available"),
            ({"export": "x" * 5000}, "export name too long to send to server"),
            ({"x_dirty_bitmap": "nope"}, "Could not open image: Invalid argument"),
            ({"x_dirty_bitmap": ""}, "Could not open image: Invalid argument"),
            (
                {"x_dirty_bitmap": "x" * 5000},
                "x-dirty-bitmap query too long to send to server",
            ),
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
