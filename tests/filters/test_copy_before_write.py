# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Old data is saved before it changes."""

from __future__ import annotations

import asyncio
import errno
from typing import Any

import pytest

from qsd.aio.loop import run
from qsd.block import perms
from qsd.block.backend import Backend
from qsd.block.dirty import DirtyBitmap
from qsd.block.info import bitmaps_info
from qsd.block.node import Node
from tests.filters.support import LENGTH, data, driver_of, edges, filter_rig, refuse

CLUSTER = 65536


async def add(rig: Any, **options: Any) -> Any:
    source, target = await rig.memory("n"), await rig.memory("t")
    source.data[:] = bytes([1]) * LENGTH
    source.fast = target.fast = False
    return await rig.add(driver="copy-before-write", node_name="f", file="n", target="t", **options)


async def old(node: Any, offset: int, length: int) -> bytes:
    view = memoryview(bytearray(length))
    await node.driver.read_old(offset, view)
    return bytes(view)


def test_what_is_overwritten_is_saved_once() -> None:
    async def main() -> None:
        async with filter_rig() as rig:
            node = await add(rig)
            target = driver_of(rig, "t")
            for fill in (2, 3):
                await node.write(CLUSTER + 100, data(fill, 10))
            await node.zero(3 * CLUSTER, 10)
            assert await old(node, 0, LENGTH) == bytes([1]) * LENGTH
            writes = [entry for entry in target.log if entry[0] == "write"]
            assert writes == [("write", CLUSTER, CLUSTER), ("write", 3 * CLUSTER, CLUSTER)]

    run(main())


def test_zeroes_are_not_copied_as_data() -> None:
    async def main() -> None:
        async with filter_rig() as rig:
            node = await add(rig)
            driver_of(rig, "n").data[:] = bytes(LENGTH)
            await node.write(0, data(1, 4096))
            # Status comes in pages here, so only a range of one page is known to be zero.
            assert await old(node, 0, CLUSTER) == bytes(CLUSTER)

    run(main())


def test_only_what_the_bitmap_has() -> None:
    async def main() -> None:
        async with filter_rig() as rig:
            source, _ = await rig.memory("n"), await rig.memory("t")
            bitmap = DirtyBitmap(source.node, "b", CLUSTER)
            bitmap.attach()
            await source.node.write(CLUSTER, data(5, 10))
            node: Any = await rig.add(
                driver="copy-before-write", node_name="f", file="n", target="t",
                bitmap={"node": "n", "name": "b"},
            )  # fmt: skip
            await node.write(CLUSTER, data(6, 10))
            await node.write(0, data(6, 10))
            assert await old(node, CLUSTER, 10) == bytes([5]) * 10
            for request in (old(node, 0, 10), node.driver.old_status(0, 10)):
                with pytest.raises(OSError) as info:
                    await request
                assert info.value.errno == errno.EACCES
            assert (await node.driver.old_status(CLUSTER, LENGTH - CLUSTER)).length <= CLUSTER
            bitmap.detach()

    run(main())


@pytest.mark.parametrize("breaks_snapshot", [False, True])
def test_failure_to_save(breaks_snapshot: bool) -> None:
    policy = "break-snapshot" if breaks_snapshot else "break-guest-write"

    async def main() -> None:
        async with filter_rig() as rig:
            node = await add(rig, **{"on-cbw-error": policy})
            target = driver_of(rig, "t")
            target.fail = lambda operation, offset: errno.ENOSPC
            if breaks_snapshot:
                await node.write(0, data(2, 10))
                with pytest.raises(OSError) as info:
                    await old(node, CLUSTER, 10)
                assert info.value.errno == errno.EACCES
            else:
                with pytest.raises(OSError) as info:
                    await node.write(0, data(2, 10))
                assert info.value.errno == errno.ENOSPC
                assert await old(node, 0, 10) == bytes([1]) * 10
            target.fail = lambda operation, offset: 0

    run(main())


@pytest.mark.parametrize("policy", ["break-guest-write", "break-snapshot"])
def test_guests_do_not_mind_a_target_that_cannot_be_flushed(policy: str) -> None:
    async def main() -> None:
        async with filter_rig() as rig:
            node = await add(rig, **{"on-cbw-error": policy})
            target = driver_of(rig, "t")
            target.fail = lambda operation, offset: errno.EIO if operation == "flush" else 0
            await node.write(0, data(2, 10))
            await node.flush()
            assert await old(node, 0, 10) == bytes([1]) * 10
            target.fail = lambda operation, offset: 0

    run(main())


def test_taking_too_long() -> None:
    async def main() -> None:
        async with filter_rig() as rig:
            node = await add(rig, **{"cbw-timeout": 1})
            await node.write(CLUSTER, data(2, 10))  # in time
            node.driver._timeout = 0.01
            target = driver_of(rig, "t")
            target.gate = asyncio.Event()
            with pytest.raises(OSError) as info:
                await node.write(0, data(2, 10))
            assert info.value.errno == errno.ETIMEDOUT
            target.gate.set()
            target.gate = None
            assert await old(node, 0, 10) == bytes([1]) * 10

    run(main())


def test_a_write_waits_for_who_reads_the_old_data() -> None:
    async def main() -> None:
        async with filter_rig() as rig:
            node = await add(rig)
            source = driver_of(rig, "n")
            source.gate = asyncio.Event()
            reading = rig.tasks.spawn(old(node, 0, 10), "read")
            await asyncio.sleep(0)
            writing = rig.tasks.spawn(node.write(0, data(2, 10)), "write")
            await asyncio.sleep(0)
            assert [entry[0] for entry in source.log] == ["read"]
            source.gate.set()
            assert await reading == bytes([1]) * 10
            await writing
            source.gate = None
            assert await old(node, 0, 10) == bytes([1]) * 10

    run(main())


def test_discarding_old_data() -> None:
    async def main() -> None:
        async with filter_rig() as rig:
            node = await add(rig)
            target = driver_of(rig, "t")
            await node.driver.discard_old(100, 2 * CLUSTER)  # one whole cluster
            await node.write(CLUSTER, data(2, 10))
            assert not target.log
            with pytest.raises(OSError) as info:
                await old(node, CLUSTER, 1)
            assert info.value.errno == errno.EACCES
            assert await old(node, 0, 1) == bytes([1])

    run(main())


def test_permissions() -> None:
    async def main() -> None:
        async with filter_rig() as rig:
            node = await add(rig)
            target = (perms.WRITE, perms.ALL & ~perms.RESIZE)
            assert edges(node) == {"file": (0, perms.ALL), "target": target}
            user = Backend(rig.graph, "u", "a user")
            user.attach(node, perms.WRITE, perms.ALL)
            shared = perms.CONSISTENT_READ | perms.WRITE_UNCHANGED
            taken = perms.CONSISTENT_READ | perms.WRITE
            assert edges(node) == {"file": (taken, shared), "target": target}
            await user.detach()

    run(main())


def test_unknown_bitmaps() -> None:
    async def main() -> None:
        async with filter_rig() as rig:
            await rig.memory("n")
            await rig.memory("t")
            common = {"driver": "copy-before-write", "node-name": "f", "file": "n", "target": "t"}
            for node, text in (("n", "Dirty bitmap 'b' not found"), ("x", "Node 'x' not found")):
                await refuse(rig, text, **common, bitmap={"node": node, "name": "b"})

    run(main())


def test_bitmaps_that_cannot_be_used() -> None:
    async def main() -> None:
        async with filter_rig() as rig:
            await rig.memory("n", LENGTH)
            await rig.memory("t", LENGTH)
            short = (await rig.memory("s", LENGTH // 2)).node
            DirtyBitmap(short, "b", CLUSTER).attach()
            file = rig.graph.nodes["n"]
            busy, inconsistent = (DirtyBitmap(file, name, CLUSTER) for name in ("busy", "bad"))
            busy.busy = inconsistent.inconsistent = True
            busy.attach()
            inconsistent.attach()
            for node, name, reason in (
                ("n", "busy", "is currently in use by another operation and cannot be used"),
                ("n", "bad", "is inconsistent and cannot be used"),
                (
                    "s", "b",
                    f"s are of different sizes (destination size is {LENGTH}, source size is "
                    f"{LENGTH // 2}) and can't be merged",
                ),
            ):  # fmt: skip
                what = f"Bitmap{reason}" if node == "s" else f"Bitmap '{name}' {reason}"
                await refuse(
                    rig,
                    f"Cannot create block-copy-state: Failed to merge bitmap '{name}' to internal "
                    f"copy-bitmap: {what}",
                    driver="copy-before-write", node_name="f", file="n", target="t",
                    bitmap={"node": node, "name": name},
                )  # fmt: skip

    run(main())


def test_a_guess_is_said_aloud(capsys: pytest.CaptureFixture[str]) -> None:
    async def main() -> None:
        async with filter_rig() as rig:
            await add(rig)

    run(main())
    assert "The default block size of 65536 bytes is used" in capsys.readouterr().err


def test_what_is_to_be_saved_is_shown() -> None:
    def counts(node: Node) -> list[int]:
        return [bitmap.count for bitmap in bitmaps_info(node) or ()]

    async def main() -> None:
        async with filter_rig() as rig:
            node = await add(rig)
            file = rig.graph.nodes["n"]
            assert (counts(node), counts(file)) == ([LENGTH, 0], [LENGTH])
            await node.write(0, data(2, 10))
            assert (counts(node), counts(file)) == ([LENGTH, CLUSTER], [LENGTH - CLUSTER])
            (shown,) = bitmaps_info(file) or []
            assert (shown.name, shown.recording, shown.granularity) == (None, False, CLUSTER)
            await rig.graph.release(node)
            assert bitmaps_info(file) is None

    run(main())
