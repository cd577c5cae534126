# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Persistent bitmaps: stored, loaded, and what a crash leaves."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from qsd.aio.loop import run
from qsd.block.dirty import DirtyBitmap, bitmaps_of
from qsd.block.node import Node
from qsd.errors import QmpError
from qsd.formats.qcow2.bitmaps import FLAG_AUTO, FLAG_IN_USE
from qsd.formats.qcow2.driver import Qcow2Driver
from tests.formats.qcow2.support import RecordingFile, add_image, make, rig
from tests.formats.qcow2.support import run as tool
from tests.support.tools import need


def add(node: Node, name: str, granularity: int = 4096, *, enabled: bool = True) -> DirtyBitmap:
    bitmap = DirtyBitmap(node, name, granularity, enabled=enabled)
    bitmap.persistent = True
    bitmap.attach()
    return bitmap


def contents(node: Node) -> dict[str | None, tuple[bool, bool, str]]:
    return {
        bitmap.name: (bitmap.enabled, bitmap.inconsistent, bitmap.sha256())
        for bitmap in bitmaps_of(node)
    }


def test_round_trip(tmp_path: Path) -> None:
    need("qemu-img")
    path = make(tmp_path / "image", "64M")

    async def main() -> None:
        async with rig() as graph:
            node = await add_image(graph, path)
            source = random.Random(1)  # fixed seed
            first = add(node, "first", 512)
            add(node, "off", 65536, enabled=False)
            add(node, "empty", 1 << 31)
            for _ in range(50):
                first.bits.set(source.randrange(64 << 20), source.randrange(1, 5000))
            before = contents(node)
        for _ in range(2):
            async with rig() as graph:
                node = await add_image(graph, path)
                assert contents(node) == before
                await node.write(0, memoryview(b"x"))
                assert contents(node)["off"] == before["off"]
                before = contents(node)

    run(main())
    shown = tool("qemu-img", "info", path)
    assert shown.count("auto") == 2
    assert "in-use" not in shown
    assert "No errors" in tool("qemu-img", "check", path)


def test_reopening_read_only_stores(tmp_path: Path) -> None:
    path = make(tmp_path / "image", "1M")

    async def main() -> None:
        async with rig() as graph:
            node = await add_image(graph, path)
            bitmap = add(node, "b")
            await node.write(0, memoryview(b"x"))
            driver = node.driver
            assert isinstance(driver, Qcow2Driver)
            await driver.prepare_read_only()
            assert [entry.flags for entry in driver.bitmaps] == [FLAG_AUTO]
            # It stays writable after all: the next change marks the bitmap.
            await node.write(65536, memoryview(b"x"))
            assert driver.bitmaps[0].flags & FLAG_IN_USE
            assert bitmap.bits.count() == 2

    run(main())


def test_removing(tmp_path: Path) -> None:
    need("qemu-img")
    path = make(tmp_path / "image", "1M")

    async def main() -> None:
        async with rig() as graph:
            node = await add_image(graph, path)
            add(node, "one").bits.set(0, 1 << 20)
            add(node, "two")
        async with rig() as graph:
            node = await add_image(graph, path)
            for name in ("one", "two", "never there"):
                await node.driver.remove_stored_bitmap(name)
            for bitmap in list(bitmaps_of(node)):
                bitmap.detach()

    run(main())
    assert "bitmaps" not in tool("qemu-img", "info", path)
    assert "No errors" in tool("qemu-img", "check", path)


@pytest.mark.slow
def test_every_crash_while_storing_leaves_a_sound_image(tmp_path: Path) -> None:
    need("qemu-img")
    path = make(tmp_path / "image", "1M")
    crashed = tmp_path / "crashed"

    async def main() -> list[tuple[int, bytes | None] | None]:
        async with rig() as graph:
            add(await add_image(graph, path), "old").bits.set(0, 4096)
        async with rig() as graph:
            node = await add_image(graph, path)
            file: Any = node.children["file"].node.driver
            assert isinstance(file, RecordingFile)
            file.start_recording()
            content[:] = file.before
            add(node, "new")
            next(b for b in bitmaps_of(node) if b.name == "old").bits.set(0, 1 << 20)
        return list(file.writes)

    content = bytearray()
    for write in run(main()):
        if write is None:
            continue
        offset, data = write
        if data is None:
            del content[offset:]
            content.extend(bytes(offset - len(content)))
        else:
            content.extend(bytes(max(0, offset + len(data) - len(content))))
            content[offset : offset + len(data)] = data
        crashed.write_bytes(content)
        shown = tool("qemu-img", "check", "-U", crashed, ok=(0, 3))
        assert "ERROR" not in shown
        info = tool("qemu-img", "info", "-U", crashed)
        # Either the old directory, in use, or the new one, complete.
        assert ("in-use" in info) != ("name: new" in info)


def test_inconsistent_after_a_crash(tmp_path: Path) -> None:
    path, crashed = make(tmp_path / "image", "1M"), tmp_path / "crashed"

    async def main() -> None:
        async with rig() as graph:
            add(await add_image(graph, path), "b").bits.set(0, 4096)
        async with rig() as graph:
            node = await add_image(graph, path)
            file: Any = node.children["file"].node.driver
            crashed.write_bytes(file.data)
        for _ in range(2):  # closing does not mend it
            async with rig() as graph:
                node = await add_image(graph, crashed)
                (bitmap,) = bitmaps_of(node)
                assert bitmap.inconsistent
                assert not bitmap.enabled
                assert not bitmap.bits
                with pytest.raises(QmpError, match="inconsistent"):
                    bitmap.check()
                with pytest.raises(QmpError, match="Bitmap 'b' is inconsistent"):
                    await node.truncate(2 << 20)
                assert node.length() == 1 << 20

    run(main())


@pytest.mark.parametrize(
    ("size", "options", "granularity", "text"),
    [
        ("1M", ["compat=0.10"], 65536, "Cannot store dirty bitmaps in qcow2 v2 files"),
        ("16T", [], 512, "Too much space will be occupied by the bitmap. Use larger granularity"),
    ],
)
def test_refusals(
    tmp_path: Path, size: str, options: list[str], granularity: int, text: str
) -> None:
    path = make(tmp_path / "image", size, *options)

    async def main() -> None:
        async with rig() as graph:
            node = await add_image(graph, path)
            with pytest.raises(QmpError) as info:
                await node.driver.check_storable_bitmap("b", granularity)
            assert info.value.desc == f"Can't make bitmap 'b' persistent in 'q': {text}"

    run(main())


def test_bitmaps_that_a_read_only_image_cannot_take_are_lost_aloud(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make(tmp_path / "image", "1M")

    async def main() -> None:
        async with rig() as graph:
            node = await add_image(graph, path)
            node.read_only = True
            add(node, "b")

    run(main())
    assert capsys.readouterr().err == (
        "qemu-storage-daemon: Lost persistent bitmaps during inactivation of node 'q': "
        "No write access\n"
    )


def test_bitmaps_of_no_byte_are_lost(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A table without entries cannot be stored; it was tried for ever."""
    need("qemu-img")
    path = make(tmp_path / "image", 0)

    async def main() -> None:
        async with rig() as graph:
            node = await add_image(graph, path)
            add(node, "b")

    run(main())
    assert "Lost persistent bitmaps" in capfd.readouterr().err
    assert "No errors" in tool("qemu-img", "check", path)
