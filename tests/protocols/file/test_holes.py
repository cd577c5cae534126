# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Holes of files, told by the search of many and by asking for one after the other."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qsd.aio import slowness
from qsd.aio.loop import run
from qsd.block.mapping import ST_DATA, ST_ZERO
from qsd.block.node import Node
from qsd.block.status import chain_runs_nowait
from qsd.catalog import find_driver
from qsd.protocols.file import holes
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
