# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path
from typing import Any

import pytest

from qsd.aio.bounce import AlignedBuffer, BouncePool
from qsd.aio.fdio import FileIO
from qsd.aio.linux_aio import LinuxAio
from qsd.aio.loop import run
from qsd.aio.operations import READ, WRITE, PooledOperation
from qsd.aio.tasks import TaskOwner
from qsd.aio.workers import WorkerPool
from tests.aio.queues import Ends, make, until


def operations(queue: LinuxAio, ends: Ends, offsets: list[int]) -> list[PooledOperation]:
    made = [queue.pool.take(16) for _ in offsets]
    for operation, offset in zip(made, offsets, strict=True):
        operation.sink, operation.offset = ends, offset
    return made


def test_one_that_is_refused_keeps_no_other_back(numbered: int) -> None:
    async def main() -> None:
        queue = make(LinuxAio, 64)
        ends = Ends()
        bad = (1 << 63) - 1
        offsets = [0, bad, 2, 3, bad, bad, 6, 7, 8, bad]
        made = operations(queue, ends, offsets)
        queue.start_all(READ, numbered, made)
        assert not ends.ended
        await until(lambda: len(ends.ended) == len(made))
        for operation, offset in zip(made, offsets, strict=True):
            assert operation.result == (-errno.EINVAL if offset == bad else 16)
            assert offset == bad or operation.payload()[0] == offset
        await queue.close()

    run(main())


@pytest.mark.parametrize("code", [errno.EAGAIN, errno.EINTR])
def test_what_the_kernel_does_not_take_is_tried_again(
    numbered: int, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    refusals = [code] * 3
    plain = LinuxAio._call

    def refuse(self: LinuxAio, number: int, *args: int) -> int:
        if number == getattr(self, "_io_submit", -1):
            if refusals:
                raise OSError(refusals.pop(), "not now")
            args = (args[0], min(args[1], 5), args[2])  # nor all of them at once
        return plain(self, number, *args)

    async def main() -> None:
        monkeypatch.setattr(LinuxAio, "_call", refuse)
        queue = make(LinuxAio, 64)
        ends = Ends()
        made = operations(queue, ends, list(range(12)))
        queue.start_all(READ, numbered, made)
        await until(lambda: len(ends.ended) == 12)
        assert [each.payload()[0] for each in made] == list(range(12))
        assert not refusals
        await queue.close()

    run(main())


def test_callers_and_closing_wait_for_the_kernel(
    numbered: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    reap = LinuxAio._reap
    slow = [True]

    def hold(self: LinuxAio) -> None:
        if not slow:
            reap(self)

    async def main() -> None:
        monkeypatch.setattr(LinuxAio, "_reap", hold)
        queue = make(LinuxAio)
        owner = TaskOwner("test")
        buffer = AlignedBuffer(4096)
        task = owner.spawn(queue.read(numbered, buffer.address, 4, 3, buffer), "read")
        await asyncio.sleep(0)
        closing = owner.spawn(queue.close(), "close")
        for _ in range(3):
            await asyncio.sleep(0)
            task.cancel()
        for _ in range(5):
            await asyncio.sleep(0)
        assert not task.done()
        assert not closing.done()
        slow.clear()
        queue.advance()
        with pytest.raises(asyncio.CancelledError):
            await task
        await closing
        assert buffer[:4] == bytes([3, 4, 5, 6])
        with pytest.raises(RuntimeError):
            queue.start_all(READ, numbered, [])
        queue.advance()

    run(main())


def test_an_event_is_asked_for_only_if_there_is_one(
    numbered: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    plain = LinuxAio._call

    def watch(self: LinuxAio, number: int, *args: int) -> int:
        asked.append(number)
        return plain(self, number, *args)

    async def main() -> None:
        queue = make(LinuxAio)
        monkeypatch.setattr(LinuxAio, "_call", watch)
        queue.advance()
        assert not asked
        buffer = AlignedBuffer(4096)
        await queue.read(numbered, buffer.address, 4, 3, buffer)
        assert asked == [queue._io_submit, queue._getevents]
        await queue.close()

    run(main())


def test_machines_with_other_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        monkeypatch.setattr("qsd.aio.linux_aio._NUMBERS", {})
        with pytest.raises(OSError, match="not implemented") as caught:
            LinuxAio(asyncio.get_running_loop())
        assert caught.value.errno == errno.ENOSYS

    run(main())


def forbid(monkeypatch: pytest.MonkeyPatch, *queues: str) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no")

    for name in queues:
        monkeypatch.setattr(f"qsd.aio.{name}.__init__", refuse)


def test_a_pool_without_it_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        pool = WorkerPool()
        forbid(monkeypatch, "linux_aio.LinuxAio")
        assert pool.linux_aio() is None
        monkeypatch.undo()
        assert pool.linux_aio() is None
        await pool.close()

    run(main())


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("direct", [False, True])
def test_it_serves_what_is_direct_and_native_without_a_ring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, direct: bool, native: bool
) -> None:
    path = tmp_path / "image"
    path.write_bytes(bytes(range(256)) * 64)
    started: list[int] = []
    put = LinuxAio._put

    def spy(self: LinuxAio, opcode: int, fd: int, operations: Any) -> None:
        started.append(opcode)
        put(self, opcode, fd, operations)

    forbid(monkeypatch, "uring.Ring")
    monkeypatch.setattr(LinuxAio, "_put", spy)

    async def main() -> None:
        pool = WorkerPool()
        if pool.linux_aio() is None:
            pytest.skip("no Linux AIO here")
        fd = os.open(path, os.O_RDWR | (os.O_DIRECT if direct else 0))
        io = FileIO(fd, pool)
        io.set_direct(BouncePool() if direct else None, 4096, 4096, native=native)
        memory = memoryview(bytearray(8192))
        await io.read(4096, memory)
        assert memory == bytes(range(256)) * 32
        memory[:4] = b"data"
        await io.write(8192, memory)
        assert path.read_bytes()[8192:8196] == b"data"
        assert started == ([READ, WRITE] if direct and native else [])
        io.set_direct(None)
        assert io.queue() is None
        await pool.close()
        os.close(fd)

    run(main())
