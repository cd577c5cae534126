# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Background jobs of every type (QMP reference, "Background jobs")."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from qsd.qapi.model import Event, Struct, command, commands

if TYPE_CHECKING:
    from typing import ClassVar


JobType: TypeAlias = Literal[
    "commit",
    "stream",
    "mirror",
    "backup",
    "create",
    "amend",
    "snapshot-load",
    "snapshot-save",
    "snapshot-delete",
]
"""What a job does (QMP reference, "JobType")."""

JobStatus: TypeAlias = Literal[
    "undefined",
    "created",
    "running",
    "paused",
    "ready",
    "standby",
    "waiting",
    "pending",
    "aborting",
    "concluded",
    "null",
]
"""Where a job is in its life (QMP reference, "JobStatus")."""

JobVerb: TypeAlias = Literal[
    "cancel",
    "pause",
    "resume",
    "set-speed",
    "complete",
    "dismiss",
    "finalize",
]
"""What can be asked of a job (QMP reference, "JobVerb")."""


class JobStatusChange(Event):
    """A job has moved to another status (QMP reference, "JOB_STATUS_CHANGE")."""

    NAME: ClassVar[str] = "JOB_STATUS_CHANGE"

    id: str
    status: JobStatus


class JobPauseArguments(Struct):
    """QMP reference, "job-pause": the arguments."""

    id: str


class JobResumeArguments(Struct):
    """QMP reference, "job-resume": the arguments."""

    id: str


class JobCancelArguments(Struct):
    """QMP reference, "job-cancel": the arguments."""

    id: str


class JobCompleteArguments(Struct):
    """QMP reference, "job-complete": the arguments."""

    id: str


class JobDismissArguments(Struct):
    """QMP reference, "job-dismiss": the arguments."""

    id: str


class JobFinalizeArguments(Struct):
    """QMP reference, "job-finalize": the arguments."""

    id: str


class JobInfo(Struct):
    """One job, as query-jobs shows it (QMP reference, "JobInfo")."""

    id: str
    type: JobType
    status: JobStatus
    current_progress: int
    total_progress: int
    error: str | None = None


COMMANDS: Final = commands(
    __name__,
    command("job-pause", "JobPauseArguments"),
    command("job-resume", "JobResumeArguments"),
    command("job-cancel", "JobCancelArguments"),
    command("job-complete", "JobCompleteArguments"),
    command("job-dismiss", "JobDismissArguments"),
    command("job-finalize", "JobFinalizeArguments"),
    command("query-jobs", returns="list[JobInfo]"),
)
"""The commands of this module."""
