# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""One connection against a server that the test plays byte by byte."""

from __future__ import annotations

import asyncio
import errno
import itertools
import socket
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsd.aio.loop import run
from qsd.protocols.nbd.connection import LONG, Connection
from qsd.protocols.nbd.request import Request
from qsd.wire.nbd import messages as nbd
from qsd.wire.nbd.client import Agreement
from tests.protocols.nbd.scripted import Scripted


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
            self.loop, ours, agreement, b"", lambda _, why: self.lost.set_result(why), raw=ours
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


@pytest.mark.parametrize("room", [0, 20, 100, 28 + 511])
def test_data_of_an_abandoned_write_is_kept(room: int) -> None:
    """Who does not wait any longer may use his memory for something else."""
    peer = Scripted()
    peer.sock.room = room
    content = b"data" * LONG
    data = bytearray(content)
    request = Request(nbd.CMD_WRITE, 0, 0, len(data), memoryview(data), lambda _: None)
    peer.connection.submit(request)
    peer.loop.turn()
    assert len(peer.sock.sent) == room
    peer.connection.abandon(request)
    data[:] = bytes(len(data))
    peer.sock.room = 1 << 30
    (on_writable,) = peer.loop.writers.values()
    on_writable()
    assert peer.sock.sent[nbd.REQUEST.size :] == content


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


# Plain requests, against the full ones


class Plan(NamedTuple):
    """A request, and how its reply is made.

    Attributes:
        command: Read or write.
        offset: Bytes.
        length: Bytes.
        kind: "data", "pieces", "hole", "error" or "simple error".
    """

    command: int
    offset: int
    length: int
    kind: str


PATTERN = bytes(at * 7 % 251 for at in range(251)) * (2 * LONG // 251)


def content(offset: int, length: int) -> bytes:
    return PATTERN[offset % 251 :][:length]


def replies(plan: Plan, cookie: int) -> list[bytes]:
    """Return the chunks that answer a request; those of different requests may be mixed."""
    if plan.command == nbd.CMD_WRITE:
        if plan.kind == "error":
            return [nbd.error_reply(cookie, 28, "full", True)]
        if plan.kind == "simple error":
            return [nbd.simple_reply(cookie, 5)]
        return [nbd.none_chunk(cookie) if plan.kind == "pieces" else nbd.simple_reply(cookie)]
    if plan.kind.endswith("error"):
        return [nbd.error_reply(cookie, 5, "", True)]
    if plan.kind == "hole":
        return [nbd.hole_chunk(cookie, plan.offset, plan.length, True)]
    if plan.kind == "data":
        header = nbd.data_header(cookie, plan.offset, plan.length, True)
        return [header + content(plan.offset, plan.length)]
    middle = plan.length // 2
    chunks = [
        nbd.data_header(cookie, plan.offset + at, length, False) + content(plan.offset + at, length)
        for at, length in ((0, middle), (middle, plan.length - middle))
        if length
    ]
    return [*chunks, nbd.none_chunk(cookie)]


PLANS = st.lists(
    st.builds(
        Plan,
        st.sampled_from([nbd.CMD_READ, nbd.CMD_READ, nbd.CMD_WRITE]),
        st.integers(0, 1 << 20),
        st.one_of(st.integers(1, 5000), st.just(4096), st.integers(LONG - 2, LONG + 2)),
        st.sampled_from(["data", "data", "data", "pieces", "hole", "error", "simple error"]),
    ),
    min_size=1,
    max_size=12,
)


@given(plans=PLANS, plain=st.lists(st.booleans()), data=st.data())
@settings(deadline=None, max_examples=50)
def test_plain_requests_end_like_full_ones(
    plans: list[Plan], plain: list[bool], data: st.DataObject
) -> None:
    """Whichever way, in whatever order and pieces: the same bytes, the same success."""
    peer = Scripted()
    memory = [bytearray(content(plan.offset, plan.length)) for plan in plans]
    over: list[list[Any]] = []
    for index, plan in enumerate(plans):
        view = memoryview(memory[index])
        if plan.command == nbd.CMD_READ:
            view[:] = b"?" * plan.length
        is_plain = index < len(plain) and plain[index]
        if is_plain and (plan.command == nbd.CMD_WRITE or plan.length < LONG):
            over.append(peer.begin(plan.command, plan.offset, view))
        else:
            over.append(peer.submit(plan.command, plan.offset, view))
    sent = peer.requests()
    assert [fields[2] for fields in sent] == [plan.command for plan in plans]
    queues = [replies(plan, fields[3]) for plan, fields in zip(plans, sent, strict=True)]
    stream = b""
    while any(queues):
        stream += data.draw(st.sampled_from([queue for queue in queues if queue])).pop(0)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=20)))
    edges = [0, *cuts, len(stream)]
    peer.arrive(*(stream[a:b] for a, b in itertools.pairwise(edges)))
    assert not peer.lost
    for plan, result, got in zip(plans, over, memory, strict=True):
        assert len(result) == 1
        fine = result[0] if isinstance(result[0], bool) else result[0].error is None
        assert fine == (not plan.kind.endswith("error"))
        if fine:
            hole = plan.kind == "hole" and plan.command == nbd.CMD_READ
            assert got == (bytes(plan.length) if hole else content(plan.offset, plan.length))
    assert not peer.connection.requests
    assert not peer.connection._plain
    assert not peer.connection._long


def status_reply(cookie: int, extents: int) -> bytes:
    return nbd.status_chunk(cookie, 0, [(512, at & 3) for at in range(extents)], True)


@pytest.mark.parametrize("extents", [1, 8000, 100_000])
@pytest.mark.parametrize("step", [1000, 1 << 30])
def test_status_replies_of_any_length(extents: int, step: int) -> None:
    peer = Scripted()
    over = peer.submit(nbd.CMD_BLOCK_STATUS, 0, None, 1 << 30)
    ((*_, cookie, _, _),) = peer.requests()
    reply = status_reply(cookie, extents)
    peer.arrive(*(reply[at : at + step] for at in range(0, len(reply), step)))
    assert not peer.lost
    assert list(over[0].extents) == [(512, at & 3) for at in range(extents)]


def test_a_status_reply_without_end() -> None:
    peer = Scripted()
    over = peer.submit(nbd.CMD_BLOCK_STATUS, 0, None, 1 << 30)
    ((*_, cookie, _, _),) = peer.requests()
    peer.arrive(
        nbd.CHUNK.pack(nbd.STRUCTURED_REPLY_MAGIC, 1, nbd.REPLY_BLOCK_STATUS, cookie, 1 << 31)
    )
    assert over[0].lost
    assert peer.lost == ["Protocol error: reply chunk is too long"]


def test_structured_replies_must_have_been_agreed_on() -> None:
    peer = Scripted(structured=False)
    over = peer.begin(nbd.CMD_READ, 0, memoryview(bytearray(4)))
    ((*_, cookie, _, _),) = peer.requests()
    peer.arrive(nbd.data_header(cookie, 0, 4, True) + b"abcd")
    assert over == [False]
    assert peer.lost == ["invalid magic (got 0x668e33ef)"]


def test_the_first_request_does_not_wait() -> None:
    peer = Scripted()
    view = memoryview(bytearray(b"abcd"))
    peer.begin(nbd.CMD_WRITE, 8, view)
    assert peer.sock.sent[nbd.REQUEST.size :] == b"abcd"
    sent = len(peer.sock.sent)
    peer.begin(nbd.CMD_READ, 8, view)
    peer.begin(nbd.CMD_READ, 8, view)
    assert len(peer.sock.sent) == sent
    assert [fields[2] for fields in peer.requests()] == [1, 0, 0]


def test_what_the_socket_does_not_take_waits() -> None:
    peer = Scripted()
    payload = bytes(range(256)) * 300
    peer.sock.room = 100
    for at in range(4):
        peer.begin(nbd.CMD_WRITE, at, memoryview(payload))
    peer.loop.turn()
    while len(peer.sock.sent) < 4 * (nbd.REQUEST.size + len(payload)):
        peer.sock.room = 50_001
        peer.loop.writers[7]()
    assert not peer.loop.writers
    assert [fields[4] for fields in peer.requests()] == [0, 1, 2, 3]


def test_a_failed_send_is_reported_later() -> None:
    peer = Scripted()
    peer.sock.error = BrokenPipeError(errno.EPIPE, "Broken pipe")
    over = peer.begin(nbd.CMD_READ, 0, memoryview(bytearray(4)))
    assert not over
    peer.loop.turn()
    assert over == [False]
    assert peer.lost == ["Failed to send request: Broken pipe"]


@given(data=st.data())
@settings(deadline=None, max_examples=50)
def test_a_hostile_server_hurts_nobody(data: st.DataObject) -> None:
    """Valid, damaged and random bytes: each request ends once or waits, nothing is raised."""
    peer = Scripted(structured=data.draw(st.booleans()))
    memory = [bytearray(600) for _ in range(6)]
    over: list[list[Any]] = []
    commands = (nbd.CMD_READ, nbd.CMD_WRITE, nbd.CMD_READ, nbd.CMD_BLOCK_STATUS, nbd.CMD_FLUSH)
    for index, command in enumerate(commands):
        offset, view = index * 600, memoryview(memory[index])
        if index < 2:
            over.append(peer.begin(command, offset, view))
        else:
            over.append(peer.submit(command, offset, view if index == 2 else None, 600))
    peer.loop.turn()
    cookies = st.integers(0, 7)
    places = st.one_of(st.integers(0, 3600), st.integers(0, (1 << 64) - 1))
    sizes = st.one_of(st.integers(0, 700), st.integers(0, (1 << 31) - 1))
    magics = st.sampled_from([nbd.STRUCTURED_REPLY_MAGIC, nbd.SIMPLE_REPLY_MAGIC, 0])
    kinds = st.one_of(st.sampled_from([0, 1, 2, 5, 0x8001, 0x8002]), st.integers(0, 0xFFFF))
    piece = st.one_of(
        st.binary(max_size=700),
        st.builds(nbd.data_header, cookies, places, sizes, st.booleans()),
        st.builds(nbd.hole_chunk, cookies, places, sizes, st.booleans()),
        st.builds(nbd.simple_reply, cookies, st.integers(0, 200)),
        st.builds(nbd.CHUNK.pack, magics, st.integers(0, 3), kinds, cookies, sizes),
        st.builds(
            nbd.status_chunk, cookies, st.integers(0, 1),
            st.lists(st.tuples(st.integers(0, 700), st.integers(0, 9)), max_size=3), st.booleans(),
        ),
    )  # fmt: skip
    peer.arrive(*data.draw(st.lists(piece, max_size=12)))
    assert all(len(result) <= 1 for result in over)
    peer.sock.ended = True
    if not peer.connection.closed:
        peer.connection._on_readable()
    assert peer.connection.closed
    assert peer.sock.closed
    assert len(peer.lost) == 1
    assert all(len(result) == 1 for result in over)
    assert not peer.loop.readers
