# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Requests that end without a coroutine, seen by a client: like all others."""

from __future__ import annotations

import asyncio
import random
import socket
from pathlib import Path
from typing import Any, Self, cast

import pytest

from qsd.aio import loop
from qsd.block.drain import Drained
from qsd.exports import nbd_late, nbd_transmission
from qsd.exports.nbd_transmission import Transmission
from qsd.formats.raw import RawDriver
from qsd.protocols.file.driver import FileDriver
from tests.exports.rig import FLUSH, READ, WRITE, NbdRig
from tests.support.rings import HeldRing

MIB = 1 << 20


async def until(condition: Any) -> None:
    while not condition():
        await asyncio.sleep(0)


@pytest.mark.parametrize("structured", [False, True])
@pytest.mark.parametrize("full", [False, True])
def test_reads_and_writes(structured: bool, full: bool) -> None:
    """Whether they end well or have to be done the plain way makes no difference."""

    async def main() -> None:
        async with NbdRig() as rig:
            disk = await rig.memory("m")
            disk.data[:] = random.Random(3).randbytes(MIB)
            expected = bytearray(disk.data)
            export = await rig.export("m", writable=True)
            client = await rig.go("m", structured=structured)
            if structured:
                await client.ask(READ, 0, 1)  # from now on all is known to be data
            disk.fast, disk.later = False, []
            write = client.request(WRITE, 4096, 512, data=b"w" * 512)
            read = client.request(READ, 100, 5000)
            await until(lambda: len(disk.later or ()) == 2)
            assert export.backend.in_flight == 2
            later, disk.later = disk.later, None
            later[1](full)
            wanted: Any = bytes(expected[100:5100])
            wanted = [("data", 100, wanted)] if structured else [wanted]
            assert await client.reply(5000) == (read, wanted)
            later[0](full)
            assert await client.reply() == (write, ["ok"])
            expected[4096:4608] = b"w" * 512
            assert disk.data == expected
            assert export.backend.in_flight == 0

    loop.run(main())


def test_errors_are_told_by_the_plain_way() -> None:
    async def main() -> None:
        async with NbdRig() as rig:
            disk = await rig.memory("m")
            await rig.export("m", writable=True)
            client = await rig.go("m")
            disk.fast, disk.later = False, []
            disk.fail = lambda operation, offset: 28 if operation == "write" else 5
            write = client.request(WRITE, 0, 1, data=b"w")
            read = client.request(READ, 0, 1)
            await until(lambda: len(disk.later or ()) == 2)
            for finish in disk.later:
                finish(False)
            assert await client.reply() == (write, ["error", 28])
            assert await client.reply() == (read, ["error", 5])

    loop.run(main())


def test_what_is_in_flight_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nbd_late, "MAX_IN_FLIGHT", 2)

    async def main() -> None:
        async with NbdRig() as rig:
            disk = await rig.memory("m")
            await rig.export("m", writable=True)
            client = await rig.go("m")
            disk.fast, disk.later = False, []
            cookies = [client.request(READ, index, 1) for index in range(3)]
            # The third one finds no room and goes the plain way.
            assert await client.reply(1) == (cookies[2], [b"\0"])
            assert len(disk.later) == 2
            for finish in disk.later:
                finish(True)
            assert await client.reply(1) == (cookies[0], [b"\0"])
            assert await client.reply(1) == (cookies[1], [b"\0"])

    loop.run(main())


def test_a_client_that_leaves_is_waited_for() -> None:
    async def main() -> None:
        async with NbdRig() as rig:
            disk = await rig.memory("m")
            export = await rig.export("m", writable=True)
            client = await rig.go("m")
            disk.fast, disk.later = False, []
            client.request(WRITE, 0, 3, data=b"abc")
            client.request(READ, 0, 3)
            await until(lambda: len(disk.later or ()) == 2)
            client.close()
            later, disk.later = disk.later, None
            for _ in range(100):
                await asyncio.sleep(0)
            assert rig.server._clients  # what is in flight keeps it
            for finish in later:
                finish(True)
            await until(lambda: not rig.server._clients)
            assert export.backend.in_flight == 0
            assert disk.data[:3] == b"abc"

    loop.run(main())


# In company: a file around the page cache.


class DirectRig(NbdRig):
    """An export of a file that is opened with O_DIRECT.

    Attributes:
        content: What should be in it.
        direct: Whether it is, really.
    """

    def __init__(self, path: Path, *, direct: bool = True, **more: Any) -> None:
        super().__init__(file=FileDriver, raw=RawDriver)
        self.direct = direct
        self.content = bytearray(random.Random(3).randbytes(4 * MIB))
        self.image = path
        self.more = more

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        self.image.write_bytes(self.content)
        cache = {"direct": self.direct}
        await self.add(
            driver="file", node_name="f", filename=str(self.image), cache=cache, locking="off"
        )
        await self.add(driver="raw", node_name="m", file="f", cache=cache)
        if self.pool.ring() is None:
            pytest.skip("the kernel gives no io_uring here")
        self.exported = await self.export("m", writable=True)
        return self

    def hold(self) -> HeldRing:
        """Let nothing that is begun end by itself."""
        ring: Any = HeldRing()
        self._ring, self.pool._ring = self.pool._ring, ring
        self.exported.backend.rebind()
        return cast("HeldRing", ring)

    def let_go(self) -> None:
        self.pool._ring = self._ring
        self.exported.backend.rebind()


def transmission_of(rig: NbdRig) -> Transmission:
    """Return the data plane of the only client."""
    (client,) = rig.server._clients
    assert client._transmission is not None
    return client._transmission


@pytest.mark.parametrize("structured", [False, True])
@pytest.mark.parametrize("length", [512, 4096, 40960, 300 << 10, 2 * MIB])
def test_requests_in_company(tmp_path: Path, structured: bool, length: int) -> None:
    async def main() -> None:
        async with DirectRig(tmp_path / "f") as rig:
            client = await rig.go("m", structured=structured)
            if structured:
                await client.ask(READ, 0, 1)
            count = min(40, 3 * MIB // length)
            reads = {client.request(READ, at * length, length): at for at in range(count)}
            for _ in range(count):
                cookie, chunks = await client.reply(length)
                start = reads.pop(cookie) * length
                data = bytes(rig.content[start : start + length])
                assert chunks == ([("data", start, data)] if structured else [data])
            writes = set()
            for at in range(count):
                data = bytes([at + 1]) * length
                writes.add(client.request(WRITE, at * length, length, data=data))
                rig.content[at * length : (at + 1) * length] = data
            for _ in range(count):
                cookie, chunks = await client.reply()
                assert chunks == ["ok"]
                writes.remove(cookie)
            assert await client.ask(FLUSH) == ["ok"]
            assert rig.exported.backend.in_flight == 0
            assert rig.image.read_bytes() == rig.content

    loop.run(main())


@pytest.mark.parametrize("result", [0, 512, -5])
def test_what_ends_badly_is_done_plainly(tmp_path: Path, result: int) -> None:
    async def main() -> None:
        async with DirectRig(tmp_path / "f") as rig:
            client = await rig.go("m")
            ring = rig.hold()
            write = client.request(WRITE, 0, 4096, data=b"w" * 4096)
            await until(lambda: len(ring.held) == 1)
            rig.let_go()
            ring.end(result)
            assert await client.reply() == (write, ["ok"])
            assert rig.image.read_bytes()[:4096] == b"w" * 4096
            ring = rig.hold()
            read = client.request(READ, 8192, 4096)
            await until(lambda: len(ring.held) == 1)
            rig.let_go()
            ring.end(result)
            assert await client.reply(4096) == (read, [bytes(rig.content[8192:12288])])
            assert rig.exported.backend.in_flight == 0

    loop.run(main())


def test_what_is_not_aligned_is_done_plainly(tmp_path: Path) -> None:
    async def main() -> None:
        async with DirectRig(tmp_path / "f") as rig:
            client = await rig.go("m")
            assert await client.ask(WRITE, 100, 5000, data=b"w" * 5000) == ["ok"]
            rig.content[100:5100] = b"w" * 5000
            assert await client.ask(READ, 50, 7000) == [bytes(rig.content[50:7050])]

    loop.run(main())


def test_company_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nbd_late, "MAX_IN_FLIGHT", 3)

    async def main() -> None:
        async with DirectRig(tmp_path / "f") as rig:
            client = await rig.go("m")
            ring = rig.hold()
            cookies = [client.request(READ, index * 512, 512) for index in range(5)]
            await until(lambda: len(ring.held) == 3)
            rig.let_go()
            ring.end()
            assert sorted([(await client.reply(512))[0] for _ in range(5)]) == cookies

    loop.run(main())


@pytest.mark.parametrize("limit", [MIB, 8 * MIB])
def test_the_device_is_kept_busy_while_the_client_takes_replies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    """Long reads are begun although replies wait, up to a limit."""
    monkeypatch.setattr(nbd_transmission, "MAX_DIRECT_PENDING", limit)

    async def main() -> None:
        async with DirectRig(tmp_path / "f") as rig:
            client = await rig.go("m")
            ring = rig.hold()
            cookies = [client.request(READ, index * MIB, MIB) for index in range(2)]
            await until(lambda: len(ring.held) == 2)
            ring.end()
            assert transmission_of(rig)._outlet.pending > MIB
            cookies.append(client.request(READ, 2 * MIB, MIB))
            for _ in range(100):
                await asyncio.sleep(0)
            assert len(ring.held) == (limit > MIB)
            taken = [(await client.reply(MIB))[0] for _ in range(2)]
            await until(lambda: len(ring.held) == 1)
            ring.end()
            taken.append((await client.reply(MIB))[0])
            assert taken == cookies
            rig.let_go()

    loop.run(main())


def test_a_socket_holds_less_of_what_comes_from_a_device(tmp_path: Path) -> None:
    async def main() -> None:
        sizes = []
        for direct in (False, True):
            async with DirectRig(tmp_path / "f", direct=direct) as rig:
                await rig.go("m")
                sock = transmission_of(rig)._sock
                assert isinstance(sock, socket.socket)
                sizes.append(sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF))
        assert sizes[0] > sizes[1]
        assert sizes[1] in (nbd_late._SEND_BUFFER, 2 * nbd_late._SEND_BUFFER)

    loop.run(main())


def test_memory_stays_while_the_kernel_uses_it(tmp_path: Path) -> None:
    """A client that leaves, and one whose connection is cut, give nothing back before."""

    async def main() -> None:
        async with DirectRig(tmp_path / "f") as rig:
            client = await rig.go("m")
            ring = rig.hold()
            client.request(READ, 0, 4096)
            client.request(WRITE, 4096, 4096, data=b"w" * 4096)
            await until(lambda: len(ring.held) == 2)
            client.close()
            for _ in range(100):
                await asyncio.sleep(0)
            assert rig.server._clients
            assert ring.pool.idle_bytes() == 0
            ring.end()
            await until(lambda: not rig.server._clients)
            assert ring.pool.idle_bytes() == 8192
            rig.let_go()

    loop.run(main())


def test_drained_sections_wait_for_company(tmp_path: Path) -> None:
    async def main() -> None:
        async with DirectRig(tmp_path / "f") as rig:
            client = await rig.go("m")
            ring = rig.hold()
            first = client.request(READ, 0, 512)
            await until(lambda: len(ring.held) == 1)
            rig.let_go()
            entered = asyncio.Event()
            leave = asyncio.Event()

            async def drain() -> None:
                async with Drained([rig.exported.backend.node]):
                    entered.set()
                    await leave.wait()

            draining = rig.tasks.spawn(drain(), "drain")
            for _ in range(10):
                await asyncio.sleep(0)
            assert not entered.is_set()
            ring.end()
            assert (await client.reply(512))[0] == first
            await entered.wait()
            second = client.request(READ, 512, 512)
            for _ in range(50):
                await asyncio.sleep(0)
            leave.set()
            await draining
            assert await client.reply(512) == (second, [bytes(rig.content[512:1024])])

    loop.run(main())
