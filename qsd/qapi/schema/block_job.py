# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Block jobs: commit, backup, mirror, stream (QMP reference, "Block core")."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from qsd.qapi.model import DEPRECATED, UNSTABLE, Event, Struct, command, commands, member

if TYPE_CHECKING:
    from typing import ClassVar

    from qsd.qapi.model import UInt32
    from qsd.qapi.schema.block_events import BlockErrorAction
    from qsd.qapi.schema.block_info import BlockDeviceIoStatus
    from qsd.qapi.schema.block_snapshot import NewImageMode
    from qsd.qapi.schema.common import IoOperationType
    from qsd.qapi.schema.job import JobStatus, JobType


BlockdevOnError: TypeAlias = Literal["report", "ignore", "enospc", "stop", "auto"]
"""What to do when a request fails (QMP reference, "BlockdevOnError")."""


MirrorSyncMode: TypeAlias = Literal["top", "full", "none", "incremental", "bitmap"]
"""Which part of a disk a job copies (QMP reference, "MirrorSyncMode")."""


BitmapSyncMode: TypeAlias = Literal["on-success", "never", "always"]
"""What becomes of the bitmap at the end of a backup (QMP reference, "BitmapSyncMode")."""


MirrorCopyMode: TypeAlias = Literal["background", "write-blocking"]
"""When a mirror copies what the guest writes (QMP reference, "MirrorCopyMode")."""


class BlockJobInfo(Struct):
    """One block job, as query-block-jobs shows it (QMP reference, "BlockJobInfo")."""

    type: str
    device: str
    len: int
    offset: int
    busy: bool
    paused: bool
    speed: int
    io_status: BlockDeviceIoStatus
    ready: bool
    status: JobStatus
    auto_finalize: bool
    auto_dismiss: bool
    error: str | None = None


class BackupPerf(Struct):
    """How a backup uses its resources (QMP reference, "BackupPerf")."""

    use_copy_range: bool | None = None
    max_workers: int | None = None
    max_chunk: int | None = None


class BackupCommon(Struct):
    """What all backups share (QMP reference, "BackupCommon")."""

    job_id: str | None = None
    device: str
    sync: MirrorSyncMode
    speed: int | None = None
    bitmap: str | None = None
    bitmap_mode: BitmapSyncMode | None = None
    compress: bool | None = None
    on_source_error: BlockdevOnError | None = None
    on_target_error: BlockdevOnError | None = None
    auto_finalize: bool | None = None
    auto_dismiss: bool | None = None
    filter_node_name: str | None = None
    x_perf: BackupPerf | None = member(default=None, features=UNSTABLE)


class DriveBackup(BackupCommon):
    """A backup that opens its target itself (QMP reference, "DriveBackup")."""

    target: str
    format: str | None = None
    mode: NewImageMode | None = None


class BlockdevBackup(BackupCommon):
    """A backup to a node (QMP reference, "BlockdevBackup")."""

    target: str


class BlockCommitArguments(Struct):
    """QMP reference, "block-commit": the arguments."""

    job_id: str | None = None
    device: str
    base_node: str | None = None
    base: str | None = member(default=None, features=DEPRECATED)
    top_node: str | None = None
    top: str | None = member(default=None, features=DEPRECATED)
    backing_file: str | None = None
    speed: int | None = None
    on_error: BlockdevOnError | None = None
    filter_node_name: str | None = None
    auto_finalize: bool | None = None
    auto_dismiss: bool | None = None


class DriveMirror(Struct):
    """A mirror that opens its target itself (QMP reference, "DriveMirror")."""

    job_id: str | None = None
    device: str
    target: str
    format: str | None = None
    node_name: str | None = None
    replaces: str | None = None
    sync: MirrorSyncMode
    mode: NewImageMode | None = None
    speed: int | None = None
    granularity: UInt32 | None = None
    buf_size: int | None = None
    on_source_error: BlockdevOnError | None = None
    on_target_error: BlockdevOnError | None = None
    unmap: bool | None = None
    copy_mode: MirrorCopyMode | None = None
    auto_finalize: bool | None = None
    auto_dismiss: bool | None = None


class BlockdevMirrorArguments(Struct):
    """QMP reference, "blockdev-mirror": the arguments."""

    job_id: str | None = None
    device: str
    target: str
    replaces: str | None = None
    sync: MirrorSyncMode
    speed: int | None = None
    granularity: UInt32 | None = None
    buf_size: int | None = None
    on_source_error: BlockdevOnError | None = None
    on_target_error: BlockdevOnError | None = None
    filter_node_name: str | None = None
    copy_mode: MirrorCopyMode | None = None
    auto_finalize: bool | None = None
    auto_dismiss: bool | None = None


class BlockStreamArguments(Struct):
    """QMP reference, "block-stream": the arguments."""

    job_id: str | None = None
    device: str
    base: str | None = None
    base_node: str | None = None
    backing_file: str | None = None
    bottom: str | None = None
    speed: int | None = None
    on_error: BlockdevOnError | None = None
    filter_node_name: str | None = None
    auto_finalize: bool | None = None
    auto_dismiss: bool | None = None


class BlockJobSetSpeedArguments(Struct):
    """QMP reference, "block-job-set-speed": the arguments."""

    device: str
    speed: int


class BlockJobCancelArguments(Struct):
    """QMP reference, "block-job-cancel": the arguments."""

    device: str
    force: bool | None = None


class BlockJobPauseArguments(Struct):
    """QMP reference, "block-job-pause": the arguments."""

    device: str


class BlockJobResumeArguments(Struct):
    """QMP reference, "block-job-resume": the arguments."""

    device: str


class BlockJobCompleteArguments(Struct):
    """QMP reference, "block-job-complete": the arguments."""

    device: str


class BlockJobDismissArguments(Struct):
    """QMP reference, "block-job-dismiss": the arguments."""

    id: str


class BlockJobFinalizeArguments(Struct):
    """QMP reference, "block-job-finalize": the arguments."""

    id: str


class BlockJobCompleted(Event):
    """A block job has ended (QMP reference, "BLOCK_JOB_COMPLETED")."""

    NAME: ClassVar[str] = "BLOCK_JOB_COMPLETED"

    type: JobType
    device: str
    len: int
    offset: int
    speed: int
    error: str | None = None


class BlockJobCancelled(Event):
    """A block job was cancelled (QMP reference, "BLOCK_JOB_CANCELLED")."""

    NAME: ClassVar[str] = "BLOCK_JOB_CANCELLED"

    type: JobType
    device: str
    len: int
    offset: int
    speed: int


class BlockJobError(Event):
    """A block job met an I/O error (QMP reference, "BLOCK_JOB_ERROR")."""

    NAME: ClassVar[str] = "BLOCK_JOB_ERROR"

    device: str
    operation: IoOperationType
    action: BlockErrorAction


class BlockJobReady(Event):
    """A block job can be completed (QMP reference, "BLOCK_JOB_READY")."""

    NAME: ClassVar[str] = "BLOCK_JOB_READY"

    type: JobType
    device: str
    len: int
    offset: int
    speed: int


class BlockJobPending(Event):
    """A block job waits to be finalized (QMP reference, "BLOCK_JOB_PENDING")."""

    NAME: ClassVar[str] = "BLOCK_JOB_PENDING"

    type: JobType
    id: str


COMMANDS: Final = commands(
    __name__,
    command("query-block-jobs", returns="list[BlockJobInfo]"),
    command("block-commit", "BlockCommitArguments"),
    command("drive-backup", "DriveBackup", features=DEPRECATED),
    command("blockdev-backup", "BlockdevBackup"),
    command("drive-mirror", "DriveMirror"),
    command("blockdev-mirror", "BlockdevMirrorArguments"),
    command("block-stream", "BlockStreamArguments"),
    command("block-job-set-speed", "BlockJobSetSpeedArguments"),
    command("block-job-cancel", "BlockJobCancelArguments"),
    command("block-job-pause", "BlockJobPauseArguments"),
    command("block-job-resume", "BlockJobResumeArguments"),
    command("block-job-complete", "BlockJobCompleteArguments"),
    command("block-job-dismiss", "BlockJobDismissArguments"),
    command("block-job-finalize", "BlockJobFinalizeArguments"),
)
"""The commands of this module."""
