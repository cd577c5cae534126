# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

import asyncio
from typing import Any

import pytest

from qsd.aio.loop import run
from qsd.aio.tasks import TaskOwner


async def forever() -> None:
    await asyncio.get_running_loop().create_future()


async def fail() -> None:
    raise ValueError("no")


def test_names_and_results() -> None:
    async def main() -> None:
        owner = TaskOwner("owner")

        async def work() -> int:
            return 5

        task = owner.spawn(work(), "work")
        assert task.get_name() == "owner: work"
        assert len(owner) == 1
        assert await task == 5
        await owner.join()
        assert len(owner) == 0

    run(main())


def test_every_exception_has_a_reader() -> None:
    async def main() -> None:
        contexts: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(
            lambda loop, context: contexts.append(context)
        )
        owner = TaskOwner("owner")
        owner.spawn(fail(), "work")
        await owner.join()
        assert [context["message"] for context in contexts] == ["unhandled error in owner: work"]
        seen: list[str] = []
        other = TaskOwner("other", lambda name, exc: seen.append(f"{name}: {exc}"))
        other.spawn(fail(), "work")
        await other.join()
        assert seen == ["other: work: no"]

    run(main())


def test_failures_of_awaited_tasks_are_their_waiters_business() -> None:
    reported: list[str] = []

    async def main() -> None:
        owner = TaskOwner("owner", lambda name, _: reported.append(name))
        task = owner.spawn(fail(), "task", awaited=True)
        with pytest.raises(ValueError, match="no"):
            await task
        assert len(owner) == 0

    run(main())
    assert reported == []


def test_close_cancels_all_and_waits() -> None:
    async def main() -> None:
        log: list[str] = []
        owner = TaskOwner("owner", lambda name, exc: log.append("error"))

        async def slow_to_end() -> None:
            try:
                await forever()
            finally:
                await asyncio.sleep(0.001)
                log.append("ended")

        owner.spawn(slow_to_end(), "a")
        owner.spawn(slow_to_end(), "b")
        await asyncio.sleep(0)
        await owner.close()
        assert log == ["ended", "ended"]
        assert owner.closing
        await owner.close()

    run(main())


def test_closing_and_joining_from_inside() -> None:
    async def main() -> None:
        owner = TaskOwner("owner")
        log: list[str] = []

        async def closer() -> None:
            await owner.close()
            await owner.join()
            log.append("closed")

        victim = owner.spawn(forever(), "victim")
        await owner.spawn(closer(), "closer")
        assert log == ["closed"]
        assert victim.cancelled()

    run(main())


def test_join_waits_for_tasks_of_tasks() -> None:
    async def main() -> None:
        owner = TaskOwner("owner")
        log: list[str] = []

        async def child() -> None:
            await asyncio.sleep(0)
            log.append("child")

        async def parent() -> None:
            owner.spawn(child(), "child")

        owner.spawn(parent(), "parent")
        await owner.join()
        assert log == ["child"]

    run(main())


def test_done_callback() -> None:
    async def main() -> None:
        owner = TaskOwner("owner", lambda name, exc: None)
        seen: list[asyncio.Task[None]] = []
        task = owner.spawn(fail(), "work", seen.append)
        await owner.join()
        assert seen == [task]

    run(main())
