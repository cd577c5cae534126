# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Jobs that succeed or fail together.

Every job belongs to a transaction, usually one of its own.  Its jobs finish their work at different
times; the last one to do so with success makes all of them pending, and then either all are
finalized or all are aborted::

    work done -> waiting -+
    work done -> waiting -+-> all pending -> all prepared -> each committed, concluded
    work done -> waiting -+                               ^
                                                          |
              up to here, a failure or cancellation cancels all others, waits for them,
              and then each is aborted, concluded

Jobs are treated newest first, which is the order in which the C daemon's events come.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qsd.errors import QmpError

if TYPE_CHECKING:
    from qsd.jobs.job import Job


class JobTransaction:
    """A group of jobs with one outcome.

    Attributes:
        jobs: The members, newest first.
        aborting: Whether the outcome is decided to be failure.
    """

    __slots__ = ("_finalizing", "aborting", "jobs")

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.aborting = False
        self._finalizing = False

    @property
    def is_ending(self) -> bool:
        """Whether the outcome is decided."""
        return self.aborting or self._finalizing

    def add(self, job: Job) -> None:
        """Take in a job that was not started yet."""
        self.jobs.insert(0, job)

    async def work_done(self, job: Job) -> None:
        """A member finished its work, with success or not."""
        if self.aborting:
            return  # abort() waits for this job and ends it
        if job.error is not None:
            await self.abort(job)
            return
        job.move("waiting")
        if all(member.work_finished for member in self.jobs):
            for member in self.jobs:
                member.becomes_pending()
            if all(member.auto_finalize for member in self.jobs):
                await self.finalize()

    async def finalize(self) -> None:
        """Make the work of all members effective; called once all are pending."""
        if self._finalizing or self.aborting:
            return
        self._finalizing = True
        for job in self.jobs:
            try:
                await job.prepare()
            except (QmpError, OSError) as exc:
                job.fail(exc)
                self._finalizing = False
                await self.abort(job)
                return
        for job in list(self.jobs):
            await job.conclude()

    async def abort(self, culprit: Job) -> None:
        """Cancel all other members, wait until none of them works any more, and end them all."""
        if self.aborting:
            return
        self.aborting = True
        others = [job for job in self.jobs if job is not culprit]
        for job in others:
            job.request_cancel(force=True)
        for job in others:
            await job.wait_work_finished()
        for job in list(self.jobs):
            await job.conclude()
