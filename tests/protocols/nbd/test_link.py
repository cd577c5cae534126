# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Connecting, and connecting again."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from qsd.aio.loop import run
from qsd.aio.tasks import TaskOwner
from qsd.errors import QmpError
from qsd.protocols.nbd.link import Link
from qsd.qapi.convert import from_json
from qsd.qapi.schema.block_protocols import BlockdevOptionsNbd
from qsd.wire.nbd import messages as nbd
from tests.exports.rig import NbdRig


def options(path: str, **more: object) -> BlockdevOptionsNbd:
    return from_json(
        BlockdevOptionsNbd, {"server": {"type": "unix", "path": path}, "export": "s", **more}
    )


class Linked:
    """A server and a way to its export.

    Attributes:
        link: The way, open.
        tasks: Owner of the link's tasks.
    """

    link: Link
    tasks: TaskOwner

    async def lose(self) -> None:
        """Lose the connection; requests are not kept waiting."""
        assert self.link.connection is not None
        self.link.connection.fail()
        with pytest.raises(OSError) as caught:
            await self.link.usable()
        assert caught.value.errno == errno.EIO


def case(
    test: Callable[[Linked], Awaitable[None]],
    server: Callable[[NbdRig], Awaitable[BlockdevOptionsNbd]] | None = None,
) -> None:
    async def main() -> None:
        async with NbdRig() as rig:
            await rig.memory("s")
            await rig.export("s", name="s")
            linked = Linked()
            linked.tasks = TaskOwner("t")
            given = await server(rig) if server is not None else options(rig.path)
            linked.link = Link(given, linked.tasks, None, by_monitor=False)
            await linked.link.open()
            await test(linked)
            await linked.link.close()
            await linked.tasks.close()
            assert linked.link.connection is None

    run(main())


def test_open_timeout_waits_for_the_server() -> None:
    async def main() -> None:
        async with NbdRig() as rig:
            await rig.memory("s")
            await rig.server.stop()
            rig.registry.servers.clear()
            tasks = TaskOwner("t")
            link = Link(options(rig.path, **{"open-timeout": 30}), tasks, None)
            opening = tasks.spawn(link.open(), "open")
            await asyncio.sleep(0)
            await rig.start_server()
            await rig.export("s", name="s")
            await opening
            assert link.agreement.size == 1 << 20
            await link.close()
            await tasks.close()

    run(main())


def test_open_timeout_ends_with_a_silent_server(tmp_path: Path) -> None:
    async def main() -> None:
        path = str(tmp_path / "silent.sock")
        with socket.socket(socket.AF_UNIX) as silent:
            silent.bind(path)
            silent.listen()
            link = Link(options(path, **{"open-timeout": 1}), TaskOwner("t"), None)
            with pytest.raises(QmpError, match=r"^Connection attempt cancelled by timeout$"):
                await link._insist(0.01)

    run(main())


def descriptor(path: str) -> BlockdevOptionsNbd:
    """Return options that name a connected socket."""
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(path)
    server = {"type": "fd", "str": str(sock.detach())}
    return from_json(BlockdevOptionsNbd, {"server": server, "export": "s", "reconnect-delay": 30})


def test_a_descriptor_is_used_once() -> None:
    """After that its number may be that of something else."""

    async def given(rig: NbdRig) -> BlockdevOptionsNbd:
        return descriptor(rig.path)

    async def body(linked: Linked) -> None:
        refused = Link(linked.link._options, linked.tasks, None)
        with pytest.raises(QmpError, match="only QEMU supports file descriptor passing"):
            await refused.open()
        await linked.lose()
        assert linked.link._connector is None

    case(body, given)


def test_a_request_brings_the_next_attempt_forward() -> None:
    async def body(linked: Linked) -> None:
        resting = linked.tasks.spawn(linked.link._rest(1000), "rest")
        await linked.lose()
        await resting

    case(body)


GREETING = nbd.GREETING.pack(nbd.NBDMAGIC, nbd.IHAVEOPT, 3)
STRUCTURED = nbd.option_reply(nbd.OPT_STRUCTURED_REPLY, nbd.REP_ACK)
CONTEXT = nbd.option_reply(nbd.OPT_SET_META_CONTEXT, nbd.REP_ACK)
NO_EXPORT = nbd.option_reply(nbd.OPT_GO, nbd.REP_ACK)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (b"", "Failed to read initial magic: Unexpected end-of-file before all data were read"),
        (GREETING[:10], "Failed to read server magic: Unexpected end-of-file"),
        (b"HTTP/1.1 400 Bad Request", "Bad initial magic received: 0x485454502f312e31"),
        (GREETING, "Failed to read option reply: Unexpected end-of-file"),
        (GREETING + b"\xff" * 100, "Unexpected option reply magic"),
        (GREETING + STRUCTURED, "Failed to read option reply: Unexpected end-of-file"),
        (
            GREETING + STRUCTURED + STRUCTURED,
            "Unexpected option type 8 (structured reply), expected",
        ),
        (GREETING + STRUCTURED + CONTEXT + NO_EXPORT, "broken server omitted NBD_INFO_EXPORT"),
        (
            GREETING + nbd.option_reply(nbd.OPT_STRUCTURED_REPLY, nbd.REP_ERR_TLS_REQD, b"no"),
            "Failed to read option reply: Unexpected end-of-file",
        ),
    ],
)
def test_hostile_servers(tmp_path: Path, said: bytes, message: str) -> None:
    """A server may say and leave out what it likes: an error, and nothing is left open."""

    async def main() -> None:
        path = str(tmp_path / "hostile.sock")

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(said)
            writer.write_eof()
            await reader.read()
            writer.close()
            await writer.wait_closed()

        server = await asyncio.start_unix_server(serve, path)
        link = Link(options(path), TaskOwner("t"), None)
        with pytest.raises(QmpError) as caught:
            await link.open()
        assert caught.value.desc.startswith(message)
        server.close()
        await server.wait_closed()

    run(main())


def test_no_server() -> None:
    async def main() -> None:
        link = Link(options("/nonexistent/socket"), TaskOwner("t"), None)
        with pytest.raises(QmpError, match="No such file or directory"):
            await link.open()

    run(main())


def test_another_export_is_not_the_same() -> None:
    async def body(linked: Linked) -> None:
        link = linked.link
        same = link.agreement
        assert link._is_same(same)
        assert not link._is_same(same._replace(size=same.size + 512))
        assert not link._is_same(same._replace(flags=1))
        assert not link._is_same(same._replace(context_id=None))
        await linked.lose()

    case(body)
