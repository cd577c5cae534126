# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The life of single jobs, and their registry."""

from __future__ import annotations

import asyncio
import errno
from typing import TYPE_CHECKING

import pytest

from qsd.errors import QmpError, describe, os_error
from qsd.jobs.job import Job, JobCancelled
from tests.jobs.support import (
    ScriptedJob,
    World,
    get_ready,
    in_world,
    sleep_long,
    succeed,
    turns,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

BEGIN = ["j created", "j running"]
SUCCESS = ["j waiting", "j pending", "j concluded"]
FAILURE = ["j aborting", "j concluded"]


def test_success_by_itself() -> None:
    async def story(world: World) -> None:
        job = ScriptedJob(world, "j", succeed)
        job.start()
        assert world.take() == BEGIN
        await job.wait_end()
        assert world.take() == [*SUCCESS, "j null"]
        assert job.hooks == ["prepare", "commit", "clean"]
        assert world.registry.find("j") is None

    in_world(story)


def test_success_with_everything_by_hand() -> None:
    async def story(world: World) -> None:
        job = ScriptedJob(world, "j", succeed, auto_finalize=False, auto_dismiss=False)
        job.start()
        await job.wait_work_finished()
        await turns()
        assert world.take() == [*BEGIN, "j waiting", "j pending"]
        with pytest.raises(QmpError) as caught:
            job.user_dismiss()
        assert (
            caught.value.desc == "Job 'j' in state 'pending' cannot accept command verb 'dismiss'"
        )
        await job.user_finalize()
        assert world.take() == ["j concluded"]
        info = job.info()
        assert (info.status, info.current_progress, info.total_progress) == ("concluded", 1, 1)
        assert info.error is None
        with pytest.raises(QmpError, match="'concluded' cannot accept command verb 'finalize'"):
            await job.user_finalize()
        job.user_dismiss()
        assert world.take() == ["j null"]

    in_world(story)


@pytest.mark.parametrize(
    "exc", [QmpError("No such thing"), os_error(errno.EIO, "No such thing")], ids=["qmp", "os"]
)
def test_failure(exc: QmpError | OSError) -> None:
    async def fail(job: Job) -> None:
        raise exc

    async def story(world: World) -> None:
        job = ScriptedJob(world, "j", fail, auto_dismiss=False)
        job.start()
        await job.wait_end()
        assert world.take() == [*BEGIN, *FAILURE]
        assert job.info().error == "No such thing"
        assert job.hooks == ["abort", "clean"]

    in_world(story)


def test_failure_in_prepare() -> None:
    async def story(world: World) -> None:
        job = ScriptedJob(world, "j", succeed, auto_dismiss=False)
        job.prepare_error = os_error(errno.ENOSPC)
        job.start()
        await job.wait_end()
        assert world.take() == [*BEGIN, "j waiting", "j pending", *FAILURE]
        assert job.info().error == "No space left on device"
        assert job.hooks == ["prepare", "abort", "clean"]

    in_world(story)


def test_a_defect_ends_the_job_and_is_reported() -> None:
    async def stumble(job: Job) -> None:
        raise ZeroDivisionError

    async def story(world: World) -> None:
        job = ScriptedJob(world, "j", stumble, auto_dismiss=False)
        job.start()
        await job.wait_end()
        await turns()
        assert job.error is not None
        assert describe(job.error) == "Internal error: ZeroDivisionError()"
        [(_, exc)] = world.errors
        assert isinstance(exc, ZeroDivisionError)
        world.errors.clear()

    in_world(story)


def test_identifiers() -> None:
    async def story(world: World) -> None:
        ScriptedJob(world, "j", succeed)
        for bad in ("", "1j", "#j", "a b"):
            with pytest.raises(QmpError) as caught:
                ScriptedJob(world, bad, succeed)
            assert caught.value.desc == f"Invalid job ID '{bad}'"
        with pytest.raises(QmpError) as caught:
            ScriptedJob(world, "j", succeed)
        assert caught.value.desc == "Job ID 'j' already in use"
        with pytest.raises(QmpError) as caught:
            world.registry.get("k")
        assert caught.value.desc == "Job not found"
        assert world.take() == ["j created"]

    in_world(story)


def test_jobs_are_listed_newest_first_and_internal_ones_are_silent() -> None:
    async def story(world: World) -> None:
        for name in ("a", "b", None):
            ScriptedJob(world, name, succeed)
        assert [job.id for job in world.registry] == [None, "b", "a"]
        assert world.take() == ["a created", "b created"]

    in_world(story)


def test_a_job_that_cannot_be_set_up_leaves_no_trace() -> None:
    async def story(world: World) -> None:
        ScriptedJob(world, "j", succeed).discard()
        assert world.take() == ["j created", "j null"]
        assert world.registry.find("j") is None

    in_world(story)


def test_pause_takes_effect_at_once_while_the_job_sleeps() -> None:
    async def story(world: World) -> None:
        job = ScriptedJob(world, "j", sleep_long)
        job.start()
        await turns()
        assert not job.busy
        world.take()
        job.user_pause()
        assert world.take() == ["j paused"]
        with pytest.raises(QmpError, match=r"^Job is already paused$"):
            job.user_pause()
        before = job.progress_current
        await asyncio.sleep(100)
        assert job.progress_current == before
        job.user_resume()
        assert world.take() == ["j running"]
        with pytest.raises(QmpError, match=r"^Can't resume a job that was not paused$"):
            job.user_resume()
        await job.wait_end()
        assert job.progress_current == 10

    in_world(story)


def test_pause_waits_for_work_in_flight() -> None:
    async def story(world: World) -> None:
        gate = asyncio.Event()

        async def work(job: Job) -> None:
            await gate.wait()
            await job.pause_point()

        job = ScriptedJob(world, "j", work)
        job.start()
        await turns()
        assert job.busy
        job.user_pause()
        assert world.take() == BEGIN
        gate.set()
        await turns()
        assert world.take() == ["j paused"]
        job.user_resume()
        await job.wait_end()

    in_world(story)


def test_pauses_are_counted() -> None:
    async def story(world: World) -> None:
        job = ScriptedJob(world, "j", get_ready)
        job.start()
        await turns()
        world.take()
        job.pause()
        job.user_pause()
        job.resume()
        assert world.take() == ["j standby"]
        await asyncio.sleep(10)
        assert job.status == "standby"
        job.user_resume()
        assert world.take() == ["j ready"]

    in_world(story)


def test_a_job_paused_before_its_first_step_does_nothing() -> None:
    async def story(world: World) -> None:
        job = ScriptedJob(world, "j", succeed)
        job.start()
        job.pause()
        await asyncio.sleep(10)
        assert job.status == "paused"
        assert job.progress_total == 0
        job.resume()
        await job.wait_end()
        assert world.take() == [*BEGIN, "j paused", "j running", *SUCCESS, "j null"]

    in_world(story)


def test_wake_does_not_end_a_pause() -> None:
    async def story(world: World) -> None:
        job = ScriptedJob(world, "j", sleep_long)
        job.start()
        await turns()
        job.wake()
        job.pause()
        job.wake()
        await asyncio.sleep(10)
        assert job.status == "paused"
        job.resume()

    in_world(story)


@pytest.mark.parametrize("work", [sleep_long, get_ready], ids=["sleeping", "ready"])
def test_cancel(work: Callable[[Job], Awaitable[None]]) -> None:
    async def story(world: World) -> None:
        job = ScriptedJob(world, "j", work, auto_dismiss=False)
        job.start()
        await turns()
        world.take()
        await job.user_cancel(force=False)
        await job.wait_end()
        assert world.take() == FAILURE
        assert job.info().error == "Operation canceled"
        assert job.hooks == ["abort", "clean"]
        with pytest.raises(QmpError, match="'concluded' cannot accept command verb 'cancel'"):
            await job.user_cancel(force=True)

    in_world(story)


def test_cancel_of_a_paused_job_resumes_it_first() -> None:
    async def story(world: World) -> None:
        job = ScriptedJob(world, "j", get_ready)
        job.start()
        await turns()
        job.user_pause()
        world.take()
        await job.user_cancel(force=True)
        await job.wait_end()
        assert world.take() == ["j ready", *FAILURE, "j null"]

    in_world(story)


def test_cancel_reaches_a_job_in_a_drained_section() -> None:
    async def story(world: World) -> None:
        job = ScriptedJob(world, "j", sleep_long)
        job.start()
        await turns()
        job.pause()
        world.take()
        await job.cancel(force=True)
        await job.wait_end()
        assert world.take() == ["j running", *FAILURE, "j null"]

    in_world(story)


def test_cancel_of_a_pending_job() -> None:
    async def story(world: World) -> None:
        job = ScriptedJob(world, "j", succeed, auto_finalize=False)
        job.start()
        await job.wait_work_finished()
        await turns()
        world.take()
        await job.user_cancel(force=False)
        assert world.take() == [*FAILURE, "j null"]

    in_world(story)


def test_cancel_before_start() -> None:
    async def story(world: World) -> None:
        job = ScriptedJob(world, "j", succeed, auto_dismiss=False)
        await job.cancel(force=True)
        assert world.take() == ["j created", "j aborting", "j concluded", "j null"]

    in_world(story)


def test_work_that_ignores_cancellation_is_cancelled_all_the_same() -> None:
    async def story(world: World) -> None:
        gate = asyncio.Event()

        async def work(job: Job) -> None:
            await gate.wait()

        job = ScriptedJob(world, "j", work, auto_dismiss=False)
        job.start()
        await turns()
        await job.user_cancel(force=True)
        gate.set()
        await job.wait_end()
        assert job.info().error == "Operation canceled"

    in_world(story)


def test_parking_tells_of_cancellation() -> None:
    async def story(world: World) -> None:
        seen: list[str] = []

        async def work(job: Job) -> None:
            try:
                await job.sleep()
            except JobCancelled:
                seen.append("cancelled")
                raise

        job = ScriptedJob(world, "j", work)
        job.start()
        await turns()
        await job.cancel(force=True)
        await job.wait_end()
        assert seen == ["cancelled"]

    in_world(story)


def test_soft_cancel_can_mean_an_early_success() -> None:
    class Ready(ScriptedJob):
        def accept_cancel(self, force: bool) -> bool:
            return force

    async def story(world: World) -> None:
        job = Ready(world, "j", get_ready)
        job.start()
        await turns()
        world.take()
        await job.user_cancel(force=False)
        await job.wait_end()
        assert world.take() == [*SUCCESS, "j null"]
        assert job.error is None

    in_world(story)


def test_complete() -> None:
    class Completable(ScriptedJob):
        async def complete(self) -> None:
            self.wake()

    async def story(world: World) -> None:
        job = Completable(world, "j", get_ready)
        with pytest.raises(QmpError, match="'created' cannot accept command verb 'complete'"):
            await job.user_complete()
        job.start()
        await turns()
        await job.user_complete()
        await job.wait_end()
        assert world.take() == [*BEGIN, "j ready", *SUCCESS, "j null"]

    in_world(story)


def test_not_every_ready_job_can_be_completed() -> None:
    async def story(world: World) -> None:
        job = ScriptedJob(world, "j", get_ready)
        job.start()
        await turns()
        with pytest.raises(QmpError, match=r"^The active block job 'j' cannot be completed$"):
            await job.user_complete()

    in_world(story)


def test_illegal_moves_change_nothing() -> None:
    async def story(world: World) -> None:
        job = ScriptedJob(world, "j", succeed)
        with pytest.raises(RuntimeError):
            job.move("concluded")
        assert job.status == "created"
        assert world.take() == ["j created"]

    in_world(story)


def test_closing_the_registry_ends_all_jobs() -> None:
    async def story(world: World) -> None:
        done = ScriptedJob(world, "d", succeed, auto_dismiss=False)
        waiting = ScriptedJob(world, "w", succeed, auto_finalize=False, auto_dismiss=False)
        asleep = ScriptedJob(world, "s", sleep_long)
        for job in (done, waiting, asleep):
            job.start()
        await done.wait_end()
        await turns()
        ScriptedJob(world, "n", succeed)
        await world.registry.close()
        assert not list(world.registry)
        assert (done.status, waiting.status, asleep.status) == ("null",) * 3

    in_world(story)
