# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from qsd.aio.bounce import AlignedBuffer
from qsd.aio.loop import run
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
