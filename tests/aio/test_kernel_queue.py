# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""What holds for every way to hand requests to the kernel."""

from __future__ import annotations

import asyncio
import errno
import os
from typing import Any

import pytest

from qsd.aio.bounce import AlignedBuffer
from qsd.aio.linux_aio import LinuxAio
from qsd.aio.loop import run
from qsd.aio.operations import READ, SLICE
from qsd.aio.tasks import TaskOwner
from qsd.aio.uring import Ring
from tests.aio.queues import Ends, make, until

Queues = Ring | LinuxAio


@pytest.fixture(params=[Ring, LinuxAio])
def kind(request: pytest.FixtureRequest) -> type[Queues]:
    kind: type[Queues] = request.param
    return kind


def test_reads_and_writes(numbered: int, kind: type[Queues]) -> None:
    async def main() -> None:
        queue = make(kind)
        buffer = AlignedBuffer(4096)
        assert await queue.read(numbered, buffer.address, 512, 256, buffer) == 512
        assert buffer[:512] == bytes(range(256)) * 2
        buffer[:4] = b"data"
        assert await queue.write(numbered, buffer.address, 4, 1000, buffer) == 4
        assert os.pread(numbered, 4, 1000) == b"data"
        assert await queue.read(numbered, buffer.address, 512, 1 << 30, buffer) == 0
        await queue.close()
        await queue.close()

    run(main())


def test_errors_carry_their_errno(kind: type[Queues]) -> None:
    async def main() -> None:
        queue = make(kind)
        buffer = AlignedBuffer(4096)
        with pytest.raises(OSError, match=r".") as caught:
            await queue.read(-1, buffer.address, 512, 0, buffer)
        assert caught.value.errno == errno.EBADF
        await queue.close()

    run(main())


def test_more_requests_than_entries_take_turns(numbered: int, kind: type[Queues]) -> None:
    async def main() -> None:
        queue = make(kind, 4)
        owner = TaskOwner("test")
        buffers = [AlignedBuffer(4096) for _ in range(50)]

        async def read(index: int) -> None:
            buffer = buffers[index]
            assert await queue.read(numbered, buffer.address, 1, index, buffer) == 1

        tasks = [owner.spawn(read(index), "read") for index in range(50)]
        await owner.join()
        for task in tasks:
            task.result()
        assert [buffer[0] for buffer in buffers] == list(range(50))
        await queue.close()

    run(main())


@pytest.mark.parametrize("entries", [4, 64])
def test_many_at_once(numbered: int, kind: type[Queues], entries: int) -> None:
    """Those that end together are told together; what finds no room takes its turn."""

    async def main() -> None:
        queue = make(kind, entries)
        one, two = Ends(), Ends()
        for turn in range(1, 4):  # around the queue's end
            operations = [queue.pool.take(16) for _ in range(50)]
            for index, operation in enumerate(operations):
                operation.sink = two if index % 3 else one
                operation.offset = index
            queue.start_all(READ, numbered, operations)
            assert len(one.ended + two.ended) == 50 * (turn - 1)
            while len(one.ended + two.ended) < 50 * turn:
                await asyncio.sleep(0)
            assert set(one.ended[-17:]) == set(operations[::3])
            assert len(one.batches) < 17 * turn
            for index, operation in enumerate(operations):
                assert operation.is_full
                assert operation.payload()[0] == index
                operation.drop()
        await queue.close()

    run(main())


def test_results_of_each(numbered: int, kind: type[Queues]) -> None:
    async def main() -> None:
        queue = make(kind)
        ends = Ends()
        operations = [queue.pool.take(4096) for _ in range(3)]
        for operation in operations:
            operation.sink = ends
        operations[1].offset = (256 << 10) - 100
        operations[2].offset = -1 & (1 << 63) - 1
        queue.start_all(READ, numbered, operations)
        await until(lambda: len(ends.ended) == 3)
        assert [each.result for each in operations] == [4096, 100, -errno.EINVAL]
        await queue.close()

    run(main())


def test_a_defect_of_one_sink_hurts_no_other(numbered: int, kind: type[Queues]) -> None:
    async def main() -> None:
        reports: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, report: reports.append(report))
        queue = make(kind)
        bad, good = Ends(), Ends()
        bad.fails = True
        for sink in (bad, good):
            operation = queue.pool.take(16)
            operation.sink = sink
            queue.start_all(READ, numbered, [operation])
        await until(lambda: len(good.ended) == 1)
        assert isinstance(reports[0]["exception"], ValueError)
        await queue.close()

    run(main())


def test_nothing_is_left_open(numbered: int, kind: type[Queues]) -> None:
    async def main() -> None:
        await make(kind).close()
        before = set(os.listdir("/proc/self/fd"))
        queue = make(kind)
        buffer = AlignedBuffer(4096)
        await queue.read(numbered, buffer.address, 512, 0, buffer)
        await queue.close()
        assert set(os.listdir("/proc/self/fd")) == before

    run(main())


def test_what_comes_together_goes_at_once(numbered: int, kind: type[Queues]) -> None:
    """And its end can be taken before the turn is over, but never by starting it."""

    async def main() -> None:
        queue = make(kind, 64)
        ends = Ends()

        def start(count: int) -> None:
            operations = [queue.pool.take(16) for _ in range(count)]
            for operation in operations:
                operation.sink = ends
            queue.start_all(READ, numbered, operations)

        start(3)
        assert not ends.ended
        queue.advance()  # what is in the page cache is read at once
        assert len(ends.ended) == 3
        await queue.close()
        queue.advance()

    run(main())


def test_what_comes_one_by_one_goes_at_the_end_of_the_turn(
    numbered: int, kind: type[Queues]
) -> None:
    """Or when there is enough of it."""

    async def main() -> None:
        queue = make(kind, 64)
        buffer = AlignedBuffer(4096)
        ends: list[int] = []
        for count in range(1, 2 * SLICE):
            queue.start(READ, numbered, buffer.address, count, 0, buffer, ends.append)
            queue.advance()
            assert len(ends) == count // SLICE * SLICE
        await until(lambda: len(ends) == 2 * SLICE - 1)
        assert ends == list(range(1, 2 * SLICE))
        await queue.close()

    run(main())
