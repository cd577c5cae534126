# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

import asyncio
import threading
import weakref

import pytest

from qsd.aio.loop import run
from qsd.aio.tasks import TaskOwner
from qsd.aio.workers import WorkerPool


def test_results_errors_and_arguments() -> None:
    async def main() -> None:
        pool = WorkerPool()
        assert await pool.run(divmod, 7, 2) == (3, 1)
        assert await pool.run(int, "ff", base=16) == 255
        assert await pool.submit(int, "ff", base=16) == 255
        with pytest.raises(ValueError, match="invalid literal"):
            await pool.run(int, "x")
        ident = await pool.run(threading.get_ident)
        assert ident != threading.get_ident()
        await pool.close()

    run(main())


def test_grows_to_its_bound() -> None:
    async def main() -> None:
        pool = WorkerPool(max_threads=3)
        barrier = threading.Barrier(3)
        names: set[str] = set()

        def meet() -> None:
            barrier.wait(5)
            names.add(threading.current_thread().name)

        futures = [pool.submit(meet) for _ in range(6)]
        for future in futures:
            await future
        assert names <= {f"qsd-worker-{index}" for index in range(3)}
        assert len(pool._threads) == 3
        await pool.close()
        await pool.close()
        assert not [thread for thread in threading.enumerate() if "qsd-worker" in thread.name]
        with pytest.raises(RuntimeError, match="closed"):
            pool.submit(meet)

    run(main())


def test_many_small_calls() -> None:
    async def main() -> None:
        pool = WorkerPool(max_threads=4)
        futures = [pool.submit(pow, 2, index) for index in range(500)]
        assert [await future for future in futures] == [2**index for index in range(500)]
        assert len(pool._threads) <= 4
        await pool.close()

    run(main())


def test_cancelled_caller_waits_for_the_call() -> None:
    async def main() -> None:
        pool = WorkerPool()
        owner = TaskOwner("test")
        started, go_on = threading.Event(), threading.Event()
        log: list[str] = []

        def work() -> None:
            started.set()
            go_on.wait(5)
            log.append("call ended")

        async def caller() -> None:
            try:
                await pool.run(work)
            finally:
                log.append("caller ended")

        task = owner.spawn(caller(), "caller")
        await pool.run(started.wait, 5)
        # However often it is cancelled: the call may still write to the caller's buffer.
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert not task.done()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert log == ["call ended", "caller ended"]
        await pool.close()

    run(main())


def test_failure_of_a_cancelled_call_is_dropped() -> None:
    async def main() -> None:
        pool = WorkerPool()
        owner = TaskOwner("test")
        started, go_on = threading.Event(), threading.Event()

        def work() -> None:
            started.set()
            go_on.wait(5)
            raise ValueError("nobody listens")

        task = owner.spawn(pool.run(work), "caller")
        await pool.run(started.wait, 5)
        task.cancel()
        await asyncio.sleep(0)
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        await pool.close()

    run(main())


def test_idle_threads_keep_nothing_alive() -> None:
    class Buffer(bytearray):
        pass

    async def main() -> None:
        pool = WorkerPool()
        buffer = Buffer(10)
        gone = weakref.ref(buffer)
        assert await pool.run(len, buffer) == 10
        del buffer
        # The thread lets go just after it has delivered; the next call proves that it has.
        await pool.run(len, b"")
        assert gone() is None
        await pool.close()

    run(main())


def test_close_finishes_what_is_queued() -> None:
    async def main() -> None:
        pool = WorkerPool(max_threads=1)
        log: list[int] = []
        futures = [pool.submit(log.append, index) for index in range(10)]
        await pool.close()
        assert log == list(range(10))
        for future in futures:
            await future

    run(main())
