# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Background jobs: their life cycle, and the registry that knows them all.

Vocabulary:

* The **work** is the coroutine :meth:`Job.run`.  From :meth:`Job.start` until it returns or raises
  it runs in a task of the registry.  What comes after it (waiting, pending, concluding) is life
  cycle, done by the transaction (:mod:`qsd.jobs.txn`).
* A job is **parked** while its work waits in :meth:`Job.sleep` or :meth:`Job.pause_point` and so
  has nothing in flight.  Only a parked job is really paused; a request to pause takes effect at
  once if the job is parked, else when it parks next.
* Pause requests are counted.  One of them may be the user's, the others come from drained sections.
* **Cancellation** is cooperative: the work is woken and finds out by :attr:`Job.is_cancelled`,
  or by the :class:`JobCancelled` that parking raises.  Nothing in flight is torn apart.  A *soft*
  cancel is for jobs that can end early with a usable result (see :meth:`Job.accept_cancel`); for
  all others it is a forced one.

The order of hooks at the end: `prepare` (may fail, and then everything is undone) -> `commit` or
`abort` -> `clean`.  All moves of the status go through :meth:`Job.move`, which refuses those that
the table in :mod:`qsd.jobs.states` does not have, and announces the others.
"""

from __future__ import annotations

import asyncio
import errno
from typing import TYPE_CHECKING, Any, ClassVar

from qsd.errors import QmpError, describe, os_error
from qsd.jobs.states import accepts, may_follow
from qsd.jobs.txn import JobTransaction
from qsd.qapi.schema.job import JobInfo, JobStatusChange
from qsd.util.ids import is_valid_id

if TYPE_CHECKING:
    from collections.abc import Iterator

    from qsd.aio.tasks import TaskOwner
    from qsd.qapi.events import EventSink
    from qsd.qapi.schema.job import JobStatus, JobType, JobVerb


class JobCancelled(Exception):
    """Raised inside the work of a job that was cancelled by force."""


class Job:
    """One background job.

    Attributes:
        id: The user's name for it, or None for an internal job, which nobody sees.
        status: A JobStatus.
        txn: The transaction it belongs to.
        auto_finalize: Whether it goes from pending to concluded by itself.
        auto_dismiss: Whether it goes from concluded to null by itself.
        error: Why it failed; None unless it did.
        progress_current, progress_total: Progress in units of the job's own choice.
        pause_count: Pause requests that are in force.
        pauses: How often it was really paused.
        user_paused: Whether one of them is the user's.
        busy: Whether the work is doing something, as opposed to parked or finished.
        cancelled: Whether it was cancelled, softly or not.
        work_finished: Whether the work will not run (again).
    """

    TYPE: ClassVar[JobType]

    __slots__ = (
        "_force_cancelled",
        "_started",
        "_waiters",
        "_waker",
        "auto_dismiss",
        "auto_finalize",
        "busy",
        "cancelled",
        "error",
        "id",
        "pause_count",
        "pauses",
        "progress_current",
        "progress_total",
        "registry",
        "status",
        "txn",
        "user_paused",
        "work_finished",
    )

    def __init__(
        self,
        registry: JobRegistry,
        job_id: str | None,
        *,
        txn: JobTransaction | None = None,
        auto_finalize: bool = True,
        auto_dismiss: bool = True,
    ) -> None:
        """Make a job known in status "created".

        Raises:
            QmpError: The identifier is malformed or in use.
        """
        if job_id is not None:
            registry.check_new_id(job_id)
        self.registry = registry
        self.id = job_id
        self.status: JobStatus = "undefined"
        self.txn = txn if txn is not None else JobTransaction()
        self.auto_finalize = auto_finalize
        self.auto_dismiss = auto_dismiss
        self.error: QmpError | OSError | None = None
        self.progress_current = 0
        self.progress_total = 0
        self.pause_count = 0
        self.pauses = 0
        self.user_paused = False
        self.busy = False
        self.cancelled = False
        self.work_finished = False
        self._force_cancelled = False
        self._started = False
        self._waker: asyncio.Future[None] | None = None
        self._waiters: list[asyncio.Future[Any]] = []
        registry.add(self)
        self.txn.add(self)
        self.move("created")

    def __repr__(self) -> str:
        return f"<{self.TYPE} job {self.id} {self.status}>"

    # What subclasses fill in

    async def run(self) -> None:
        """Do the work.

        Raises:
            QmpError, OSError: It failed.
            JobCancelled: It was interrupted; see `sleep` and `pause_point`.
        """

    async def prepare(self) -> None:
        """Do the last steps that may fail, after the work of the whole transaction succeeded.

        Raises:
            QmpError, OSError: Everything will be aborted.
        """

    async def commit(self) -> None:
        """Make the result effective.  Must not fail."""

    async def abort(self) -> None:
        """Undo what the work did outside the job.  Must not fail."""

    async def clean(self) -> None:
        """Let go of everything; called after commit or abort."""

    def accept_cancel(self, force: bool) -> bool:
        """Decide what cancelling means now; return whether the work is to stop at once.

        A job that returns False after a soft request ends its work early by itself, successfully.
        """
        return True

    def cancel_in_flight(self) -> None:
        """Give up requests that may wait for long; the job was cancelled by force."""

    async def complete(self) -> None:
        """Bring a ready job to its end.

        Raises:
            QmpError: That is not possible.
        """
        raise QmpError(f"The active block job '{self.id}' cannot be completed")

    def user_resumed(self) -> None:
        """The user resumed the job (e.g. after an error that had stopped it)."""

    def announce_pending(self) -> None:
        """The job is pending."""

    def announce_end(self) -> None:
        """The job has its final result; still before "concluded"."""

    # Status

    def move(self, status: JobStatus) -> None:
        """Change the status and tell the world."""
        if not may_follow(self.status, status):
            raise RuntimeError(f"job {self.id}: {self.status} cannot become {status}")
        self.status = status
        if self.id is not None:
            self.registry.events.emit(JobStatusChange(id=self.id, status=status))

    def check_verb(self, verb: JobVerb) -> None:
        """Refuse a verb that the status does not allow.

        Raises:
            QmpError: It does not.
        """
        if not accepts(self.status, verb):
            raise QmpError(
                f"Job '{self.id}' in state '{self.status}' cannot accept command verb '{verb}'"
            )

    @property
    def is_cancelled(self) -> bool:
        """Whether the work is to stop at once."""
        return self._force_cancelled

    @property
    def is_ready(self) -> bool:
        """Whether the job waits for the user to complete it."""
        return self.status in ("ready", "standby")

    @property
    def is_ending(self) -> bool:
        """Whether the outcome is decided, and its consequences are under way."""
        return self.txn.is_ending and self.status not in ("concluded", "null")

    def info(self) -> JobInfo:
        """Describe the job as query-jobs does."""
        assert self.id is not None
        return JobInfo(
            id=self.id,
            type=self.TYPE,
            status=self.status,
            current_progress=self.progress_current,
            total_progress=self.progress_total,
            error=describe(self.error) if self.error is not None else None,
        )

    # The work, seen from inside

    def set_remaining(self, amount: int) -> None:
        """State how much is left to do from here."""
        self.progress_total = self.progress_current + amount

    def progress(self, amount: int) -> None:
        """State that `amount` more was done."""
        self.progress_current += amount

    def becomes_ready(self) -> None:
        """Go to "ready": from now on the user may complete the job."""
        self.move("ready")

    async def sleep(self, seconds: float | None = None) -> None:
        """Park until the time is over, or :meth:`wake` is called; and stay parked while paused.

        Args:
            seconds: How long; None waits for `wake` alone.

        Raises:
            JobCancelled: The job was cancelled by force, before or meanwhile.
        """
        await self._park(seconds, must_sleep=True)

    async def pause_point(self) -> None:
        """Park if the job is to be paused; a place where that is possible.

        Raises:
            JobCancelled: The job was cancelled by force, before or meanwhile.
        """
        await self._park(None, must_sleep=False)

    async def _park(self, seconds: float | None, *, must_sleep: bool) -> None:
        loop = asyncio.get_running_loop()
        deadline = None if seconds is None else loop.time() + seconds
        self.busy = False
        try:
            while not self._force_cancelled:
                self._enter_pause()
                if not self.pause_count and not must_sleep:
                    break
                self._waker = loop.create_future()
                timer = None
                if deadline is not None and not self.pause_count:
                    timer = loop.call_at(deadline, self.wake)
                try:
                    await self._waker
                finally:
                    self._waker = None
                    if timer is not None:
                        timer.cancel()
                # Whoever woke us ended the sleep; a pause that was asked for is still to be served.
                must_sleep = False
        finally:
            self._leave_pause()
            self.busy = True
        if self._force_cancelled:
            raise JobCancelled

    def _enter_pause(self) -> None:
        if self.pause_count and not self._force_cancelled:
            if self.status == "running":
                self.move("paused")
            elif self.status == "ready":
                self.move("standby")

    def _leave_pause(self) -> None:
        self.pauses += self.status in ("paused", "standby")
        if self.status == "paused":
            self.move("running")
        elif self.status == "standby":
            self.move("ready")

    # The work, seen from outside

    def start(self) -> None:
        """Begin the work; its first step is taken by the loop, not in here."""
        self.move("running")
        self._started = True
        self.busy = True
        self.registry.tasks.spawn(self._work(), f"job {self.id}")

    async def _work(self) -> None:
        try:
            if self.pause_count or self._force_cancelled:
                await self.pause_point()
            await self.run()
        except JobCancelled:
            pass
        except (QmpError, OSError) as exc:
            self.error = exc
        except Exception as exc:
            # A defect: the job must not stay "running" for ever, and the report must not get lost.
            self.error = QmpError(f"Internal error: {exc!r}")
            await self._end_work()
            raise
        await self._end_work()

    async def _end_work(self) -> None:
        self.busy = False
        self.work_finished = True
        if self._force_cancelled and self.error is None:
            self.error = os_error(errno.ECANCELED)
        if self.error is not None:
            self.move("aborting")
        self._notify()
        await self.txn.work_done(self)

    async def wait_work_finished(self) -> None:
        """Wait until the work has stopped."""
        while self._started and not self.work_finished:
            await self._wait_change()

    async def wait_end(self) -> None:
        """Wait until the job is concluded."""
        while self.status not in ("concluded", "null"):
            await self._wait_change()

    async def _wait_change(self) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(future)
        await future

    async def wait_change_until(self, deadline: float) -> bool:
        """Wait for the next step of the end, or some time of the loop; return whether it came."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[bool | None] = loop.create_future()
        self._waiters.append(future)
        timer = loop.call_at(deadline, _give_up, future)
        try:
            return await future is None
        finally:
            timer.cancel()

    def _notify(self) -> None:
        for future in self._waiters:
            if not future.done():
                future.set_result(None)
        self._waiters.clear()

    def wake(self) -> None:
        """End the job's sleep, if it sleeps and is not paused."""
        if self._waker is not None and not self._waker.done():
            if self.pause_count and not self._force_cancelled:
                return
            self._waker.set_result(None)

    def pause(self) -> None:
        """Ask the job to pause; to be undone by one `resume`."""
        self.pause_count += 1
        if self._waker is not None and not self._waker.done():
            self._enter_pause()

    def resume(self) -> None:
        """Take back one `pause`."""
        self.pause_count -= 1
        if not self.pause_count and self._waker is not None:
            self._leave_pause()
            self.wake()

    # The user's verbs

    def user_pause(self) -> None:
        """Pause on behalf of the user.

        Raises:
            QmpError: Not now, or not again.
        """
        self.check_verb("pause")
        if self.user_paused:
            raise QmpError("Job is already paused")
        self.user_paused = True
        self.pause()

    def user_resume(self) -> None:
        """Resume on behalf of the user.

        Raises:
            QmpError: The user had not paused it.
        """
        if not self.user_paused or not self.pause_count:
            raise QmpError("Can't resume a job that was not paused")
        self.check_verb("resume")
        self.user_resumed()
        self.user_paused = False
        self.resume()

    async def user_complete(self) -> None:
        """Complete on behalf of the user.

        Raises:
            QmpError: The job is not ready, or cannot be completed.
        """
        self.check_verb("complete")
        if self.cancelled:
            raise QmpError(f"The active block job '{self.id}' cannot be completed")
        await self.complete()

    async def user_cancel(self, force: bool) -> None:
        """Cancel on behalf of the user.

        Raises:
            QmpError: The job is past cancelling.
        """
        self.check_verb("cancel")
        await self.cancel(force)

    async def user_finalize(self) -> None:
        """Finalize on behalf of the user, together with the rest of the transaction.

        Raises:
            QmpError: The job is not pending.
        """
        self.check_verb("finalize")
        await self.txn.finalize()

    def user_dismiss(self) -> None:
        """Dismiss on behalf of the user.

        Raises:
            QmpError: The job is not concluded.
        """
        self.check_verb("dismiss")
        self.dismiss()

    # Ending

    def request_cancel(self, force: bool) -> None:
        """Mark the job as cancelled and wake it; the work notices by itself."""
        forced = self.accept_cancel(force)
        self.cancelled = True
        self._force_cancelled = self._force_cancelled or forced
        if forced:
            self.cancel_in_flight()
        if self.user_paused:
            self.user_resumed()
            self.user_paused = False
            self.resume()
        self.wake()

    async def cancel(self, force: bool) -> None:
        """Cancel the job.  Returns before a running job has ended, but after any other has."""
        if self.txn.is_ending:
            return  # the outcome is decided, and its consequences are under way
        self.request_cancel(force)
        if not self._started or self.work_finished:
            await self.txn.abort(self)

    def fail(self, exc: QmpError | OSError) -> None:
        """Record why the job fails after its work had succeeded."""
        self.error = exc
        if self.status != "aborting":
            self.move("aborting")

    def becomes_pending(self) -> None:
        """All jobs of the transaction have done their work."""
        self.move("pending")
        if not self.auto_finalize:
            self.announce_pending()

    async def conclude(self) -> None:
        """Commit or abort, let go of everything, and end; called by the transaction."""
        if self.status in ("concluded", "null"):
            return
        if self.status != "aborting" and self.txn.aborting:
            self.move("aborting")
        if self.status == "aborting":
            if self.error is None:
                self.error = os_error(errno.ECANCELED)
            await self.abort()
        else:
            await self.commit()
        await self.clean()
        if self._started:
            self.announce_end()
        self.txn.jobs.remove(self)
        self.move("concluded")
        self._notify()
        if self.auto_dismiss or not self._started:
            self.dismiss()

    def discard(self) -> None:
        """Forget a job that was created but could not be set up."""
        self.txn.jobs.remove(self)
        self.dismiss()

    def dismiss(self) -> None:
        """Forget the job."""
        self.move("null")
        self.registry.remove(self)


def _give_up(future: asyncio.Future[bool | None]) -> None:
    if not future.done():
        future.set_result(False)


class JobRegistry:
    """All jobs of one daemon.

    Attributes:
        events: Where jobs announce what happens to them.
        tasks: Owner of the tasks in which jobs work.
    """

    def __init__(self, events: EventSink, tasks: TaskOwner) -> None:
        self.events = events
        self.tasks = tasks
        self._jobs: list[Job] = []

    def __iter__(self) -> Iterator[Job]:
        """Iterate over all jobs, the newest first, as the C daemon lists them."""
        return iter(list(self._jobs))

    def check_new_id(self, job_id: str) -> None:
        """Refuse an identifier that a new job cannot have.

        Raises:
            QmpError: It is malformed or in use.
        """
        if not is_valid_id(job_id):
            raise QmpError(f"Invalid job ID '{job_id}'")
        if self.find(job_id) is not None:
            raise QmpError(f"Job ID '{job_id}' already in use")

    def find(self, job_id: str) -> Job | None:
        """Return the job with this identifier, or None."""
        for job in self._jobs:
            if job.id == job_id:
                return job
        return None

    def get(self, job_id: str) -> Job:
        """Return the job with this identifier.

        Raises:
            QmpError: There is none.
        """
        job = self.find(job_id)
        if job is None:
            raise QmpError("Job not found")
        return job

    def add(self, job: Job) -> None:
        """Take in a new job (called by the job itself)."""
        self._jobs.insert(0, job)

    def remove(self, job: Job) -> None:
        """Forget a job (called by the job itself)."""
        self._jobs.remove(job)

    @property
    def is_any_ending(self) -> bool:
        """Whether the outcome of a job is decided and its consequences are under way."""
        return any(job.is_ending for job in self._jobs)

    async def wait_endings(self, seconds: float) -> None:
        """Wait until no job is ending any more, but not for longer than some time."""
        deadline = asyncio.get_running_loop().time() + seconds
        while (job := next((job for job in self if job.is_ending), None)) is not None:
            if not await job.wait_change_until(deadline):
                break

    async def close(self) -> None:
        """Dismiss what is concluded, cancel the rest by force and wait for its end.  Idempotent."""
        while self._jobs:
            for job in self:
                if job.status == "concluded":
                    job.dismiss()
                elif job.status != "null":
                    await job.cancel(force=True)
                    await job.wait_end()
