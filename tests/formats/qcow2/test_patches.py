# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Ranges of data and zeroes that are written in one go, against the plain way."""

from __future__ import annotations

import errno
import os
from array import array
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qsd.aio.loop import run
from qsd.block.mapping import Patch
from qsd.block.node import Node
from qsd.errors import os_error
from qsd.formats.qcow2.driver import Qcow2Driver
from qsd.formats.qcow2.image import Image
from qsd.protocols.file.driver import FileDriver
from tests.formats.qcow2.support import add_image, check, content, make
from tests.formats.qcow2.support import run as tool
from tests.support.memory import Rig
from tests.support.tools import need

UNIT = 4096
CLUSTERS = 600  # a slice has 512
SIZE = CLUSTERS * UNIT - 1536

Story = Callable[[Node, int], Awaitable[None]]


def tell(image: Path, data: Path, story: Story) -> None:
    """Tell a story of an image and a file full of data."""

    async def main() -> None:
        async with Rig(qcow2=Qcow2Driver, file=FileDriver) as rig:
            node = await add_image(rig, image)
            fd = os.open(data, os.O_RDONLY)
            await story(node, fd)
            await node.flush()
            os.close(fd)

    run(main())


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "data"
    path.write_bytes(os.urandom(2 * CLUSTERS * UNIT))
    return path


def _image(folder: Path, options: str = "") -> Path:
    path = folder / "image"
    path.unlink(missing_ok=True)
    return make(path, SIZE, "cluster_size=4k" + options)


def _patches(fd: int, pieces: list[tuple[int, int, int]]) -> list[Patch]:
    """Make patches of (cluster, clusters, cluster in the file)."""
    return [Patch(at * UNIT, n * UNIT, fd, where * UNIT) for at, n, where in pieces]


async def _read(node: Node) -> bytes:
    view = memoryview(bytearray(SIZE))
    await node.read(0, view)
    return bytes(view)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    runs=st.lists(
        st.tuples(st.integers(1, 90), st.booleans(), st.integers(0, CLUSTERS)), min_size=1
    ),
    used=st.lists(st.integers(0, CLUSTERS - 1), max_size=2),
    zeroed=st.lists(st.integers(0, CLUSTERS - 1), max_size=2),
    step=st.integers(30, 200),
)
def test_it_does_what_the_plain_way_does(
    tmp_path: Path,
    data: Path,
    runs: list[tuple[int, bool, int]],
    used: list[int],
    zeroed: list[int],
    step: int,
) -> None:
    need("qemu-img")
    served: list[int] = []
    pieces, at = [], 0
    for count, is_data, where in runs:
        count = min(count, CLUSTERS - 1 - at)
        if is_data and count:
            pieces.append((at, count, where))
        at += count

    async def story(node: Node, fd: int) -> None:
        for cluster in used:
            await node.write(cluster * UNIT, memoryview(b"u" * 512))
        for cluster in zeroed:
            await node.zero(cluster * UNIT, min(UNIT, SIZE - cluster * UNIT))
        want = bytearray(await _read(node))
        start, stop = 0, SIZE
        while start < stop:
            end = min(start + step * UNIT, stop)
            there = [
                (max(at, start // UNIT), min(at + n, end // UNIT), where - at)
                for at, n, where in pieces
            ]
            some = [(low, high - low, low + shift) for low, high, shift in there if low < high]
            done = await node.write_patches(start, end - start, _patches(fd, some), 0)
            served.append(done)
            if done:
                want[start : start + done] = bytes(done)
                for low, count, where in some:
                    count = min(count * UNIT, start + done - low * UNIT)
                    if count > 0:
                        old = os.pread(fd, count, where * UNIT)
                        want[low * UNIT : low * UNIT + count] = old
            assert await _read(node) == want
            start += done or end - start

    tell(_image(tmp_path), data, story)
    assert check(tmp_path / "image")["image-end-offset"]
    if not used:
        assert all(served)
    assert content(tmp_path / "image", tmp_path)[:SIZE]


def test_data_lies_side_by_side_and_zeroes_need_no_place(tmp_path: Path, data: Path) -> None:
    need("qemu-img")

    async def story(node: Node, fd: int) -> None:
        patches = _patches(fd, [(1, 1, 9), (2, 1, 3), (5, 2, 100)])
        assert await node.write_patches(0, 10 * UNIT, patches, 0) == 10 * UNIT

    tell(_image(tmp_path), data, story)
    lines = tool("qemu-img", "map", tmp_path / "image").splitlines()[1:]
    assert [line.split()[:2] for line in lines] == [["0x1000", "0x2000"], ["0x5000", "0x2000"]]
    assert [int(line.split()[2], 16) for line in lines] == [
        int(lines[0].split()[2], 16),
        int(lines[0].split()[2], 16) + 2 * UNIT,
    ]


@pytest.mark.parametrize(
    ("options", "offset", "pieces"),
    [
        (",compat=0.10", 0, [(0, 1, 0)]),  # entries cannot say zero
        (",extended_l2=on,cluster_size=16k", 0, [(0, 4, 0)]),
        ("", 512, [(1, 1, 0)]),
    ],
)
def test_what_it_cannot_do_it_leaves_alone(
    tmp_path: Path, data: Path, options: str, offset: int, pieces: list[tuple[int, int, int]]
) -> None:
    need("qemu-img")

    async def story(node: Node, fd: int) -> None:
        assert not await node.write_patches(offset, 32 * UNIT, _patches(fd, pieces), 0)
        unaligned = [Patch(UNIT, 512, fd, 0)]
        assert not await node.write_patches(0, 32 * UNIT, unaligned, 0)
        assert await _read(node) == bytes(SIZE)

    tell(_image(tmp_path, options), data, story)
    check(tmp_path / "image")


def test_a_failure_frees_what_was_taken(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("qemu-img")

    async def story(node: Node, fd: int) -> None:
        driver = node.children["file"].node.driver

        async def fails(offset: int, length: int, patches: list[Patch], flags: int) -> int:
            raise os_error(errno.ENOSPC)

        async def declines(offset: int, length: int, patches: list[Patch], flags: int) -> int:
            return 0

        patches = _patches(fd, [(0, 1, 0), (2, 3, 7)])
        with monkeypatch.context() as patch:
            patch.setattr(type(driver), "write_patches", lambda _, *a: fails(*a))
            with pytest.raises(OSError, match="No space"):
                await node.write_patches(0, 8 * UNIT, patches, 0)
            patch.setattr(type(driver), "write_patches", lambda _, *a: declines(*a))
            assert not await node.write_patches(0, 8 * UNIT, patches, 0)
        assert await _read(node) == bytes(SIZE)
        # Behind the end of the source nothing can be copied.
        assert not await node.write_patches(0, 8 * UNIT, _patches(fd, [(0, 1, 4 * CLUSTERS)]), 0)

    tell(_image(tmp_path), data, story)
    assert not check(tmp_path / "image").get("leaks", 0)


@pytest.mark.parametrize("pieces", [[], [(0, 1, 0), (2, 3, 7)]])
def test_a_table_that_cannot_be_read_any_more_costs_nothing(
    tmp_path: Path,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    pieces: list[tuple[int, int, int]],
) -> None:
    need("qemu-img")

    async def story(node: Node, fd: int) -> None:
        driver = node.driver
        assert isinstance(driver, Qcow2Driver)
        find, tries = type(driver.image).writable_slice, iter(range(2))

        async def fails_at_last(image: Image, offset: int) -> array[int]:
            if next(tries):
                raise os_error(errno.EIO)
            return await find(image, offset)

        with monkeypatch.context() as patch:
            patch.setattr(type(driver.image), "writable_slice", fails_at_last)
            with pytest.raises(OSError, match="Input/output"):
                await node.write_patches(0, 8 * UNIT, _patches(fd, pieces), 0)
        assert await _read(node) == bytes(SIZE)

    tell(_image(tmp_path), data, story)
    assert not check(tmp_path / "image").get("leaks", 0)
