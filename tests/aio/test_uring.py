# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

import asyncio
import errno
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qsd.aio.bounce import AlignedBuffer
from qsd.aio.loop import run
from qsd.aio.operations import READ, SLICE, Operation
from qsd.aio.tasks import TaskOwner
from qsd.aio.uring import Ring
from qsd.aio.workers import WorkerPool


def make(entries: int = 8) -> Ring:
    try:
        return Ring(asyncio.get_running_loop(), entries)
    except OSError as exc:
        pytest.skip(f"the kernel gives no io_uring here: {exc}")


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    os.pwrite(fd, bytes(range(256)) * 1024, 0)
    yield fd
    os.close(fd)


def test_reads_and_writes(file: int) -> None:
    async def main() -> None:
        ring = make()
        buffer = AlignedBuffer(4096)
        assert await ring.read(file, buffer.address, 512, 256, buffer) == 512
        assert buffer[:512] == bytes(range(256)) * 2
        buffer[:4] = b"data"
        assert await ring.write(file, buffer.address, 4, 1000, buffer) == 4
        assert os.pread(file, 4, 1000) == b"data"
        assert await ring.read(file, buffer.address, 512, 1 << 30, buffer) == 0
        await ring.close()
        await ring.close()

    run(main())


def test_errors_carry_their_errno() -> None:
    async def main() -> None:
        ring = make()
        buffer = AlignedBuffer(4096)
        with pytest.raises(OSError, match=r".") as caught:
            await ring.read(-1, buffer.address, 512, 0, buffer)
        assert caught.value.errno == errno.EBADF
        await ring.close()

    run(main())


def test_more_requests_than_entries_take_turns(file: int) -> None:
    async def main() -> None:
        ring = make(4)
        owner = TaskOwner("test")
        buffers = [AlignedBuffer(4096) for _ in range(50)]

        async def read(index: int) -> None:
            buffer = buffers[index]
            assert await ring.read(file, buffer.address, 1, index, buffer) == 1

        tasks = [owner.spawn(read(index), "read") for index in range(50)]
        await owner.join()
        for task in tasks:
            task.result()
        assert [buffer[0] for buffer in buffers] == list(range(50))
        await ring.close()

    run(main())


def test_cancelling_waits_for_the_kernel() -> None:
    async def main() -> None:
        ring = make()
        reader, writer = os.pipe()
        owner = TaskOwner("test")
        buffer = AlignedBuffer(4096)
        # A read from an empty pipe stays in the kernel until somebody writes.
        task = owner.spawn(ring.read(reader, buffer.address, 4, -1 & (1 << 64) - 1, buffer), "read")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        for _ in range(5):
            await asyncio.sleep(0)
        assert not task.done()
        os.write(writer, b"late")
        with pytest.raises(asyncio.CancelledError):
            await task
        assert buffer[:4] == b"late"
        await ring.close()
        os.close(reader)
        os.close(writer)

    run(main())


def test_a_pool_without_a_ring_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def refuse(*_: object) -> None:
        calls.append(1)
        raise OSError(errno.EPERM, "no")

    async def main() -> None:
        monkeypatch.setattr("qsd.aio.uring.Ring.__init__", refuse)
        pool = WorkerPool()
        assert pool.ring() is None
        assert pool.ring() is None
        assert calls == [1]
        await pool.close()

    run(main())


class Ends:
    """A sink that remembers."""

    def __init__(self) -> None:
        self.batches: list[list[Operation]] = []
        self.fails = False

    def finished(self, operations: list[Operation]) -> None:
        self.batches.append(operations)
        if self.fails:
            raise ValueError

    @property
    def ended(self) -> list[Operation]:
        return [each for batch in self.batches for each in batch]


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0)


@pytest.mark.parametrize("entries", [4, 64])
def test_many_at_once(file: int, entries: int) -> None:
    """Those that end together are told together; what finds no room takes its turn."""

    async def main() -> None:
        ring = make(entries)
        one, two = Ends(), Ends()
        for turn in range(1, 4):  # around the ring's end
            operations = [ring.pool.take(16) for _ in range(50)]
            for index, operation in enumerate(operations):
                operation.sink = two if index % 3 else one
                operation.offset = index
            ring.start_all(READ, file, operations)
            assert len(one.ended + two.ended) == 50 * (turn - 1)
            while len(one.ended + two.ended) < 50 * turn:
                await asyncio.sleep(0)
            assert set(one.ended[-17:]) == set(operations[::3])
            assert len(one.batches) < 17 * turn
            for index, operation in enumerate(operations):
                assert operation.is_full
                assert operation.payload()[0] == index
                operation.drop()
        await ring.close()

    run(main())


def test_slices_go_at_once(file: int) -> None:
    """And their ends can be taken before the turn is over, but never by starting them."""

    async def main() -> None:
        ring = make(64)
        ends = Ends()

        def start(count: int) -> None:
            operations = [ring.pool.take(16) for _ in range(count)]
            for operation in operations:
                operation.sink = ends
            ring.start_all(READ, file, operations)

        start(SLICE)
        assert not ends.ended
        ring.advance()  # what is in the page cache is read at once
        assert len(ends.ended) == SLICE
        start(SLICE - 1)
        ring.advance()
        assert len(ends.ended) == SLICE
        await until(lambda: len(ends.ended) == 2 * SLICE - 1)
        await ring.close()
        ring.advance()

    run(main())


@pytest.mark.parametrize("code", [errno.EAGAIN, errno.EBUSY, errno.EINTR])
def test_what_the_kernel_does_not_take_is_tried_again(
    file: int, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    refusals = [code] * 3
    plain = Ring._call

    def refuse(self: Ring, number: int, *args: Any) -> int:
        if refusals and number == 426:
            raise OSError(refusals.pop(), "not now")
        return plain(self, number, *args)

    async def main() -> None:
        ring = make(64)
        monkeypatch.setattr(Ring, "_call", refuse)
        ends = Ends()
        operations = [ring.pool.take(16) for _ in range(SLICE + 1)]
        for operation in operations:
            operation.sink = ends
        ring.start_all(READ, file, operations)
        await until(lambda: len(ends.ended) == SLICE + 1)
        assert not refusals
        await ring.close()

    run(main())


def test_results_of_each(file: int) -> None:
    async def main() -> None:
        ring = make()
        ends = Ends()
        operations = [ring.pool.take(4096) for _ in range(3)]
        for operation in operations:
            operation.sink = ends
        operations[1].offset = (256 << 10) - 100
        operations[2].offset = -1 & (1 << 63) - 1
        ring.start_all(READ, file, operations)
        await until(lambda: len(ends.ended) == 3)
        assert [each.result for each in operations] == [4096, 100, -errno.EINVAL]
        await ring.close()

    run(main())


@pytest.mark.parametrize("vectored", [False, True])
def test_threads_of_the_kernel(file: int, vectored: bool) -> None:
    """What goes there is begun at once, to one place or to several."""

    async def main() -> None:
        ring = make()
        ends = Ends()
        operation = ring.pool.take(4096)
        memory, address = operation.memory, operation.address
        operation.sink = ends
        operation.offset = 1000
        vector = AlignedBuffer(4096)
        if vectored:
            words = address, 100, address + 2048, 50
            vector.view[:32] = struct.pack("=4Q", *words)
            operation.address, operation.length = vector.address, 2
        ring.start_aside(file, (operation,), vectored=vectored)
        assert not ring._unsubmitted
        await until(lambda: len(ends.ended) == 1)
        content = bytes(range(256)) * 20
        at = address - memory.address
        if vectored:
            assert operation.result == 150
            assert memory.view[at : at + 100] == content[1000:1100]
            assert memory.view[at + 2048 : at + 2098] == content[1100:1150]
        else:
            assert operation.result == 4096
            assert memory.view[at : at + 4096] == content[1000:5096]
        await ring.close()

    run(main())


def test_a_defect_of_one_sink_hurts_no_other(file: int) -> None:
    async def main() -> None:
        reports: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, report: reports.append(report))
        ring = make()
        bad, good = Ends(), Ends()
        bad.fails = True
        for sink in (bad, good):
            operation = ring.pool.take(16)
            operation.sink = sink
            ring.start_all(READ, file, [operation])
        await until(lambda: len(good.ended) == 1)
        assert isinstance(reports[0]["exception"], ValueError)
        await ring.close()

    run(main())


def test_closing_waits_for_what_is_in_the_kernel() -> None:
    async def main() -> None:
        ring = make()
        owner = TaskOwner("test")
        reader, writer = os.pipe()
        ends = Ends()
        operation = ring.pool.take(4)
        operation.sink, operation.offset = ends, -1 & (1 << 64) - 1
        ring.start_all(READ, reader, [operation])
        await asyncio.sleep(0)
        closing = owner.spawn(ring.close(), "close")
        for _ in range(5):
            await asyncio.sleep(0)
        assert not closing.done()
        os.write(writer, b"late")
        await closing
        assert ends.ended == [operation]
        assert bytes(operation.payload()) == b"late"
        with pytest.raises(RuntimeError):
            ring.start_all(READ, reader, [operation])
        os.close(reader)
        os.close(writer)

    run(main())


def test_older_kernels_know_fewer_flags(file: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []
    plain = Ring._call

    def refuse(self: Ring, number: int, *args: Any) -> int:
        if number == 425:
            tried.append(int.from_bytes(args[1].raw[8:12], "little"))
            if tried[-1]:
                raise OSError(errno.EINVAL, "no")
        return plain(self, number, *args)

    async def main() -> None:
        await make().close()  # or skip
        monkeypatch.setattr(Ring, "_call", refuse)
        ring = make()
        assert tried[-1] == 0
        assert len(tried) == len(set(tried)) == 3
        buffer = AlignedBuffer(4096)
        assert await ring.read(file, buffer.address, 512, 256, buffer) == 512
        await ring.close()

    run(main())


def test_nothing_is_left_open(file: int) -> None:
    async def main() -> None:
        await make().close()
        before = set(os.listdir("/proc/self/fd"))
        ring = make()
        buffer = AlignedBuffer(4096)
        await ring.read(file, buffer.address, 512, 0, buffer)
        await ring.close()
        assert set(os.listdir("/proc/self/fd")) == before

    run(main())
