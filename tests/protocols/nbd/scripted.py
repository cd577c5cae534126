# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""A connection without kernel and loop: the test says which bytes arrive in which pieces."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, cast

from qsd.protocols.nbd.connection import Connection
from qsd.protocols.nbd.request import Request
from qsd.wire.nbd import messages as nbd
from qsd.wire.nbd.client import Agreement


class ScriptedLoop:
    """Calls what was scheduled when it is told to."""

    def __init__(self) -> None:
        self.ready: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self.writers: dict[int, Callable[[], None]] = {}
        self.readers: set[int] = set()

    def call_soon(self, function: Callable[..., None], *args: Any) -> ScriptedLoop:
        self.ready.append((function, args))
        return self

    def cancel(self) -> None:
        self.ready.clear()

    def add_reader(self, fd: int, function: Callable[[], None]) -> None:
        self.readers.add(fd)

    def remove_reader(self, fd: int) -> None:
        self.readers.discard(fd)

    def add_writer(self, fd: int, function: Callable[[], None]) -> None:
        self.writers[fd] = function

    def remove_writer(self, fd: int) -> None:
        self.writers.pop(fd, None)

    def turn(self) -> None:
        while self.ready:
            function, args = self.ready.popleft()
            function(*args)


class ScriptedSocket:
    """Gives the pieces one receive each, takes `room` bytes and then blocks."""

    def __init__(self) -> None:
        self.pieces: deque[bytes] = deque()
        self.sent = bytearray()
        self.room = 1 << 40
        self.ended = False
        self.closed = False
        self.error: OSError | None = None

    def fileno(self) -> int:
        return 7

    def close(self) -> None:
        self.closed = True

    def shutdown(self, how: int) -> None:
        raise AssertionError("nobody shuts down a client's socket")

    def recv_into(self, buffer: memoryview) -> int:
        return self.recvmsg_into((buffer,))[0]

    def recvmsg_into(self, buffers: Sequence[memoryview]) -> tuple[int, ...]:
        assert sum(map(len, buffers))
        if not self.pieces:
            if self.ended:
                return (0,)
            raise BlockingIOError
        piece, total = self.pieces.popleft(), 0
        for buffer in buffers:
            count = min(len(buffer), len(piece))
            buffer[:count] = piece[:count]
            piece = piece[count:]
            total += count
        if piece:
            self.pieces.appendleft(piece)
        return (total,)

    def send(self, data: bytes | memoryview) -> int:
        return self.sendmsg([data])

    def sendmsg(self, buffers: Sequence[bytes | memoryview]) -> int:
        if self.error is not None:
            raise self.error
        if not self.room:
            raise BlockingIOError
        data = b"".join(buffers)[: self.room]
        self.room -= len(data)
        self.sent += data
        return len(data)


class Scripted:
    """A connection on those."""

    def __init__(self, *, structured: bool = True, context_id: int | None = 0) -> None:
        self.loop = ScriptedLoop()
        self.sock = ScriptedSocket()
        self.lost: list[str] = []
        self.connection = Connection(
            cast(asyncio.AbstractEventLoop, self.loop),
            self.sock,
            Agreement(1 << 40, 0xFFFF, structured, context_id),
            b"",
            lambda _, why: self.lost.append(why),
            raw=cast(Any, self.sock),
        )

    def begin(self, command: int, offset: int, view: memoryview) -> list[bool]:
        """Begin a plain request; the list gets the result when it is over."""
        over: list[bool] = []
        self.connection.begin(command, offset, view, over.append)
        return over

    def submit(
        self, command: int, offset: int, view: memoryview | None, length: int = 0
    ) -> list[Request]:
        """Submit a full request; the list gets it when it is over."""
        over: list[Request] = []
        size = length if view is None else len(view)
        self.connection.submit(Request(command, 0, offset, size, view, over.append))
        return over

    def arrive(self, *pieces: bytes) -> None:
        """Let bytes arrive; each piece is one receive."""
        self.sock.pieces.extend(piece for piece in pieces if piece)
        while self.sock.pieces and not self.connection.closed:
            self.connection._on_readable()
            self.loop.turn()

    def requests(self) -> list[tuple[int, ...]]:
        """Return the requests that were sent, as fields of the header."""
        self.loop.turn()
        found, at = [], 0
        while at < len(self.sock.sent):
            fields = nbd.REQUEST.unpack_from(self.sock.sent, at)
            found.append(fields)
            at += nbd.REQUEST.size + (fields[5] if fields[2] == nbd.CMD_WRITE else 0)
        return found
