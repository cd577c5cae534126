# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Block status: what is told, the fast ways against the plain one."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qsd.aio import loop
from qsd.block.drain import Drained
from qsd.block.mapping import ST_ALLOCATED, ST_DATA, ST_ZERO, Status
from qsd.block.runs import Runs
from qsd.catalog import find_driver
from qsd.exports.nbd_known import KnownData
from qsd.exports.nbd_status import StatusRequests
from qsd.wire.nbd import messages as nbd
from qsd.wire.nbd.server import Session
from tests.exports.rig import READ, REQ_ONE, STATUS, ZEROES, NbdRig
from tests.formats.qcow2.support import make
from tests.formats.qcow2.support import run as tool
from tests.support.tools import need

BASE, DEPTH = "base:allocation", "qemu:allocation-depth"
UNIT = 65536


def test_block_status() -> None:
    async def main() -> None:
        async with NbdRig() as rig:
            disk = await rig.memory("m", size=65536)
            disk.data[:8192] = b"x" * 8192
            disk.data[16384:20480] = b"y" * 4096
            await rig.export("m", allocation_depth=True)
            client = await rig.go("m", structured=True, contexts=[BASE, DEPTH])
            assert await client.ask(STATUS, 0, 65536) == [
                ("status", 0, [(8192, 0), (8192, 3), (4096, 0), (45056, 3)]),
                ("status", 1, [(65536, 1)]),
            ]
            assert await client.ask(STATUS, 0, 65536, REQ_ONE) == [
                ("status", 0, [(8192, 0)]),
                ("status", 1, [(65536, 1)]),
            ]
            assert await client.ask(STATUS, 8000, 400) == [
                ("status", 0, [(192, 0), (208, 3)]),
                ("status", 1, [(400, 1)]),
            ]
            only = await rig.go("m", structured=True, contexts=[DEPTH])
            assert await only.ask(STATUS, 8000, 400) == [("status", 1, [(400, 1)])]

    loop.run(main())


def test_states_of_base_allocation() -> None:
    async def main() -> None:
        async with NbdRig() as rig:
            disk = await rig.memory("m", size=4096)
            await rig.export("m")
            client = await rig.go("m", structured=True, contexts=[BASE])
            for flags, state in [
                (ST_DATA | ST_ALLOCATED, 0),
                (ST_ALLOCATED, 1),
                (ST_DATA | ST_ZERO | ST_ALLOCATED, 2),
                (ST_ZERO | ST_ALLOCATED, 3),
            ]:

                async def status(
                    offset: int, length: int, want_zero: bool, flags: int = flags
                ) -> Status:
                    return Status(length, flags)

                disk.block_status = status  # type: ignore[method-assign]
                assert await client.ask(STATUS, 0, 4096) == [("status", 0, [(4096, state)])]

            async def fail(offset: int, length: int, want_zero: bool) -> Status:
                raise OSError(errno.EIO, "Input/output error")

            disk.block_status = fail  # type: ignore[method-assign]
            assert await client.ask(STATUS, 0, 4096) == [("error", 5, "can't get block status")]
            assert await client.ask(READ, 0, 4096) == [
                ("error", 5, "unable to check for holes: Input/output error")
            ]

    loop.run(main())


def test_one_extent_is_told_at_once() -> None:
    async def main() -> None:
        async with NbdRig() as rig:
            disk = await rig.memory("m", size=65536)
            disk.data[8192:16384] = b"x" * 8192
            await rig.export("m")
            client = await rig.go("m", structured=True, contexts=[BASE])
            asked = [(offset, 65536 - offset) for offset in (0, 512, 8192, 12288, 16384, 65024)]
            plain = [await client.ask(STATUS, *where, REQ_ONE) for where in asked]

            def runs(offset: int, length: int, limit: int) -> Runs:
                found, end = Runs(), offset + length
                for start, stop, flags in (
                    (0, 8192, ST_ZERO), (8192, 16384, ST_DATA), (16384, 65536, ST_ZERO)
                ):  # fmt: skip
                    if (size := min(stop, end) - max(start, offset)) > 0:
                        found.add(size, flags)
                found.cut(limit)
                return found

            async def fail(offset: int, length: int, want_zero: bool) -> Status:
                raise AssertionError("the plain way")

            disk.runs_nowait = runs  # type: ignore[method-assign]
            whole, disk.block_status = disk.block_status, fail  # type: ignore[method-assign]
            assert [await client.ask(STATUS, *where, REQ_ONE) for where in asked] == plain

            # One extent that does not fill the request is not known to its end.
            disk.runs_nowait = lambda offset, length, limit: runs(offset, 512, 9)  # type: ignore[method-assign]
            disk.block_status = whole  # type: ignore[method-assign]
            assert [await client.ask(STATUS, *where, REQ_ONE) for where in asked] == plain

    loop.run(main())


def write_pieces(path: Path, pieces: list[bool]) -> int:
    """Make a file of data and holes; return its length."""
    with path.open("wb") as file:
        for index, is_data in enumerate(pieces):
            if is_data:
                os.pwrite(file.fileno(), b"x" * UNIT, index * UNIT)
        file.truncate(len(pieces) * UNIT)
    return len(pieces) * UNIT


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.booleans(), min_size=1, max_size=12), st.data())
def test_one_extent_of_a_file_like_the_plain_way(
    tmp_path: Path, pieces: list[bool], data: st.DataObject
) -> None:
    size = write_pieces(tmp_path / "f.raw", pieces)

    async def main() -> None:
        async with NbdRig() as rig:
            rig.graph.find_driver = find_driver
            path = str(tmp_path / "f.raw")
            await rig.add(driver="file", node_name="f", filename=path)
            await rig.add(driver="raw", node_name="r", file="f")
            await rig.export("r", allocation_depth=True)
            fast = await rig.go("r", structured=True, contexts=[BASE])
            plain = await rig.go("r", structured=True, contexts=[BASE, DEPTH])
            for _ in range(6):
                start = data.draw(st.integers(0, size // 512 - 1)) * 512
                length = data.draw(st.integers(1, (size - start) // 512)) * 512
                told = await fast.ask(STATUS, start, length, REQ_ONE)
                assert told == (await plain.ask(STATUS, start, length, REQ_ONE))[:1]

    loop.run(main())


def test_questions_and_reads_of_one_batch(tmp_path: Path) -> None:
    """As `qemu-img convert` sends them."""
    write_pieces(tmp_path / "f.raw", [True, False] * 8)

    async def main() -> None:
        async with NbdRig() as rig:
            rig.graph.find_driver = find_driver
            path = str(tmp_path / "f.raw")
            await rig.add(driver="file", node_name="f", filename=path)
            await rig.add(driver="raw", node_name="r", file="f")
            await rig.export("r")
            client = await rig.go("r", structured=True, contexts=[BASE])
            assert await client.ask(STATUS, 0, 16 * UNIT, REQ_ONE) == [("status", 0, [(UNIT, 0)])]
            expected: dict[int, list[Any]] = {}
            for index in range(0, 16, 2):
                cookie = client.request(READ, index * UNIT, UNIT)
                expected[cookie] = [("data", index * UNIT, b"x" * UNIT)]
                hole = (index + 1) * UNIT
                cookie = client.request(STATUS, hole, 16 * UNIT - hole, REQ_ONE)
                expected[cookie] = [("status", 0, [(UNIT, 3)])]
                cookie = client.request(STATUS, index * UNIT, UNIT, REQ_ONE)
                expected[cookie] = [("status", 0, [(UNIT, 0)])]
            replies = dict([await client.reply(UNIT) for _ in expected])
            assert replies == expected

    loop.run(main())


def test_what_was_told_is_read_without_another_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pieces(tmp_path / "f.raw", [True, False] * 8)

    async def main() -> None:
        async with NbdRig() as rig:
            rig.graph.find_driver = find_driver
            path = str(tmp_path / "f.raw")
            node = await rig.add(driver="file", node_name="f", filename=path)
            await rig.add(driver="raw", node_name="r", file="f")
            await rig.export("r", writable=True)
            client = await rig.go("r", structured=True, contexts=[BASE])
            place = (2 * UNIT, UNIT)
            data = [("data", 2 * UNIT, b"x" * UNIT)]
            assert await client.ask(STATUS, *place, REQ_ONE) == [("status", 0, [(UNIT, 0)])]

            async def fail(offset: int, length: int, want_zero: bool) -> Status:
                raise OSError(errno.EIO, "Input/output error")

            with monkeypatch.context() as patched:
                patched.setattr(type(node.driver), "block_status", fail)
                assert await client.ask(READ, *place) == data
            # A hole that came into being since then is told of.
            assert await client.ask(ZEROES, *place) == ["ok"]
            assert await client.ask(READ, *place) == [("hole", 2 * UNIT, UNIT)]
            assert await client.ask(STATUS, *place, REQ_ONE) == [("status", 0, [(UNIT, 3)])]

    loop.run(main())


def test_a_drained_node_is_not_asked(tmp_path: Path) -> None:
    write_pieces(tmp_path / "f.raw", [True, False])

    async def main() -> None:
        async with NbdRig() as rig:
            rig.graph.find_driver = find_driver
            path = str(tmp_path / "f.raw")
            node = await rig.add(driver="file", node_name="f", filename=path)
            export = await rig.export("f")
            client = await rig.go("f", structured=True, contexts=[BASE])
            expected = [("status", 0, [(UNIT, 0)])]
            assert await client.ask(STATUS, 0, 2 * UNIT, REQ_ONE) == expected
            async with Drained([node]):
                client.request(STATUS, 0, 2 * UNIT, REQ_ONE)
                session = Session(2 * UNIT, read_only=True, structured=True, contexts=(0,))
                known = KnownData(2 * UNIT)
                status = StatusRequests(export.backend, session, (), known, None)  # type: ignore[arg-type]
                asked = nbd.REQUEST.pack(
                    nbd.REQUEST_MAGIC, nbd.CMD_FLAG_REQ_ONE, nbd.CMD_BLOCK_STATUS, 1, 0, UNIT
                )
                assert status.reply_nowait(bytearray(asked), 0) == b""
            assert await client.reply() == (client.cookie, expected)

    loop.run(main())


def test_depths_of_a_chain(tmp_path: Path) -> None:
    need("qemu-img", "qemu-io")
    below = make(tmp_path / "below.qcow2", "1M")
    tool("qemu-io", "-f", "qcow2", "-c", "write 128k 256k", "-c", "write -z 512k 64k", below)
    top = tmp_path / "top.qcow2"
    tool("qemu-img", "create", "-q", "-f", "qcow2", "-b", below, "-F", "qcow2", top, "2M")
    tool("qemu-io", "-f", "qcow2", "-c", "write 0 64k", "-c", "write -z 192k 64k", top)
    kib = 1024
    expected = [
        (64 * kib, 1), (64 * kib, 0), (64 * kib, 2), (64 * kib, 1), (128 * kib, 2),
        (128 * kib, 0), (64 * kib, 2), (448 * kib, 0), (1024 * kib, 2),
    ]  # fmt: skip

    async def main() -> None:
        async with NbdRig() as rig:
            rig.graph.find_driver = find_driver
            await rig.add(
                driver="qcow2", node_name="q", file={"driver": "file", "filename": str(top)}
            )
            await rig.export("q", allocation_depth=True)
            client = await rig.go("q", structured=True, contexts=[DEPTH])
            for _ in range(2):  # the second time, all tables are in memory
                assert await client.ask(STATUS, 0, 2 << 20) == [("status", 1, expected)]
                assert await client.ask(STATUS, 300 * kib, 1 << 20, REQ_ONE) == [
                    ("status", 1, [(84 * kib, 2)])
                ]

    loop.run(main())
