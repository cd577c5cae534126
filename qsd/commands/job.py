# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The commands for jobs, and those of the older set for block jobs (QMP reference, "Background
jobs" and "Block core").

The two sets do the same to a job.  They differ in what they call an unknown job, and in cancelling:
``job-cancel`` is always forced, while ``block-job-cancel`` without force lets a ready job end well.

A job that can go on does so before the reply: the next command finds it where it has got to.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from qsd.errors import QmpError
from qsd.jobs.block_job import BlockJob, get_block_job

if TYPE_CHECKING:
    from qsd.commands.context import Context
    from qsd.qapi.model import Empty
    from qsd.qapi.schema.block_job import (
        BlockJobCancelArguments,
        BlockJobCompleteArguments,
        BlockJobDismissArguments,
        BlockJobFinalizeArguments,
        BlockJobInfo,
        BlockJobPauseArguments,
        BlockJobResumeArguments,
        BlockJobSetSpeedArguments,
    )
    from qsd.qapi.schema.job import (
        JobCancelArguments,
        JobCompleteArguments,
        JobDismissArguments,
        JobFinalizeArguments,
        JobInfo,
        JobPauseArguments,
        JobResumeArguments,
    )


async def query_jobs(ctx: Context, args: Empty) -> list[JobInfo]:
    """List all jobs (QMP reference, "query-jobs")."""
    del args
    return [job.info() for job in ctx.jobs if job.id is not None]


async def job_pause(ctx: Context, args: JobPauseArguments) -> None:
    """Pause a job (QMP reference, "job-pause")."""
    ctx.jobs.get(args.id).user_pause()


async def job_resume(ctx: Context, args: JobResumeArguments) -> None:
    """Resume a job (QMP reference, "job-resume")."""
    ctx.jobs.get(args.id).user_resume()
    await asyncio.sleep(0)


async def job_cancel(ctx: Context, args: JobCancelArguments) -> None:
    """Cancel a job, by force (QMP reference, "job-cancel")."""
    await ctx.jobs.get(args.id).user_cancel(force=True)
    await asyncio.sleep(0)


async def job_complete(ctx: Context, args: JobCompleteArguments) -> None:
    """Complete a ready job (QMP reference, "job-complete")."""
    await ctx.jobs.get(args.id).user_complete()
    await asyncio.sleep(0)


async def job_dismiss(ctx: Context, args: JobDismissArguments) -> None:
    """Forget a concluded job (QMP reference, "job-dismiss")."""
    ctx.jobs.get(args.id).user_dismiss()


async def job_finalize(ctx: Context, args: JobFinalizeArguments) -> None:
    """Finalize a pending job (QMP reference, "job-finalize")."""
    await ctx.jobs.get(args.id).user_finalize()


async def query_block_jobs(ctx: Context, args: Empty) -> list[BlockJobInfo]:
    """List all block jobs (QMP reference, "query-block-jobs")."""
    del args
    return [
        job.block_info() for job in ctx.jobs if isinstance(job, BlockJob) and job.id is not None
    ]


async def block_job_set_speed(ctx: Context, args: BlockJobSetSpeedArguments) -> None:
    """Limit the speed of a block job (QMP reference, "block-job-set-speed")."""
    get_block_job(ctx.jobs, args.device).user_set_speed(args.speed)
    await asyncio.sleep(0)


async def block_job_cancel(ctx: Context, args: BlockJobCancelArguments) -> None:
    """Cancel a block job (QMP reference, "block-job-cancel")."""
    job = get_block_job(ctx.jobs, args.device)
    force = bool(args.force)
    if job.user_paused and not force:
        raise QmpError(f"The block job for device '{args.device}' is currently paused")
    await job.user_cancel(force)
    await asyncio.sleep(0)


async def block_job_pause(ctx: Context, args: BlockJobPauseArguments) -> None:
    """Pause a block job (QMP reference, "block-job-pause")."""
    get_block_job(ctx.jobs, args.device).user_pause()


async def block_job_resume(ctx: Context, args: BlockJobResumeArguments) -> None:
    """Resume a block job (QMP reference, "block-job-resume")."""
    get_block_job(ctx.jobs, args.device).user_resume()
    await asyncio.sleep(0)


async def block_job_complete(ctx: Context, args: BlockJobCompleteArguments) -> None:
    """Complete a ready block job (QMP reference, "block-job-complete")."""
    await get_block_job(ctx.jobs, args.device).user_complete()
    await asyncio.sleep(0)


async def block_job_dismiss(ctx: Context, args: BlockJobDismissArguments) -> None:
    """Forget a concluded block job (QMP reference, "block-job-dismiss")."""
    get_block_job(ctx.jobs, args.id).user_dismiss()


async def block_job_finalize(ctx: Context, args: BlockJobFinalizeArguments) -> None:
    """Finalize a pending block job (QMP reference, "block-job-finalize")."""
    await get_block_job(ctx.jobs, args.id).user_finalize()
