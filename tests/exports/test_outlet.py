# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from qsd.aio import loop
from qsd.exports.buffers import BufferPool
from qsd.exports.outlet import Outlet


class Pair:
    """An outlet and the other end of its socket."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.ours.setblocking(False)
        self.theirs.setblocking(False)
        self.loop = asyncio.get_running_loop()
        self.drained = 0
        self.lost: list[str] = []
        self.outlet = Outlet(self.loop, self.ours, self._drained, self.lost.append)

    def _drained(self) -> None:
        self.drained += 1

    async def get(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            data += await self.loop.sock_recv(self.theirs, length - len(data))
        return data


@asynccontextmanager
async def pair() -> AsyncIterator[Pair]:
    made = Pair()
    try:
        yield made
    finally:
        made.outlet.close()
        made.ours.close()
        made.theirs.close()


def test_what_is_put_in_one_turn_leaves_together() -> None:
    async def main() -> None:
        async with pair() as both:
            both.outlet.put(b"one")
            both.outlet.put(b"two")
            assert both.outlet.pending == 6
            assert await both.get(6) == b"onetwo"
            assert both.outlet.pending == 0
            assert both.drained == 1

    loop.run(main())


def test_bytes_are_sent_at_once() -> None:
    async def main() -> None:
        async with pair() as both:
            both.outlet.send(b"one")
            assert both.theirs.recv(9) == b"one"
            assert (both.outlet.pending, both.outlet.sent) == (0, 3)
            data = os.urandom(3 << 20)
            both.outlet.send(data)
            assert 0 < both.outlet.pending < len(data)
            both.outlet.send(b"two")  # behind the rest
            assert await both.get(len(data) + 3) == data + b"two"
            both.theirs.close()
            both.outlet.send(b"three")
            assert both.outlet.closed
            assert len(both.lost) == 1
            both.outlet.send(b"four")
            assert both.outlet.pending == 0

    loop.run(main())


def test_buffers_are_dropped_when_sent() -> None:
    async def main() -> None:
        async with pair() as both:
            pool = BufferPool()
            data = os.urandom(3 << 20)
            buffer = pool.take(len(data))
            buffer.view[: len(data)] = data
            assert not both.outlet.put_batch(buffer, len(data))
            small = pool.take(10)
            small.view[:4] = b"tail"
            both.outlet.put(small.view[:4], small)
            assert buffer.holders == small.holders == 1
            assert await both.get(len(data) + 4) == data + b"tail"
            while both.outlet.pending:
                await asyncio.sleep(0)
            assert buffer.holders == small.holders == 0

    loop.run(main())


def test_sent_batches_stay_with_their_owner() -> None:
    async def main() -> None:
        async with pair() as both:
            buffer = BufferPool().take_batch()
            buffer.view[:3] = b"abc"
            assert both.outlet.put_batch(buffer, 3)
            assert buffer.holders == 1
            assert await both.get(3) == b"abc"

    loop.run(main())


def test_files(tmp_path: Path) -> None:
    async def main() -> None:
        data = os.urandom(3 << 20)
        (tmp_path / "f").write_bytes(data)
        async with pair() as both:
            fd = os.open(tmp_path / "f", os.O_RDWR)
            try:
                both.outlet.send_file(b"head", fd, 5, 1000)
                assert await both.get(1004) == b"head" + data[5:1005]
                # More than the socket takes, with the descriptor closed before it is sent.
                both.outlet.send_file(b"HEAD", fd, 0, len(data))
                both.outlet.put(b"tail")
                assert both.outlet.pending
            finally:
                os.close(fd)
            assert await both.get(len(data) + 8) == b"HEAD" + data + b"tail"

    loop.run(main())


def test_file_that_became_shorter_ends_in_zeroes(tmp_path: Path) -> None:
    async def main() -> None:
        (tmp_path / "f").write_bytes(b"x" * 100)
        async with pair() as both:
            fd = os.open(tmp_path / "f", os.O_RDWR)
            both.outlet.send_file(b"", fd, 50, 100)
            os.close(fd)
            assert await both.get(100) == b"x" * 50 + bytes(50)
            assert both.outlet.pending == 0

    loop.run(main())


def test_peer_that_is_gone() -> None:
    async def main() -> None:
        async with pair() as both:
            both.theirs.close()
            buffer = BufferPool().take(10)
            both.outlet.put(b"x", buffer)
            both.outlet.flush()
            assert both.lost == ["Failed to send reply: Unable to write to socket: Broken pipe"]
            assert both.outlet.closed
            assert buffer.holders == 0
            late = BufferPool().take(10)
            both.outlet.put(b"x", late)
            assert late.holders == 0

    loop.run(main())


def test_close_drops_everything(tmp_path: Path) -> None:
    async def main() -> None:
        (tmp_path / "f").write_bytes(bytes(4 << 20))
        async with pair() as both:
            fd = os.open(tmp_path / "f", os.O_RDWR)
            both.outlet.send_file(b"", fd, 0, 4 << 20)
            os.close(fd)
            buffer = BufferPool().take(10)
            both.outlet.put(b"x", buffer)
            before = len(os.listdir("/proc/self/fd"))
            both.outlet.close()
            assert len(os.listdir("/proc/self/fd")) == before - 1
            assert buffer.holders == 0
            assert both.outlet.pending == 0

    loop.run(main())


def test_tells_what_the_peer_has_received() -> None:
    async def main() -> None:
        async with pair() as ends:
            outlet, theirs = ends.outlet, ends.theirs
            outlet.put(b"abc")
            assert outlet.position == 3
            assert not outlet.has_delivered(3)  # not even sent
            outlet.flush()
            assert outlet.sent == outlet.position == 3
            assert not outlet.has_delivered(3)
            assert theirs.recv(2) == b"ab"
            assert not outlet.has_delivered(3)
            assert theirs.recv(2) == b"c"
            assert outlet.has_delivered(3)
            # A peer that received that much later has received what was before it.
            block = b"x" * 65536
            while outlet.sent < 2 << 20:
                outlet.put(block)
                outlet.flush()
                assert await ends.get(len(block)) == block
            outlet.put(b"more")
            outlet.flush()
            assert outlet.has_delivered(3)
            assert not outlet.has_delivered(outlet.position)
            outlet.close()
            assert outlet.has_delivered(outlet.position)

    loop.run(main())
