# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Counting references anew."""

from __future__ import annotations

from pathlib import Path

import pytest

from qsd.aio.loop import run
from qsd.errors import QmpError
from qsd.formats.qcow2.check import CheckResult, check
from qsd.formats.qcow2.driver import Qcow2Driver
from tests.formats.qcow2.support import add_image, make, rig
from tests.formats.qcow2.support import check as tool_check
from tests.formats.qcow2.support import run as tool
from tests.support.tools import need


def look(path: Path) -> CheckResult:
    async def main() -> CheckResult:
        async with rig() as graph:
            node = await add_image(graph, path, read_only=True)
            driver = node.driver
            assert isinstance(driver, Qcow2Driver)
            return await check(driver.image, driver.bitmaps)

    return run(main())


def fill(tmp_path: Path, options: str) -> Path:
    path = make(tmp_path / "image", "4M", options)
    for command in ("write 0 1M", "write -c 1M 64k", "write -c 1088k 64k", "write -z 2M 64k"):
        tool("qemu-io", "-f", "qcow2", "-c", command, path)
    tool("qemu-img", "snapshot", "-c", "one", path)
    tool("qemu-io", "-f", "qcow2", "-c", "write 64k 100k", path)
    tool("qemu-img", "bitmap", "--add", path, "b")
    return path


@pytest.mark.parametrize("options", ["", "extended_l2=on", "refcount_bits=64"])
def test_sound_images(tmp_path: Path, options: str) -> None:
    need("qemu-img", "qemu-io")
    result = look(fill(tmp_path, options))
    assert (result.corruptions, result.leaks) == (0, 0)


def patch(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def test_wrong_counts(tmp_path: Path) -> None:
    need("qemu-img", "qemu-io")
    path = fill(tmp_path, "")
    patch(path, 0x20000 + 2 * 3, b"\x00\x00")  # the L1 table's count
    patch(path, 0x20000 + 2 * 2, b"\x00\x07")  # the block's own
    result = look(path)
    assert result.corruptions == 1
    assert result.leaks == 1


def test_wrong_flags(tmp_path: Path) -> None:
    need("qemu-img", "qemu-io")
    path = make(tmp_path / "image", "1M")
    tool("qemu-io", "-f", "qcow2", "-c", "write 0 64k", path)
    patch(path, 0x40000, (0x50000).to_bytes(8, "big"))
    assert look(path).corruptions == 1


@pytest.mark.parametrize("options", ["", "cluster_size=512", "refcount_bits=1,cluster_size=1k"])
def test_repair_of_lost_counts(tmp_path: Path, options: str) -> None:
    """Counts and whole blocks that were never written are made again."""
    need("qemu-img", "qemu-io")
    path = make(tmp_path / "image", "4M", options)
    tool("qemu-io", "-f", "qcow2", "-c", "write -P 5 0 2M", path)
    data = path.read_bytes()
    table = int.from_bytes(data[48:56], "big")
    size = 1 << int.from_bytes(data[20:24], "big")
    first = int.from_bytes(data[table : table + 8], "big")
    patch(path, first, bytes(size))
    patch(path, table + 8, bytes(8))
    patch(path, 79, b"\x01")

    async def main() -> None:
        async with rig() as graph:
            node = await add_image(graph, path)
            view = bytearray(2 << 20)
            await node.read(0, memoryview(view))
            assert view == b"\x05" * (2 << 20)
            await node.write(3 << 20, memoryview(b"x" * 100000))

    run(main())
    tool_check(path)
    assert path.read_bytes()[79] == 0


def test_damage_that_cannot_be_counted_away(tmp_path: Path) -> None:
    need("qemu-img", "qemu-io")
    path = make(tmp_path / "image", "1M")
    tool("qemu-io", "-f", "qcow2", "-c", "write 0 64k", path)
    patch(path, 0x40000, (1 << 63 | 0x50200).to_bytes(8, "big"))
    patch(path, 79, b"\x01")

    async def main() -> None:
        async with rig() as graph:
            with pytest.raises(QmpError, match="Could not repair"):
                await add_image(graph, path)

    run(main())
    assert path.read_bytes()[79] & 2
