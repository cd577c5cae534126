# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Turns and waiting, with a clock that stands still until it is told to go."""

from __future__ import annotations

import asyncio

import pytest

from qsd.aio.loop import run
from qsd.aio.tasks import TaskOwner
from qsd.objects import throttle_queue
from qsd.objects.throttle_queue import ThrottleQueue
from qsd.util.leaky_bucket import NS_PER_SECOND, Throttle, default_limits


class Clock:
    """Time in ns."""

    def __init__(self) -> None:
        self.now = 0

    def monotonic_ns(self) -> int:
        return self.now


class Group:
    """As much of a throttle group as the queue looks at."""

    def __init__(self, **limits: int) -> None:
        values = {name.replace("_", "-"): value for name, value in limits.items()}
        self.throttle = Throttle(default_limits() | values)


@pytest.fixture(name="clock")
def _clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(throttle_queue, "time", clock)
    return clock


def make(**limits: int) -> ThrottleQueue:
    return ThrottleQueue(Group(**limits))  # type: ignore[arg-type]


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_members_take_turns(clock: Clock) -> None:
    async def main() -> None:
        queue = make(iops_total=10)
        tasks = TaskOwner("test")
        order: list[str] = []

        async def request(member: str) -> None:
            await queue.enter(member, False, 1)
            order.append(member)

        while queue.may_go(False):
            queue.account(False, 1)
        for member in "aaaabbc":
            tasks.spawn(request(member), member)
        await settle()
        assert not order
        for _ in range(7):
            clock.now += NS_PER_SECOND // 10
            queue.kick()
            await settle()
        assert order == ["a", "b", "c", "a", "b", "a", "a"]
        await tasks.join()

    run(main())


def test_reads_and_writes_wait_apart(clock: Clock) -> None:
    async def main() -> None:
        queue = make(iops_write=10)
        while queue.may_go(True):
            queue.account(True, 1)
        assert queue.may_go(False)
        await queue.enter("a", False, 1)
        clock.now += NS_PER_SECOND
        assert queue.may_go(True)

    run(main())


def test_who_waits_keeps_others_waiting(clock: Clock) -> None:
    async def main() -> None:
        queue = make(iops_total=10)
        tasks = TaskOwner("test")
        while queue.may_go(False):
            queue.account(False, 1)
        waiting = tasks.spawn(queue.enter("a", False, 1), "a")
        await settle()
        clock.now += NS_PER_SECOND // 10
        assert not queue.may_go(False)
        queue.release("a")
        await settle()
        assert waiting.done()
        await tasks.join()

    run(main())


def test_giving_up(clock: Clock) -> None:
    async def main() -> None:
        queue = make(iops_total=10)
        tasks = TaskOwner("test")
        while queue.may_go(False):
            queue.account(False, 1)
        first = tasks.spawn(queue.enter("a", False, 1), "a")
        second = tasks.spawn(queue.enter("a", False, 1), "a")
        await settle()
        first.cancel()
        await settle()
        clock.now += NS_PER_SECOND // 10
        queue.kick()
        await settle()
        assert second.done()
        await tasks.join()

    run(main())
