# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The fast path of writes to new clusters, against the plain way."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qsd.aio.loop import run
from qsd.block.node import Node
from qsd.block.piped import Payload
from qsd.formats.qcow2.driver import Qcow2Driver
from qsd.formats.qcow2.quick import QuickWriter
from tests.formats.qcow2.support import Unseen, add_image, check, file_of, make, rig
from tests.formats.qcow2.support import run as tool
from tests.support.tools import need

SIZE = (1 << 20) - 1536
UNIT = 4096

Writes = list[tuple[int, int]]


def _base(folder: Path) -> Path:
    base = make(folder / "base", 800 << 10, "cluster_size=4k")
    tool("qemu-io", "-f", "qcow2", "-c", "write -P 7 0 300k", "-c", "write -P 8 600k 200k", base)
    return base


def _image(folder: Path, kind: str) -> Path:
    """Make an image whose clusters are not its own."""
    path = folder / "image"
    options = "cluster_size=4k,compat=0.10" if kind == "old" else "cluster_size=4k"
    make(path, SIZE, options)
    tool("qemu-io", "-f", "qcow2", "-c", "write -P 3 100k 50k", path)
    if kind != "old":
        tool("qemu-io", "-f", "qcow2", "-c", "write -z -u 200k 60k", path)
    if kind == "backing":
        tool("qemu-img", "rebase", "-u", "-b", _base(folder), "-F", "qcow2", path)
    elif kind == "snapshot":
        commands = ("write -P 5 300k 200k", "write -z 450k 20k", "write -c 512k 4k")
        tool("qemu-io", "-f", "qcow2", *(f"-c{command}" for command in commands), path)
        tool("qemu-img", "snapshot", "-c", "s", path)
    return path


def driver_of(node: Node) -> Qcow2Driver:
    assert isinstance(node.driver, Qcow2Driver)
    return node.driver


def data_of(number: int, length: int) -> memoryview:
    return memoryview(bytes([number % 255 + 1]) * length)


def _is_served(quick: QuickWriter, offset: int, view: memoryview) -> bool:
    return quick.write_nowait(offset, (view,), len(view))


def _write_at_once(driver: Qcow2Driver, offset: int, view: memoryview, way: str) -> bool:
    """Write by one of the fast ways; return whether that was possible."""
    if way == "views":
        views = view[:512], view[512:1536], view[1536:]
        return driver.write_views_nowait(offset, views, len(view))
    return way == "unseen" and driver.receive_nowait(offset, Unseen(view))


async def _apply(node: Node, writes: Writes, way: str) -> bytes:
    """Do some writes, flushing now and then, and return what is read afterwards."""
    for number, (offset, length) in enumerate(writes):
        view = data_of(number, min(length, SIZE - offset))
        if way == "fast":
            await node.write(offset, view)
        elif not _write_at_once(driver_of(node), offset, view, way):
            await driver_of(node).write(offset, view, 0)
        if number % 10 == 9:
            await node.flush()
    content = bytearray(SIZE)
    await node.read(0, memoryview(content))
    return bytes(content)


@pytest.mark.parametrize("kind", ["fresh", "old", "backing", "snapshot"])
def test_all_ways_leave_the_same(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("qemu-img", "qemu-io")
    template = _image(tmp_path, kind)
    served = {0: 0, 1: 0, 3: 0}
    plain = QuickWriter.write_nowait

    def counted(
        writer: QuickWriter,
        offset: int,
        views: Sequence[memoryview],
        length: int,
        payload: Payload | None = None,
    ) -> bool:
        done = plain(writer, offset, views, length, payload)
        served[len(views)] += done
        return done

    monkeypatch.setattr(QuickWriter, "write_nowait", counted)
    offsets = st.integers(0, SIZE // 512 - 1).map(lambda number: number * 512)
    clusters = st.integers(0, SIZE // UNIT - 1).map(lambda number: number * UNIT)
    lengths = st.one_of(
        st.integers(1, 40).map(lambda number: number * 512),
        st.integers(1, 12).map(lambda number: number * UNIT),
    )
    sequences = st.lists(st.tuples(offsets | clusters, lengths), min_size=8, max_size=40)
    shared = [HealthCheck.function_scoped_fixture]

    @settings(max_examples=20, deadline=None, suppress_health_check=shared)
    @given(sequences)
    def compare(writes: Writes) -> None:
        results = []
        for way in ("fast", "views", "unseen", "plain"):
            path = tmp_path / way
            shutil.copyfile(template, path)

            async def main(path: Path = path, way: str = way) -> bytes:
                async with rig() as graph:
                    return await _apply(await add_image(graph, path), writes, way)

            results.append(run(main()))
            check(path)
        assert results[0] == results[1] == results[2] == results[3]

    compare()
    assert min(served.values()) > 5
    if kind == "snapshot":
        # What was shared is what it was.
        for path in (tmp_path / "fast", template):
            tool("qemu-img", "snapshot", "-a", "s", path)
        tool("qemu-img", "compare", "-f", "qcow2", "-F", "qcow2", tmp_path / "fast", template)


def _with_image(path: Path, body: Callable[[Node], Any], **options: Any) -> None:
    async def main() -> None:
        async with rig() as graph:
            node = await add_image(graph, path, **options)
            await node.write(SIZE - 512, data_of(1, 512))  # the tables are there
            await body(node)

    run(main())
    check(path)


def test_no_cluster_that_somebody_holds_is_copied(tmp_path: Path) -> None:
    need("qemu-img", "qemu-io")
    path = _image(tmp_path, "snapshot")

    async def body(node: Node) -> None:
        driver = driver_of(node)
        for length in (512, UNIT):
            hold = driver.ranges.claim_nowait(301 << 10, 302 << 10, False)
            assert hold is not None
            assert not node.write_nowait(300 << 10, data_of(2, length))
            assert node.write_nowait(320 << 10, data_of(2, length))
            driver.ranges.release(hold)
        assert node.write_nowait(300 << 10, data_of(2, 512))

    _with_image(path, body)


def test_a_failed_write_leaves_the_clusters_free(tmp_path: Path) -> None:
    need("qemu-img", "qemu-io")
    path = _image(tmp_path, "fresh")

    async def body(node: Node) -> None:
        file = file_of(node)
        before = driver_of(node).image.refcounts.free_hint
        for length in (512, UNIT, 3 * UNIT):
            file.fail = lambda operation, offset: errno.ENOSPC * (operation == "write")
            assert not node.write_nowait(600 << 10, data_of(2, length))
            assert driver_of(node).image.refcounts.free_hint == before
            file.fail = lambda operation, offset: 0
        content = bytearray(3 * UNIT)
        await node.read(600 << 10, memoryview(content))
        assert not any(content)

    _with_image(path, body)


@pytest.mark.parametrize("taken", [1, 512, UNIT, 2 * UNIT + 100])
def test_what_the_file_takes_only_a_part_of(tmp_path: Path, taken: int) -> None:
    """The clusters are free again, the guest sees nothing, and no zeroes where the part is."""
    path = make(tmp_path / "image", SIZE, "cluster_size=4k")

    async def body(node: Node) -> None:
        driver = driver_of(node)
        image = driver.image
        before = image.refcounts.free_hint
        with pytest.raises(OSError, match="No space"):
            node.receive_nowait(40 * UNIT + 512, Unseen(data_of(7, 3 * UNIT), taken))
        assert image.refcounts.free_hint == before
        # Where a part is, the rest of a cluster is not known to be zero; whole ones do not mind.
        assert not node.receive_nowait(40 * UNIT + 512, Unseen(data_of(7, 3 * UNIT)))
        with pytest.raises(OSError, match="No space"):
            node.receive_nowait(40 * UNIT, Unseen(data_of(7, 3 * UNIT), taken))
        assert image.refcounts.free_hint == before
        content = memoryview(bytearray(5 * UNIT))
        await node.read(39 * UNIT, content)
        assert not any(content)
        await node.write(60 * UNIT + 3072, data_of(9, 512))
        cluster = memoryview(bytearray(UNIT))
        await node.read(60 * UNIT, cluster)
        assert bytes(cluster) == bytes(3072) + bytes(data_of(9, 512)) + bytes(512)
        assert node.receive_nowait(40 * UNIT, Unseen(data_of(8, 3 * UNIT)))
        await node.read(39 * UNIT, content)
        assert bytes(content) == bytes(UNIT) + bytes(data_of(8, 3 * UNIT)) + bytes(UNIT)

    _with_image(path, body)


def test_what_was_written_in_part_is_not_taken_for_zeroes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make(tmp_path / "image", SIZE, "cluster_size=4k")

    async def body(node: Node) -> None:
        file = node.children["file"].node
        write = file.write_nowait

        def write_half(offset: int, view: memoryview) -> bool:
            assert write(offset, view[: len(view) // 2])
            return False

        with monkeypatch.context() as patch:
            patch.setattr(file, "write_nowait", write_half)
            assert not driver_of(node).write_nowait(20 * UNIT + 512, data_of(7, 2048))
        await node.write(40 * UNIT + 3072, data_of(9, 512))
        cluster = memoryview(bytearray(UNIT))
        await node.read(40 * UNIT, cluster)
        assert bytes(cluster) == bytes(3072) + bytes(data_of(9, 512)) + bytes(512)

    _with_image(path, body)


def test_what_is_left_to_the_plain_way(tmp_path: Path) -> None:
    need("qemu-img", "qemu-io")
    path = _image(tmp_path, "backing")

    async def body(node: Node) -> None:
        driver = driver_of(node)
        quick = driver._quick
        backing = node.children["backing"].node
        # Old content at both ends of several clusters; the end of the image; and of the backing
        # file; tables or content that are not in memory; a damaged image.
        assert not _is_served(quick, 500 << 10 | 512, data_of(2, 2 * UNIT))
        assert not _is_served(quick, SIZE - 1024, data_of(2, 512))
        assert not _is_served(quick, 900 << 10, data_of(2, 512))
        file_of(backing).fast = False
        assert not _is_served(quick, 20 << 10, data_of(2, 512))
        file_of(backing).fast = True
        table = driver.image.l2.hot.pop(0)
        assert not _is_served(quick, 20 << 10, data_of(2, 512))
        driver.image.l2.hot[0] = table
        await backing.read(0, memoryview(bytearray(1)))
        assert _is_served(quick, 20 << 10, data_of(2, 512))
        driver.image.broken = True
        assert not _is_served(quick, 40 << 10, data_of(2, 512))
        driver.image.broken = False

    _with_image(path, body)


def test_lazy_refcounts_begin_with_the_dirty_bit(tmp_path: Path) -> None:
    need("qemu-img")
    path = make(tmp_path / "image", SIZE, "lazy_refcounts=on")

    async def main() -> None:
        async with rig() as graph:
            node = await add_image(graph, path)
            quick = driver_of(node)._quick
            await driver_of(node).map(0, 1)
            assert not _is_served(quick, 0, data_of(1, 512))
            await node.write(0, data_of(1, 512))
            assert driver_of(node).image.header.incompatible_features & 1
            assert _is_served(quick, 1 << 16, data_of(1, 512))

    run(main())
    check(path)


def test_other_layouts_are_not_served(tmp_path: Path) -> None:
    need("qemu-img")
    path = make(tmp_path / "image", SIZE, "extended_l2=on")

    async def main() -> None:
        async with rig() as graph:
            node = await add_image(graph, path)
            await node.write(0, data_of(1, 512))
            assert not driver_of(node)._quick.is_usable
            assert not _is_served(driver_of(node)._quick, 1 << 17, data_of(1, 1 << 16))

    run(main())
