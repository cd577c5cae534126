# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Receives that hold only reads of what is cached, or adjacent writes: like all others."""

from __future__ import annotations

import asyncio
import random
import socket
import subprocess
from pathlib import Path
from typing import Any, Self

import pytest

from qsd.aio import loop, pagemap
from qsd.aio.pagemap import CHUNK
from qsd.block.drain import Drained
from qsd.block.mapped_io import MappedIo
from qsd.catalog import find_driver
from qsd.exports import nbd_quick, nbd_views
from qsd.exports.nbd_known import DATA
from qsd.exports.nbd_quick import QuickReads
from qsd.exports.nbd_transmission import Transmission
from qsd.exports.outlet import Outlet
from tests.exports.rig import READ, TRIM, WRITE, ZEROES, Client, NbdRig
from tests.support.tools import need
from tests.support.views import need_views

K4 = 4096
MIB = 1 << 20
SIZE = CHUNK + 2 * MIB


@pytest.fixture(scope="module")
def content() -> bytes:
    piece = random.Random(6).randbytes(MIB + 4096)
    return b"".join(piece[start : start + MIB] for start in range(SIZE // MIB))


@pytest.fixture
def image(tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> Path:
    # Nothing is forgotten meanwhile.
    monkeypatch.setattr(pagemap, "_TURN", 3600.0)
    for module in (nbd_quick, nbd_views):
        monkeypatch.setattr(module, "SLOW_SEND", 3600.0)
    path = tmp_path / "image"
    path.write_bytes(content)
    need_views(path)
    return path


class Noted:
    """What became of receives.

    Attributes:
        served: Requests answered by the fast path.
        batches: Batches that took the plain way.
        looks: Requests that were not in a chunk of which all is cached and data.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.served = self.batches = self.looks = 0
        serve, process, look = QuickReads._serve, Transmission._process, QuickReads._look

        def spy_serve(quick: QuickReads, requests: memoryview) -> bool:
            if done := serve(quick, requests):
                self.served += len(requests) // 28
            return done

        def spy_process(owner: Transmission) -> None:
            self.batches += 1
            process(owner)

        def spy_look(quick: QuickReads, offset: int, length: int) -> memoryview | None:
            self.looks += 1
            return look(quick, offset, length)

        patch.setattr(QuickReads, "_serve", spy_serve)
        patch.setattr(Transmission, "_process", spy_process)
        patch.setattr(QuickReads, "_look", spy_look)

    def take(self) -> tuple[int, int, int]:
        """Return what was noted since the last call."""
        result = self.served, self.batches, self.looks
        self.served = self.batches = self.looks = 0
        return result


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> Noted:
    return Noted(monkeypatch)


async def open_export(rig: NbdRig, image: Path, fmt: str = "raw") -> None:
    await rig.add(driver="file", node_name="f", filename=str(image))
    await rig.add(driver=fmt, node_name="n", file="f")
    await rig.export("n", writable=True)


def transmission_of(rig: NbdRig) -> Transmission:
    """Return what serves the only client."""
    (connection,) = rig.server._clients
    assert connection._transmission is not None
    return connection._transmission


def new_rig() -> NbdRig:
    rig = NbdRig()
    rig.graph.find_driver = find_driver
    return rig


async def check(client: Client, content: bytes | bytearray, *places: tuple[int, int]) -> None:
    """Read all places by one send, and compare."""
    asked = {client.request(READ, *place): place for place in places}
    for _ in places:
        if client.structured:
            cookie, chunks = await client.reply()
            offset, length = asked.pop(cookie)
            assert [(kind, at) for kind, at, _ in chunks] == [("data", offset)]
            data = chunks[0][2]
        else:
            header = await client.get(16)
            assert header[:8] == bytes.fromhex("6744669800000000")
            offset, length = asked.pop(int.from_bytes(header[8:]))
            data = await client.get(length)
        assert data == content[offset : offset + length]


async def warm(client: Client, content: bytes) -> None:
    """Let all that is needed be known."""
    for _ in range(2):
        for start in range(0, SIZE, 1 << 19):
            await check(client, content, (start, 1))


@pytest.mark.parametrize("structured", [False, True])
def test_chunks(image: Path, content: bytes, noted: Noted, structured: bool) -> None:

    async def main() -> None:
        async with new_rig() as rig:
            await open_export(rig, image)
            client = await rig.go("n", structured=structured)
            await warm(client, content)
            noted.take()
            await check(client, content, (0, 1), (7 * MIB + 5, K4), (CHUNK - K4, K4), (5, 65536))
            assert noted.take() == (4, 0, 0)
            # Across the border of chunks; in the last one, which is not all there; the last byte.
            await check(client, content, (CHUNK - 1, 2), (CHUNK + 5, K4), (SIZE - 1, 1))
            served, _, looks = noted.take()
            assert looks >= 1
            assert served in (0, 3)
            backend = transmission_of(rig)._backend
            async with Drained([rig.graph.nodes["n"]]):
                assert not backend.view_chunks
            assert backend.view_chunks is rig.graph.nodes["n"].view_chunks
            # A chunk of which something was discarded may have holes, of which clients are told.
            await client.ask(TRIM, 3 * MIB, K4)
            noted.take()
            await check(client, content, (3 * MIB, K4))
            assert (noted.take()[0] == 0) == structured

    loop.run(main())


def test_what_is_left_alone(image: Path, content: bytes, noted: Noted) -> None:
    model = bytearray(content)

    async def main() -> None:
        async with new_rig() as rig:
            await open_export(rig, image)
            client = await rig.go("n", structured=True)
            await warm(client, content)
            noted.take()
            # Too long, none, behind the end, with a flag, another command.
            await check(client, content, (K4, 65537))
            assert await client.ask(READ, 0, 0) == [("none",)]
            assert "error" in str(await client.ask(READ, SIZE, 1))
            assert await client.ask(READ, 0, K4, flags=4) == [("data", 0, content[:K4])]
            data = bytes(range(256)) * 16
            assert await client.ask(WRITE, 9 * MIB, K4, data=data) == ["ok"]
            model[9 * MIB : 9 * MIB + K4] = data
            assert noted.take()[0] == 0
            await check(client, model, (9 * MIB, K4))
            assert noted.take()[0] == 1

    loop.run(main())


def test_clusters_in_chunks(
    image: Path, content: bytes, noted: Noted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an image whose clusters lie in chunks, and are written to, dropped and taken anew."""
    need("qemu-img")
    path = image.with_suffix(".qcow2")
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", image, path], check=True)
    path.read_bytes()  # also what lies between its tables
    plain: list[int] = []
    view = MappedIo.view_nowait

    def spy(driver: MappedIo, offset: int, length: int) -> memoryview | None:
        plain.append(offset)
        return view(driver, offset, length)

    monkeypatch.setattr(MappedIo, "view_nowait", spy)
    model = bytearray(content)

    async def main() -> None:
        async with new_rig() as rig:
            await open_export(rig, path, "qcow2")
            client = await rig.go("n")
            await warm(client, content)
            plain.clear()
            await check(client, content, *((n * 999_983, 1 + n * 37) for n in range(60)))
            crossing = [n for n in range(60) if n * 999_983 % 65536 + 1 + n * 37 > 65536]
            assert [offset // 999_983 for offset in plain] == crossing
            for command, data in ((WRITE, b"x" * K4), (ZEROES, bytes(65536)), (WRITE, b"y" * 99)):
                sent = data if command == WRITE else b""
                assert await client.ask(command, 5 * MIB, len(data), data=sent) == ["ok"]
                model[5 * MIB : 5 * MIB + len(data)] = data
                await check(client, model, (5 * MIB - K4, K4), (5 * MIB, K4), (5 * MIB + K4, K4))

    loop.run(main())


def test_a_request_in_two_parts(image: Path, content: bytes, noted: Noted) -> None:
    async def main() -> None:
        async with new_rig() as rig:
            await open_export(rig, image)
            client = await rig.go("n")
            await warm(client, content)
            transmission = transmission_of(rig)
            first, second = Request(5, 0), Request(6, MIB)
            client.send(first.data + second.data[:11])
            assert await client.get(16 + K4) == first.reply + content[:K4]
            assert transmission._in is not None
            client.send(second.data[11:])
            assert await client.get(16 + K4) == second.reply + content[MIB : MIB + K4]
            assert transmission._in is None

    loop.run(main())


class Request:
    """A read of 4 KiB and the head of its reply, as bytes."""

    def __init__(self, cookie: int, offset: int) -> None:
        tail = cookie.to_bytes(8)
        self.data = bytes.fromhex("2560951300000000") + tail + offset.to_bytes(8) + K4.to_bytes(4)
        self.reply = bytes.fromhex("6744669800000000") + tail


@pytest.mark.parametrize("error", [BrokenPipeError(32, "Broken pipe"), OSError(14, "Bad address")])
def test_a_socket_that_refuses(
    image: Path, content: bytes, error: OSError, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that is gone is dropped; what cannot be seen any more is read."""

    def fail(self: QuickReads, parts: Any) -> int:
        raise error

    async def main() -> None:
        async with new_rig() as rig:
            await open_export(rig, image)
            client = await rig.go("n")
            await warm(client, content)
            quick = transmission_of(rig)._reader.__self__  # type: ignore[attr-defined]
            chunks = quick._backend.view_chunks
            assert chunks
            monkeypatch.setattr(quick, "_send", lambda parts: fail(quick, parts))
            client.request(READ, 0, K4)
            if error.errno == 14:
                assert (await client.get(16 + K4))[16:] == content[:K4]
                assert not chunks  # all is asked for anew
            else:
                assert await client.at_end()
                assert "Unable to write to socket: Broken pipe" in rig.reports[-1]
            assert all(not buffer.holders for buffer in rig.server.pool.batches)

    loop.run(main())


def test_a_full_socket(image: Path, content: bytes, noted: Noted) -> None:
    """The reply that was cut is completed, and the requests behind it wait for that."""

    async def main() -> None:
        async with new_rig() as rig:
            await open_export(rig, image)
            client = await rig.go("n", structured=True)
            await warm(client, content)
            (connection,) = rig.server._clients
            connection._raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 5000)
            places = [(n * 70_000, 1 + n * 997) for n in range(60)]
            for _ in range(3):
                await check(client, content, *places)
            transmission = transmission_of(rig)
            assert not transmission._outlet.pending
            assert transmission._requests.known_data.all_data[0] == DATA
            assert noted.served

    loop.run(main())


K16 = 16 << 10
FILE = 2 * MIB


def written(cookie: int) -> bytes:
    """Return a write of 16 KiB to the place that the cookie says, as bytes."""
    head = bytes.fromhex("2560951300000001") + cookie.to_bytes(8)
    return head + (cookie * K16).to_bytes(8) + K16.to_bytes(4) + bytes([cookie]) * K16


async def acknowledged(client: Client, *cookies: int) -> None:
    """Receive the replies to such writes, in any order."""
    replies = {(await client.get(16)) for _ in cookies}
    assert replies == {bytes.fromhex("6744669800000000") + each.to_bytes(8) for each in cookies}


class Stream:
    """A client that writes a file from its start to its end; a part of a write is there."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "stream"
        self.path.write_bytes(bytes(FILE))
        self.rig = new_rig()

    async def __aenter__(self) -> Self:
        await self.rig.__aenter__()
        await open_export(self.rig, self.path)
        self.client = await self.rig.go("n")
        self.client.send(written(0) + written(1) + written(2)[:1000])
        await acknowledged(self.client, 0, 1)
        self.owner = transmission_of(self.rig)
        assert self.owner._needed == 28 + K16
        return self

    async def __aexit__(self, *exc: object) -> None:
        pool = self.rig.server.pool
        await self.rig.__aexit__(*exc)
        assert all(not buffer.holders for buffer in pool.batches)

    async def gone(self) -> None:
        """Wait until the server has noticed."""
        while self.rig.server._clients:
            await asyncio.sleep(0)

    def check(self, end: int) -> None:
        """Compare what was written, up to the write of a number."""
        expected = b"".join(bytes([number]) * K16 for number in range(end))
        assert self.path.read_bytes() == expected.ljust(FILE, b"\0")


def test_a_stream_of_writes(tmp_path: Path, noted: Noted) -> None:
    async def main() -> None:
        async with Stream(tmp_path) as stream:
            client = stream.client
            noted.take()
            client.send(written(2)[1000:] + written(3) + written(4)[:20])
            await acknowledged(client, 2, 3)
            assert noted.take()[1] == 0
            # Of the next only the header is begun; then one is complete, and nothing is left.
            client.send(written(4)[20:] + written(5))
            await acknowledged(client, 4, 5)
            assert noted.take()[1] == 1
            assert stream.owner._in is None
            client.send(written(6) + written(7) + written(8)[:-1])
            await acknowledged(client, 6, 7)
            noted.take()
            client.send(written(8)[-1:] + written(9) + written(10))
            await acknowledged(client, 8, 9, 10)
            assert noted.take()[1] == 0
            assert stream.owner._in is None
            stream.check(11)

    loop.run(main())


def test_other_requests_behind_a_stream_of_writes(tmp_path: Path, noted: Noted) -> None:
    async def main() -> None:
        async with Stream(tmp_path) as stream:
            client = stream.client
            noted.take()
            client.send(written(2)[1000:] + written(3) + Request(99, K16).data)
            await acknowledged(client, 2, 3)
            assert await client.get(16 + K4) == Request(99, 0).reply + b"\1" * K4
            assert noted.take()[1] == 1
            # A part that is not enough; one short write alone; one that does not follow.
            client.send(written(4)[:1000])
            while stream.owner._in is None:
                await asyncio.sleep(0)
            client.send(written(4)[1000:2000])
            client.send(written(4)[2000:] + written(6))
            await acknowledged(client, 4, 6)
            client.send(written(5))
            await acknowledged(client, 5)
            stream.check(7)

    loop.run(main())


@pytest.mark.parametrize("how", ["end", "reset", "deaf"])
def test_a_client_that_goes_in_a_stream_of_writes(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with Stream(tmp_path) as stream:
            client = stream.client

            def fail(*_: Any) -> int:
                raise ConnectionResetError(104, "Connection reset by peer")

            quick = stream.owner._reader.__self__  # type: ignore[attr-defined]
            if how == "end":
                client.close()
            elif how == "reset":
                monkeypatch.setattr(quick, "_receive", fail)
                client.send(written(2)[1000:])
            else:
                monkeypatch.setattr(Outlet, "send", lambda outlet, data: outlet.fail("no"))
                client.send(written(2)[1000:] + written(3) + written(4)[:50])
            await stream.gone()
            stream.check(4 if how == "deaf" else 2)
            reason = {
                "end": "Failed to read CMD_WRITE data: Unexpected end-of-file before all data "
                "were read",
                "reset": "Unable to read from socket: Connection reset by peer",
                "deaf": "Failed to send reply: no",
            }[how]
            assert stream.rig.reports == [f"Disconnect client, due to: {reason}"]

    loop.run(main())


def test_a_stream_of_writes_waits_for_a_drained_section(tmp_path: Path) -> None:
    async def main() -> None:
        async with Stream(tmp_path) as stream:
            async with Drained([stream.rig.graph.nodes["n"]]):
                stream.client.send(written(2)[1000:] + written(3) + written(4)[:50])
                while not stream.owner.in_flight:
                    await asyncio.sleep(0)
                stream.check(2)
            await acknowledged(stream.client, 2, 3)
            stream.check(4)

    loop.run(main())


def test_a_client_that_takes_no_replies_is_served_the_plain_way(
    tmp_path: Path, noted: Noted
) -> None:
    async def main() -> None:
        async with Stream(tmp_path) as stream:
            noted.take()
            stream.owner._outlet.pending = 1
            stream.client.send(written(2)[1000:] + written(3) + written(4)[:50])
            await acknowledged(stream.client, 2, 3)
            assert noted.take()[1] == 1
            stream.owner._outlet.pending = 0
            stream.check(4)

    loop.run(main())
