# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
r"""How jobs that move data share their time: several chunks in flight, a speed limit, order.

:class:`Workers` runs chunks at the same time; :class:`SpeedLimit` says when the next may start;
:class:`ChunkedJob` uses both to go over a range once from its start to its end.

What the user sees of a :class:`ChunkedJob` is as if it worked on one chunk after the other.  The
*frontier* is where everything before it is done; progress counts up to there.  Chunks behind it may
be done too, or have failed::

    done      done      failed    done      in flight  not looked at yet
    |---------|---------|xxxxxxxxx|---------|..........|
                        ^ frontier                     ^ position

After a failure nothing new is started.  When nothing is in flight any more, the failure with the
lowest offset is judged by the user's policy, the others are forgotten, and the walk starts again at
the frontier; chunks that are done already are not done again.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final

from qsd.aio import eager
from qsd.block.copy import CopyError
from qsd.jobs.block_job import BlockJob
from qsd.util.namedtuple import NamedTuple
from qsd.util.ranges import align_down

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sized
    from typing import Any

    from qsd.block.graph import Graph
    from qsd.jobs.job import Job, JobRegistry
    from qsd.qapi.schema.block_job import BlockdevOnError

#: Bytes; errors and the speed limit go by pieces of this size, as in the C daemon.
CHUNK: Final = 512 << 10
#: Bytes; what is worked on in one go where no limit is set: copies in the kernel cost by the call.
LARGE_CHUNK: Final = 4 << 20
#: Chunks in flight; more than a few only queue up in the kernel.
MAX_CHUNKS: Final = 8
#: Bytes; how far ahead allocation is asked for.
LOOK_AHEAD: Final = 1 << 30
#: Seconds; rest before a chunk is tried again whose error the user wants to be ignored.
IGNORE_REST: Final = 0.01


#: Seconds; how much of lost time the speed limit makes up for.  On a busy machine the loop gets its
#: turn a tenth of a second late now and then, and limits would not be kept within a tenth.
CATCH_UP: Final = 0.5


#: Bytes per second; a limit below is a way to hold a job back, and goes by whole chunks.
_STEADY: Final = 256 << 10
#: Part of a second; what a chunk should take at least.
_BEATS: Final = 8
#: Bytes; no chunk is shorter because of a limit.
_MIN_CHUNK: Final = 64 << 10


def steady_chunk(chunk: int, speed: int) -> int:
    """Return how much to do in one go so that a limit is kept at any time, bytes.

    Args:
        chunk: The most, where that makes no difference.
        speed: Bytes per second.
    """
    if speed < _STEADY:
        return chunk
    return min(chunk, max(_MIN_CHUNK, align_down(speed // _BEATS, _MIN_CHUNK)))


class SpeedLimit:
    """Spreads work evenly over time.

    A piece of work may start when all before it has had its share of time.  So the average is right
    to within one piece.  A little time that was not used, because work took longer or the loop was
    busy, is made up for; more is lost, so that there is no burst after a pause.
    """

    __slots__ = ("_next", "_speed")

    def __init__(self) -> None:
        self._next = 0.0
        self._speed = 0

    def spend(self, now: float, amount: int, speed: int) -> None:
        """Account for work that starts now.

        Args:
            now: The loop's time.
            amount: Bytes.
            speed: Bytes per second, 0 for no limit.
        """
        if speed != self._speed:
            self._speed = speed
            self._next = now
        if speed:
            self._next = max(self._next, now - CATCH_UP) + amount / speed

    def resume(self, now: float) -> None:
        """Go on after a pause, which is no lost time."""
        self._next = max(self._next, now)

    def delay(self, now: float, speed: int) -> float:
        """Return how many seconds to wait before the next piece of work.

        A new speed counts from now on: what the old one asked for is forgotten.
        """
        if speed != self._speed:
            return 0.0
        return max(0.0, self._next - now)


class Workers:
    """Runs coroutines at the same time, up to a bound.

    Attributes:
        in_flight: How many are not finished.
    """

    __slots__ = ("_failure", "_job", "_limit", "_waiter", "in_flight")

    def __init__(self, job: Job, limit: int) -> None:
        self._job = job
        self._limit = limit
        self._waiter: asyncio.Future[None] | None = None
        self._failure: BaseException | None = None
        self.in_flight = 0

    async def start(self, coro: Coroutine[Any, Any, None]) -> None:
        """Start a coroutine, and wait until there is room for another one.

        The coroutine should deal with all errors it expects; others are raised here or by `join`.
        """
        tasks = self._job.registry.tasks
        if eager.start(self._guard(coro), tasks, f"job {self._job.id} chunk") is None:
            # Nothing had to wait; let others have their turn all the same.
            await asyncio.sleep(0)
        while self.in_flight >= self._limit:
            await self.wait_one()
        self._check()

    async def _guard(self, coro: Coroutine[Any, Any, None]) -> None:
        self.in_flight += 1
        try:
            await coro
        except Exception as exc:
            self._failure = self._failure or exc
        finally:
            self.in_flight -= 1
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_result(None)

    def _check(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    async def wait_one(self) -> None:
        """Wait until one more has finished."""
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    async def join(self) -> None:
        """Wait until none is in flight."""
        while self.in_flight:
            await self.wait_one()
        self._check()


async def rest(job: Job, limit: SpeedLimit, seconds: float | None = None) -> None:
    """Sleep for some time, or at least pause if that is wanted; the limit forgets what it took.

    Raises:
        JobCancelled: The job was cancelled.
    """
    pauses = job.pauses
    if seconds is None:
        await job.pause_point()
    else:
        await job.sleep(seconds)
    if job.pauses != pauses:
        limit.resume(asyncio.get_running_loop().time())


async def checkpoint(job: BlockJob, workers: Workers, limit: SpeedLimit, failures: Sized) -> None:
    """Pause, end, or wait for the speed limit, with nothing in flight.

    A failure of what was in flight ends the wait: it is to be judged first.

    Raises:
        JobCancelled: The job was cancelled.
    """
    loop = asyncio.get_running_loop()
    while not failures:
        if job.pause_count or job.is_cancelled:
            await workers.join()
            await rest(job, limit)
        delay = limit.delay(loop.time(), job.speed)
        if not delay:
            return
        await workers.join()
        if not failures:
            await rest(job, limit, delay)


class ChunkedJobOptions(NamedTuple):
    """What the user says of a job that changes a backing chain; defaults of the QMP reference.

    Attributes:
        filter_name: Name for the job's filter.
        backing_file: What to record as backing file in the end, None for the image's own name.
        on_error: What to do when a chunk fails.
        speed: Bytes per second; 0 for no limit.
        auto_finalize: As for all jobs.
        auto_dismiss: As for all jobs.
    """

    filter_name: str | None = None
    backing_file: str | None = None
    on_error: BlockdevOnError = "report"
    speed: int = 0
    auto_finalize: bool = True
    auto_dismiss: bool = True


class ChunkedJob(BlockJob, ABC):
    """A block job that goes over a range once; see the module's docstring.

    Attributes:
        options: What the user wants.
    """

    __slots__ = (
        "_ahead", "_done", "_failures", "_frontier", "_position", "_restarted_at",
        "_speed_limit", "_workers", "options",
    )  # fmt: skip

    def __init__(
        self, registry: JobRegistry, graph: Graph, job_id: str | None, options: ChunkedJobOptions
    ) -> None:
        self.options = options
        super().__init__(
            registry,
            graph,
            job_id,
            speed=options.speed,
            auto_finalize=options.auto_finalize,
            auto_dismiss=options.auto_dismiss,
        )

    # What subclasses fill in

    @abstractmethod
    async def look(self, offset: int, length: int) -> tuple[int, bool]:
        """Find out what to do with the start of a range.

        Returns:
            For how many bytes the answer holds, and whether there is anything to do.

        Raises:
            OSError: It cannot be found out; counts as a failure to read.
        """

    @abstractmethod
    async def treat(self, offset: int, length: int) -> None:
        """Do the work on a chunk.

        Raises:
            CopyError: It failed; the work on what lies before the error's offset is done.
        """

    def ignored(self, offset: int, cause: OSError) -> bool:
        """Learn of an error that the user wants to be ignored; return whether to go on behind it.

        Else the chunk is tried again, as in the C daemon.
        """
        return False

    # The work

    async def go_over(self, length: int) -> None:
        """Work on ``[0, length)``.

        Raises:
            OSError: A failure that the user does not forgive.
            JobCancelled: The job was cancelled.
        """
        self._workers = workers = Workers(self, MAX_CHUNKS)
        self._speed_limit = SpeedLimit()
        self._done: dict[int, int] = {}
        self._failures: list[tuple[CopyError, int, int]] = []
        self._frontier = self._position = self._restarted_at = 0
        self._ahead = LARGE_CHUNK
        self.set_remaining(length)
        while self._frontier < length:
            if self._failures:
                await workers.join()
                await self._judge()
            await checkpoint(self, workers, self._speed_limit, self._failures)
            if self._failures:
                continue
            if self._position < length:
                await self._advance(length)
            elif workers.in_flight:
                await workers.wait_one()
        await workers.join()

    async def _advance(self, length: int) -> None:
        """Look at the next piece, and start to work on it if there is something to do."""
        offset = self._position
        if offset in self._done:
            self._position += self._done[offset]
            return
        try:
            count, needed = await self.look(offset, min(self._ahead, length - offset))
        except OSError as exc:
            self._failures.append((CopyError(True, offset, exc), offset, CHUNK))
            return
        # Looking far costs time where there is much, and saves it where there is nothing.
        self._ahead = LARGE_CHUNK if needed else LOOK_AHEAD
        if not needed:
            self._position += count
            self._finished(offset, count)
            return
        chunk = steady_chunk(CHUNK, self.speed) if self.speed else LARGE_CHUNK
        count = min(count, chunk, self._not_done(offset))
        self._position += count
        self._speed_limit.spend(asyncio.get_running_loop().time(), count, self.speed)
        await self._workers.start(self._work_on(offset, count))

    def _not_done(self, offset: int) -> int:
        """Return how far it is to the next chunk that was done before the walk started again."""
        if offset >= self._restarted_at:
            return LARGE_CHUNK
        return (
            min((start for start in self._done if start > offset), default=offset + LARGE_CHUNK)
            - offset
        )

    async def _work_on(self, offset: int, length: int) -> None:
        try:
            await self.treat(offset, length)
        except CopyError as exc:
            done = exc.offset - offset
            if done:
                self._finished(offset, done)
            self._failures.append((exc, exc.offset, min(CHUNK, length - done)))
        else:
            self._finished(offset, length)

    def _finished(self, offset: int, length: int) -> None:
        self._done[offset] = length
        while (count := self._done.pop(self._frontier, 0)) > 0:
            self._frontier += count
            self.progress(count)

    async def _judge(self) -> None:
        error, offset, length = min(self._failures, key=lambda failure: failure[1])
        self._failures.clear()
        self._restarted_at = max(self._restarted_at, self._position)
        self._position = self._frontier
        action = self.handle_error(self.options.on_error, error.is_read, error.cause)
        if action == "report":
            raise error.cause
        if action == "ignore":
            if self.ignored(offset, error.cause):
                self._finished(offset, length)
                self._position = self._frontier
            else:
                await self.sleep(IGNORE_REST)
