# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Connecting to every kind of address."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import pytest

from qsd.aio.loop import run
from qsd.aio.tasks import TaskOwner
from qsd.errors import QmpError
from qsd.net import address as addresses
from qsd.net.address import AddressBody
from qsd.net.connect import connect
from qsd.net.listen import listen
from qsd.qapi.schema.common import String
from qsd.qapi.schema.sockets import InetSocketAddress, UnixSocketAddress


def check_talk(part: AddressBody) -> None:
    listening = listen(addresses.flat(part))

    async def main() -> None:
        sock = await connect(listening.address)
        listening.sockets[0].setblocking(True)
        peer, _ = listening.sockets[0].accept()
        with sock, peer:
            assert not sock.getblocking()
            sock.send(b"x")
            assert peer.recv(1) == b"x"

    run(main())
    listening.close()


def test_unix(tmp_path: Path) -> None:
    check_talk(UnixSocketAddress(path=str(tmp_path / "s")))
    check_talk(UnixSocketAddress(path=f"qsd-test-{os.getpid()}", abstract=True))


def test_inet() -> None:
    check_talk(InetSocketAddress(host="127.0.0.1", port="0"))


def test_keep_alive() -> None:
    listening = listen(addresses.flat(InetSocketAddress(host="127.0.0.1", port="0")))
    where = listening.address.branch
    assert isinstance(where, InetSocketAddress)
    where.keep_alive = True

    async def main() -> None:
        with await connect(addresses.flat(where)) as sock:
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)

    run(main())
    listening.close()


def test_full_backlog_is_waited_for(tmp_path: Path) -> None:
    listening = listen(addresses.flat(UnixSocketAddress(path=str(tmp_path / "s"))), backlog=0)
    listener = listening.sockets[0]

    async def main() -> None:
        tasks = TaskOwner("test")
        first = await connect(listening.address)
        second = tasks.spawn(connect(listening.address), "second")
        await asyncio.sleep(0)
        assert not second.done()
        accepted, _ = listener.accept()
        with first, accepted, await second:
            pass

    run(main())
    listening.close()


@pytest.mark.parametrize(
    ("part", "text"),
    [
        (UnixSocketAddress(path="missing"), "'missing': No such file or directory"),
        (UnixSocketAddress(path=""), "'': Connection refused"),
        (UnixSocketAddress(path=__file__), f"'{__file__}': Connection refused"),
        (InetSocketAddress(host="127.0.0.1", port="1"), "'127.0.0.1:1': Connection refused"),
    ],
)
def test_errors(part: AddressBody, text: str) -> None:
    with pytest.raises(QmpError) as caught:
        run(connect(addresses.legacy(part)))
    assert caught.value.desc == f"Failed to connect to {text}"


def test_descriptor() -> None:
    ours, theirs = socket.socketpair()

    async def main() -> None:
        with await connect(addresses.flat(String(str=str(ours.detach())))) as sock:
            assert not sock.getblocking()

    run(main())
    theirs.close()
