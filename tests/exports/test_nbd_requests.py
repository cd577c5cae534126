# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

import errno

from qsd.aio import loop
from qsd.block.mapping import ST_ALLOCATED, ST_DATA, ST_ZERO, Status
from qsd.formats.raw import RawDriver
from tests.exports.rig import CACHE, FAST, FUA, NO_HOLE, READ, TRIM, ZEROES, NbdRig

MIB = 1 << 20


def test_flags_reach_the_image() -> None:
    async def main() -> None:
        async with NbdRig() as rig:
            disk = await rig.memory("m", discard="unmap")
            await rig.export("m", writable=True)
            client = await rig.go("m")
            seen: list[int] = []
            zero = disk.zero

            async def record(offset: int, length: int, flags: int) -> None:
                seen.append(flags)
                await zero(offset, length, flags)

            disk.zero = record  # type: ignore[method-assign]
            assert await client.ask(ZEROES, 0, 512) == ["ok"]
            assert await client.ask(ZEROES, 0, 512, NO_HOLE) == ["ok"]
            assert [flags & 2 for flags in seen] == [2, 0]
            disk.can_zero = False
            assert await client.ask(ZEROES, 0, 512, FAST) == ["error", 95]
            assert await client.ask(ZEROES, 0, 512) == ["ok"]
            disk.log.clear()
            assert await client.ask(TRIM, 0, 512, FUA) == ["ok"]
            assert [entry[0] for entry in disk.log] == ["discard", "flush"]

    loop.run(main())


def test_a_durable_read_flushes_before() -> None:
    async def main() -> None:
        async with NbdRig() as rig:
            disk = await rig.memory("m")
            await rig.export("m", writable=True)
            simple = await rig.go("m")
            structured = await rig.go("m", structured=True)
            assert await simple.ask(READ, 0, 1, FUA) == [b"\0"]
            assert disk.log[0][0] == "flush"
            disk.later = []
            disk.fail = lambda operation, offset: errno.ENOMEM if operation == "flush" else 0
            assert await simple.ask(READ, 0, 1, FUA) == ["error", 12]
            assert await structured.ask(READ, 0, 1, FUA) == [("error", 12, "flush failed")]
            assert not disk.later

    loop.run(main())


def test_caching_takes_over_what_lies_below() -> None:
    async def main() -> None:
        async with NbdRig() as rig:
            disk = await rig.memory("m")
            await rig.export("m")
            client = await rig.go("m")
            seen: list[tuple[int, int]] = []

            async def copy_up(offset: int, length: int, flags: int) -> None:
                seen.append((offset, length))

            disk.copy_up = copy_up  # type: ignore[method-assign]
            assert await client.ask(CACHE, 512, 1000) == ["ok"]
            assert await client.ask(CACHE, 512, 0) == ["ok"]
            assert seen == [(512, 1000)]

            async def fail(offset: int, length: int, flags: int) -> None:
                raise OSError(errno.ENOSPC, "no room")

            disk.copy_up = fail  # type: ignore[method-assign]
            structured = await rig.go("m", structured=True)
            assert await structured.ask(CACHE, 0, 1) == [("error", 28, "caching data failed")]
            disk.node.read_only = True
            assert await client.ask(CACHE, 512, 1000) == ["ok"]
            assert seen == [(512, 1000)]

    loop.run(main())


def test_writethrough_flushes_every_write() -> None:
    async def main() -> None:
        async with NbdRig() as rig:
            disk = await rig.memory("m")
            await rig.export("m", writable=True, writethrough=True)
            client = await rig.go("m")
            assert await client.ask(1, 0, 3, data=b"abc") == ["ok"]
            assert disk.log == [("write", 0, 3), ("flush", 0, 0)]

    loop.run(main())


def test_lookups_are_remembered() -> None:
    async def main() -> None:
        async with NbdRig() as rig:
            disk = await rig.memory("m", size=4 * MIB)
            calls: list[int] = []

            async def status(offset: int, length: int, want_zero: bool) -> Status:
                calls.append(offset)
                return Status(length, ST_DATA | ST_ALLOCATED)

            disk.block_status = status  # type: ignore[method-assign]
            await rig.export("m")
            client = await rig.go("m", structured=True)
            for offset in (0, 4096, 3 * MIB, MIB - 5):
                assert await client.ask(READ, offset, 4096) == [("data", offset, bytes(4096))]
            assert calls == [0]

    loop.run(main())


def test_short_reads_from_another_server_ask_it_for_holes_once() -> None:
    """What it says of zeroes may be wrong a moment later anyway, if somebody else writes."""

    async def main() -> None:
        async with NbdRig(raw=RawDriver) as rig:
            disk = await rig.memory("m", MIB)
            await rig.add(driver="raw", node_name="r", file="m")
            await rig.export("r", name="x", writable=True)
            asked: list[tuple[int, int]] = []

            async def block_status(offset: int, length: int, want_zero: bool) -> Status:
                asked.append((offset, length))
                return Status(length, ST_ZERO | ST_ALLOCATED)

            disk.block_status = block_status  # type: ignore[method-assign]
            client = await rig.go("x", structured=True)
            disk.node.status_is_remote = True
            assert await client.ask(READ, 0, 4096) == [("hole", 0, 4096)]
            assert len(asked) == 1
            assert await client.ask(READ, 0, 4096) == [("data", 0, bytes(4096))]
            assert len(asked) == 1
            assert await client.ask(READ, 0, 64 << 10) == [("hole", 0, 64 << 10)]
            assert len(asked) == 2

    loop.run(main())
