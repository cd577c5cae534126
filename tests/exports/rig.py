# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""An NBD server over memory nodes, and a client that speaks raw NBD to it."""

from __future__ import annotations

import asyncio
import os
import struct
import tempfile
from typing import Any, Self

from qsd.exports.base import ExportRegistry
from qsd.exports.nbd import NbdExport
from qsd.exports.nbd_server import NbdServer, start_nbd_server
from qsd.objects.tree import ObjectTree
from qsd.qapi.convert import from_json
from qsd.qapi.schema.block_export import BlockExportOptions
from qsd.qapi.schema.sockets import SocketAddress
from tests.support.memory import Rig

READ, WRITE, DISC, FLUSH, TRIM, CACHE, ZEROES, STATUS = range(8)
FUA, NO_HOLE, DF, REQ_ONE, FAST = 1, 2, 4, 8, 16


class NbdRig(Rig):
    """A graph, an export registry and a running NBD server on a unix socket."""

    def __init__(self, *, max_connections: int | None = None, **drivers: Any) -> None:
        super().__init__(**drivers)
        self.reports: list[str] = []
        self.registry = ExportRegistry(
            self.graph,
            ObjectTree(),
            self.events,
            self.tasks,
            lambda name: NbdExport if name == "nbd" else None,
            report=self.reports.append,
        )
        self._dir = tempfile.TemporaryDirectory(prefix="qsd-nbd-")
        self.path = os.path.join(self._dir.name, "nbd.sock")
        self.max_connections = max_connections
        self.clients: list[Client] = []

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        await self.start_server()
        return self

    async def start_server(self) -> None:
        address = from_json(SocketAddress, {"type": "unix", "path": self.path})
        await start_nbd_server(
            self.registry, address, max_connections=self.max_connections, by_monitor=True
        )

    @property
    def server(self) -> NbdServer:
        server = self.registry.servers["nbd"]
        assert isinstance(server, NbdServer)
        return server

    async def __aexit__(self, exc_type: object, *rest: object) -> None:
        for client in self.clients:
            client.close()
        await self.registry.close()
        await super().__aexit__(exc_type, *rest)
        self._dir.cleanup()
        if exc_type is None:
            assert not self.errors, self.errors

    async def export(self, node: str, **more: Any) -> NbdExport:
        options = {"type": "nbd", "id": f"exp-{more.get('name', node)}", "node-name": node}
        options.update({key.replace("_", "-"): value for key, value in more.items()})
        export = await self.registry.add(from_json(BlockExportOptions, options))
        assert isinstance(export, NbdExport)
        return export

    async def connect(self, flags: int | None = 3) -> Client:
        reader, writer = await asyncio.open_unix_connection(self.path)
        client = Client(reader, writer)
        self.clients.append(client)
        if flags is not None:
            assert await client.get(18) == b"NBDMAGICIHAVEOPT\0\3"
            client.send(struct.pack(">I", flags))
        return client

    async def go(self, name: str, *, structured: bool = False, contexts: Any = ()) -> Client:
        """Connect and choose an export."""
        client = await self.connect()
        if structured:
            assert await client.option(8) == [(1, b"")]
            client.structured = True
        if contexts:
            assert (await client.meta(name, contexts))[-1] == (1, b"")
        assert (await client.option(7, go_data(name)))[-1] == (1, b"")
        return client


def go_data(name: str, *infos: int) -> bytes:
    data = name.encode()
    return struct.pack(">I", len(data)) + data + struct.pack(f">H{len(infos)}H", len(infos), *infos)


def meta_data(name: str, queries: Any) -> bytes:
    data = name.encode()
    return (
        struct.pack(">I", len(data))
        + data
        + struct.pack(">I", len(queries))
        + b"".join(struct.pack(">I", len(query)) + query.encode() for query in queries)
    )


class Client:
    """A raw NBD client."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.structured = False
        self.cookie = 0

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def get(self, length: int) -> bytes:
        return await self.reader.readexactly(length)

    async def at_end(self) -> bool:
        """Wait for the end of the stream; whether nothing came before it."""
        try:
            return await self.reader.read(1) == b""
        except ConnectionResetError:
            return True

    def close(self) -> None:
        self.writer.close()

    async def option(self, option: int, data: bytes = b"") -> list[tuple[int, bytes]]:
        self.send(b"IHAVEOPT" + struct.pack(">II", option, len(data)) + data)
        return await self.option_replies(option)

    async def option_replies(self, option: int) -> list[tuple[int, bytes]]:
        replies = []
        while True:
            magic, answered, kind, length = struct.unpack(">QIII", await self.get(20))
            assert (magic, answered) == (0x3E889045565A9, option)
            replies.append((kind, await self.get(length)))
            if kind == 1 or kind >> 31:
                return replies

    async def meta(self, name: str, queries: Any, option: int = 10) -> list[tuple[int, bytes]]:
        return await self.option(option, meta_data(name, queries))

    def request(
        self, command: int, offset: int = 0, length: int = 0, flags: int = 0, data: bytes = b""
    ) -> int:
        self.cookie += 1
        self.send(
            struct.pack(">IHHQQI", 0x25609513, flags, command, self.cookie, offset, length) + data
        )
        return self.cookie

    async def reply(self, length: int = 0) -> tuple[int, list[Any]]:
        """Return (cookie, chunks); `length` is a simple reply's payload."""
        chunks: list[Any] = []
        while True:
            (magic,) = struct.unpack(">I", await self.get(4))
            if magic == 0x67446698:
                error, cookie = struct.unpack(">IQ", await self.get(12))
                if error:
                    return cookie, ["error", error]
                return cookie, [await self.get(length)] if length else ["ok"]
            assert magic == 0x668E33EF
            flags, kind, cookie, size = struct.unpack(">HHQI", await self.get(16))
            data = await self.get(size)
            if kind == 1:
                chunks.append(("data", struct.unpack(">Q", data[:8])[0], data[8:]))
            elif kind == 2:
                chunks.append(("hole", *struct.unpack(">QI", data)))
            elif kind == 5:
                words = struct.unpack(f">{size // 4}I", data)
                chunks.append(
                    ("status", words[0], list(zip(words[1::2], words[2::2], strict=True)))
                )
            elif kind == 0:
                chunks.append(("none",))
            else:
                code, text = struct.unpack(">IH", data[:6])
                assert len(data) == 6 + text
                chunks.append(("error", code, data[6:].decode()))
            if flags & 1:
                return cookie, chunks

    async def ask(
        self, command: int, offset: int = 0, length: int = 0, flags: int = 0, data: bytes = b""
    ) -> list[Any]:
        """Send a request and return what its reply holds."""
        sent = self.request(command, offset, length, flags, data)
        cookie, chunks = await self.reply(length if command == READ else 0)
        assert cookie == sent
        return chunks
