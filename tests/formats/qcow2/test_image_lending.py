# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Clusters whose pages lie in sockets are not used for anything else."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from qsd.aio.loop import run
from qsd.aio.tasks import TaskOwner
from qsd.daemon import StorageDaemon
from qsd.formats.qcow2.driver import Qcow2Driver
from tests.formats.qcow2.support import check, make
from tests.support.tools import need

K64 = 65536
READ, WRITE, FLUSH, TRIM = 0, 1, 3, 4


@pytest.fixture(autouse=True)
def pages_are_lent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without this, reads of a cluster would be copied into the socket."""
    for module in ("nbd_quick", "nbd_views"):
        monkeypatch.setattr(f"qsd.exports.{module}.MAX_VIEW", 0)


class Client:
    """An NBD client that receives when the test says so."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def negotiate(self) -> None:
        await self.reader.readexactly(18)
        self.writer.write(struct.pack(">I", 3) + b"IHAVEOPT" + struct.pack(">II", 1, 1) + b"x")
        await self.reader.readexactly(10)

    def request(self, command: int, offset: int, length: int, data: bytes = b"") -> None:
        self.writer.write(struct.pack(">IHHQQI", 0x25609513, 0, command, 7, offset, length) + data)

    async def reply(self, length: int = 0) -> bytes:
        magic, error, _ = struct.unpack(">IIQ", await self.reader.readexactly(16))
        assert (magic, error) == (0x67446698, 0)
        return await self.reader.readexactly(length)

    async def ask(self, command: int, offset: int, length: int, data: bytes = b"") -> bytes:
        self.request(command, offset, length, data)
        return await self.reply(length if command == READ else 0)


@asynccontextmanager
async def connected(path: Path) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_unix_connection(path, limit=1)
    client = Client(reader, writer)
    await client.negotiate()
    try:
        yield client
    finally:
        writer.close()
        await writer.wait_closed()


@asynccontextmanager
async def served(folder: Path) -> AsyncIterator[tuple[StorageDaemon, Qcow2Driver, Path]]:
    """Serve a qcow2 image of 16 clusters, in each of which stands its number."""
    need("qemu-img")
    image, socket = str(folder / "image"), folder / "nbd.sock"
    make(folder / "image", "1M")
    async with StorageDaemon() as daemon:
        await daemon.qmp(
            "blockdev-add",
            {
                "driver": "qcow2",
                "node-name": "q",
                "discard": "unmap",
                "file": {"driver": "file", "filename": image},
            },
        )
        await daemon.qmp(
            "nbd-server-start", {"addr": {"type": "unix", "data": {"path": str(socket)}}}
        )
        await daemon.qmp(
            "block-export-add",
            {"type": "nbd", "id": "e", "node-name": "q", "name": "x", "writable": True},
        )
        driver = daemon.context.graph.find("q").driver
        assert isinstance(driver, Qcow2Driver)
        async with connected(socket) as writer:
            for index in range(16):
                await writer.ask(WRITE, index * K64, K64, bytes([index + 1]) * K64)
        yield daemon, driver, socket


async def lend(driver: Qcow2Driver, reader: Client, offset: int) -> None:
    """Let a client ask for a cluster and not receive it."""
    reader.reader._transport.pause_reading()  # type: ignore[attr-defined]
    reader.request(READ, offset, K64)
    while not driver.image.loans.are_out():
        await asyncio.sleep(0.001)


def receive(reader: Client) -> None:
    reader.reader._transport.resume_reading()  # type: ignore[attr-defined]


def is_lending(driver: Qcow2Driver) -> bool:
    """Tell whether pages can be sent at all here."""
    return driver.lend_nowait(0, K64) is not None


def test_a_client_gets_what_it_asked_for(tmp_path: Path) -> None:
    """The cluster that it reads is freed, another range wants one, and only then it receives."""

    async def main() -> None:
        async with (
            served(tmp_path) as (_, driver, socket),
            connected(socket) as reader,
            connected(socket) as writer,
        ):
            assert is_lending(driver)
            await lend(driver, reader, 3 * K64)
            place = driver.locate_data_nowait(3 * K64, K64)
            await writer.ask(TRIM, 3 * K64, K64)
            await writer.ask(FLUSH, 0, 0)
            await writer.ask(TRIM, 5 * K64, K64)
            await writer.ask(FLUSH, 0, 0)
            for index in (5, 3):
                await writer.ask(WRITE, index * K64, K64, b"new!" * (K64 // 4))
            assert place not in {driver.locate_data_nowait(index * K64, K64) for index in range(16)}
            assert await driver.image.refcounts.get(place >> 16) == 1
            assert not is_lending(driver)  # so that the loan is returned some time
            receive(reader)
            assert await reader.reply(K64) == bytes([4]) * K64
            await writer.ask(FLUSH, 0, 0)
            assert is_lending(driver)
            assert await driver.image.refcounts.get(place >> 16) == 0

    run(main())
    check(tmp_path / "image")


def test_lending_begins_again_without_a_flush(tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            served(tmp_path) as (_, driver, socket),
            connected(socket) as reader,
            connected(socket) as writer,
        ):
            await lend(driver, reader, 3 * K64)
            await writer.ask(TRIM, 3 * K64, K64)
            await writer.ask(FLUSH, 0, 0)
            assert not is_lending(driver)
            receive(reader)
            await reader.reply(K64)
            while not is_lending(driver):
                await asyncio.sleep(0.001)
            assert not driver.image._lent

    run(main())
    check(tmp_path / "image")


def test_snapshots_wait_for_who_is_receiving(tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            served(tmp_path) as (daemon, driver, socket),
            connected(socket) as reader,
        ):
            await lend(driver, reader, 3 * K64)
            name = {"device": "q", "name": "s"}
            task = TaskOwner("test").spawn(
                daemon.qmp("blockdev-snapshot-internal-sync", name), "snapshot"
            )
            await asyncio.sleep(0.01)
            assert not task.done()
            receive(reader)
            assert await reader.reply(K64) == bytes([4]) * K64
            await task
            assert not driver.image.loans.suspended

    run(main())
    check(tmp_path / "image")


@pytest.mark.parametrize("read_only", [False, True])
def test_reopening_keeps_account(tmp_path: Path, read_only: bool) -> None:
    async def main() -> None:
        async with (
            served(tmp_path) as (daemon, driver, socket),
            connected(socket) as reader,
        ):
            assert is_lending(driver)
            book = driver.image.loans
            await daemon.qmp("block-export-del", {"id": "e", "mode": "hard"})
            del reader
            await daemon.qmp(
                "blockdev-reopen",
                {
                    "options": [
                        {
                            "driver": "qcow2",
                            "node-name": "q",
                            "read-only": read_only,
                            "file": {"driver": "file", "filename": str(tmp_path / "image")},
                        }
                    ]
                },
            )
            assert driver.image.loans is book

    run(main())
