# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The write log."""

from __future__ import annotations

from typing import Any

import pytest

from qsd.aio.loop import run
from qsd.block import perms
from qsd.block.mapping import FUA
from qsd.filters.log_layout import ENTRY_SIZE, SUPER_SIZE, LogEntry, LogSuper
from tests.filters.support import LENGTH, data, driver_of, edges, filter_rig, refuse

FLUSH, DISCARD = 1, 4


def parse(log: bytes | bytearray) -> tuple[LogSuper, list[tuple[LogEntry, bytes]]]:
    superblock = LogSuper.parse(bytes(log[:SUPER_SIZE]))
    unit = superblock.sector_size
    entries = []
    at = unit
    for _ in range(superblock.entries):
        entry = LogEntry.parse(bytes(log[at : at + ENTRY_SIZE]))
        at += unit
        length = 0 if entry.flags & DISCARD else entry.sectors * unit
        entries.append((entry, bytes(log[at : at + length])))
        at += length
    return superblock, entries


async def add(rig: Any, **options: Any) -> tuple[Any, Any]:
    if "n" not in rig.graph.nodes:
        await rig.memory("n", LENGTH, discard="unmap")
        await rig.memory("l", 1 << 22)
    node = await rig.add(
        driver="blklogwrites", node_name="f", file="n", log="l", discard="unmap", **options
    )
    return node, driver_of(rig, "l")


@pytest.mark.parametrize("unit", [32, 512, 4096])
def test_entries(unit: int) -> None:
    async def main() -> None:
        async with filter_rig() as rig:
            node, log = await add(rig, **{"log-sector-size": unit})
            await node.write(unit, data(1, unit))
            await node.write(unit + 10, data(2, 10))
            await node.zero(0, 2 * unit)
            await node.discard(4 * unit, 2 * unit)
            await node.flush()
            await node.flush()  # leaves no trace
            superblock, entries = parse(log.data)
            assert superblock == (5, unit)
            mixed = bytes([1]) * 10 + bytes([2]) * 10 + bytes([1]) * (unit - 20)
            assert entries == [
                ((1, 1, 0), bytes([1]) * unit),
                ((1, 1, 0), mixed),
                ((0, 2, 0), bytes(2 * unit)),
                ((4, 2, DISCARD), b""),
                ((0, 0, FLUSH), b""),
            ]

    run(main())


def test_appending() -> None:
    async def main() -> None:
        async with filter_rig() as rig:
            node, log = await add(rig, **{"log-sector-size": 1024})
            await node.write(0, data(1, 2048))
            await node.discard(4096, 1024)
            await node.flush()
            await rig.graph.release(node)
            node, log = await add(rig, **{"log-append": True})
            await node.write(1024, data(2, 1024))
            await node.flush()
            superblock, entries = parse(log.data)
            assert superblock == (5, 1024)
            assert entries[3:] == [((1, 1, 0), bytes([2]) * 1024), ((0, 0, FLUSH), b"")]

    run(main())


def test_the_superblock_is_kept_up_to_date() -> None:
    async def main() -> None:
        async with filter_rig() as rig:
            node, log = await add(rig, **{"log-super-update-interval": 2})
            counts = []
            for _ in range(4):
                await node.write(0, data(1, 512))
                counts.append(int.from_bytes(log.data[16:24], "little"))
            assert counts == [0, 2, 2, 4]

    run(main())


def test_durable_writes_flush_what_was_before() -> None:
    async def main() -> None:
        async with filter_rig() as rig:
            node, log = await add(rig)
            await node.write(0, data(1, 512), FUA)
            await node.write(512, data(1, 512), FUA)
            _, entries = parse(log.data)
            assert [entry.flags for entry, _ in entries] == [0, 0, FLUSH]

    run(main())


def test_permissions() -> None:
    async def main() -> None:
        async with filter_rig() as rig:
            node, _ = await add(rig)
            taken = perms.CONSISTENT_READ | perms.WRITE | perms.RESIZE
            shared = perms.CONSISTENT_READ | perms.WRITE_UNCHANGED
            assert edges(node) == {"file": (0, perms.ALL), "log": (taken, shared)}

    run(main())


def test_refusals() -> None:
    async def main() -> None:
        async with filter_rig() as rig:
            await rig.memory("n")
            await rig.memory("l")
            common = {"driver": "blklogwrites", "node-name": "f", "file": "n", "log": "l"}
            for size in (0, 16, 100, 1000, 1 << 24):
                await refuse(
                    rig, f"Invalid log sector size {size}", **common, **{"log-sector-size": size}
                )
            await refuse(
                rig, "Invalid log superblock update interval 0",
                **common, **{"log-super-update-interval": 0},
            )  # fmt: skip
            await refuse(
                rig, "log-append and log-sector-size are mutually exclusive",
                **common, **{"log-append": True, "log-sector-size": 512},
            )  # fmt: skip
            await refuse(rig, "Invalid log superblock magic", **common, **{"log-append": True})

    run(main())
