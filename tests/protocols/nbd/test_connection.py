# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""One connection against a server that the test plays byte by byte."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Awaitable, Callable

import pytest

from qsd.aio.loop import run
from qsd.protocols.nbd.connection import LONG, Connection, Request
from qsd.wire.nbd import messages as nbd
from qsd.wire.nbd.client import Agreement


class Peer:
    """A connection and the other end of its socket."""

    def __init__(self, *, structured: bool = True) -> None:
        self.loop = asyncio.get_running_loop()
        ours, self.sock = socket.socketpair()
        ours.setblocking(False)
        self.sock.setblocking(False)
        self.lost: asyncio.Future[str] = self.loop.create_future()
        agreement = Agreement(1 << 30, 0xFFFF, structured, 0)
        self.connection = Connection(
            self.loop, ours, agreement, b"", lambda _, why: self.lost.set_result(why), is_plain=True
        )

    def submit(self, command: int, offset: int, length: int, data: bytes = b"") -> Waiting:
        return Waiting(self, command, offset, length, data)

    async def requests(self, count: int) -> list[tuple[int, ...]]:
        data = b""
        while len(data) < count * nbd.REQUEST.size:
            data += await self.loop.sock_recv(self.sock, 1 << 16)
        return list(nbd.REQUEST.iter_unpack(data))

    async def send(self, data: bytes) -> None:
        await self.loop.sock_sendall(self.sock, data)


class Waiting:
    def __init__(self, peer: Peer, command: int, offset: int, length: int, data: bytes) -> None:
        self.over: asyncio.Future[Request] = peer.loop.create_future()
        self.memory = bytearray(data or length)
        view = memoryview(self.memory) if command in (nbd.CMD_READ, nbd.CMD_WRITE) else None
        self.request = Request(command, 0, offset, length, view, self.over.set_result)
        peer.connection.submit(self.request)


def case(test: Callable[[Peer], Awaitable[None]], *, structured: bool = True) -> None:
    async def main() -> None:
        peer = Peer(structured=structured)
        try:
            await test(peer)
        finally:
            peer.connection.close()
            peer.sock.close()

    run(main())


def test_replies_in_any_order() -> None:
    async def body(peer: Peer) -> None:
        first, second = (peer.submit(nbd.CMD_READ, at, 512) for at in (0, 512))
        sent = await peer.requests(2)
        one, two = (fields[3] for fields in sent)
        reply = nbd.data_header(two, 512, 512, True) + b"b" * 512
        reply += nbd.hole_chunk(one, 256, 256, False)
        reply += nbd.data_header(one, 0, 256, True) + b"a" * 256
        for at in range(0, len(reply), 100):
            await peer.send(reply[at : at + 100])
        await first.over
        await second.over
        assert first.memory == b"a" * 256 + bytes(256)
        assert second.memory == b"b" * 512

    case(body)


def test_simple_replies() -> None:
    async def body(peer: Peer) -> None:
        read, write = peer.submit(nbd.CMD_READ, 0, 4), peer.submit(nbd.CMD_FLUSH, 0, 0)
        one, two = (fields[3] for fields in await peer.requests(2))
        await peer.send(nbd.simple_reply(two, 28) + nbd.simple_reply(one) + b"abcd")
        assert (await read.over).error is None
        assert read.memory == b"abcd"
        error = (await write.over).error
        assert error is not None
        assert error.errno == errno.ENOSPC

    case(body, structured=False)


def test_long_payload_goes_where_it_belongs() -> None:
    async def body(peer: Peer) -> None:
        length = 8 * LONG
        reads = [peer.submit(nbd.CMD_READ, at * length, length) for at in range(3)]
        data = bytes(range(256)) * (length // 256)
        for fields in await peer.requests(3):
            await peer.send(nbd.data_header(fields[3], fields[4], length, True) + data)
        for read in reads:
            assert (await read.over).error is None
            assert read.memory == data

    case(body)


def test_a_long_write_is_sent_whole() -> None:
    async def body(peer: Peer) -> None:
        data = bytes(range(256)) * (1 << 14)
        write = peer.submit(nbd.CMD_WRITE, 0, len(data), data)
        got = b""
        while len(got) < nbd.REQUEST.size + len(data):
            got += await peer.loop.sock_recv(peer.sock, 1 << 20)
        assert got[nbd.REQUEST.size :] == data
        cookie = nbd.REQUEST.unpack_from(got)[3]
        await peer.send(nbd.none_chunk(cookie))
        assert (await write.over).error is None

    case(body)


def test_server_goes_away() -> None:
    async def body(peer: Peer) -> None:
        reads = [peer.submit(nbd.CMD_READ, 0, 512) for _ in range(3)]
        await peer.requests(3)
        peer.sock.close()
        for read in reads:
            request = await read.over
            assert request.lost
            assert request.error is not None
            assert request.error.errno == errno.EIO
        assert "end-of-file" in await peer.lost
        assert peer.connection.closed

    case(body)


def test_abandoned_memory_is_left_alone() -> None:
    async def body(peer: Peer) -> None:
        read = peer.submit(nbd.CMD_READ, 0, 512)
        ((*_, cookie, _, _),) = await peer.requests(1)
        peer.connection.abandon(read.request)
        await peer.send(nbd.data_header(cookie, 0, 512, True) + b"x" * 512)
        await read.over
        assert read.memory == bytes(512)

    case(body)


def hostile(cookie: int) -> list[bytes]:
    data = b"x" * 512
    extents = nbd.status_chunk(cookie, 0, [(512, 0)], True)
    unknown = nbd.CHUNK.pack(nbd.STRUCTURED_REPLY_MAGIC, 1, 77, cookie, 0)
    whole = nbd.data_header(cookie, 0, 512, False) + data
    too_long = nbd.CHUNK.pack(nbd.STRUCTURED_REPLY_MAGIC, 1, nbd.REPLY_ERROR, cookie, 1 << 31)
    return [
        nbd.data_header(cookie + 1, 0, 512, True) + data,
        nbd.data_header(cookie, 512, 512, True) + data,
        nbd.data_header(cookie, 0, 1 << 30, True) + data,
        whole + whole,
        nbd.data_header(cookie, 0, 256, True) + data,
        nbd.hole_chunk(cookie, 256, 512, True),
        nbd.none_chunk(cookie),
        nbd.simple_reply(cookie) + data,
        extents,
        unknown,
        too_long,
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
    ]


@pytest.mark.parametrize("index", range(12))
def test_hostile_replies_end_the_connection(index: int) -> None:
    async def body(peer: Peer) -> None:
        read = peer.submit(nbd.CMD_READ, 0, 512)
        ((*_, cookie, _, _),) = await peer.requests(1)
        await peer.send(hostile(cookie)[index])
        request = await read.over
        assert request.lost
        assert peer.connection.closed

    case(body)
