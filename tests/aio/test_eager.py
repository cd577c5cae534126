# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

import asyncio

import pytest

from qsd.aio import eager
from qsd.aio.loop import run
from qsd.aio.tasks import TaskOwner


def test_without_suspension_there_is_no_task() -> None:
    async def main() -> None:
        owner = TaskOwner("test")
        log: list[str] = []

        async def work() -> None:
            log.append("done")

        assert eager.start(work(), owner, "work") is None
        assert log == ["done"]
        assert len(owner) == 0

    run(main())


def test_errors_before_the_first_suspension_are_the_caller_s() -> None:
    async def main() -> None:
        async def work() -> None:
            raise ValueError("early")

        with pytest.raises(ValueError, match="early"):
            eager.start(work(), TaskOwner("test"), "work")

    run(main())


@pytest.mark.parametrize("how", ["future", "bare yield", "already done"])
def test_suspended_coroutine_goes_on_as_a_task(how: str) -> None:
    async def main() -> None:
        owner = TaskOwner("test")
        loop = asyncio.get_running_loop()
        first: asyncio.Future[int] = loop.create_future()
        second: asyncio.Future[int] = loop.create_future()

        async def work() -> int:
            if how == "bare yield":
                await asyncio.sleep(0)
                got = 1
            else:
                got = await first
            assert asyncio.current_task() is not None
            return got + await second

        finished: list[asyncio.Task[int]] = []
        task = eager.start(work(), owner, "work", finished.append)
        assert task is not None
        assert task.get_name() == "test: work"
        if how == "future":
            loop.call_soon(first.set_result, 1)
        elif how == "already done":
            first.set_result(1)
        loop.call_later(0.001, second.set_result, 2)
        assert await task == 3
        assert finished == [task]
        assert len(owner) == 0

    run(main())


def test_errors_after_it_are_the_owner_s() -> None:
    async def main() -> None:
        seen: list[tuple[str, str]] = []
        owner = TaskOwner("test", lambda name, exc: seen.append((name, str(exc))))

        async def work() -> None:
            await asyncio.sleep(0)
            raise ValueError("late")

        eager.start(work(), owner, "work")
        await owner.join()
        assert seen == [("test: work", "late")]

    run(main())


def test_awaited_failure_can_be_caught_inside() -> None:
    async def main() -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        async def work() -> str:
            try:
                await future
            except OSError:
                return "caught"
            return "missed"

        task = eager.start(work(), TaskOwner("test"), "work")
        assert task is not None
        future.set_exception(OSError())
        assert await task == "caught"

    run(main())


@pytest.mark.parametrize("turns", [0, 1, 3])
def test_cancelling_lets_the_coroutine_clean_up(turns: int) -> None:
    """Also where the task is cancelled before it had its first turn."""

    async def main() -> None:
        log: list[str] = []
        never: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        async def work() -> None:
            try:
                await never
            except asyncio.CancelledError:
                await asyncio.sleep(0)
                log.append("cleaned up")
                raise

        owner = TaskOwner("test")
        task = eager.start(work(), owner, "work")
        assert task is not None
        for _ in range(turns):
            await asyncio.sleep(0)
        await owner.close()
        assert task.cancelled()
        assert log == ["cleaned up"]

    run(main())


def test_timeouts_work_after_the_first_suspension() -> None:
    async def main() -> None:
        async def work() -> str:
            await asyncio.sleep(0)
            try:
                async with asyncio.timeout(0.001):
                    await asyncio.get_running_loop().create_future()
            except TimeoutError:
                return "timed out"
            return "?"

        task = eager.start(work(), TaskOwner("test"), "work")
        assert task is not None
        assert await task == "timed out"

    run(main())
