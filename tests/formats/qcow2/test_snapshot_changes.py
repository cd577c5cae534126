# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Snapshots taken and deleted: what the real tools see, and what a power failure leaves."""

from __future__ import annotations

import contextlib
import errno
import json
import random
from pathlib import Path

import pytest

from qsd.aio.loop import run
from qsd.block.node import Node
from qsd.formats.qcow2.driver import Qcow2Driver
from qsd.formats.qcow2.snapshot_changes import new_snapshot, pack
from qsd.formats.qcow2.snapshots import Snapshot
from tests.formats.qcow2.support import add_image, check, content, file_of, make, rig
from tests.formats.qcow2.support import run as tool
from tests.support.tools import need

SIZE = 256 << 10
VARIANTS = {
    "plain": "",
    "tiny": "cluster_size=512",
    "extended": "cluster_size=16k,extended_l2=on",
    "v2": "cluster_size=4k,compat=0.10",
    "lazy": "cluster_size=4k,lazy_refcounts=on",
}


def driver_of(node: Node) -> Qcow2Driver:
    assert isinstance(node.driver, Qcow2Driver)
    return node.driver


async def fill(node: Node, offset: int, length: int, byte: int) -> None:
    await node.write(offset, memoryview(bytes([byte]) * length))


def listed(path: Path) -> list[tuple[str, str]]:
    info = json.loads(tool("qemu-img", "info", "-U", "--output=json", path))
    return [(snapshot["id"], snapshot["name"]) for snapshot in info.get("snapshots", [])]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_real_tools_agree(variant: str, tmp_path: Path) -> None:
    need("qemu-img")
    path = make(tmp_path / "a.qcow2", SIZE, VARIANTS[variant])

    async def main() -> None:
        async with rig() as graph:
            node = await add_image(graph, path)
            driver = driver_of(node)
            await fill(node, 0, 64 << 10, 1)
            await fill(node, 100 << 10, 10000, 2)
            assert await driver.create_snapshot("first") == "1"
            await fill(node, 4096, 4096, 3)
            await node.zero(100 << 10, 8192)
            assert await driver.create_snapshot("second") == "2"
            await fill(node, 0, 512, 4)
            await node.flush()
            assert [s["name"] for s in driver.snapshots() or []] == ["first", "second"]

    run(main())
    check(path)
    assert listed(path) == [("1", "first"), ("2", "second")]
    now = bytearray(SIZE)
    now[: 64 << 10] = b"\1" * (64 << 10)
    now[100 << 10 : (100 << 10) + 10000] = b"\2" * 10000
    first = bytes(now)
    now[4096:8192] = b"\3" * 4096
    now[100 << 10 : (100 << 10) + 8192] = bytes(8192)
    second = bytes(now)
    now[:512] = b"\4" * 512
    assert content(path, tmp_path) == now
    for name, expected in (("first", first), ("second", second)):
        tool("qemu-img", "snapshot", "-a", name, path)
        check(path)
        assert content(path, tmp_path) == expected


@pytest.mark.parametrize("variant", VARIANTS)
def test_deleting_gives_everything_back(variant: str, tmp_path: Path) -> None:
    need("qemu-img")
    path = make(tmp_path / "a.qcow2", SIZE, VARIANTS[variant])

    async def main() -> None:
        async with rig() as graph:
            node = await add_image(graph, path)
            driver = driver_of(node)
            await fill(node, 0, 64 << 10, 1)
            await driver.create_snapshot("a")
            await fill(node, 0, 32 << 10, 2)
            await driver.create_snapshot("b")
            await fill(node, 0, 16 << 10, 3)
            await driver.delete_snapshot("1")
            await driver.delete_snapshot("2")
            assert driver.snapshots() == []
            # Nothing is shared any more, so that this needs no new clusters.
            high_water = driver.image.high_water
            await fill(node, 0, 64 << 10, 4)
            await node.flush()
            assert driver.image.high_water == high_water
            with pytest.raises(OSError, match="No such file"):
                await driver.delete_snapshot("1")

    run(main())
    assert check(path).get("leaks", 0) == 0
    assert listed(path) == []
    assert content(path, tmp_path) == b"\4" * (64 << 10) + bytes(SIZE - (64 << 10))


def test_compressed_clusters_are_shared_too(tmp_path: Path) -> None:
    need("qemu-img", "qemu-io")
    path = make(tmp_path / "a.qcow2", SIZE)
    tool("qemu-io", "-c", "write -q -c -P 7 0 192k", path)

    async def main() -> None:
        async with rig() as graph:
            node = await add_image(graph, path)
            await driver_of(node).create_snapshot("packed")
            await fill(node, 65536, 65536, 8)
            await node.flush()
            await driver_of(node).create_snapshot("more")
            await driver_of(node).delete_snapshot("1")

    run(main())
    assert check(path).get("leaks", 0) == 0
    tool("qemu-img", "snapshot", "-a", "more", path)
    assert content(path, tmp_path)[: 192 << 10] == b"".join(
        bytes([byte]) * 65536 for byte in (7, 8, 7)
    )


def test_snapshots_of_the_real_tools(tmp_path: Path) -> None:
    need("qemu-img", "qemu-io")
    path = make(tmp_path / "a.qcow2", SIZE)
    tool("qemu-io", "-c", "write -q -P 1 0 128k", path)
    for name in ("one", "two", "three"):
        tool("qemu-img", "snapshot", "-c", name, path)

    async def main() -> None:
        async with rig() as graph:
            node = await add_image(graph, path)
            await fill(node, 0, 512, 9)
            await driver_of(node).delete_snapshot("2")
            assert await driver_of(node).create_snapshot("four") == "4"

    run(main())
    assert check(path).get("leaks", 0) == 0
    assert listed(path) == [("1", "one"), ("3", "three"), ("4", "four")]


def test_counts_too_narrow_to_share(tmp_path: Path) -> None:
    need("qemu-img")
    path = make(tmp_path / "a.qcow2", SIZE, "refcount_bits=1")

    async def main() -> None:
        async with rig() as graph:
            node = await add_image(graph, path)
            await fill(node, 0, 65536, 1)
            with pytest.raises(OSError, match="Invalid argument"):
                await driver_of(node).create_snapshot("x")
            assert driver_of(node).snapshots() == []
            await fill(node, 0, 65536, 2)
            await node.flush()

    run(main())
    assert check(path).get("leaks", 0) == 0
    assert content(path, tmp_path)[:65536] == b"\2" * 65536


def test_a_failure_leaves_no_snapshot(tmp_path: Path) -> None:
    """Whatever write fails, the image goes on without the snapshot, or with it."""
    need("qemu-img")
    for number in range(12):
        path = make(tmp_path / f"{number}.qcow2", SIZE, "cluster_size=4k")

        async def main(path: Path = path, number: int = number) -> None:
            async with rig() as graph:
                node = await add_image(graph, path)
                await fill(node, 0, 32768, 1)
                await node.flush()
                file = file_of(node)
                left = number

                def fail(operation: str, offset: int) -> int:
                    nonlocal left
                    if operation != "write":
                        return 0
                    left -= 1
                    return errno.ENOSPC if left == -1 else 0

                file.fast = False  # else a failure of the fast path is not one of the write
                file.fail = fail
                with contextlib.suppress(OSError):
                    await driver_of(node).create_snapshot("x")
                file.fail = lambda operation, offset: 0
                await fill(node, 0, 4096, 2)
                await node.flush()

        run(main())
        tool("qemu-io", "-c", "read -q -P 2 0 4k", "-c", "read -q -P 1 4k 28k", path)
        check(path, leaks=True)


def test_a_failure_leaves_flags_that_agree_with_the_counts(tmp_path: Path) -> None:
    need("qemu-img")
    path = make(tmp_path / "a.qcow2", SIZE, "cluster_size=4k")
    tool("qemu-io", "-c", "write -q -P 1 0 32k", path)

    async def main() -> None:
        async with rig() as graph:
            node = await add_image(graph, path)
            table = driver_of(node).image.header.l1_table_offset
            failed = 0

            def fail(operation: str, offset: int) -> int:
                nonlocal failed
                if operation != "write" or offset != table or failed:
                    return 0
                failed = errno.ENOSPC
                return failed

            file_of(node).fast = False
            file_of(node).fail = fail
            with pytest.raises(OSError, match="No space left"):
                await driver_of(node).create_snapshot("x")
            assert failed

    run(main())
    check(path)


@pytest.mark.parametrize("what", ["take", "delete"])
@pytest.mark.parametrize("variant", ["plain", "tiny"])
def test_power_failures(what: str, variant: str, tmp_path: Path) -> None:
    """Any prefix of the writes, without any of those not flushed: repaired on opening, or sound."""
    need("qemu-img")
    path = make(tmp_path / "a.qcow2", SIZE, VARIANTS[variant])
    dice = random.Random(what + variant)

    async def record() -> tuple[bytes, list[tuple[int, bytes | None] | None]]:
        async with rig() as graph:
            node = await add_image(graph, path)
            driver = driver_of(node)
            await fill(node, 0, 64 << 10, 1)
            if what == "delete":
                await driver.create_snapshot("x")
                await fill(node, 0, 16 << 10, 2)
            await node.flush()
            file = file_of(node)
            file.start_recording()
            if what == "take":
                await driver.create_snapshot("x")
            else:
                await driver.delete_snapshot("1")
            return file.before, list(file.writes)

    before, writes = run(record())
    expected = b"\2" * (16 << 10) if what == "delete" else b"\1" * (16 << 10)
    expected += b"\1" * (48 << 10)
    for end in sorted(dice.sample(range(len(writes) + 1), min(12, len(writes) + 1))):
        image = tmp_path / "crashed.qcow2"
        image.write_bytes(state_after(before, writes[:end], dice))

        async def reopen(image: Path = image) -> None:
            async with rig() as graph:
                node = await add_image(graph, image)
                view = memoryview(bytearray(64 << 10))
                await node.read(0, view)
                assert view == expected
                await fill(node, 64 << 10, 4096, 5)

        run(reopen())
        check(image, leaks=True)
        if ("1", "x") in listed(image):
            tool("qemu-img", "snapshot", "-a", "x", image)
            assert content(image, tmp_path)[: 64 << 10] == b"\1" * (64 << 10)


def state_after(
    before: bytes, writes: list[tuple[int, bytes | None] | None], dice: random.Random
) -> bytes:
    """Return what is left of a file when power fails: what was flushed, and some of the rest."""
    flushed = max((n for n, write in enumerate(writes) if write is None), default=0)
    data = bytearray(before)
    for number, write in enumerate(writes):
        if write is None or (number > flushed and dice.random() < 0.5):
            continue
        offset, piece = write
        if piece is None:
            data = data[:offset].ljust(offset, b"\0")
            continue
        if len(data) < offset + len(piece):
            data.extend(bytes(offset + len(piece) - len(data)))
        data[offset : offset + len(piece)] = piece
    return bytes(data)


def test_table_entries_are_read_back(tmp_path: Path) -> None:
    need("qemu-img")
    path = make(tmp_path / "a.qcow2", SIZE)

    async def main() -> None:
        async with rig() as graph:
            node = await add_image(graph, path)
            snapshot = new_snapshot(driver_of(node).image, "n" * 300)
            assert (snapshot.id_str, len(snapshot.name)) == ("1", 255)
            snapshot.l1_table_offset, snapshot.l1_size = 0x70000, 3
            snapshot.unknown_extra = b"kept"
            data = pack(snapshot, SIZE)
            assert len(data) % 8 == 0
            found = Snapshot.parse(data, 0)
            assert found is not None
            assert found[1] == len(data)
            for field in ("name", "id_str", "l1_table_offset", "l1_size", "date_sec", "date_nsec",
                          "vm_clock_nsec", "vm_state_size", "disk_size", "icount",
                          "unknown_extra"):  # fmt: skip
                assert getattr(found[0], field) == getattr(snapshot, field), field

    run(main())
