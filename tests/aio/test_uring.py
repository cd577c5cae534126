# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

import asyncio
import errno
import os
import struct
from typing import Any

import pytest

from qsd.aio.bounce import AlignedBuffer
from qsd.aio.loop import run
from qsd.aio.operations import HEAD, READ, SLICE
from qsd.aio.tasks import TaskOwner
from qsd.aio.uring import Ring
from qsd.aio.workers import WorkerPool
from tests.aio.queues import Ends, make, until


def test_cancelling_waits_for_the_kernel() -> None:
    async def main() -> None:
        ring = make(Ring)
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


@pytest.mark.parametrize("code", [errno.EAGAIN, errno.EBUSY, errno.EINTR])
def test_what_the_kernel_does_not_take_is_tried_again(
    numbered: int, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    refusals = [code] * 3
    plain = Ring._call

    def refuse(self: Ring, number: int, *args: Any) -> int:
        if refusals and number == 426:
            raise OSError(refusals.pop(), "not now")
        return plain(self, number, *args)

    async def main() -> None:
        ring = make(Ring, 64)
        monkeypatch.setattr(Ring, "_call", refuse)
        ends = Ends()
        operations = [ring.pool.take(16) for _ in range(SLICE + 1)]
        for operation in operations:
            operation.sink = ends
        ring.start_all(READ, numbered, operations)
        await until(lambda: len(ends.ended) == SLICE + 1)
        assert not refusals
        await ring.close()

    run(main())


@pytest.mark.parametrize("vectored", [False, True])
def test_threads_of_the_kernel(numbered: int, vectored: bool) -> None:
    """What goes there is begun at once, to one place or to several."""

    async def main() -> None:
        ring = make(Ring)
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
        ring.start_aside(numbered, (operation,), vectored=vectored)
        assert not ring._unsubmitted
        await until(lambda: len(ends.ended) == 1)
        content = bytes(range(256)) * 20
        at = HEAD
        if vectored:
            assert operation.result == 150
            assert memory[at : at + 100] == content[1000:1100]
            assert memory[at + 2048 : at + 2098] == content[1100:1150]
        else:
            assert operation.result == 4096
            assert memory[at : at + 4096] == content[1000:5096]
        await ring.close()

    run(main())


def test_closing_waits_for_what_is_in_the_kernel() -> None:
    async def main() -> None:
        ring = make(Ring)
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


def test_older_kernels_know_fewer_flags(numbered: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []
    plain = Ring._call

    def refuse(self: Ring, number: int, *args: Any) -> int:
        if number == 425:
            tried.append(int.from_bytes(args[1].raw[8:12], "little"))
            if tried[-1]:
                raise OSError(errno.EINVAL, "no")
        return plain(self, number, *args)

    async def main() -> None:
        await make(Ring).close()  # or skip
        monkeypatch.setattr(Ring, "_call", refuse)
        ring = make(Ring)
        assert tried[-1] == 0
        assert len(tried) == len(set(tried)) == 3
        buffer = AlignedBuffer(4096)
        assert await ring.read(numbered, buffer.address, 512, 256, buffer) == 512
        await ring.close()

    run(main())
