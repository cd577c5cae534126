# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Socket devices: servers, clients, names, reconnecting."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from qsd.aio.tasks import TaskOwner
from qsd.errors import QmpError
from tests.chardev.support import Desk, Recorder, backend, inet, unix, until, with_desk


def connected(path: object) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(path))
    client.setblocking(False)
    return client


async def receive(sock: socket.socket, size: int) -> bytes:
    data = b""
    loop = asyncio.get_running_loop()
    while len(data) < size:
        chunk = await asyncio.wait_for(loop.sock_recv(sock, size - len(data)), 5)
        assert chunk, "closed"
        data += chunk
    return data


def test_server_serves_one_client_after_the_other(tmp_path: Path) -> None:
    path = tmp_path / "s"

    async def main(desk: Desk) -> None:
        await desk.registry.add("c", backend("socket", addr=unix(path), wait=False))
        assert desk.filename("c") == f"disconnected:unix:{path},server=on"
        user = Recorder()
        device = desk.registry.attach("c", user)
        first = connected(path)
        first.send(b"hello")
        await user.until_data(b"hello")
        assert desk.filename("c") == f"unix:{path},server=on"
        device.write(b"answer")
        assert await receive(first, 6) == b"answer"
        second = connected(path)
        second.send(b" again")
        first.close()
        await user.until_data(b"hello again")
        assert user.events == ["opened", "closed", "opened"]
        second.close()
        await user.until_event("closed", 2)
        device.write(b"to nobody")

    with_desk(main)
    assert not path.exists()


def test_client_that_leaves_is_noticed_without_a_user(tmp_path: Path) -> None:
    path = tmp_path / "s"

    async def main(desk: Desk) -> None:
        await desk.registry.add("c", backend("socket", addr=unix(path), wait=False))
        device = desk.registry.find("c")
        assert device is not None
        client = connected(path)
        await until(lambda: device.is_open)
        client.close()
        await until(lambda: not device.is_open)
        talker = connected(path)
        talker.send(b"kept")
        await until(lambda: device.is_open)
        user = Recorder()
        device.attach(user)
        await user.until_data(b"kept")
        talker.close()

    with_desk(main)


def test_wait_blocks_until_a_client_comes(tmp_path: Path) -> None:
    path = tmp_path / "s"

    async def main(desk: Desk) -> None:
        tasks = TaskOwner("test")
        tasks.spawn(desk.option(f"socket,id=c,path={path},server=on"), "open")
        await until(lambda: desk.reports)
        assert desk.reports == [
            f"info: QEMU waiting for connection on: disconnected:unix:{path},server=on"
        ]
        assert desk.registry.find("c") is None
        client = connected(path)
        await tasks.join()
        device = desk.registry.find("c")
        assert device is not None
        assert device.is_open
        client.close()

    with_desk(main)


def test_output_waits_for_a_slow_reader(tmp_path: Path) -> None:
    path = tmp_path / "s"
    text = os.urandom(1 << 20)

    async def main(desk: Desk) -> None:
        await desk.registry.add("c", backend("socket", addr=unix(path), wait=False))
        user = Recorder()
        device = desk.registry.attach("c", user)
        client = connected(path)
        await user.until_event("opened")
        device.write(text)
        assert 0 < device.pending < len(text)
        assert await receive(client, len(text)) == text
        await user.until_event("drained")
        assert device.pending == 0
        client.close()

    with_desk(main)


def test_client(tmp_path: Path) -> None:
    path = tmp_path / "s"

    async def main(desk: Desk) -> None:
        await desk.registry.add("s", backend("socket", addr=unix(path), wait=False))
        await desk.registry.add("c", backend("socket", addr=unix(path), server=False))
        assert desk.filename("c") == "unix:"
        near, far = Recorder(), Recorder()
        device = desk.registry.attach("c", near)
        desk.registry.attach("s", far)
        device.write(b"x")
        await far.until_data(b"x")
        assert near.events == ["opened"]

    with_desk(main)


def test_tcp_names() -> None:
    async def main(desk: Desk) -> None:
        await desk.registry.add("s", backend("socket", addr=inet("127.0.0.1", "0"), wait=False))
        name = desk.filename("s")
        port = name.removesuffix(",server=on").rpartition(":")[2]
        assert name == f"disconnected:tcp:127.0.0.1:{port},server=on"
        await desk.registry.add(
            "c", backend("socket", addr=inet("127.0.0.1", port), server=False, nodelay=True)
        )
        user = Recorder()
        desk.registry.attach("s", user)
        await user.until_event("opened")
        ours = desk.filename("c")
        assert ours.startswith("tcp:127.0.0.1:")
        assert ours.endswith(f" <-> 127.0.0.1:{port}")
        theirs = ours.removeprefix("tcp:").partition(" ")[0]
        assert desk.filename("s") == f"tcp:127.0.0.1:{port},server=on <-> {theirs}"

    with_desk(main)


@pytest.mark.parametrize(
    ("address", "data", "name"),
    [
        (unix("qsd-t1", abstract=True), {}, "unix:qsd-t1,abstract=on,tight=on,server=on"),
        (unix("qsd-t2", abstract=True, tight=False), {}, "unix:qsd-t2,abstract=on,server=on"),
        (inet("127.0.0.1", "0"), {"telnet": True}, "telnet:127.0.0.1:0,server=on"),
        (inet("127.0.0.1", "0"), {"websocket": True}, "websocket:127.0.0.1:0,server=on"),
        (inet("127.0.0.1", "0"), {"tn3270": True}, "tcp:127.0.0.1:0,server=on"),
        (unix("no/such"), {"server": False, "reconnect": 60}, "unix:no/such"),
    ],
)
def test_names_of_unconnected_devices(
    address: dict[str, Any], data: dict[str, Any], name: str
) -> None:
    async def main(desk: Desk) -> None:
        if data.get("server") is not False:
            data["wait"] = False
        await desk.registry.add("c", backend("socket", addr=address, **data))
        found = desk.filename("c")
        if address["type"] == "inet":
            port = found.removesuffix(",server=on").rpartition(":")[2]
            found = found.replace(port, "0")
        assert found == f"disconnected:{name}"

    with_desk(main)


def test_inherited_sockets() -> None:
    async def main(desk: Desk) -> None:
        ours, theirs = socket.socketpair()
        await desk.option(f"socket,id=c,fd={ours.detach()}")
        assert desk.filename("c") == "unix:"
        user = Recorder()
        desk.registry.attach("c", user)
        theirs.send(b"x")
        await user.until_data(b"x")
        theirs.close()
        await user.until_event("closed")

    with_desk(main)


def test_reconnect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "later"
    monkeypatch.setattr(
        "qsd.chardev.socket.SocketChardev._reconnect_pause", property(lambda self: 0.005)
    )

    async def main(desk: Desk) -> None:
        await desk.registry.add("c", backend("socket", addr=unix(path), server=False, reconnect=1))
        user = Recorder()
        desk.registry.attach("c", user)
        await until(lambda: desk.reports)
        await desk.registry.add("s", backend("socket", addr=unix(path), wait=False))
        await user.until_event("opened")
        await desk.registry.remove("s")
        await user.until_event("closed")
        await desk.registry.add("s", backend("socket", addr=unix(path), wait=False))
        await user.until_event("opened", 2)
        assert desk.reports[0] == (
            f"Unable to connect character device c: Failed to connect to '{path}': "
            "No such file or directory"
        )

    with_desk(main)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({"tls_authz": "x"}, "'tls_authz' option requires 'tls_creds' option"),
        ({"tls_creds": "x", "reconnect": 1}, "No TLS credentials with id 'x'"),
        (
            {"server": False, "websocket": True, "wait": False},
            "Websocket client is not implemented",
        ),
        (
            {"reconnect": 0},
            "'reconnect' option is incompatible with socket in server listen mode",
        ),
        (
            {"server": False, "wait": True, "reconnect": 1},
            "'wait' option is incompatible with socket in client connect mode",
        ),
        ({"server": False}, "Failed to connect to 'no/x': No such file or directory"),
        ({}, "Failed to bind socket to no/x: No such file or directory"),
        (
            {"addr": {"type": "fd", "data": {"str": "9"}}},
            "only QEMU supports file descriptor passing",
        ),
    ],
)
def test_errors(data: dict[str, Any], text: str) -> None:
    async def main(desk: Desk) -> None:
        with pytest.raises(QmpError) as caught:
            await desk.registry.add("c", backend("socket", **{"addr": unix("no/x"), **data}))
        assert caught.value.desc == f"Failed to add chardev 'c': {text}"

    with_desk(main)


def test_a_client_that_is_turned_away_sees_the_end_and_no_reset() -> None:
    """It talks on, and a kernel answers that with a reset once the socket is closed."""

    async def main(desk: Desk) -> None:
        address = inet("127.0.0.1", "0")
        await desk.registry.add("c", backend("socket", addr=address, wait=False, websocket=True))
        port = int(desk.filename("c").split(",")[0].rpartition(":")[2])
        loop = asyncio.get_running_loop()
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.setblocking(False)
            await loop.sock_sendall(client, b"no websocket\r\n\r\n")
            assert (await receive(client, 8)) == b"HTTP/1.1"
            for _ in range(3):
                await loop.sock_sendall(client, b"more")
                await asyncio.sleep(0)
            async with asyncio.timeout(5):
                while await loop.sock_recv(client, 4096):
                    pass
            # Meanwhile the device is there for others.
            with socket.create_connection(("127.0.0.1", port)) as other:
                other.setblocking(False)
                await loop.sock_sendall(other, b"no websocket\r\n\r\n")
                assert (await receive(other, 8)) == b"HTTP/1.1"
            # One that still waits does not outlive the device.
            await desk.registry.remove("c")

    with_desk(main)
