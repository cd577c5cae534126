# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

import asyncio
import errno
from typing import TYPE_CHECKING, ClassVar

import pytest

from qsd.block.copy import CopyError
from qsd.errors import os_error
from qsd.jobs.copying import (
    CHUNK,
    LARGE_CHUNK,
    MAX_CHUNKS,
    ChunkedJob,
    ChunkedJobOptions,
    SpeedLimit,
    Workers,
    steady_chunk,
)
from tests.jobs.support import ScriptedJob, in_world, succeed
from tests.jobs.support import World as JobWorld

if TYPE_CHECKING:
    from typing import Any

    from qsd.qapi.schema.block_job import BlockdevOnError
    from qsd.qapi.schema.job import JobType

MIB = 1 << 20


class Walker(ChunkedJob):
    """Notes what it is asked to do."""

    TYPE: ClassVar[JobType] = "stream"

    def __init__(
        self,
        world: JobWorld,
        length: int,
        policy: BlockdevOnError = "report",
        span: int = MIB,
        **options: Any,
    ) -> None:
        nothing: Any = None
        self.length = length
        self.span = span  # of data, and of nothing to do
        self.treated: list[int] = []
        self.at_once = 0
        self.most = 0
        self.failing: dict[int, int] = {}
        self.skip = False
        self.unseen: set[int] = set()
        wanted = ChunkedJobOptions(on_error=policy, auto_dismiss=False, **options)
        super().__init__(world.registry, nothing, "j", wanted)

    async def run(self) -> None:
        await self.go_over(self.length)

    async def look(self, offset: int, length: int) -> tuple[int, bool]:
        if offset in self.unseen:
            self.unseen.remove(offset)
            raise os_error(errno.EIO)
        span = self.span
        return min(length, span - offset % span), offset // span % 2 == 0

    async def treat(self, offset: int, length: int) -> None:
        assert length <= (CHUNK if self.speed else LARGE_CHUNK)
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        await asyncio.sleep(0.001)
        self.at_once -= 1
        for at in range(offset, offset + length, CHUNK):
            if self.failing.get(at, 0):
                self.failing[at] -= 1
                raise CopyError(False, at, os_error(errno.ENOSPC))
            self.treated.append(at)

    def ignored(self, offset: int, cause: OSError) -> bool:
        return self.skip


async def finish(job: Walker) -> None:
    await job.wait_end()
    job.dismiss()


def test_every_chunk_is_treated_once_and_several_at_a_time() -> None:
    async def story(world: JobWorld) -> None:
        job = Walker(world, 40 * MIB)
        job.start()
        await finish(job)
        wanted = [start + half for start in range(0, 40 * MIB, 2 * MIB) for half in (0, CHUNK)]
        assert sorted(job.treated) == wanted
        assert job.most == MAX_CHUNKS
        assert job.progress_current == job.progress_total == 40 * MIB
        assert job.error is None

    in_world(story)


def test_a_failure_shows_as_if_chunks_came_one_by_one() -> None:
    async def story(world: JobWorld) -> None:
        job = Walker(world, 40 * MIB)
        job.failing = {4 * MIB: 1, 4 * MIB + CHUNK: 1, 6 * MIB: 1}
        job.start()
        await finish(job)
        assert job.progress_current == 4 * MIB
        assert isinstance(job.error, OSError)
        assert job.error.errno == errno.ENOSPC
        assert world.take().count("BLOCK_JOB_ERROR") == 1

    in_world(story)


@pytest.mark.parametrize("skip", [False, True])
def test_ignoring_tries_again_or_goes_on(skip: bool) -> None:
    async def story(world: JobWorld) -> None:
        job = Walker(world, 10 * MIB, "ignore")
        job.skip = skip
        job.failing = {4 * MIB: 2}
        job.unseen = {6 * MIB}
        job.start()
        await finish(job)
        assert job.error is None
        assert (4 * MIB in job.treated) == (not skip)
        assert len(set(job.treated)) == len(job.treated)
        assert job.progress_current == 10 * MIB

    in_world(story)


def test_what_was_done_behind_a_failure_is_not_done_again() -> None:
    async def story(world: JobWorld) -> None:
        job = Walker(world, 40 * MIB, "ignore", span=20 * MIB)
        job.failing = {MIB + CHUNK: 1, 9 * MIB: 1}
        job.start()
        await finish(job)
        assert job.error is None
        assert sorted(job.treated) == list(range(0, 20 * MIB, CHUNK))
        assert job.progress_current == job.progress_total == 40 * MIB

    in_world(story)


def test_stopping_pauses_until_the_user_resumes() -> None:
    async def story(world: JobWorld) -> None:
        job = Walker(world, 10 * MIB, "stop")
        job.failing = {2 * MIB: 1}
        job.start()
        while job.status != "paused":
            await asyncio.sleep(0.01)
        assert job.at_once == 0
        assert job.progress_current == 2 * MIB
        job.user_resume()
        await finish(job)
        assert job.error is None
        assert len(set(job.treated)) == len(job.treated) == 10

    in_world(story)


@pytest.mark.parametrize("speed", [MIB, 10 * MIB, 64 * MIB])
def test_the_speed_limit_is_kept(speed: int) -> None:
    async def story(world: JobWorld) -> None:
        loop = asyncio.get_running_loop()
        job = Walker(world, 64 * MIB, speed=speed)
        before = loop.time()
        job.start()
        await finish(job)
        # Half of the range needs work.
        assert loop.time() - before == pytest.approx(32 * MIB / speed, rel=0.1)

    in_world(story)


def test_a_failure_does_not_wait_for_the_speed_limit() -> None:
    async def story(world: JobWorld) -> None:
        loop = asyncio.get_running_loop()
        job = Walker(world, 64 * MIB, speed=1)
        job.failing = {0: 1}
        before = loop.time()
        job.start()
        await finish(job)
        assert isinstance(job.error, OSError)
        assert loop.time() - before < 1

    in_world(story)


def test_a_new_speed_holds_at_once() -> None:
    async def story(world: JobWorld) -> None:
        loop = asyncio.get_running_loop()
        job = Walker(world, 64 * MIB, speed=1)
        job.start()
        await asyncio.sleep(5)
        assert job.progress_current == CHUNK
        before = loop.time()
        job.user_set_speed(0)
        await finish(job)
        assert loop.time() - before < 1

    in_world(story)


def test_cancelling_waits_for_what_is_in_flight() -> None:
    async def story(world: JobWorld) -> None:
        job = Walker(world, 64 * MIB)
        job.start()
        await asyncio.sleep(0.0015)
        assert job.at_once
        await job.user_cancel(force=True)
        await finish(job)
        assert job.at_once == 0
        assert job.progress_current < 64 * MIB

    in_world(story)


@pytest.mark.parametrize("speed", [MIB, 10 * MIB, 100 * MIB])
@pytest.mark.parametrize("drained", [False, True])
def test_a_pause_is_no_lost_time(speed: int, drained: bool) -> None:
    async def story(world: JobWorld) -> None:
        job = Walker(world, 100 * speed, span=100 * speed, speed=speed)
        job.start()
        loop = asyncio.get_running_loop()

        async def rate(seconds: float) -> float:
            start, done = loop.time(), job.progress_current
            await asyncio.sleep(seconds)
            return (job.progress_current - done) / (loop.time() - start) / job.speed

        assert await rate(4.0) == pytest.approx(1, rel=0.1)
        for _ in range(3):
            (job.pause if drained else job.user_pause)()
            await asyncio.sleep(5)
            (job.resume if drained else job.user_resume)()
            assert await rate(4.0) == pytest.approx(1, rel=0.1)
        job.user_set_speed(2 * speed)
        assert await rate(4.0) == pytest.approx(1, rel=0.1)
        await job.cancel(force=True)
        await job.wait_end()

    in_world(story)


@pytest.mark.parametrize(
    ("chunk", "speed", "expected"),
    [
        (CHUNK, 1, CHUNK),
        (CHUNK, 65536, CHUNK),
        (CHUNK, 256 << 10, 64 << 10),
        (CHUNK, MIB, 128 << 10),
        (CHUNK, 100 * MIB, CHUNK),
        (10 * MIB, 10 * MIB, 1280 << 10),
    ],
)
def test_chunks_suit_the_limit(chunk: int, speed: int, expected: int) -> None:
    assert steady_chunk(chunk, speed) == expected


def test_a_limit_knows_no_bursts() -> None:
    limit = SpeedLimit()
    assert limit.delay(10.0, 0) == 0
    limit.spend(10.0, 100, 100)
    assert limit.delay(10.0, 100) == 1.0
    assert limit.delay(10.5, 100) == 0.5
    assert limit.delay(10.5, 200) == 0  # another speed
    limit.spend(11.75, 100, 100)
    assert limit.delay(12.0, 100) == pytest.approx(0.25)  # not all of the lost time is made up for
    limit.spend(20.0, 100, 100)
    assert limit.delay(20.0, 100) == pytest.approx(0.5)


def test_unexpected_errors_of_workers_are_raised() -> None:
    async def story(world: JobWorld) -> None:
        job = ScriptedJob(world, "j", succeed)
        workers = Workers(job, 2)

        async def fail() -> None:
            await asyncio.sleep(0)
            raise ValueError

        await workers.start(fail())
        with pytest.raises(ValueError, match=r"^$"):
            await workers.join()
        await workers.join()  # raised once
        job.discard()

    in_world(story)
