# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Status of many clusters at once, against the status of one extent after the other."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsd.aio.loop import run
from qsd.block.mapping import (
    DATA,
    HOLE,
    SPECIAL,
    ST_ALLOCATED,
    ST_DATA,
    ST_OFFSET,
    ST_ZERO,
    Status,
)
from qsd.block.node import Node
from qsd.block.runs import Runs
from qsd.block.status import chain_runs_nowait
from qsd.formats.qcow2.driver import Qcow2Driver
from qsd.formats.qcow2.layout import COMPRESSED, COPIED
from tests.formats.qcow2.support import RecordingFile, add_image, make, rig
from tests.formats.qcow2.support import run as tool
from tests.support.extents import pairs, plainly
from tests.support.tools import need

#: Commands that leave clusters of every kind.
COMMANDS = (
    "write 0 192k",
    "write -z 64k 64k",
    "write -z -u 256k 64k",
    "write -c 320k 64k",
    "write 1M 512",
    "write 1100k 700k",
    "write -z 3000k 100k",
)
SIZE = 4 << 20


def driver_of(node: Node) -> Qcow2Driver:
    assert isinstance(node.driver, Qcow2Driver)
    return node.driver


@pytest.fixture
def dense_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files have no holes, and know it."""

    async def all_data(file: RecordingFile, offset: int, length: int, want_zero: bool) -> Status:
        return Status(length, ST_ALLOCATED | ST_OFFSET | ST_DATA, offset)

    monkeypatch.setattr(RecordingFile, "block_status", all_data)
    monkeypatch.setattr(RecordingFile, "known_data_end", lambda file, offset: len(file.data))


@pytest.mark.parametrize("backing", [None, "4M", "1600k"])
def test_a_chain_of_images(tmp_path: Path, backing: str | None, dense_files: None) -> None:
    need("qemu-img", "qemu-io")
    path = make(tmp_path / "i.qcow2", SIZE)
    tool("qemu-io", "-f", "qcow2", *(f"-c{command}" for command in COMMANDS), path)
    if backing:
        base = make(tmp_path / "base.qcow2", backing)
        words = ("write 192k 200k", "write 1000k 300k", "write -z 500k 70k")
        tool("qemu-io", "-f", "qcow2", *(f"-c{word}" for word in words), base)
        tool("qemu-img", "rebase", "-u", "-b", base, "-F", "qcow2", path)
    for file in tmp_path.iterdir():
        with file.open("ab") as end_of:
            end_of.write(bytes(65536))  # the last cluster is there in full

    async def main() -> None:
        async with rig() as graph:
            node = await add_image(graph, path, read_only=True)
            assert chain_runs_nowait(node, 0, SIZE, 9) is None  # no table is cached
            await plainly(node, 0, SIZE)
            for start in range(0, SIZE, 60 << 10):
                end = min(start + (700 << 10), SIZE)
                plain = await plainly(node, start, end)
                assert pairs(chain_runs_nowait(node, start, end - start, 99)) == plain
                for limit in (1, 2):
                    *first, (length, flags) = pairs(
                        chain_runs_nowait(node, start, end - start, limit)
                    )
                    assert [*first, (plain[len(first)][0], flags)] == plain[: len(first) + 1]
                    assert len(first) < limit
                    assert length <= plain[len(first)][0]
            node.closed = True
            assert chain_runs_nowait(node, 0, SIZE, 9) is None
            node.closed = False

    run(main())


@pytest.mark.parametrize("bits", [9, 16, 21])
@pytest.mark.parametrize("kind", ["compat=0.10", "compat=1.1", "data_file={},data_file_raw=on"])
def test_any_table(tmp_path: Path, bits: int, kind: str, dense_files: None) -> None:
    """Whatever stands in a table, damage too."""
    need("qemu-img", "qemu-io")
    size = 1 << bits
    span = min(size // 8, 600) << bits
    options = kind.format(tmp_path / "data")
    path = make(tmp_path / "i.qcow2", span, f"cluster_size={size},{options}")
    tool("qemu-io", "-f", "qcow2", "-c", "write 0 512", path)

    host = st.integers(1, 1 << 20).map(lambda number: number << bits)
    entry = st.one_of(
        st.sampled_from((0, 0, 1, COPIED, 3, 1 << 8, 1 << 60)),
        host,
        host.map(lambda value: value | COPIED),
        host.map(lambda value: value | COPIED | 1),
        st.integers(0, (1 << 62) - 1).map(lambda value: value | COMPRESSED),
        st.integers(0, (1 << 56) - 1),
    )
    groups = st.lists(st.tuples(entry, st.integers(1, 99)), min_size=1, max_size=30)

    async def main() -> None:
        async with rig() as graph:
            node = await add_image(graph, path, read_only=True)
            driver = driver_of(node)
            await driver.map(0, 1)
            table = driver.image.l2.get(0)
            assert table is not None
            file = driver.image.data_edge.node.driver
            file.known_data_end = lambda offset: 1 << 62  # type: ignore[method-assign]

            @settings(max_examples=60, deadline=None)
            @given(groups, st.integers(0, span - 1), st.integers(1, span), st.integers(1, 200))
            def compare(groups: list[tuple[int, int]], start: int, length: int, limit: int) -> None:
                flat = [value for value, count in groups for _ in range(count)]
                used = min(len(table), len(flat))
                table[:used] = type(table)("Q", flat[:used])
                end = min(start + length, span)
                plain, allocated = Runs(), Runs()
                at = start
                while at < end and (mapping := driver.map_nowait(at, end - at)) is not None:
                    flags = {DATA: ST_DATA, SPECIAL: ST_DATA, HOLE: ST_ZERO}
                    plain.add(mapping.length, flags.get(mapping.kind, ST_ZERO))
                    allocated.add(mapping.length, mapping.kind != HOLE)
                    at += mapping.length
                fast = driver.runs_nowait(start, end - start, limit)
                assert pairs(fast) == pairs(plain)[:limit]
                if fast is not None and len(plain) > limit:
                    assert fast.ends
                fast = driver.allocated_nowait(start, end - start, limit)
                assert pairs(fast) == pairs(allocated)[:limit]

            compare()

    run(main())


def test_it_does_not_guess_what_is_a_hole_of_the_file(tmp_path: Path) -> None:
    need("qemu-img", "qemu-io")
    path = make(tmp_path / "i.qcow2", "64M")
    words = ("write 0 320k", "write -z 0 64k", "write 32M 64k")
    tool("qemu-io", "-f", "qcow2", *(f"-c{word}" for word in words), path)

    async def main() -> None:
        async with rig() as graph:
            node = await add_image(graph, path, read_only=True)
            driver = driver_of(node)
            await driver.map(0, 1)
            assert pairs(driver.runs_nowait(0, 1 << 20, 9)) == [(65536, ST_ZERO)]
            assert driver.runs_nowait(65536, 1 << 20, 9) is None
            # Once it is known of three of the clusters, these are described.
            place = (await driver.map(65536, 1)).host_offset
            known = place + 3 * 65536
            file = driver.image.file.driver
            file.known_data_end = lambda offset: known * (offset < known)  # type: ignore[method-assign]
            told = driver.runs_nowait(0, 64 << 20, 9)
            assert pairs(told) == [(65536, ST_ZERO), (3 * 65536, ST_DATA)]

    run(main())


def test_subclusters_are_left_to_the_plain_way(tmp_path: Path) -> None:
    need("qemu-img", "qemu-io")
    path = make(tmp_path / "i.qcow2", "1M", "extended_l2=on")

    async def main(is_left: bool) -> None:
        async with rig() as graph:
            node = await add_image(graph, path, read_only=True)
            await node.driver.block_status(0, 1, True)
            found = [
                node.driver.runs_nowait(0, 1 << 20, 9),
                node.driver.allocated_nowait(0, 1 << 20, 9),
            ]
            expected: list[list[tuple[int, int]]] = [[(1 << 20, ST_ZERO)], [(1 << 20, 0)]]
            assert [*map(pairs, found)] == ([[], []] if is_left else expected)

    run(main(False))  # there is no table at all
    tool("qemu-io", "-f", "qcow2", "-c", "write 0 512", path)
    run(main(True))
