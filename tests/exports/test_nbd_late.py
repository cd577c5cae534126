# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Requests that end without a coroutine, seen by a client: like all others."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from qsd.aio import loop
from qsd.exports import nbd_late
from tests.exports.rig import READ, WRITE, NbdRig

MIB = 1 << 20


async def until(condition: Any) -> None:
    while not condition():
        await asyncio.sleep(0)


@pytest.mark.parametrize("structured", [False, True])
@pytest.mark.parametrize("full", [False, True])
def test_reads_and_writes(structured: bool, full: bool) -> None:
    """Whether they end well or have to be done the plain way makes no difference."""

    async def main() -> None:
        async with NbdRig() as rig:
            disk = await rig.memory("m")
            disk.data[:] = random.Random(3).randbytes(MIB)
            expected = bytearray(disk.data)
            export = await rig.export("m", writable=True)
            client = await rig.go("m", structured=structured)
            if structured:
                await client.ask(READ, 0, 1)  # from now on all is known to be data
            disk.fast, disk.later = False, []
            write = client.request(WRITE, 4096, 512, data=b"w" * 512)
            read = client.request(READ, 100, 5000)
            await until(lambda: len(disk.later or ()) == 2)
            assert export.backend.in_flight == 2
            later, disk.later = disk.later, None
            later[1](full)
            wanted: Any = bytes(expected[100:5100])
            wanted = [("data", 100, wanted)] if structured else [wanted]
            assert await client.reply(5000) == (read, wanted)
            later[0](full)
            assert await client.reply() == (write, ["ok"])
            expected[4096:4608] = b"w" * 512
            assert disk.data == expected
            assert export.backend.in_flight == 0

    loop.run(main())


def test_errors_are_told_by_the_plain_way() -> None:
    async def main() -> None:
        async with NbdRig() as rig:
            disk = await rig.memory("m")
            await rig.export("m", writable=True)
            client = await rig.go("m")
            disk.fast, disk.later = False, []
            disk.fail = lambda operation, offset: 28 if operation == "write" else 5
            write = client.request(WRITE, 0, 1, data=b"w")
            read = client.request(READ, 0, 1)
            await until(lambda: len(disk.later or ()) == 2)
            for finish in disk.later:
                finish(False)
            assert await client.reply() == (write, ["error", 28])
            assert await client.reply() == (read, ["error", 5])

    loop.run(main())


def test_what_is_in_flight_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nbd_late, "MAX_IN_FLIGHT", 2)

    async def main() -> None:
        async with NbdRig() as rig:
            disk = await rig.memory("m")
            await rig.export("m", writable=True)
            client = await rig.go("m")
            disk.fast, disk.later = False, []
            cookies = [client.request(READ, index, 1) for index in range(3)]
            # The third one finds no room and goes the plain way.
            assert await client.reply(1) == (cookies[2], [b"\0"])
            assert len(disk.later) == 2
            for finish in disk.later:
                finish(True)
            assert await client.reply(1) == (cookies[0], [b"\0"])
            assert await client.reply(1) == (cookies[1], [b"\0"])

    loop.run(main())


def test_a_client_that_leaves_is_waited_for() -> None:
    async def main() -> None:
        async with NbdRig() as rig:
            disk = await rig.memory("m")
            export = await rig.export("m", writable=True)
            client = await rig.go("m")
            disk.fast, disk.later = False, []
            client.request(WRITE, 0, 3, data=b"abc")
            client.request(READ, 0, 3)
            await until(lambda: len(disk.later or ()) == 2)
            client.close()
            later, disk.later = disk.later, None
            for _ in range(100):
                await asyncio.sleep(0)
            assert rig.server._clients  # what is in flight keeps it
            for finish in later:
                finish(True)
            await until(lambda: not rig.server._clients)
            assert export.backend.in_flight == 0
            assert disk.data[:3] == b"abc"

    loop.run(main())
