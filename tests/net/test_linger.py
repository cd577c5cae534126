# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from typing import Self

import pytest

from qsd.aio import loop
from qsd.net import linger
from qsd.net.linger import Lingering


class Pair:
    """A connection over TCP, where the kernel resets what is closed too early."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.peer = socket.create_connection(listener.getsockname())
            self.ours, _ = listener.accept()
        self.peer.setblocking(False)
        self.ours.setblocking(False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.peer.close()
        self.ours.close()


async def is_closed(sock: socket.socket) -> None:
    while sock.fileno() >= 0:
        await asyncio.sleep(0)


def run(test: Callable[[Lingering, Pair], Coroutine[None, None, None]]) -> None:
    async def main() -> None:
        lingering = Lingering(asyncio.get_running_loop())
        with Pair() as pair:
            await test(lingering, pair)
        assert not lingering

    loop.run(main())


def test_a_peer_that_goes_on_talking_sees_the_end_alone() -> None:
    async def test(lingering: Lingering, pair: Pair) -> None:
        ask = asyncio.get_running_loop()
        pair.ours.send(b"last words")
        lingering.close(pair.ours, pair.ours)
        for _ in range(8):
            await ask.sock_sendall(pair.peer, bytes(16 << 10))
        assert await ask.sock_recv(pair.peer, 100) == b"last words"
        await ask.sock_sendall(pair.peer, b"more")
        assert await ask.sock_recv(pair.peer, 100) == b""
        assert len(lingering) == 1
        pair.peer.close()
        await is_closed(pair.ours)

    run(test)


def test_who_is_gone_is_not_waited_for() -> None:
    async def test(lingering: Lingering, pair: Pair) -> None:
        pair.peer.close()
        lingering.close(pair.ours, pair.ours)
        await is_closed(pair.ours)

    run(test)


def test_a_socket_that_was_never_connected() -> None:
    async def test(lingering: Lingering, pair: Pair) -> None:
        with socket.socket() as alone:
            lingering.close(alone, alone)
            assert alone.fileno() == -1

    run(test)


def test_a_peer_that_never_ends_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linger, "LIMIT", 0.01)

    async def test(lingering: Lingering, pair: Pair) -> None:
        lingering.close(pair.ours, pair.ours)
        assert len(lingering) == 1
        await is_closed(pair.ours)

    run(test)


def test_a_peer_that_sends_without_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linger, "LIMIT", 3600)

    async def test(lingering: Lingering, pair: Pair) -> None:
        ask = asyncio.get_running_loop()
        lingering.close(pair.ours, pair.ours)
        sent = 0
        with pytest.raises(ConnectionError):  # noqa: PT012
            while True:
                await ask.sock_sendall(pair.peer, bytes(64 << 10))
                sent += 64 << 10
                await asyncio.sleep(0)
        assert sent >= linger.MAX_FORGOTTEN
        assert pair.ours.fileno() == -1

    run(test)


def test_there_is_a_limit_to_how_many_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linger, "MAX_SOCKETS", 1)

    async def test(lingering: Lingering, pair: Pair) -> None:
        lingering.close(pair.ours, pair.ours)
        with Pair() as other:
            lingering.close(other.ours, other.ours)
            assert other.ours.fileno() == -1
        assert pair.ours.fileno() >= 0
        lingering.stop()
        assert pair.ours.fileno() == -1

    run(test)
