# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Allocation of host clusters and growth of the refcount structures."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from qsd.aio.loop import run
from qsd.formats.qcow2.driver import Qcow2Driver
from qsd.formats.qcow2.image import Image
from qsd.formats.qcow2.refcount import FREE_OTHER, FREE_SILENT
from tests.formats.qcow2.support import add_image, check, make, rig
from tests.support.tools import need


def with_image(path: Path, body: Callable[[Image], Awaitable[None]]) -> None:
    async def main() -> None:
        async with rig() as graph:
            node = await add_image(graph, path)
            driver = node.driver
            assert isinstance(driver, Qcow2Driver)
            await body(driver.image)

    run(main())


def test_runs_and_their_return(tmp_path: Path) -> None:
    need("qemu-img")
    path = make(tmp_path / "image", "1M", "cluster_size=4k")

    async def body(image: Image) -> None:
        refcounts = image.refcounts
        assert refcounts.take_nowait(1) is None  # no block is loaded yet
        first, count = await refcounts.take(10)
        assert count == 10
        assert await refcounts.get(first + 9) == 1
        assert refcounts.take_nowait(5) == (first + 10, 5)
        refcounts.release_nowait(first + 2, 3)
        assert refcounts.take_nowait(5) == (first + 2, 3)
        refcounts.release_nowait(first, 15)
        assert await refcounts.get(first) == 0

    with_image(path, body)
    check(path)


def test_freed_clusters_are_reused_only_after_a_write_back(tmp_path: Path) -> None:
    need("qemu-img")
    path = make(tmp_path / "image", "1M", "cluster_size=4k")

    async def body(image: Image) -> None:
        first, _ = await image.refcounts.take(4)
        image.free(first, 4, FREE_OTHER)
        assert await image.refcounts.get(first) == 1
        assert image.refcounts.take_nowait(1) == (first + 4, 1)
        await image.write_back()
        assert await image.refcounts.get(first) == 0
        assert image.refcounts.take_nowait(4) == (first, 4)
        image.free(first, 5, FREE_SILENT)

    with_image(path, body)
    check(path)


@pytest.mark.parametrize("bits", [1, 8, 16, 64])
def test_growth_over_many_blocks(tmp_path: Path, bits: int) -> None:
    """Blocks appear as they are needed, and the table moves when it is full."""
    need("qemu-img")
    path = make(tmp_path / "image", "64M", f"cluster_size=512,refcount_bits={bits}")

    async def body(image: Image) -> None:
        taken: list[tuple[int, int]] = []
        total = 0
        while total < 20000:
            run_taken = await image.refcounts.take(1000)
            taken.append(run_taken)
            total += run_taken[1]
        await image.write_back()
        seen: set[int] = set()
        for first, count in taken:
            clusters = set(range(first, first + count))
            assert not seen & clusters
            seen |= clusters
            image.free(first, count, FREE_OTHER)

    with_image(path, body)
    check(path)


def test_tables_in_one_piece(tmp_path: Path) -> None:
    need("qemu-img")
    path = make(tmp_path / "image", "1M", "cluster_size=512,refcount_bits=64")

    async def body(image: Image) -> None:
        for count in (1, 7, 30, 200, 3000):
            first = await image.refcounts.take_exactly(count)
            assert await image.refcounts.get(first) == 1
            assert await image.refcounts.get(first + count - 1) == 1
            image.free(first, count, FREE_OTHER)
        await image.write_back(durable=True)

    with_image(path, body)
    check(path)


def test_shared_clusters(tmp_path: Path) -> None:
    need("qemu-img")
    path = make(tmp_path / "image", "1M", "cluster_size=4k,refcount_bits=2")

    async def body(image: Image) -> None:
        first, _ = await image.refcounts.take(2)
        await image.refcounts.add(first, 2)
        await image.refcounts.add(first, 1)
        with pytest.raises(OSError, match="Invalid argument"):
            await image.refcounts.add(first, 1)
        assert await image.refcounts.get(first) == 3
        assert await image.refcounts.get(first + 1) == 2
        image.free(first, 2, FREE_OTHER)
        image.free(first, 2, FREE_OTHER)
        image.free(first, 1, FREE_OTHER)
        await image.write_back()
        assert await image.refcounts.get(first) == 0
        assert await image.refcounts.last_used() == first - 1

    with_image(path, body)
    check(path)


def test_a_damaged_block_offset_is_reported(tmp_path: Path) -> None:
    need("qemu-img")
    path = make(tmp_path / "image", "1M")
    with path.open("r+b") as file:
        file.seek(0x10000)
        file.write((0x20200).to_bytes(8, "big"))

    async def body(image: Image) -> None:
        with pytest.raises(OSError, match="Input/output"):
            await image.refcounts.take(1)
        assert image.broken

    with_image(path, body)
