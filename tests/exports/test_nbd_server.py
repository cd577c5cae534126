# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

import asyncio
import os
import socket
import struct
from typing import Any

import pytest

from qsd.aio import loop
from qsd.errors import QmpError
from qsd.exports import nbd_server
from qsd.exports.nbd_server import start_nbd_server, stop_nbd_server
from qsd.exports.nbd_transmission import Transmission
from qsd.qapi.convert import from_json
from qsd.qapi.schema.sockets import SocketAddress
from tests.exports.rig import READ, NbdRig, go_data


def test_one_server_at_a_time() -> None:
    async def main() -> None:
        async with NbdRig() as rig:
            with pytest.raises(QmpError, match=r"^NBD server already running$"):
                await rig.start_server()
            await stop_nbd_server(rig.registry)
            assert not os.path.exists(rig.path)
            with pytest.raises(QmpError, match=r"^NBD server not running$"):
                await stop_nbd_server(rig.registry)
            await rig.start_server()
            await rig.memory("m")
            await rig.export("m")
            await rig.go("m")

    loop.run(main())


def test_stop_ends_clients_and_exports() -> None:
    async def main() -> None:
        async with NbdRig() as rig:
            await rig.memory("m")
            await rig.export("m")
            serving = await rig.go("m")
            greeted = await rig.connect()
            await stop_nbd_server(rig.registry)
            assert await serving.at_end()
            assert await greeted.at_end()
            assert len(rig.registry) == 0
            assert [event.id for event in rig.events.events] == ["exp-m"]

    loop.run(main())


def test_clients_beyond_the_limit_wait() -> None:
    async def main() -> None:
        async with NbdRig(max_connections=2) as rig:
            first, _ = await rig.connect(), await rig.connect()
            third = await rig.connect(None)
            waiting = asyncio.ensure_future(third.get(18))  # noqa: TID251
            for _ in range(20):
                await asyncio.sleep(0)
            assert not waiting.done()
            first.close()
            assert (await waiting)[:8] == b"NBDMAGIC"

    loop.run(main())


@pytest.mark.parametrize(("limit", "flags"), [(None, 0x50F), (0, 0x50F), (1, 0x40F), (2, 0x50F)])
def test_multi_conn_needs_more_than_one_connection(limit: int | None, flags: int) -> None:
    async def main() -> None:
        async with NbdRig(max_connections=limit) as rig:
            await rig.memory("m")
            await rig.export("m")
            client = await rig.connect()
            replies = await client.option(6, go_data("m"))
            assert replies[1] == (3, struct.pack(">HQH", 0, 1 << 20, flags))

    loop.run(main())


def test_no_limit() -> None:
    async def main() -> None:
        async with NbdRig(max_connections=0) as rig:
            for _ in range(120):
                await rig.connect()
            assert len(rig.server._clients) == 120

    loop.run(main())


def test_handshake_has_a_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nbd_server, "HANDSHAKE_LIMIT", 0.02)

    async def main() -> None:
        async with NbdRig() as rig:
            await rig.memory("m")
            await rig.export("m")
            chosen = await rig.go("m")
            idle = await rig.connect()
            assert await idle.at_end()
            assert await chosen.ask(READ, 0, 4) == [bytes(4)]

    loop.run(main())


def test_failed_negotiation_is_reported() -> None:
    async def main() -> None:
        async with NbdRig() as rig:
            client = await rig.connect(0xFFFF)
            assert await client.at_end()
            assert rig.reports == [
                "option negotiation failed: Unknown client flags 0xfffc received"
            ]
            aborting = await rig.connect()
            assert await aborting.option(2) == [(1, b"")]
            assert await aborting.at_end()
            assert len(rig.reports) == 1

    loop.run(main())


@pytest.mark.parametrize("name", ["__init__", "start"])
def test_a_client_that_cannot_be_served_is_dropped(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    async def main() -> None:
        noted: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: noted.append(context))
        async with NbdRig(max_connections=1) as rig:
            await rig.memory("m")
            export = await rig.export("m")
            with monkeypatch.context() as patch:
                patch.setattr(Transmission, name, fail)
                client = await rig.go("m")
                assert await client.at_end()
            assert [type(context["exception"]) for context in noted] == [MemoryError]
            assert not export.clients
            # There is room for one client only.
            assert await (await rig.go("m")).ask(READ, 0, 4) == [bytes(4)]

    loop.run(main())


def test_clients_wait_while_descriptors_are_short(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [False, False, True]
    monkeypatch.setattr(nbd_server, "_RETRY", 0.001)
    monkeypatch.setattr(
        nbd_server, "has_room_for_client", lambda fd: answers.pop(0) if answers else True
    )

    async def main() -> None:
        async with NbdRig() as rig:
            client = await rig.connect(None)
            assert (await client.get(18))[:8] == b"NBDMAGIC"
            assert not answers
            assert rig.reports == ["Failed to accept a connection: Too many open files"]

    loop.run(main())


def test_requests_may_follow_the_choice_at_once() -> None:
    async def main() -> None:
        async with NbdRig() as rig:
            disk = await rig.memory("m")
            disk.data[:4] = b"abcd"
            await rig.export("m")
            client = await rig.connect()
            data = go_data("m")
            client.send(
                b"IHAVEOPT"
                + struct.pack(">II", 7, len(data))
                + data
                + struct.pack(">IHHQQI", 0x25609513, 0, READ, 9, 0, 4)
            )
            assert (await client.option_replies(7))[-1] == (1, b"")
            assert await client.reply(4) == (9, [b"abcd"])

    loop.run(main())


def test_replies_of_the_handshake_wait_for_a_slow_client() -> None:
    async def main() -> None:
        async with NbdRig() as rig:
            await rig.memory("m")
            await rig.export("m", description="d" * 4000)
            client = await rig.connect()
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            client.send((b"IHAVEOPT" + struct.pack(">II", 3, 0)) * 2000)
            for _ in range(200):
                await asyncio.sleep(0)
            [connection] = rig.server._clients
            assert connection._outlet.pending < 200_000
            client.writer.transport.resume_reading()  # type: ignore[attr-defined]
            for _ in range(2000):
                assert len(await client.option_replies(3)) == 2

    loop.run(main())


def test_tls_hook() -> None:
    class Plain:
        async def accept(self, sock: socket.socket) -> Any:
            return sock

    async def main() -> None:
        async with NbdRig() as rig:
            await rig.memory("m")
            await rig.export("m")
            rig.server.tls = Plain()
            client = await rig.connect()
            assert (await client.option(7, go_data("m")))[0][0] == 0x80000005
            assert await client.option(5) == [(1, b"")]
            # Our "TLS" encrypts nothing: the handshake goes on in the same stream.
            assert (await client.option(7, go_data("m")))[-1] == (1, b"")
            assert await client.ask(READ, 0, 2) == [b"\0\0"]

    loop.run(main())


def test_a_refused_client_sees_the_end_and_no_reset() -> None:
    """Also when it has sent more than anybody has looked at."""

    async def main() -> None:
        sent = asyncio.Event()

        class Refusing:
            async def accept(self, sock: socket.socket) -> Any:
                await sent.wait()
                raise QmpError("no")

        async with NbdRig() as rig:
            rig.server.tls = Refusing()
            client = await rig.connect()
            assert await client.option(5) == [(1, b"")]
            client.send(bytes(100_000))
            await client.writer.drain()
            sent.set()
            assert await client.reader.read(1) == b""
            client.send(bytes(100_000))  # as who has not noticed
            await client.writer.drain()
            server = rig.server
            assert len(server.lingering) == 1
        assert not server.lingering

    loop.run(main())


def test_tls_that_fails() -> None:
    class Refusing:
        async def accept(self, sock: socket.socket) -> Any:
            raise QmpError("TLS x509 authz check for CN=x is denied")

    async def main() -> None:
        async with NbdRig() as rig:
            rig.server.tls = Refusing()
            client = await rig.connect()
            assert await client.option(5) == [(1, b"")]
            assert await client.at_end()
            assert rig.reports == [
                "option negotiation failed: TLS x509 authz check for CN=x is denied"
            ]

    loop.run(main())


@pytest.mark.parametrize(
    ("creds", "text"),
    [("nope", "No TLS credentials with id 'nope'")],
)
def test_credentials_are_looked_up(creds: str, text: str) -> None:
    async def main() -> None:
        async with NbdRig() as rig:
            await stop_nbd_server(rig.registry)
            address = from_json(SocketAddress, {"type": "unix", "path": rig.path})
            with pytest.raises(QmpError) as caught:
                await start_nbd_server(rig.registry, address, tls_creds=creds)
            assert caught.value.desc == text
            assert not os.path.exists(rig.path)

    loop.run(main())


def test_tcp() -> None:
    async def main() -> None:
        async with NbdRig() as rig:
            await stop_nbd_server(rig.registry)
            address = from_json(SocketAddress, {"type": "inet", "host": "127.0.0.1", "port": "0"})
            await start_nbd_server(rig.registry, address)
            [listener] = rig.server._listening.sockets
            reader, writer = await asyncio.open_connection(*listener.getsockname())
            assert (await reader.readexactly(18))[:8] == b"NBDMAGIC"
            writer.close()

    loop.run(main())
