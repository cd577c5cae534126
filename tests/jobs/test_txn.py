# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Jobs that succeed or fail together."""

from __future__ import annotations

import asyncio
import errno
from typing import TYPE_CHECKING, Any

import pytest

from qsd.aio import eager
from qsd.errors import QmpError, os_error
from qsd.jobs.txn import JobTransaction
from tests.jobs.support import ScriptedJob, World, in_world, sleep_long, succeed, turns

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from qsd.jobs.job import Job


async def fail_later(job: Job) -> None:
    """Work that fails in the middle."""
    await job.sleep(2)
    raise os_error(errno.EIO)


def pair(
    world: World,
    first: Callable[[Job], Awaitable[None]],
    second: Callable[[Job], Awaitable[None]],
    **options: Any,
) -> tuple[ScriptedJob, ScriptedJob]:
    """Start two jobs in one transaction."""
    txn = JobTransaction()
    jobs = (
        ScriptedJob(world, "a", first, txn=txn, **options),
        ScriptedJob(world, "b", second, txn=txn, **options),
    )
    for job in jobs:
        job.start()
    return jobs


def test_all_succeed_together() -> None:
    async def story(world: World) -> None:
        a, b = pair(world, succeed, sleep_long)
        await turns()
        assert (a.status, b.status) == ("waiting", "running")
        world.take()
        with pytest.raises(QmpError, match="'waiting' cannot accept command verb 'pause'"):
            a.user_pause()
        await b.wait_end()
        await a.wait_end()
        assert world.take() == [
            "b waiting", "b pending", "a pending",
            "b concluded", "b null", "a concluded", "a null",
        ]  # fmt: skip
        assert a.hooks == b.hooks == ["prepare", "commit", "clean"]

    in_world(story)


def test_one_finalize_is_enough() -> None:
    async def story(world: World) -> None:
        a, b = pair(world, succeed, succeed, auto_finalize=False)
        await turns()
        assert (a.status, b.status) == ("pending", "pending")
        world.take()
        await a.user_finalize()
        assert world.take() == ["b concluded", "b null", "a concluded", "a null"]

    in_world(story)


def test_all_must_want_to_finalize_by_themselves() -> None:
    async def story(world: World) -> None:
        txn = JobTransaction()
        a = ScriptedJob(world, "a", succeed, txn=txn, auto_finalize=False)
        b = ScriptedJob(world, "b", succeed, txn=txn)
        a.start()
        b.start()
        await turns()
        assert (a.status, b.status) == ("pending", "pending")
        await a.user_finalize()
        assert (a.status, b.status) == ("null", "null")

    in_world(story)


def test_a_failure_cancels_the_others() -> None:
    async def story(world: World) -> None:
        a, b = pair(world, fail_later, sleep_long, auto_dismiss=False)
        await turns()
        world.take()
        await a.wait_end()
        assert world.take() == ["a aborting", "b aborting", "b concluded", "a concluded"]
        assert a.info().error == "Input/output error"
        assert b.info().error == "Operation canceled"
        assert b.cancelled
        assert not a.cancelled
        assert a.hooks == b.hooks == ["abort", "clean"]

    in_world(story)


def test_a_failure_undoes_work_that_had_succeeded() -> None:
    async def story(world: World) -> None:
        a, b = pair(world, succeed, fail_later)
        await a.wait_end()
        assert a.hooks == b.hooks == ["abort", "clean"]
        assert world.take()[-6:] == [
            "b aborting", "b concluded", "b null", "a aborting", "a concluded", "a null",
        ]  # fmt: skip

    in_world(story)


def test_cancelling_a_job_that_waits_for_the_others() -> None:
    async def story(world: World) -> None:
        a, b = pair(world, succeed, sleep_long)
        await turns()
        world.take()
        await a.user_cancel(force=False)
        assert (a.status, b.status) == ("null", "null")
        assert world.take() == [
            "b aborting", "b concluded", "b null", "a aborting", "a concluded", "a null",
        ]  # fmt: skip

    in_world(story)


def test_the_others_are_waited_for() -> None:
    async def story(world: World) -> None:
        gate = asyncio.Event()

        async def work(job: Job) -> None:
            await gate.wait()

        a, b = pair(world, work, fail_later)
        await asyncio.sleep(100)
        assert (a.status, b.status) == ("running", "aborting")
        gate.set()
        await b.wait_end()
        assert a.hooks == ["abort", "clean"]

    in_world(story)


def test_failing_preparation_aborts_all() -> None:
    async def story(world: World) -> None:
        a, b = pair(world, succeed, succeed, auto_dismiss=False)
        a.prepare_error = QmpError("No")
        await a.wait_end()
        assert b.hooks == ["prepare", "abort", "clean"]
        assert a.hooks == ["prepare", "abort", "clean"]
        assert (a.info().error, b.info().error) == ("No", "Operation canceled")

    in_world(story)


def test_the_outcome_is_decided_once() -> None:
    async def story(world: World) -> None:
        gate = asyncio.Event()

        class Slow(ScriptedJob):
            async def commit(self) -> None:
                await gate.wait()
                self.hooks.append("commit")

        txn = JobTransaction()
        a = Slow(world, "a", succeed, txn=txn)
        b = Slow(world, "b", succeed, txn=txn)
        a.start()
        b.start()
        await turns()
        assert txn.is_ending
        await a.user_cancel(force=True)
        await b.user_cancel(force=True)
        gate.set()
        await a.wait_end()
        assert a.hooks == b.hooks == ["prepare", "commit", "clean"]
        assert (a.error, b.error, a.cancelled) == (None, None, False)

    in_world(story)


def test_endings_are_waited_for_but_not_for_ever() -> None:
    async def story(world: World) -> None:
        gate: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        class Lingering(ScriptedJob):
            async def prepare(self) -> None:
                await gate

        job = Lingering(world, "j", succeed)
        job.start()
        seen = [(job.status, job.is_ending)]
        for result in (None, gate):
            await turns()
            if result is not None:
                result.set_result(None)
            await world.registry.wait_endings(1.0)
            seen.append((job.status, world.registry.is_any_ending))
        assert seen == [("running", False), ("pending", True), ("null", False)]

    in_world(story)


def test_endings_are_waited_for_outside_of_tasks() -> None:
    async def story(world: World) -> None:
        gate: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done: list[str] = []

        class Lingering(ScriptedJob):
            async def prepare(self) -> None:
                await gate

        job = Lingering(world, "j", succeed)
        job.start()
        await turns()

        async def wait() -> None:
            await world.registry.wait_endings(1.0)
            done.append(job.status)

        # That is how commands are begun.
        asyncio.get_running_loop().call_soon(eager.start, wait(), world.tasks, "wait")
        await turns()
        assert not done
        gate.set_result(None)
        await turns()
        assert done == ["null"]

    in_world(story)
