# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

import asyncio
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsd.aio.loop import run
from qsd.aio.rangelock import RangeHold, RangeLock
from qsd.aio.tasks import TaskOwner


def test_shared_claims_do_not_conflict() -> None:
    lock = RangeLock()
    first = lock.claim_nowait(0, 100, False)
    second = lock.claim_nowait(50, 150, False)
    assert first is not None
    assert second is not None
    assert lock.claim_nowait(99, 100, True) is None
    assert lock.exclusive_count == 0
    lock.release(first)
    lock.release(second)
    assert len(lock) == 0


def test_exclusive_claims_conflict_where_they_overlap() -> None:
    lock = RangeLock()
    hold = lock.claim_nowait(100, 200, True)
    assert hold is not None
    assert lock.exclusive_count == 1
    for start, end, blocked in ((0, 100, False), (0, 101, True), (199, 300, True), (200, 1, False)):
        for exclusive in (False, True):
            assert lock.is_blocked(start, end, exclusive) == blocked
    lock.release(hold)
    assert lock.exclusive_count == 0


def test_cancelled_claim_is_given_up() -> None:
    async def main() -> None:
        lock = RangeLock()
        owner = TaskOwner("test")
        first = await lock.claim(0, 10, True)
        waiting = owner.spawn(lock.claim(0, 20, True), "second")
        behind = owner.spawn(lock.claim(15, 20, True), "third")
        await asyncio.sleep(0)
        assert not behind.done()  # the second was first, although it only waits itself
        waiting.cancel()
        third = await behind
        with pytest.raises(asyncio.CancelledError):
            await waiting
        lock.release(first)
        lock.release(third)
        assert len(lock) == 0
        assert lock.exclusive_count == 0

    run(main())


def test_release_of_a_cancelled_waiter_wakes_no_one_twice() -> None:
    async def main() -> None:
        lock = RangeLock()
        owner = TaskOwner("test")
        first = await lock.claim(0, 10, True)
        tasks = [owner.spawn(lock.claim(0, 10, False), str(index)) for index in range(3)]
        await asyncio.sleep(0)
        tasks[1].cancel()
        await asyncio.sleep(0)
        lock.release(first)
        holds = [await tasks[0], await tasks[2]]
        for hold in holds:
            lock.release(hold)
        assert len(lock) == 0

    run(main())


class Request(NamedTuple):
    start: int
    length: int
    exclusive: bool
    turns: int  # how long it holds its claim
    cancel_after: int  # turns until it is cancelled, 0 for never


requests = st.lists(
    st.builds(
        Request,
        st.integers(0, 20),
        st.integers(1, 8),
        st.booleans(),
        st.integers(0, 3),
        st.sampled_from([0, 0, 0, 1, 2, 4]),
    ),
    min_size=1,
    max_size=25,
)


def conflict(one: Request, other: Request) -> bool:
    return (
        (one.exclusive or other.exclusive)
        and one.start < other.start + other.length
        and other.start < one.start + one.length
    )


@settings(deadline=None, max_examples=150)
@given(requests)
def test_order_and_exclusion(program: list[Request]) -> None:
    async def main() -> None:
        lock = RangeLock()
        owner = TaskOwner("test")
        over: set[int] = set()  # requests that gave their claim back or were cancelled

        async def work(index: int, request: Request) -> None:
            hold: RangeHold | None = None
            try:
                hold = await lock.claim(
                    request.start, request.start + request.length, request.exclusive
                )
                # All earlier conflicting requests have had their turn, so none is at work now.
                for earlier in range(index):
                    if conflict(program[earlier], request):
                        assert earlier in over
                for _ in range(request.turns):
                    await asyncio.sleep(0)
            finally:
                if hold is not None:
                    lock.release(hold)
                over.add(index)

        tasks = [owner.spawn(work(index, item), str(index)) for index, item in enumerate(program)]
        turn = 0
        while not all(task.done() for task in tasks):
            assert turn < 2000, "somebody waits for ever"
            turn += 1
            await asyncio.sleep(0)
            for task, item in zip(tasks, program, strict=True):
                if item.cancel_after == turn:
                    task.cancel()
        for task in tasks:
            if not task.cancelled():
                task.result()
        assert len(lock) == 0
        assert lock.exclusive_count == 0

    run(main())
