# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Adding, changing, removing and listing devices."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from qsd.aio.tasks import TaskOwner
from qsd.errors import QmpError
from qsd.qapi.schema.char import ChardevInfo, ChardevReturn
from tests.chardev.support import Desk, Recorder, backend, unix, with_desk


def test_life_cycle() -> None:
    async def main(desk: Desk) -> None:
        registry = desk.registry
        assert await registry.add("n", backend("null")) == ChardevReturn()
        await registry.add("r", backend("ringbuf"))
        assert registry.query() == [
            ChardevInfo(label="n", filename="null", frontend_open=False),
            ChardevInfo(label="r", filename="ringbuf", frontend_open=False),
        ]
        assert [device.label for device in registry] == ["n", "r"]
        registry.attach("n", Recorder())
        assert registry.query()[0].frontend_open
        registry.send_break("n")
        await registry.remove("r")
        assert len(registry) == 1

    with_desk(main)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda r: r.add("n", backend("null")), "Chardev with id 'n' already exists"),
        (
            lambda r: r.add("x", backend("spicevmc", type="vdagent")),
            "Failed to add chardev 'x': 'spicevmc' is not a valid char driver name",
        ),
        (lambda r: r.remove("x"), "Chardev 'x' not found"),
        (lambda r: r.remove("n"), "Chardev 'n' is busy"),
        (lambda r: r.change("x", backend("null")), "Chardev 'x' does not exist"),
        (
            lambda r: r.change("n", backend("null")),
            "Chardev user does not support chardev hotswap",
        ),
        (
            lambda r: r.add_from_command_line("n", backend("null")),
            "attempt to add duplicate property 'n' to object (type 'container')",
        ),
        (
            lambda r: r.add("x", backend("null", logfile="no/x")),
            "Failed to add chardev 'x': Could not create 'no/x': No such file or directory",
        ),
        (
            lambda r: r.change("free", backend("ringbuf", size=3)),
            "Failed to add chardev 'free': size of ringbuf chardev must be power of two",
        ),
    ],
)
def test_errors(call: object, text: str) -> None:
    async def main(desk: Desk) -> None:
        await desk.registry.add("n", backend("null"))
        await desk.registry.add("free", backend("null"))
        desk.registry.attach("n", Recorder())
        with pytest.raises(QmpError) as caught:
            await call(desk.registry)  # type: ignore[operator]
        assert caught.value.desc == text
        assert [info.filename for info in desk.registry.query()] == ["null", "null"]

    with_desk(main)


def test_users() -> None:
    async def main(desk: Desk) -> None:
        await desk.registry.add("n", backend("null"))
        with pytest.raises(QmpError, match='chardev "x" not found'):
            desk.registry.attach("x", Recorder())
        device = desk.registry.attach("n", Recorder())
        with pytest.raises(QmpError, match="Device 'n' is in use"):
            desk.registry.attach("n", Recorder())
        device.detach()
        desk.registry.attach("n", Recorder())
        with pytest.raises(QmpError, match="Chardev 'x' not found"):
            desk.registry.send_break("x")

    with_desk(main)


def test_change(tmp_path: Path) -> None:
    path = tmp_path / "s"

    async def main(desk: Desk) -> None:
        await desk.registry.add("c", backend("socket", addr=unix(path), wait=False))
        await desk.registry.change("c", backend("ringbuf", size=16))
        assert not path.exists()
        assert desk.filename("c") == "ringbuf"

    with_desk(main)


def test_backends() -> None:
    async def main(desk: Desk) -> None:
        names = {info.name for info in desk.registry.query_backends()}
        assert names == {
            "file", "memory", "mux", "null", "parallel", "pipe", "pty", "ringbuf", "serial",
            "socket", "stdio", "udp",
        }  # fmt: skip

    with_desk(main)


def test_tree() -> None:
    async def main(desk: Desk) -> None:
        from qsd.chardev.registry import ChardevRegistry
        from qsd.objects.tree import ObjectTree

        tree = ObjectTree()
        registry = ChardevRegistry(tree)
        await registry.add("n", backend("null"))
        found, _ = tree.find_path("/chardevs/n")
        assert found is not None
        assert found.type_name == "chardev-null"
        with pytest.raises(QmpError, match="No TLS credentials with id 'x'"):
            await registry.add("s", backend("socket", addr=unix("x"), tls_creds="x"))
        await registry.close()
        assert tree.find_path("/chardevs/n")[0] is None

    with_desk(main)


def test_closing_lets_a_slow_reader_finish(tmp_path: Path) -> None:
    """Pending output is delivered to who takes it, and dropped after a moment if nobody does."""
    text = b"x" * (1 << 20)

    async def main(desk: Desk) -> None:
        loop = asyncio.get_running_loop()
        clients = []
        for name in "ab":
            path = tmp_path / name
            await desk.registry.add(name, backend("socket", addr=unix(path), wait=False))
            client = socket.socket(socket.AF_UNIX)
            client.connect(str(path))
            client.setblocking(False)
            clients.append(client)
            user = Recorder()
            device = desk.registry.attach(name, user)
            await user.until_event("opened")
            device.write(text)
        tasks = TaskOwner("test")
        tasks.spawn(desk.registry.close(), "close")
        received = 0
        while data := await loop.sock_recv(clients[0], 1 << 20):
            received += len(data)
        assert received == len(text)
        await tasks.join()
        for client in clients:
            client.close()

    with_desk(main)
