# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Holes of files, told by the search of many and by asking for one after the other."""

from __future__ import annotations

import os
import tempfile
from array import array
from pathlib import Path
from typing import Self, cast
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qsd.aio import slowness
from qsd.aio.fdio import FileIO
from qsd.aio.loop import run
from qsd.aio.workers import WorkerPool
from qsd.block.driver import Limits
from qsd.block.mapping import ST_DATA, ST_ZERO
from qsd.block.node import Node
from qsd.block.runs import Runs
from qsd.block.status import chain_runs_nowait
from qsd.catalog import find_driver
from qsd.protocols.file import holes
from qsd.protocols.file.extent_map import DataExtents
from qsd.protocols.file.holes import HoleSearch
from qsd.util.extents import Extents
from tests.support.extents import pairs, plainly
from tests.support.memory import Rig

UNIT = 65536
PIECES = st.lists(st.booleans(), min_size=1, max_size=40)


def make(path: Path, pieces: list[bool], tail: int = 0) -> int:
    """Write a file of data and holes; return its length."""
    with path.open("wb") as file:
        for index, is_data in enumerate(pieces):
            if is_data:
                os.pwrite(file.fileno(), b"x" * UNIT, index * UNIT)
        length = len(pieces) * UNIT + tail
        file.truncate(length)
    return length


async def opened(rig: Rig, path: Path, kind: str, **more: object) -> Node:
    rig.graph.find_driver = find_driver
    node = await rig.add(driver="file", node_name="f", filename=str(path))
    return node if kind == "file" else await rig.add(driver="raw", node_name="r", file="f", **more)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(PIECES, st.integers(0, 700), st.integers(0, 39), st.integers(1, 50), st.data())
@pytest.mark.parametrize("kind", ["file", "raw"])
def test_both_ways_agree(
    tmp_path: Path,
    kind: str,
    pieces: list[bool],
    tail: int,
    skip: int,
    limit: int,
    data: st.DataObject,
) -> None:
    length = make(tmp_path / "f", pieces, tail)

    async def main() -> None:
        async with Rig() as rig:
            node = await opened(rig, tmp_path / "f", kind)
            start = min(skip * UNIT + data.draw(st.integers(0, UNIT)), length - 1)
            end = node.length()
            fast = chain_runs_nowait(node, start, end - start, limit)
            assert fast is not None
            assert 0 < len(fast) <= limit
            assert fast.total == sum(fast.lengths) <= end - start
            plain = await plainly(node, start, start + fast.total)
            assert pairs(fast) == plain
            whole = await plainly(node, start, end)
            assert len(fast) == min(limit, len(whole))

    run(main())


def test_a_window_of_a_raw_image(tmp_path: Path) -> None:
    make(tmp_path / "f", [True, False, True, False])

    async def main() -> None:
        async with Rig() as rig:
            node = await opened(rig, tmp_path / "f", "raw", offset=UNIT // 2, size=2 * UNIT)
            runs = chain_runs_nowait(node, 512, 2 * UNIT - 512, 9)
            assert runs is not None
            half = UNIT // 2
            assert pairs(runs) == [(half - 512, ST_DATA), (UNIT, ST_ZERO), (half, ST_DATA)]

    run(main())


def test_long_data_is_remembered_short_data_is_not(tmp_path: Path) -> None:
    make(tmp_path / "f", [True] * 16 + [False, True, False])

    async def main() -> None:
        async with Rig() as rig:
            node = await opened(rig, tmp_path / "f", "file")
            assert chain_runs_nowait(node, 0, node.length(), 9) is not None
            assert node.driver.known_data_end(0) == 16 * UNIT
            assert node.driver.known_data_end(17 * UNIT) == 0

    run(main())


def test_a_slow_file_system_is_left_to_threads_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    length = make(tmp_path / "f", [True, False])
    clock = [100.0]
    switches = [0]

    def tick() -> float:
        clock[0] += 0.05
        return clock[0]

    def wait() -> int:
        switches[0] += 1
        return switches[0]

    monkeypatch.setattr(holes, "monotonic", tick)
    monkeypatch.setattr(slowness, "_voluntary_switches", wait)

    async def main() -> None:
        async with Rig() as rig:
            node = await opened(rig, tmp_path / "f", "file")
            assert chain_runs_nowait(node, 0, length, 9) is not None  # slow: the next is watched
            assert chain_runs_nowait(node, 0, length, 9) is not None  # it had to wait
            assert chain_runs_nowait(node, 0, length, 9) is None
            clock[0] += 2
            assert chain_runs_nowait(node, 0, length, 9) is not None

    run(main())


def test_who_cannot_search_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    length = make(tmp_path / "f", [True, False])

    def fail(fd: int, offset: int, whence: int) -> int:
        raise OSError(22, "Invalid argument")

    async def main() -> None:
        async with Rig() as rig:
            node = await opened(rig, tmp_path / "f", "file")
            monkeypatch.setattr(os, "lseek", fail)
            assert chain_runs_nowait(node, 0, length, 9) is None

    run(main())


class Found:
    """A file as the search sees it."""

    def __init__(self, path: Path) -> None:
        self.io = FileIO(os.open(path, os.O_RDONLY), cast("WorkerPool", None))
        self.size = os.fstat(self.io.fd).st_size
        self.limits = Limits()
        self.data = Extents()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self.io.fd)


def told(search: HoleSearch, start: int, end: int, limit: int = 500) -> list[tuple[int, int]]:
    """Put together what is told of a range, as an export does."""
    runs = Runs()
    while start < end:
        some = search.runs_nowait(start, end - start, limit)
        assert some is not None
        assert some.total
        runs.extend_by(some)
        start += some.total
    return list(zip(runs.lengths, runs.flags, strict=True))


KINDS = st.sampled_from(["data", "data", "hole", "hole", "unwritten"])


@settings(max_examples=25, deadline=None)
@given(
    st.lists(KINDS, min_size=1, max_size=200),
    st.integers(0, 700),
    st.integers(0, 100 * UNIT),
    st.integers(64, 300),
    st.booleans(),
)
def test_the_table_of_the_file_system_changes_nothing(
    kinds: list[str], tail: int, start: int, limit: int, is_synced: bool
) -> None:
    """Neither where it is used, nor where it is not simple, nor where data is in memory only."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "f")
        make(path, [kind == "data" for kind in kinds], tail)
        with path.open("r+b") as file:
            for index, kind in enumerate(kinds):
                if kind == "unwritten":
                    os.posix_fallocate(file.fileno(), index * UNIT, UNIT)
                    if index % 2:
                        os.pwrite(file.fileno(), b"y" * 4096, index * UNIT + 8192)
            if is_synced:
                os.fsync(file.fileno())
        with Found(path) as found:
            start = min(start, found.size - 1)
            with mock.patch.object(holes, "data_extents", side_effect=OSError):
                plain = told(HoleSearch(found), start, found.size, limit)
            found.data.clear()
            assert told(HoleSearch(found), start, found.size, limit) == plain


def lying(starts: list[int], ends: list[int]) -> mock._patch[mock.Mock]:
    """Have the table say that data is there."""
    lengths = array("Q")
    for before, start, end in zip([0, *ends], starts, ends, strict=False):
        lengths.extend((start - before, end - start))
    return mock.patch.object(holes, "data_extents", return_value=DataExtents(starts, ends, lengths))


@pytest.mark.parametrize(
    ("starts", "ends"),
    [
        ([3 * UNIT], [4 * UNIT]),  # data before it is left out
        ([UNIT, 5 * UNIT], [2 * UNIT, 6 * UNIT]),  # data between is left out
        ([2 * UNIT], [3 * UNIT]),  # the hole is said to be longer
        ([UNIT // 2], [2 * UNIT]),  # or shorter
    ],
)
def test_holes_are_not_believed(tmp_path: Path, starts: list[int], ends: list[int]) -> None:
    make(tmp_path / "f", [False, True, False, True, False, True, False])
    truth = [(UNIT, flags) for flags in (ST_ZERO, ST_DATA) * 3] + [(UNIT, ST_ZERO)]
    with Found(tmp_path / "f") as found, lying(starts, ends):
        search = HoleSearch(found)
        assert told(search, 0, found.size) == truth
        assert told(search, 0, found.size) == truth
    right = lying([UNIT, 3 * UNIT, 5 * UNIT], [2 * UNIT, 4 * UNIT, 6 * UNIT])
    with Found(tmp_path / "f") as found, right as table:
        assert told(HoleSearch(found), 0, 6 * UNIT) == truth[:-1]
        assert table.call_count == 1


def test_a_table_that_was_wrong_is_left_alone_until_the_next_map(tmp_path: Path) -> None:
    make(tmp_path / "f", [False, True] * 100)
    with Found(tmp_path / "f") as found, lying([3 * UNIT], [4 * UNIT]) as table:
        search = HoleSearch(found)
        for at, calls in ((0, 1), (2, 1), (4, 1), (0, 2)):
            runs = search.runs_nowait(at * UNIT, found.size - at * UNIT, 64)
            assert runs is not None
            assert len(runs) == 64
            assert table.call_count == calls


def test_long_data_of_the_table_is_remembered(tmp_path: Path) -> None:
    make(tmp_path / "f", [False] + [True] * 20 + [False] * 2)
    with Found(tmp_path / "f") as found, lying([UNIT], [21 * UNIT]):
        assert told(HoleSearch(found), 0, 21 * UNIT) == [(UNIT, ST_ZERO), (20 * UNIT, ST_DATA)]
        assert found.data.end_of(2 * UNIT) == 21 * UNIT
