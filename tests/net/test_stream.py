# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Byte streams: reading with pauses, writing with a backlog."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from qsd.aio.loop import run
from qsd.net.stream import ByteStream


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    theirs.settimeout(5)
    with ours, theirs:
        yield ours, theirs


class Ends:
    """A stream on a descriptor, and what it said."""

    def __init__(self, read_fd: int | None, write_fd: int | None) -> None:
        self.data = b""
        self.ended = asyncio.Event()
        self.drained = asyncio.Event()
        self.arrived = asyncio.Event()
        self.stream = ByteStream(
            read_fd,
            write_fd,
            on_data=self._on_data,
            on_eof=self.ended.set,
            on_drained=self.drained.set,
        )

    def _on_data(self, data: bytes) -> None:
        self.data += data
        self.arrived.set()


def test_reading_pauses(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair

    async def main() -> None:
        ends = Ends(ours.fileno(), ours.fileno())
        ends.stream.start()
        theirs.send(b"a")
        await ends.arrived.wait()
        ends.stream.pause()
        theirs.send(b"b")
        theirs.shutdown(socket.SHUT_WR)
        await asyncio.sleep(0.01)
        assert ends.data == b"a"
        assert not ends.ended.is_set()
        ends.stream.resume()
        await ends.ended.wait()
        assert ends.data == b"ab"
        ends.stream.close()
        ends.stream.close()

    run(main())


def test_writing_keeps_order_and_reports_when_it_is_through(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    parts = [os.urandom(100_000) for _ in range(20)]

    async def main() -> None:
        ends = Ends(None, ours.fileno())
        for part in parts:
            ends.stream.write(part)
        assert ends.stream.pending > 0
        total = sum(map(len, parts))
        loop = asyncio.get_running_loop()
        theirs.setblocking(False)
        received = b""
        while len(received) < total:
            received += await loop.sock_recv(theirs, 1 << 20)
        assert received == b"".join(parts)
        await ends.drained.wait()
        assert ends.stream.pending == 0
        ends.stream.close()

    run(main())


def test_peer_is_gone(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair

    async def main() -> None:
        ends = Ends(ours.fileno(), ours.fileno())
        ends.stream.write(b"x" * (1 << 20))
        theirs.close()
        ends.stream.write(b"y")
        ends.stream.start()
        await ends.ended.wait()
        ends.stream.write(b"z")
        assert ends.stream.pending == 0
        ends.stream.close()
        ends.stream.write(b"after the end")

    run(main())


@pytest.mark.parametrize("size", [0, 5, 200_000])
def test_regular_files_are_read_too(tmp_path: Path, size: int) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"x" * size)

    async def main() -> None:
        fd = os.open(path, os.O_RDONLY)
        ends = Ends(fd, None)
        ends.stream.start()
        if size:
            await ends.arrived.wait()
            ends.stream.pause()
            ends.stream.resume()
        await ends.ended.wait()
        assert len(ends.data) == size
        ends.stream.close()
        os.close(fd)

    run(main())


def test_a_reset_is_noticed_behind_the_last_data(pair: tuple[socket.socket, socket.socket]) -> None:
    """A peer that leaves without reading everything resets the connection.

    The event loop hears of that once, together with the data that came before.
    """
    ours, theirs = pair

    async def main() -> None:
        ends = Ends(ours.fileno(), ours.fileno())
        ends.stream.write(b"never read")
        theirs.send(b"last words")
        theirs.close()
        ends.stream.start()
        async with asyncio.timeout(5):
            await ends.ended.wait()
        assert ends.data == b"last words"
        ends.stream.close()

    run(main())
