# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""What changes of the mapping leave, seen by the real tools."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from qsd.aio.loop import run
from qsd.block.mapping import MAY_UNMAP
from qsd.block.node import Node
from qsd.formats.qcow2.driver import Qcow2Driver
from tests.formats.qcow2.support import add_image, check, content, file_of, make, rig
from tests.formats.qcow2.support import run as tool
from tests.support.tools import need

K64 = 65536


def change(path: Path, body: Callable[[Node], Awaitable[None]]) -> None:
    async def main() -> None:
        async with rig() as graph:
            node = await add_image(graph, path, discard="unmap")
            node.children["file"].node.discard_unmap = True
            await body(node)

    run(main())
    check(path)


def presence(path: Path) -> list[tuple[int, int, bool, bool]]:
    parts = json.loads(tool("qemu-img", "map", "--output=json", "-f", "qcow2", path))
    return [(p["start"] // 512, p["length"] // 512, p["present"], p["zero"]) for p in parts]


def test_partial_writes_fill_only_subclusters(tmp_path: Path) -> None:
    need("qemu-img")
    path = make(tmp_path / "image", "1M", "extended_l2=on")

    async def body(node: Node) -> None:
        await node.write(3 * 1024, memoryview(b"x" * 512))

    change(path, body)
    assert presence(path)[:3] == [(0, 4, False, True), (4, 4, True, False), (8, 120, False, True)]


def test_copy_on_write_keeps_old_subclusters(tmp_path: Path) -> None:
    need("qemu-img", "qemu-io")
    path = make(tmp_path / "image", "1M", "extended_l2=on")
    tool("qemu-io", "-f", "qcow2", "-c", "write -P 5 10k 10k", path)
    tool("qemu-img", "snapshot", "-c", "s", path)

    async def body(node: Node) -> None:
        await node.write(30 * 1024, memoryview(b"x" * 512))

    change(path, body)
    data = content(path, tmp_path)
    assert data[10240:20480] == b"\x05" * 10240
    assert data[30720:31232] == b"x" * 512
    assert not any(data[31232:])


def test_version_2_has_no_zero_clusters(tmp_path: Path) -> None:
    need("qemu-img")
    path = make(tmp_path / "image", "1M", "compat=0.10")

    async def body(node: Node) -> None:
        await node.write(0, memoryview(b"x" * 4 * K64))
        await node.zero(K64, K64)
        await node.discard(2 * K64, K64)

    change(path, body)
    assert presence(path) == [
        (0, 128, True, False), (128, 256, False, True), (384, 128, True, False),
        (512, 1536, False, True),
    ]  # fmt: skip


def test_version_2_never_uncovers_the_backing_file(tmp_path: Path) -> None:
    need("qemu-img", "qemu-io")
    base = make(tmp_path / "base", "1M")
    tool("qemu-io", "-f", "qcow2", "-c", "write -P 5 0 1M", base)
    path = make(tmp_path / "image", "1M", f"compat=0.10,backing_file={base},backing_fmt=qcow2")

    async def body(node: Node) -> None:
        await node.write(0, memoryview(b"x" * 2 * K64))
        await node.discard(0, K64)
        await node.zero(K64, 2 * K64)

    change(path, body)
    data = content(path, tmp_path)
    assert data[:K64] == b"x" * K64
    assert data[K64 : 3 * K64] == bytes(2 * K64)
    assert data[3 * K64 :] == b"\x05" * 13 * K64


def test_discards_reach_the_file_once_nothing_refers_to_the_space(tmp_path: Path) -> None:
    need("qemu-img")
    path = make(tmp_path / "image", "1M")

    async def body(node: Node) -> None:
        await node.write(0, memoryview(b"x" * 4 * K64))
        await node.flush()
        below = file_of(node)
        below.log.clear()
        await node.discard(0, 2 * K64)
        assert all(entry[0] != "discard" for entry in below.log)
        await node.flush()
        kinds = [entry[0] for entry in below.log]
        assert kinds.index("flush") < kinds.index("discard")
        assert sum(entry[2] for entry in below.log if entry[0] == "discard") == 2 * K64

    change(path, body)


def test_a_failed_write_gives_its_space_back(tmp_path: Path) -> None:
    need("qemu-img")
    path = make(tmp_path / "image", "1M")

    async def body(node: Node) -> None:
        below = file_of(node)
        await node.write(0, memoryview(b"x"))
        below.fail = lambda operation, offset: 28 if operation == "write" else 0
        with pytest.raises(OSError, match="No space left"):
            await node.write(4 * K64, memoryview(b"x" * K64))
        below.fail = lambda operation, offset: 0
        await node.write(8 * K64, memoryview(b"y" * K64))

    change(path, body)
    assert content(path, tmp_path)[4 * K64 : 5 * K64] == bytes(K64)


def test_fast_allocation_equals_the_plain_way(tmp_path: Path) -> None:
    need("qemu-img")
    images = []
    for fast in (True, False):
        path = make(tmp_path / f"image{fast}", "4M", "cluster_size=4k")

        async def body(node: Node, fast: bool = fast) -> None:
            driver = node.driver
            assert isinstance(driver, Qcow2Driver)
            for number in range(60):
                offset = number * 37 * 512 % (4 << 20)
                length = 512 * (number % 30 + 1)
                view = memoryview(bytes([number + 1]) * length)
                if fast:
                    await node.write(offset, view)
                else:
                    await driver.write(offset, view, 0)
                if number % 7 == 0:
                    await node.zero(offset, length, MAY_UNMAP)

        change(path, body)
        images.append((presence(path), content(path, tmp_path)))
    assert images[0] == images[1]
