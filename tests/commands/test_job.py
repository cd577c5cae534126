# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The commands for jobs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from qsd.errors import QmpError
from qsd.jobs.block_job import BlockJob
from qsd.jobs.job import Job
from tests.commands.support import Daemon
from tests.jobs.support import run_virtual, turns

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from qsd.qapi.schema.job import JobType


class Other(Job):
    """A job that is no block job and waits."""

    TYPE: ClassVar[JobType] = "amend"

    async def run(self) -> None:
        await self.sleep()


class Mirror(BlockJob):
    """A block job that gets ready, and can be completed or cancelled softly."""

    TYPE: ClassVar[JobType] = "mirror"
    is_over = False

    async def run(self) -> None:
        self.becomes_ready()
        while not self.is_over:
            await self.sleep()

    async def complete(self) -> None:
        self.is_over = True
        self.wake()

    def accept_cancel(self, force: bool) -> bool:
        self.is_over = self.is_ready
        return force or not self.is_ready


def with_jobs(story: Callable[[Daemon, Mirror], Awaitable[None]], **options: Any) -> None:
    """Tell a story with a mirror job "m" and another job "a", both at work."""

    async def main() -> None:
        async with Daemon() as daemon:
            job = Mirror(daemon.context.jobs, daemon.rig.graph, "m", **options)
            other = Other(daemon.context.jobs, "a")
            internal = Other(daemon.context.jobs, None)
            for item in (job, other, internal):
                item.start()
            await turns()
            await story(daemon, job)

    run_virtual(main())


async def refused(daemon: Daemon, command: str, /, **arguments: Any) -> tuple[str, str]:
    """Run a command that must fail; return its error class and text."""
    with pytest.raises(QmpError) as caught:
        await daemon.qmp(command, **arguments)
    return caught.value.error_class, caught.value.desc


def test_queries() -> None:
    async def story(daemon: Daemon, job: Mirror) -> None:
        assert await daemon.qmp("query-jobs") == [
            {"id": "a", "type": "amend", "status": "running",
             "current-progress": 0, "total-progress": 0},
            {"id": "m", "type": "mirror", "status": "ready",
             "current-progress": 0, "total-progress": 0},
        ]  # fmt: skip
        [info] = await daemon.qmp("query-block-jobs")
        assert (info["device"], info["ready"]) == ("m", True)

    with_jobs(story)


@pytest.mark.parametrize(
    "command",
    ["job-pause", "job-resume", "job-cancel", "job-complete", "job-finalize", "job-dismiss"],
)
def test_unknown_jobs(command: str) -> None:
    async def story(daemon: Daemon, job: Mirror) -> None:
        assert await refused(daemon, command, id="x") == ("GenericError", "Job not found")

    with_jobs(story)


@pytest.mark.parametrize("name", ["x", "a"])
@pytest.mark.parametrize(
    ("command", "key", "more"),
    [
        ("block-job-pause", "device", {}),
        ("block-job-resume", "device", {}),
        ("block-job-cancel", "device", {}),
        ("block-job-complete", "device", {}),
        ("block-job-finalize", "id", {}),
        ("block-job-dismiss", "id", {}),
        ("block-job-set-speed", "device", {"speed": 1}),
    ],
)
def test_unknown_block_jobs(command: str, key: str, more: dict[str, Any], name: str) -> None:
    async def story(daemon: Daemon, job: Mirror) -> None:
        assert await refused(daemon, command, **{key: name}, **more) == (
            "DeviceNotActive",
            f"Block job '{name}' not found",
        )

    with_jobs(story)


@pytest.mark.parametrize("prefix", ["", "block-"])
def test_pause_and_resume(prefix: str) -> None:
    key = "device" if prefix else "id"

    async def story(daemon: Daemon, job: Mirror) -> None:
        await daemon.qmp(f"{prefix}job-pause", **{key: "m"})
        assert job.status == "standby"
        assert (await refused(daemon, f"{prefix}job-pause", **{key: "m"}))[1] == (
            "Job is already paused"
        )
        await daemon.qmp(f"{prefix}job-resume", **{key: "m"})
        assert (await refused(daemon, f"{prefix}job-resume", **{key: "m"}))[1] == (
            "Can't resume a job that was not paused"
        )

    with_jobs(story)


@pytest.mark.parametrize("prefix", ["", "block-"])
def test_complete_finalize_dismiss(prefix: str) -> None:
    key = "id" if not prefix else "device"

    async def story(daemon: Daemon, job: Mirror) -> None:
        await daemon.qmp(f"{prefix}job-complete", **{key: "m"})
        await turns()
        assert job.info().status == "pending"
        assert (await refused(daemon, f"{prefix}job-dismiss", id="m"))[1] == (
            "Job 'm' in state 'pending' cannot accept command verb 'dismiss'"
        )
        await daemon.qmp(f"{prefix}job-finalize", id="m")
        assert job.info().status == "concluded"
        await daemon.qmp(f"{prefix}job-dismiss", id="m")
        assert daemon.context.jobs.find("m") is None

    with_jobs(story, auto_finalize=False, auto_dismiss=False)


@pytest.mark.parametrize(
    ("command", "arguments", "well"),
    [
        ("job-cancel", {"id": "m"}, False),
        ("block-job-cancel", {"device": "m"}, True),
        ("block-job-cancel", {"device": "m", "force": True}, False),
    ],
)
def test_cancel(command: str, arguments: dict[str, Any], well: bool) -> None:
    async def story(daemon: Daemon, job: Mirror) -> None:
        await daemon.qmp(command, **arguments)
        if well:
            job.wake()
        await job.wait_end()
        assert (job.error is None) is well

    with_jobs(story)


def test_soft_cancel_of_a_paused_job() -> None:
    async def story(daemon: Daemon, job: Mirror) -> None:
        await daemon.qmp("job-pause", id="m")
        assert (await refused(daemon, "block-job-cancel", device="m"))[1] == (
            "The block job for device 'm' is currently paused"
        )
        await daemon.qmp("block-job-cancel", device="m", force=True)
        await job.wait_end()

    with_jobs(story)


def test_set_speed() -> None:
    async def story(daemon: Daemon, job: Mirror) -> None:
        await daemon.qmp("block-job-set-speed", device="m", speed=5)
        assert job.speed == 5
        assert (await refused(daemon, "block-job-set-speed", device="m", speed=-1))[1] == (
            "Parameter 'speed' expects a non-negative value"
        )

    with_jobs(story)
