# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

import asyncio
import errno
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsd.aio import loop
from qsd.aio.fdio import FileIO, copy_full
from qsd.block import perms
from qsd.block.backend import Backend
from qsd.block.copy import (
    BufferPool,
    CopyError,
    RangeCopier,
    begin_all,
    copy_descriptors,
    next_extent,
    source_status,
)
from qsd.block.drain import Drained
from qsd.block.mapped import MappedDriver
from qsd.block.mapping import MAY_UNMAP, ST_DATA, ST_ZERO, Status
from qsd.block.status import chain_status
from qsd.catalog import find_driver
from qsd.errors import os_error
from qsd.filters.mirror_top import MirrorTopDriver
from qsd.formats.raw import RawDriver
from qsd.jobs.filters import drop_filter, insert_filter
from qsd.protocols.file import copying
from qsd.protocols.file.driver import FileDriver
from tests.support.memory import Rig
from tests.support.tools import need
from tests.support.toyformat import CLUSTER, ToyFormat

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from qsd.block.node import Node

KIB = 1024


def user(rig: Rig, node: Node) -> Backend:
    backend = Backend(rig.graph, "", "a test")
    backend.attach(node, perms.CONSISTENT_READ | perms.WRITE, perms.ALL)
    return backend


def in_rig(story: Callable[[Rig], Awaitable[None]]) -> None:
    async def main() -> None:
        async with Rig(qcow2=ToyFormat, raw=RawDriver, file=FileDriver) as rig:
            await story(rig)

    loop.run(main())


async def drop(*backends: Backend) -> None:
    for backend in backends:
        await backend.detach()


def test_data_is_copied_and_zeroes_stay_zeroes() -> None:
    async def story(rig: Rig) -> None:
        one, two = await rig.memory("one", 256 * KIB), await rig.memory("two", 256 * KIB)
        one.data[65536:73728] = b"x" * 8192
        two.data[:] = b"old!" * (64 * KIB)
        copier = RangeCopier(user(rig, one.node), user(rig, two.node))
        assert await copier.copy(0, 256 * KIB) == 8192
        assert two.data == one.data
        assert {entry[0] for entry in two.log} == {"zero"}
        assert not one.log  # holes were not read, and data came by the fast path
        await drop(copier.source, copier.target)

    in_rig(story)


@pytest.mark.parametrize(
    ("data", "extents"),
    [
        # units of a hole: where data starts, and how long it is; what next_extent makes of it
        ([(0, 8)], [(8, True)]),
        ([], [(8, False)]),
        ([(0, 1), (1.5, 2)], [(3.5, True), (4.5, False)]),
        ([(0.5, 1), (3, 1)], [(1.5, True), (1.5, False), (1, True), (4, False)]),
        ([(1, 1), (7.5, 0.5)], [(1, False), (1, True), (5.5, False), (0.5, True)]),
        ([(0, 7.5)], [(8, True)]),
        # many short ones: what follows is taken for data
        ([(0.25 * n, 0.0625) for n in range(6)], [(5.0625, True), (2.9375, False)]),
    ],
)
def test_small_holes_count_as_data(
    data: list[tuple[float, float]], extents: list[tuple[float, bool]]
) -> None:
    hole = 64 * KIB

    async def story(rig: Rig) -> None:
        one = await rig.memory("one", 8 * hole)
        for start, length in data:
            at, end = int(start * hole), int((start + length) * hole)
            one.data[at:end] = b"x" * (end - at)
        found, offset = [], 0
        while offset < 8 * hole:
            count, is_data = await next_extent(one.node, offset, 8 * hole - offset, hole)
            found.append((count / hole, is_data))
            offset += count
        assert found == extents

    in_rig(story)


def test_what_comes_before_an_unknown_place_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    from qsd.block import copy

    real = copy.source_status

    async def source_status(source: Node, offset: int, length: int) -> Status:
        if offset >= 8192:
            raise CopyError(True, offset, OSError(errno.EIO, ""))
        return await real(source, offset, length)

    monkeypatch.setattr(copy, "source_status", source_status)

    async def story(rig: Rig) -> None:
        one = await rig.memory("one", 256 * KIB)
        one.data[:8192] = b"x" * 8192
        assert await next_extent(one.node, 0, 256 * KIB, 65536) == (8192, True)
        with pytest.raises(CopyError):
            await next_extent(one.node, 8192, 65536, 65536)

    in_rig(story)


def test_only_the_range_is_touched() -> None:
    async def story(rig: Rig) -> None:
        one, two = await rig.memory("one", 16 * KIB), await rig.memory("two", 16 * KIB)
        one.data[:] = b"x" * (16 * KIB)
        copier = RangeCopier(user(rig, one.node), user(rig, two.node), unit=4096)
        await copier.copy_data(1000, 10000)
        assert bytes(two.data) == bytes(1000) + b"x" * 10000 + bytes(16 * KIB - 11000)
        await copier.zero(2000, 100)
        assert two.data[2000:2100] == bytes(100)
        assert two.data[2100] == ord("x")
        await drop(copier.source, copier.target)

    in_rig(story)


@pytest.mark.parametrize("side", ["read", "write"])
def test_errors_name_side_and_place(side: str) -> None:
    async def story(rig: Rig) -> None:
        one, two = await rig.memory("one", 16 * KIB), await rig.memory("two", 16 * KIB)
        one.data[:] = b"x" * (16 * KIB)
        culprit = one if side == "read" else two
        culprit.fail = lambda operation, offset: (
            errno.ENOSPC if operation == side and offset >= 8192 else 0
        )
        copier = RangeCopier(user(rig, one.node), user(rig, two.node), unit=4096)
        with pytest.raises(CopyError) as caught:
            await copier.copy(0, 16 * KIB)
        assert caught.value.is_read == (side == "read")
        assert caught.value.offset == 8192
        assert caught.value.cause.errno == errno.ENOSPC
        assert two.data[:8192] == one.data[:8192]
        two.fail = lambda operation, offset: errno.EIO if operation == "zero" else 0
        with pytest.raises(CopyError) as caught:
            await copier.zero(4096, 4096)
        assert not caught.value.is_read
        await drop(copier.source, copier.target)

    in_rig(story)


def test_a_drained_section_waits_for_whole_copies() -> None:
    async def story(rig: Rig) -> None:
        import asyncio

        one, two = await rig.memory("one", 16 * KIB), await rig.memory("two", 16 * KIB)
        one.data[:] = b"x" * (16 * KIB)
        two.gate = asyncio.Event()
        copier = RangeCopier(user(rig, one.node), user(rig, two.node), unit=4096)
        copying = rig.tasks.spawn(copier.copy(0, 16 * KIB), "copy")
        await asyncio.sleep(0)
        seen: list[bool] = []

        async def drain() -> None:
            async with Drained([one.node]):
                seen.append(two.data == one.data)

        draining = rig.tasks.spawn(drain(), "drain")
        await asyncio.sleep(0)
        assert not seen
        two.gate.set()
        await draining
        await copying
        assert seen == [True]
        await drop(copier.source, copier.target)

    in_rig(story)


def test_no_copy_starts_while_one_side_is_drained() -> None:
    async def story(rig: Rig) -> None:
        import asyncio

        one, two = await rig.memory("one"), await rig.memory("two")
        source, target = user(rig, one.node), user(rig, two.node)
        async with Drained([two.node]):
            waiting = rig.tasks.spawn(begin_all(source, target), "begin")
            await asyncio.sleep(0)
            assert not waiting.done()
            assert not source.in_flight
        await waiting
        assert (source.in_flight, target.in_flight) == (1, 1)
        source.end()
        target.end()
        await drop(source, target)

    in_rig(story)


def test_files_are_copied_by_descriptor(tmp_path: Path) -> None:
    content = os.urandom(256 * KIB)
    (tmp_path / "one").write_bytes(content)
    (tmp_path / "two").write_bytes(bytes(256 * KIB))

    async def story(rig: Rig) -> None:
        nodes = [
            await rig.add(
                driver="raw",
                node_name=name,
                file={"driver": "file", "filename": str(tmp_path / name)},
            )
            for name in ("one", "two")
        ]
        copier = RangeCopier(user(rig, nodes[0]), user(rig, nodes[1]))
        assert await copy_descriptors(nodes[0], nodes[1], 4096, 8192)
        assert (tmp_path / "two").read_bytes() == (
            bytes(4096) + content[4096:12288] + bytes(256 * KIB - 12288)
        )
        await copier.copy(0, 256 * KIB)
        await copier.target.flush()
        await drop(copier.source, copier.target)

    in_rig(story)
    assert (tmp_path / "two").read_bytes() == content


def test_a_format_allocates_for_data_from_a_descriptor(tmp_path: Path) -> None:
    content = os.urandom(16 * CLUSTER)
    (tmp_path / "one").write_bytes(content)
    (tmp_path / "two").write_bytes(b"")

    async def story(rig: Rig) -> None:
        one = await rig.add(driver="file", node_name="one", filename=str(tmp_path / "one"))
        two = await rig.add(
            driver="qcow2",
            node_name="two",
            file={"driver": "file", "filename": str(tmp_path / "two")},
        )
        copier = RangeCopier(user(rig, one), user(rig, two))
        assert await copy_descriptors(one, two, 0, 12 * CLUSTER)
        # A part of a cluster needs copy on write, which goes through a buffer.
        assert not await copy_descriptors(one, two, 12 * CLUSTER, CLUSTER // 2)
        await copier.copy_data(12 * CLUSTER, CLUSTER // 2)
        assert await copy_descriptors(one, two, 0, CLUSTER)  # in place
        back = memoryview(bytearray(13 * CLUSTER))
        await two.read(0, back)
        end = 12 * CLUSTER + CLUSTER // 2
        assert back == content[:end] + bytes(CLUSTER // 2)
        driver = two.driver
        assert isinstance(driver, ToyFormat)
        # And back again: data of the format lies in one piece, and is pinned meanwhile.
        holds: list[Callable[[], None]] = []
        assert driver.pin_nowait(0, CLUSTER, holds) is not None
        assert len(driver.ranges) == 1
        for release in holds:
            release()
        assert not len(driver.ranges)
        await drop(copier.source, copier.target)

    in_rig(story)


def test_a_short_source_falls_back_to_the_buffer(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"x" * 1000)
    (tmp_path / "two").write_bytes(b"old!" * 256)

    async def story(rig: Rig) -> None:
        one = await rig.add(driver="file", node_name="one", filename=str(tmp_path / "one"))
        two = await rig.add(driver="file", node_name="two", filename=str(tmp_path / "two"))
        copier = RangeCopier(user(rig, one), user(rig, two))
        await copier.copy_data(0, 1024)
        await drop(copier.source, copier.target)

    in_rig(story)
    assert (tmp_path / "two").read_bytes() == b"x" * 1000 + bytes(24)


def test_buffers_are_used_again() -> None:
    pool = BufferPool(4096)
    first = pool.take()
    assert len(first) == 4096
    pool.give(first)
    assert pool.take() is first
    assert pool.take() is not first


@settings(max_examples=40, deadline=None)
@given(
    pieces=st.lists(st.tuples(st.integers(0, 15), st.integers(1, 4), st.booleans()), max_size=8),
    start=st.integers(0, 60),
    length=st.integers(1, 60),
    unit=st.sampled_from([512, 4096, 1 << 20]),
)
def test_any_layout_is_copied(
    pieces: list[tuple[int, int, bool]], start: int, length: int, unit: int
) -> None:
    async def story(rig: Rig) -> None:
        one = await rig.add(
            driver="qcow2", node_name="one", file={"driver": "null-co", "size": 1 << 20}
        )
        two = await rig.memory("two", 64 * CLUSTER)
        two.data[:] = b"o" * len(two.data)
        for at, count, zero in pieces:
            if zero:
                await one.zero(at * CLUSTER, count * CLUSTER)
            else:
                await one.write(at * CLUSTER, memoryview(os.urandom(count * CLUSTER)))
        want = bytearray(two.data)
        first, size = start * 1024, min(length, 64 - start) * 1024
        await one.read(first, memoryview(want)[first : first + size])
        copier = RangeCopier(user(rig, one), user(rig, two.node), unit=unit)
        await copier.copy(first, size)
        assert two.data == want
        await drop(copier.source, copier.target)

    in_rig(story)


# Real images: what the kernel copies and what goes through buffers must come to the same

IMAGE = 8 << 20
UNIT = 64 * KIB
KINDS = {
    "raw": (),
    "qcow2": ("-o", "cluster_size=64k"),
    "small": ("-o", "cluster_size=4k"),
    "large": ("-o", "cluster_size=2M"),
    "extended": ("-o", "cluster_size=64k,extended_l2=on"),
}


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Empty images of all kinds."""
    need("qemu-img")
    folder = tmp_path_factory.mktemp("templates")
    for kind, options in KINDS.items():
        tool("create", "-q", "-f", format_of(kind), *options, folder / kind, str(IMAGE))
    return folder


def tool(*words: str | Path) -> None:
    subprocess.run(["qemu-img", *words], check=True, stdout=subprocess.DEVNULL)


def format_of(kind: str) -> str:
    return "raw" if kind == "raw" else "qcow2"


class Images:
    """A source, maybe with a backing file, and a target."""

    def __init__(self, rig: Rig, folder: Path) -> None:
        self.rig = rig
        self.folder = folder

    async def add(self, template: Path, name: str, **more: Any) -> Node:
        shutil.copy(template, self.folder / name)
        return await self.rig.add(
            driver=format_of(template.name),
            node_name=name,
            discard="unmap",
            file={"driver": "file", "filename": str(self.folder / name), "discard": "unmap"},
            **more,
        )

    async def pair(self, templates: Path, source: str, target: str) -> tuple[Node, Node]:
        more: dict[str, Any] = {}
        if source != "raw":
            base = await self.add(templates / "raw", "base")
            await base.write(IMAGE // 4, memoryview(os.urandom(IMAGE // 2)))
            more["backing"] = "base"
        return (
            await self.add(templates / source, "source", **more),
            await self.add(templates / target, "target"),
        )


def with_images(story: Callable[[Images], Awaitable[None]]) -> None:
    """Tell a story in a folder of its own; what is left there must be sound and equal."""
    with tempfile.TemporaryDirectory() as folder:

        async def main() -> None:
            async with Rig() as rig:
                rig.graph.find_driver = find_driver
                await story(Images(rig, Path(folder)))

        loop.run(main())
        for path in Path(folder).iterdir():
            if path.read_bytes()[:4] == b"QFI\xfb":
                tool("check", "-q", path)


async def change(node: Node, kind: str, at: int, count: int) -> None:
    offset, length = at * UNIT, min(count * UNIT, IMAGE - at * UNIT)
    if kind == "write":
        await node.write(offset, memoryview(os.urandom(length)))
    elif kind == "zero":
        await node.zero(offset, length, MAY_UNMAP)
    else:
        await node.discard(offset, length)


async def whole(node: Node) -> memoryview:
    view = memoryview(bytearray(IMAGE))
    await node.read(0, view)
    return view


CHANGES = st.tuples(
    st.sampled_from(["write", "write", "zero", "discard"]),
    st.integers(0, IMAGE // UNIT - 1),
    st.integers(1, 40),
)


@settings(max_examples=10, deadline=None)
@given(
    source=st.sampled_from(sorted(KINDS)),
    target=st.sampled_from(sorted(KINDS)),
    changes=st.lists(CHANGES, max_size=10),
    chunk=st.sampled_from([UNIT * 5, 1 << 20, IMAGE]),
    use_descriptors=st.booleans(),
)
def test_images_are_copied(
    templates: Path,
    source: str,
    target: str,
    changes: list[tuple[str, int, int]],
    chunk: int,
    use_descriptors: bool,
) -> None:
    async def story(images: Images) -> None:
        one, two = await images.pair(templates, source, target)
        for kind, at, count in changes:
            await change(one, kind, at, count)
        copier = RangeCopier(
            user(images.rig, one), user(images.rig, two), use_descriptors=use_descriptors
        )
        with mock.patch.object(copying, "MAX_INLINE_WRITE", 128 * KIB):
            tasks = [
                images.rig.tasks.spawn(
                    copier.copy(at, min(chunk, IMAGE - at)), "copy", awaited=True
                )
                for at in range(0, IMAGE, chunk)
            ]
            for task in tasks:
                await task
        assert await whole(two) == await whole(one)
        offset = 0
        while offset < IMAGE:  # zeroes stay zeroes, as far as whole clusters are zero
            status = await chain_status(one, offset, IMAGE - offset)
            if status.flags & ST_ZERO:
                middle = (offset + status.length // 2) & ~(UNIT - 1)
                copied = await chain_status(two, middle, 1)
                assert copied.flags & ST_ZERO or target == "large"
            offset += status.length
        await drop(copier.source, copier.target)

    with_images(story)


@pytest.mark.parametrize("source", ["raw", "qcow2"])
@pytest.mark.parametrize("target", ["raw", "qcow2"])
def test_images_are_copied_in_the_kernel(templates: Path, source: str, target: str) -> None:
    async def story(images: Images) -> None:
        one, two = await images.pair(templates, source, target)
        await change(one, "write", 0, 24)
        copier = RangeCopier(user(images.rig, one), user(images.rig, two))
        with mock.patch.object(copying, "copy_full", side_effect=copy_full) as copies:
            moved = await copier.copy(0, IMAGE)
        assert sum(call.args[4] for call in copies.call_args_list) == moved > 0
        assert await whole(two) == await whole(one)
        await drop(copier.source, copier.target)

    with_images(story)


@settings(max_examples=5, deadline=None)
@given(changes=st.lists(CHANGES, min_size=4, max_size=20), source=st.sampled_from(["raw", "qcow2"]))
def test_a_writer_beside_the_copy(
    templates: Path, changes: list[tuple[str, int, int]], source: str
) -> None:
    async def story(images: Images) -> None:
        one, two = await images.pair(templates, source, "qcow2")
        await change(one, "write", 0, 100)
        copier = RangeCopier(user(images.rig, one), user(images.rig, two))
        written: list[bool] = []

        async def write() -> None:
            for kind, at, count in changes:
                await change(one, kind, at, count)
            written.append(True)

        with mock.patch.object(copying, "MAX_INLINE_WRITE", 128 * KIB):
            writing = images.rig.tasks.spawn(write(), "write", awaited=True)
            while not written:
                await copier.copy(0, IMAGE)
                await asyncio.sleep(0)  # a copy need not wait for anything
            await writing
            await copier.copy(0, IMAGE)
        assert await whole(two) == await whole(one)
        for node in (one, two):
            if isinstance(node.driver, MappedDriver):
                assert not len(node.driver.ranges)
        await drop(copier.source, copier.target)

    with_images(story)


@pytest.mark.parametrize("target", ["raw", "qcow2"])
@pytest.mark.parametrize("inline", [True, False])
def test_no_space_in_the_middle_of_a_copy(templates: Path, target: str, inline: bool) -> None:
    room = 3 << 20

    def copy_some(fd: int, to: int, host: int, offset: int, length: int) -> None:
        if offset + length > room:
            copy_full(fd, to, host, offset, max(0, room - offset))
            raise os_error(errno.ENOSPC)
        copy_full(fd, to, host, offset, length)

    async def refuse(self: FileDriver, offset: int, view: memoryview, flags: int) -> None:
        if offset + len(view) > room:
            raise os_error(errno.ENOSPC)
        await FileIO.write(self.io, offset, view)

    async def story(images: Images) -> None:
        one, two = await images.pair(templates, "raw", target)
        await change(one, "write", 0, IMAGE // UNIT)
        copier = RangeCopier(user(images.rig, one), user(images.rig, two))
        limit = IMAGE if inline else 128 * KIB
        with (
            mock.patch.object(copying, "MAX_INLINE_WRITE", limit),
            mock.patch.object(copying, "copy_full", copy_some),
            mock.patch.object(FileDriver, "write_nowait", return_value=False),
            mock.patch.object(FileDriver, "write", refuse),
        ):
            two.refresh_fast_paths()
            two.children["file"].node.refresh_fast_paths()
            with pytest.raises(CopyError) as caught:
                await copier.copy(0, IMAGE)
        assert not caught.value.is_read
        assert caught.value.cause.errno == errno.ENOSPC
        assert caught.value.offset <= room
        assert target == "qcow2" or caught.value.offset == room
        two.children["file"].node.refresh_fast_paths()
        done = caught.value.offset
        view = memoryview(bytearray(done))
        await two.read(0, view)
        assert view == (await whole(one))[:done]
        await copier.copy(0, IMAGE)
        assert await whole(two) == await whole(one)
        await drop(copier.source, copier.target)

    with_images(story)


def test_data_in_many_pieces_is_looked_at_as_a_whole(templates: Path) -> None:
    async def story(images: Images) -> None:
        one = await images.add(templates / "qcow2", "source")
        for at in (3, 1, 2, 0):
            await change(one, "write", at, 1)
        top = await insert_filter(images.rig.graph, MirrorTopDriver, "top", one)
        for node in (one, top):
            for at in range(4):  # what is data in the file is found out piece by piece
                await source_status(node, at * UNIT, UNIT)
            assert await source_status(node, 0, IMAGE) == Status(4 * UNIT, ST_DATA)
            assert await source_status(node, UNIT, UNIT) == Status(UNIT, ST_DATA)
            assert (await source_status(node, 4 * UNIT, UNIT)).flags & ST_ZERO
        await drop_filter(images.rig.graph, top)

    with_images(story)
