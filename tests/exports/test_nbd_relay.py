# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Requests that go to another server as they are, seen by a client: like all others."""

from __future__ import annotations

import asyncio
import random
import struct
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from qsd.aio import loop
from qsd.block.dirty import DirtyBitmap
from qsd.block.drain import Drained
from qsd.block.node import Node
from qsd.exports.nbd import NbdExport
from qsd.exports.nbd_late import MAX_IN_FLIGHT
from qsd.exports.nbd_relay import MAX_READ
from qsd.formats.raw import RawDriver
from qsd.protocols.nbd.connection import Connection
from qsd.protocols.nbd.driver import NbdDriver
from tests.exports.rig import DF, FLUSH, FUA, READ, WRITE, ZEROES, Client, NbdRig
from tests.support.memory import MemoryDriver

MIB = 1 << 20


class Chain:
    """Memory behind a server, behind a client, behind a server: all of one process."""

    def __init__(self, rig: NbdRig, disk: MemoryDriver, node: Node, export: NbdExport) -> None:
        self.rig = rig
        self.disk = disk
        self.node = node
        self.export = export
        self.relayed = 0

    async def client(self, *, structured: bool = True) -> Client:
        client = await self.rig.go("c", structured=structured)
        if structured:
            await client.ask(READ, 0, 1)  # from now on all is known to be data
        return client

    async def until_held(self, count: int) -> None:
        """Wait until so many requests have reached the memory."""
        while len(self.disk.later or ()) < count:
            await asyncio.sleep(0)

    def release(self, full: bool = True) -> None:
        held, self.disk.later = self.disk.later or [], None
        for finish in held:
            finish(full)


def case(test: Callable[[Chain], Awaitable[None]], *, top: str = "c", **more: Any) -> None:
    async def main() -> None:
        async with NbdRig(nbd=NbdDriver, raw=RawDriver) as rig:
            disk = await rig.memory("m")
            disk.data[:] = random.Random(5).randbytes(MIB)
            await rig.export("m", writable=True)
            server = {"type": "unix", "path": rig.path}
            node = await rig.add(
                driver="nbd", node_name="c", export="m", server=server, read_only=False, **more
            )
            if top != "c":
                node = await rig.add(driver="raw", node_name=top, file="c", read_only=False)
            chain = Chain(rig, disk, node, await rig.export(top, name="c", writable=True))
            with pytest.MonkeyPatch.context() as patch:
                relay = Connection.relay

                def note(self: Connection, data: memoryview) -> None:
                    chain.relayed += 1
                    relay(self, data)

                patch.setattr(Connection, "relay", note)
                await test(chain)
            # Who is left without a server would try again and again.
            await rig.registry.delete(chain.export.id, "hard")
            await chain.export.wait_deleted()
            await rig.graph.release(node)

    loop.run(main())


@pytest.mark.parametrize("top", ["c", "r"])
@pytest.mark.parametrize("structured", [False, True])
def test_reads_and_writes(structured: bool, top: str) -> None:
    async def body(chain: Chain) -> None:
        client = await chain.client(structured=structured)
        before = chain.relayed
        assert await client.ask(WRITE, 4096, 700, data=b"w" * 700) == ["ok"]
        wanted: dict[int, list[Any]] = {}
        for at in range(0, 500_000, 20_011):
            data = bytes(chain.disk.data[at : at + 3000])
            wanted[client.request(READ, at, 3000)] = [("data", at, data)] if structured else [data]
        assert dict([await client.reply(3000) for _ in wanted]) == wanted
        assert chain.disk.data[4096 : 4096 + 700] == b"w" * 700
        assert chain.relayed > before
        assert chain.node.wr_highest_offset == 4096 + 700
        assert chain.node.unflushed
        assert chain.export.backend.in_flight == 0

    case(body, top=top)


def test_what_is_not_relayed_is_served_all_the_same() -> None:
    """Flags, lengths that are none, other commands, and what lies outside, between the others."""

    async def body(chain: Chain) -> None:
        client = await chain.client()
        requests: list[tuple[int, int, int, int, bytes]] = [
            (WRITE, 0, 512, 0, b"a" * 512),
            (WRITE, 512, 512, FUA, b"b" * 512),
            (FLUSH, 0, 0, 0, b""),
            (READ, 0, 1024, DF, b""),
            (READ, 0, MAX_READ + 1, 0, b""),
            (ZEROES, 2048, 512, 0, b""),
            (WRITE, MIB - 1, 2, 0, b"cc"),
            (WRITE, 4096, 5, 0, b"ddddd"),
        ]
        cookies = [client.request(*each[:3], each[3], each[4]) for each in requests]
        answers = dict([await client.reply() for _ in requests])
        assert set(answers) == set(cookies)
        assert answers[cookies[6]][0][1] == 22
        assert [answers[cookies[at]] for at in (0, 1, 2, 5, 7)] == [["ok"]] * 5
        assert chain.disk.data[:1024] == b"a" * 512 + b"b" * 512
        assert chain.disk.data[2048:2560] == bytes(512)
        assert chain.disk.data[4096:4101] == b"ddddd"

    case(body)


def test_clients_use_the_same_cookies() -> None:
    async def body(chain: Chain) -> None:
        clients = [await chain.client() for _ in range(2)]
        for client in clients:
            client.cookie = 40
        chain.disk.fast, chain.disk.later = False, []
        for at, client in enumerate(clients):
            client.request(WRITE, at * 512, 512, data=bytes([at]) * 512)
            client.request(READ, 8192 * at, 100)
        await chain.until_held(4)
        chain.release()
        for at, client in enumerate(clients):
            data = bytes(chain.disk.data[8192 * at : 8192 * at + 100])
            answers = dict([await client.reply() for _ in range(2)])
            assert answers == {41: ["ok"], 42: [("data", 8192 * at, data)]}

    case(body)


@pytest.mark.parametrize("cookie", [0, (1 << 63) - 2, (1 << 63) - 1, (1 << 64) - 3])
def test_any_cookie_will_do(cookie: int) -> None:
    async def body(chain: Chain) -> None:
        client = await chain.client()
        client.cookie = cookie
        assert await client.ask(WRITE, 0, 1, data=b"x") == ["ok"]
        assert await client.ask(READ, 0, 1) == [("data", 0, b"x")]

    case(body)


def test_errors_are_those_of_the_plain_way() -> None:
    async def body(chain: Chain) -> None:
        client = await chain.client()
        chain.disk.fast = False
        chain.disk.fail = lambda operation, offset: 28 if operation == "write" else 5
        assert await client.ask(WRITE, 0, 1, data=b"w") == [("error", 28, "writing to file failed")]
        assert (await client.ask(READ, 0, 1))[0][:2] == ("error", 5)
        chain.disk.fail = lambda operation, offset: 0
        assert await client.ask(WRITE, 0, 1, data=b"w") == ["ok"]
        assert chain.export.backend.in_flight == 0

    case(body)


def test_a_drained_section_waits_for_them() -> None:
    async def body(chain: Chain) -> None:
        client = await chain.client()
        chain.disk.fast, chain.disk.later = False, []
        first = client.request(WRITE, 0, 512, data=b"a" * 512)
        await chain.until_held(1)
        assert chain.export.backend.in_flight == 1
        inside = asyncio.Event()

        async def drain() -> None:
            async with Drained([chain.node]):
                assert chain.export.backend.in_flight == 0
                inside.set()
                relayed = chain.relayed
                client.request(WRITE, 512, 512, data=b"b" * 512)
                for _ in range(20):
                    await asyncio.sleep(0)
                assert chain.relayed == relayed
                assert chain.disk.data[512:1024] != b"b" * 512

        section = chain.rig.tasks.spawn(drain(), "drain")
        for _ in range(20):
            await asyncio.sleep(0)
        assert not inside.is_set()
        chain.release()
        await section
        assert await client.reply() == (first, ["ok"])
        assert await client.reply() == (first + 1, ["ok"])
        assert chain.disk.data[:1024] == b"a" * 512 + b"b" * 512

    case(body)


def test_bitmaps_learn_of_writes() -> None:
    async def body(chain: Chain) -> None:
        bitmap = DirtyBitmap(chain.node, "b", 512)
        bitmap.attach()
        client = await chain.client()
        before = chain.relayed
        for at in (0, 8192, 4096):
            client.request(WRITE, at, 512, data=b"x" * 512)
        client.request(READ, 0, 512)
        for _ in range(4):
            await client.reply()
        assert list(bitmap.bits.areas()) == [(0, 512), (4096, 512), (8192, 512)]
        assert chain.relayed > before

    case(body)


def test_a_client_that_is_gone() -> None:
    async def body(chain: Chain) -> None:
        client = await chain.client()
        chain.disk.fast, chain.disk.later = False, []
        client.request(WRITE, 0, 512, data=b"a" * 512)
        client.request(READ, 0, 512)
        await chain.until_held(2)
        client.close()
        await client.writer.wait_closed()
        chain.release()
        while chain.export.backend.in_flight:
            await asyncio.sleep(0)
        assert chain.disk.data[:512] == b"a" * 512

    case(body)


@pytest.mark.parametrize("delay", [0, 30])
def test_the_server_is_lost_with_requests_in_flight(delay: int) -> None:
    async def body(chain: Chain) -> None:
        client = await chain.client()
        driver = chain.node.driver
        assert isinstance(driver, NbdDriver)
        connection = driver._link.connection
        assert connection is not None
        chain.disk.fast, chain.disk.later = False, []
        write = client.request(WRITE, 0, 512, data=b"a" * 512)
        read = client.request(READ, 4096, 512)
        await chain.until_held(2)
        connection.fail()
        chain.release()
        answers = dict([await client.reply() for _ in range(2)])
        if delay:
            data = bytes(chain.disk.data[4096 : 4096 + 512])
            assert answers == {write: ["ok"], read: [("data", 4096, data)]}
            assert chain.disk.data[:512] == b"a" * 512
        else:
            assert answers[write][0][:2] == ("error", 5)
            assert answers[read][0][:2] == ("error", 5)
        assert chain.export.backend.in_flight == 0

    case(body, reconnect_delay=delay)


def test_a_client_that_reads_slowly() -> None:
    """What its socket does not take is kept, while the memory is used for other replies."""

    async def body(chain: Chain) -> None:
        client = await chain.client()
        reads = {client.request(READ, at * 4096, 60_000): at * 4096 for at in range(100)}
        while chain.export.backend.in_flight < 50:
            await asyncio.sleep(0)
        for _ in range(100):
            cookie, chunks = await client.reply()
            offset = reads.pop(cookie)
            assert chunks == [("data", offset, bytes(chain.disk.data[offset : offset + 60_000]))]

    case(body)


def test_a_server_that_reads_slowly() -> None:
    """What its socket does not take waits in the memory that it was received in."""

    async def body(chain: Chain) -> None:
        client = await chain.client()
        chain.disk.fast, chain.disk.later = False, []
        size, count = 64 << 10, 15
        for at in range(count):
            client.request(WRITE, at * size, size, data=bytes([at]) * size)
        await chain.until_held(1)
        chain.release()
        for _ in range(count):
            assert (await client.reply())[1] == ["ok"]
        for at in range(count):
            assert chain.disk.data[at * size : (at + 1) * size] == bytes([at]) * size

    case(body)


def test_no_more_than_so_many_at_once() -> None:
    async def body(chain: Chain) -> None:
        client = await chain.client()
        chain.disk.fast, chain.disk.later = False, []
        count = MAX_IN_FLIGHT + 40
        for at in range(count):
            client.request(WRITE, at * 512, 512, data=bytes([at]) * 512)
        while chain.export.backend.in_flight < MAX_IN_FLIGHT:
            await asyncio.sleep(0)
        for _ in range(20):
            await asyncio.sleep(0)
        assert chain.export.backend.in_flight == MAX_IN_FLIGHT
        chain.release()
        for _ in range(count):
            assert (await client.reply())[1] == ["ok"]
        assert all(chain.disk.data[at * 512] == at for at in range(count))

    case(body)


def test_holes_that_the_server_tells_of() -> None:
    async def body(chain: Chain) -> None:
        client = await chain.client()
        chain.disk.data[8192:16384] = bytes(8192)
        expected = bytes(chain.disk.data[4096:12288])
        chunks = await client.ask(READ, 4096, 8192)
        got = b"".join(each[2] if each[0] == "data" else bytes(each[2]) for each in chunks)
        assert got == expected

    case(body)


def test_random_requests_together() -> None:
    """Pipelined in pieces of any size; each touches a slot of its own in a round."""
    slot = 8192

    async def body(chain: Chain) -> None:
        dice = random.Random(11)
        client = await chain.client()
        model = bytearray(chain.disk.data)
        for _ in range(30):
            stream = bytearray()
            wanted: dict[int, Any] = {}
            for at in dice.sample(range(MIB // slot), dice.randint(1, 100)):
                start = at * slot + dice.randint(0, 100)
                length = dice.randint(1, slot - 100)
                client.cookie += 1
                is_write = dice.random() < 0.5
                flags = dice.choice((0, 0, 0, FUA if is_write else DF))
                stream += struct.pack(
                    ">IHHQQI", 0x25609513, flags, is_write, client.cookie, start, length
                )
                if is_write:
                    data = dice.randbytes(length)
                    stream += data
                    model[start : start + length] = data
                    wanted[client.cookie] = ["ok"]
                else:
                    data = bytes(model[start : start + length])
                    wanted[client.cookie] = [("data", start, data)]
            while stream:
                size = dice.choice((10, 5000, 70_000, 1 << 20))
                client.send(bytes(stream[:size]))
                del stream[:size]
                await asyncio.sleep(0)
            answers = dict([await client.reply() for _ in wanted])
            assert answers == wanted
        assert chain.disk.data == model
        assert chain.relayed > 30

    case(body)
