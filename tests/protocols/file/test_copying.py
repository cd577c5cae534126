# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

import asyncio
import errno
import os
import threading
from typing import TYPE_CHECKING

import pytest

from qsd.aio import fdio
from qsd.aio.fdio import MAX_INLINE_WRITE, FileIO
from qsd.aio.loop import run
from qsd.aio.tasks import TaskOwner
from qsd.aio.workers import WorkerPool
from qsd.protocols.file import copying
from qsd.protocols.file.copying import FileCopier

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

LONG = 2 * MAX_INLINE_WRITE

Calls = list[tuple[int, int]]


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start write-back behind the first long copy."""
    monkeypatch.setattr(copying, "_WRITE_BEHIND", 1)


class Bench:
    """A source, a target, and a copier between them."""

    def __init__(self, folder: Path) -> None:
        self.content = os.urandom(LONG) * 2
        (folder / "source").write_bytes(self.content)
        self.source = os.open(folder / "source", os.O_RDONLY)
        self.target = os.open(folder / "target", os.O_RDWR | os.O_CREAT)
        self.pool = WorkerPool()
        self.errors: list[BaseException] = []
        self.tasks = TaskOwner("test", lambda name, exc: self.errors.append(exc))
        self.copier = FileCopier(FileIO(self.target, self.pool), self.tasks)

    async def copy(self, offset: int, target: int, length: int) -> bool:
        """Copy as somebody does who is going to flush."""
        done = await self.copier.copy(self.source, offset, target, length)
        self.copier.write_behind()
        return done

    async def settle(self) -> None:
        """Wait until nothing is left to be written back early."""
        while self.copier._writing is not None:
            await asyncio.sleep(0)

    async def close(self) -> None:
        await self.copier.close()
        await asyncio.sleep(0)
        assert not len(self.tasks)
        assert not self.errors
        await self.pool.close()
        os.close(self.source)
        os.close(self.target)


def tell(folder: Path, story: Callable[[Bench], Awaitable[None]]) -> None:
    async def main() -> None:
        bench = Bench(folder)
        await story(bench)
        await bench.close()

    run(main())


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Note of each copy whether it runs in a thread."""
    seen: list[bool] = []
    real = fdio.copy_full

    def copy_full(source: int, target: int, source_offset: int, offset: int, length: int) -> None:
        seen.append(threading.current_thread() is not threading.main_thread())
        real(source, target, source_offset, offset, length)

    monkeypatch.setattr(copying, "copy_full", copy_full)
    return seen


@pytest.fixture
def written_back(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Note what is written back early."""
    seen: Calls = []
    real = copying.start_write_back

    def start_write_back(fd: int, offset: int, length: int) -> None:
        seen.append((offset, length))
        real(fd, offset, length)

    monkeypatch.setattr(copying, "start_write_back", start_write_back)
    return seen


def test_short_copies_run_inline_and_long_ones_in_a_thread(
    tmp_path: Path, copies: list[bool], written_back: Calls
) -> None:
    async def story(bench: Bench) -> None:
        assert await bench.copy(5, 100, 1000)
        assert copies == [False]
        assert os.pread(bench.target, 2000, 0) == bytes(100) + bench.content[5:1005]
        await bench.settle()
        assert not written_back
        assert await bench.copy(0, 1000, LONG)
        assert copies == [False, True]
        assert os.pread(bench.target, LONG, 1000) == bench.content[:LONG]
        await bench.settle()

    tell(tmp_path, story)
    assert written_back == [(1000, LONG)]


def test_what_lies_in_several_places_is_gathered(
    tmp_path: Path, copies: list[bool], written_back: Calls
) -> None:
    async def story(bench: Bench) -> None:
        # The first two of them are neighbours, and one call.
        sources = [(bench.source, at, size) for at, size in ((7, 9), (16, 4), (3, 5), (99, 1))]
        assert await bench.copier.gather(sources, 50, 19)
        want = b"".join(bench.content[at : at + size] for _, at, size in sources)
        assert os.pread(bench.target, 100, 0) == bytes(50) + want
        assert copies == [True] * 3
        bench.copier.write_behind()
        await bench.settle()
        # A place behind the end of the source is not there.
        assert not await bench.copier.gather([(bench.source, 2 * LONG, 8)], 0, 8)

    tell(tmp_path, story)
    assert written_back == [(50, 19)]


def test_long_copies_take_turns_and_are_written_back_together(
    tmp_path: Path, written_back: Calls
) -> None:
    async def story(bench: Bench) -> None:
        tasks = [
            bench.tasks.spawn(bench.copy(at, at, LONG), "copy", awaited=True) for at in (0, LONG)
        ]
        await asyncio.wait(tasks)
        assert all(task.result() for task in tasks)
        assert os.pread(bench.target, 2 * LONG, 0) == bench.content
        await bench.settle()

    tell(tmp_path, story)
    # Together they cover everything, however many calls that took.
    assert min(start for start, _ in written_back) == 0
    assert max(start + length for start, length in written_back) == 2 * LONG


@pytest.mark.parametrize("begun", [True, False])
def test_a_cancelled_copy_ends_or_is_never_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: bool
) -> None:
    gate, entered = threading.Event(), threading.Event()
    done: list[int] = []

    def copy_full(source: int, target: int, source_offset: int, offset: int, length: int) -> None:
        entered.set()
        gate.wait()
        done.append(offset)

    async def story(bench: Bench) -> None:
        tasks = [
            bench.tasks.spawn(bench.copier.copy(bench.source, 0, at, LONG), "copy", awaited=True)
            for at in (0, LONG)
        ]
        await asyncio.get_running_loop().run_in_executor(None, entered.wait)
        victim = tasks[0 if begun else 1]
        for _ in range(2):
            victim.cancel()
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert victim.done() is not begun
        gate.set()
        await asyncio.wait(tasks)
        assert [task.cancelled() for task in tasks] == [begun, not begun]
        await bench.settle()

    monkeypatch.setattr(copying, "copy_full", copy_full)
    tell(tmp_path, story)
    assert done == ([0, LONG] if begun else [0])


def test_write_back_starts_when_it_is_worth_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written_back: Calls
) -> None:
    monkeypatch.setattr(copying, "_WRITE_BEHIND", 2 * LONG)

    async def story(bench: Bench) -> None:
        for at in (LONG, 0, LONG):
            assert await bench.copy(0, at, LONG)
            await bench.settle()

    tell(tmp_path, story)
    assert written_back == [(0, 2 * LONG)]


@pytest.mark.parametrize(
    ("places", "limit", "calls"),
    [
        # what waits goes on where the one before ends
        ([(0, 0), (1, 1), (2, 2), (3, 3)], 9, [4]),
        ([(0, 0), (1, 1), (2, 2), (3, 3)], 3, [3, 1]),
        # not on one side, or on none
        ([(0, 0), (1, 1), (0, 2), (1, 3)], 9, [2, 2]),
        ([(0, 0), (1, 1), (2, 3), (3, 4)], 9, [2, 2]),
        ([(0, 0), (3, 3), (2, 2), (1, 1)], 9, [1, 1, 1, 1]),
    ],
)
def test_waiting_copies_that_go_on_are_one_call(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    places: list[tuple[int, int]],
    limit: int,
    calls: list[int],
) -> None:
    gate, entered = threading.Event(), threading.Event()
    unit = LONG // 2 + 1
    monkeypatch.setattr(copying, "_MAX_CALL", limit * unit)
    seen: list[int] = []
    real = fdio.copy_full

    def copy_full(source: int, target: int, source_offset: int, offset: int, length: int) -> None:
        entered.set()
        gate.wait()
        seen.append(length // unit)
        real(source, target, source_offset, offset, length)

    async def story(bench: Bench) -> None:
        bench.content = os.urandom(5 * unit)
        (tmp_path / "source").write_bytes(bench.content)
        tasks = [
            # This one keeps the thread busy while the others are queued.
            bench.tasks.spawn(
                bench.copier.copy(bench.source, 0, 8 * LONG, LONG), "copy", awaited=True
            )
        ]
        await asyncio.get_running_loop().run_in_executor(None, entered.wait)
        tasks += [
            bench.tasks.spawn(
                bench.copier.copy(bench.source, source * unit, target * unit, unit),
                "copy",
                awaited=True,
            )
            for source, target in places
        ]
        await asyncio.sleep(0)
        gate.set()
        await asyncio.wait(tasks)
        assert all(task.result() for task in tasks)
        for source, target in places:
            want = bench.content[source * unit : (source + 1) * unit]
            assert os.pread(bench.target, unit, target * unit) == want

    monkeypatch.setattr(copying, "copy_full", copy_full)
    tell(tmp_path, story)
    assert seen[1:] == calls


def test_all_copies_of_a_call_fail_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, entered = threading.Event(), threading.Event()

    def copy_full(source: int, target: int, source_offset: int, offset: int, length: int) -> None:
        entered.set()
        gate.wait()
        if length > LONG:
            raise OSError(errno.EIO, "")

    async def story(bench: Bench) -> None:
        tasks = [
            # This one keeps the thread busy while the others are queued.
            bench.tasks.spawn(
                bench.copier.copy(bench.source, 0, 8 * LONG, LONG), "copy", awaited=True
            )
        ]
        await asyncio.get_running_loop().run_in_executor(None, entered.wait)
        tasks += [
            bench.tasks.spawn(bench.copier.copy(bench.source, at, at, LONG), "copy", awaited=True)
            for at in (0, LONG)
        ]
        await asyncio.sleep(0)
        gate.set()
        await asyncio.wait(tasks)
        assert [task.result() for task in tasks] == [True, False, False]

    monkeypatch.setattr(copying, "copy_full", copy_full)
    tell(tmp_path, story)


def test_nothing_is_written_behind_where_nobody_flushes(
    tmp_path: Path, written_back: Calls
) -> None:
    async def story(bench: Bench) -> None:
        assert await bench.copier.copy(bench.source, 0, 0, LONG)
        await bench.settle()
        assert not written_back
        bench.copier.write_behind()
        await bench.settle()
        assert written_back == [(0, LONG)]

    tell(tmp_path, story)


def test_a_slow_copy_sends_the_next_ones_to_threads(
    tmp_path: Path, copies: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "SLOW_CALL", -1.0)

    async def story(bench: Bench) -> None:
        assert await bench.copier.copy(bench.source, 0, 0, 1000)
        assert await bench.copier.copy(bench.source, 0, 0, 1000)

    tell(tmp_path, story)
    assert copies == [False, True]


@pytest.mark.parametrize("length", [1000, LONG])
@pytest.mark.parametrize(
    ("code", "again"), [(errno.ENOSPC, True), (errno.EIO, True), (errno.EXDEV, False)]
)
def test_a_failure_is_left_to_the_plain_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int, code: int, again: bool
) -> None:
    calls = 0

    def copy_full(source: int, target: int, source_offset: int, offset: int, length: int) -> None:
        nonlocal calls
        calls += 1
        raise OSError(code, os.strerror(code))

    async def story(bench: Bench) -> None:
        assert not await bench.copier.copy(bench.source, 0, 0, length)
        assert not await bench.copier.copy(bench.source, 0, 0, length)

    monkeypatch.setattr(copying, "copy_full", copy_full)
    tell(tmp_path, story)
    assert calls == 1 + again  # where it can never work it is not tried twice


def test_a_source_that_ends_early_is_left_to_the_plain_way(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        assert not await bench.copier.copy(bench.source, len(bench.content) - 10, 0, 100)

    tell(tmp_path, story)


def test_closing_waits_for_write_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    ended: list[int] = []

    def start_write_back(fd: int, offset: int, length: int) -> None:
        gate.wait()
        ended.append(length)

    async def story(bench: Bench) -> None:
        assert await bench.copy(0, 0, LONG)
        await asyncio.sleep(0)  # it has begun
        asyncio.get_running_loop().call_later(0.01, gate.set)
        await bench.copier.close()
        assert ended == [LONG]

    monkeypatch.setattr(copying, "start_write_back", start_write_back)
    tell(tmp_path, story)
