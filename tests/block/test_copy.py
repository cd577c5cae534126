# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsd.aio import loop
from qsd.block import perms
from qsd.block.backend import Backend
from qsd.block.copy import BufferPool, CopyError, RangeCopier, begin_all, copy_descriptors
from qsd.block.drain import Drained
from qsd.formats.raw import RawDriver
from qsd.protocols.file.driver import FileDriver
from tests.support.memory import Rig
from tests.support.toyformat import CLUSTER, ToyFormat

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

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
        one, two = await rig.memory("one", 64 * KIB), await rig.memory("two", 64 * KIB)
        one.data[8192:16384] = b"x" * 8192
        two.data[:] = b"old!" * (16 * KIB)
        copier = RangeCopier(user(rig, one.node), user(rig, two.node))
        assert await copier.copy(0, 64 * KIB) == 8192
        assert two.data == one.data
        assert {entry[0] for entry in two.log} == {"zero"}
        assert not one.log  # holes were not read, and data came by the fast path
        await drop(copier.source, copier.target)

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
