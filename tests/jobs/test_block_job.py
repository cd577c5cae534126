# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""What block jobs share."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, ClassVar, cast

import pytest

from qsd.block import perms
from qsd.block.backend import Backend
from qsd.block.drain import Drained
from qsd.block.driver import Driver
from qsd.errors import QmpError, os_error
from qsd.jobs.block_job import BlockJob, check_not_busy, get_block_job, reason_busy
from qsd.qapi.convert import to_json
from qsd.qapi.schema.block_job import BlockJobCompleted, BlockJobError
from tests.jobs.support import ScriptedJob, World, get_ready, in_world, sleep_long, succeed, turns
from tests.support.memory import MemoryDriver, Rig

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from qsd.block.graph import Graph
    from qsd.jobs.job import Job
    from qsd.qapi.schema.block_job import BlockdevOnError
    from qsd.qapi.schema.job import JobType

NO_GRAPH: Any = None


class Backup(BlockJob):
    """A block job whose work is a function."""

    TYPE: ClassVar[JobType] = "backup"

    def __init__(
        self,
        world: World,
        work: Callable[[Job], Awaitable[None]] = succeed,
        graph: Graph | None = None,
        **options: Any,
    ) -> None:
        self.work = work
        super().__init__(world.registry, cast("Graph", graph), "j", **options)

    async def run(self) -> None:
        await self.work(self)


FIGURES = {"type": "backup", "device": "j", "len": 1, "offset": 1, "speed": 0}


def test_events_of_success() -> None:
    async def story(world: World) -> None:
        job = Backup(world, auto_finalize=False)
        job.start()
        await job.wait_work_finished()
        await turns()
        await job.user_finalize()
        completed = world.recorder.events[-3]
        assert isinstance(completed, BlockJobCompleted)
        assert to_json(completed) == FIGURES
        assert world.take() == [
            "j created", "j running", "j waiting", "j pending", "BLOCK_JOB_PENDING",
            "BLOCK_JOB_COMPLETED", "j concluded", "j null",
        ]  # fmt: skip

    in_world(story)


def test_events_of_failure() -> None:
    async def fail(job: Job) -> None:
        raise os_error(errno.EIO)

    async def story(world: World) -> None:
        job = Backup(world, fail, auto_dismiss=False)
        job.start()
        await job.wait_end()
        assert to_json(world.recorder.events[-2])["error"] == "Input/output error"
        assert world.take()[2:] == ["j aborting", "BLOCK_JOB_COMPLETED", "j concluded"]

    in_world(story)


def test_events_of_a_ready_job_that_is_cancelled() -> None:
    async def story(world: World) -> None:
        job = Backup(world, get_ready)
        job.start()
        await turns()
        await job.user_cancel(force=True)
        await job.wait_end()
        assert world.take()[2:] == [
            "j ready", "BLOCK_JOB_READY", "j aborting", "BLOCK_JOB_CANCELLED", "j concluded",
            "j null",
        ]  # fmt: skip

    in_world(story)


def test_info() -> None:
    async def story(world: World) -> None:
        job = Backup(world, sleep_long, speed=4096, auto_dismiss=False)
        job.start()
        await turns()
        job.user_pause()
        assert to_json(job.block_info()) == {
            "type": "backup", "device": "j", "len": 10, "offset": 0, "busy": False,
            "paused": True, "speed": 4096, "io-status": "ok", "ready": False,
            "status": "paused", "auto-finalize": True, "auto-dismiss": False,
        }  # fmt: skip

    in_world(story)


def test_speed() -> None:
    async def story(world: World) -> None:
        with pytest.raises(QmpError) as caught:
            Backup(world, speed=-1)
        assert caught.value.desc == "Parameter 'speed' expects a non-negative value"
        assert world.take() == ["j created", "j null"]
        job = Backup(world, auto_finalize=False)
        job.user_set_speed(10)
        assert job.speed == 10
        with pytest.raises(QmpError, match="expects a non-negative value"):
            job.user_set_speed(-1)
        job.start()
        await turns()
        with pytest.raises(QmpError, match="'pending' cannot accept command verb 'set-speed'"):
            job.user_set_speed(-1)

    in_world(story)


@pytest.mark.parametrize(
    ("policy", "code", "action"),
    [
        ("report", errno.EIO, "report"),
        ("ignore", errno.EIO, "ignore"),
        ("enospc", errno.EIO, "report"),
        ("enospc", errno.ENOSPC, "stop"),
        ("stop", errno.EIO, "stop"),
        ("auto", errno.EIO, "report"),
        ("auto", errno.ENOSPC, "stop"),
    ],
)
def test_error_policies(policy: BlockdevOnError, code: int, action: str) -> None:
    async def story(world: World) -> None:
        job = Backup(world, sleep_long)
        job.start()
        await turns()
        world.take()
        assert job.handle_error(policy, True, os_error(code)) == action
        [error] = [item for item in world.recorder.events if isinstance(item, BlockJobError)]
        assert to_json(error) == {"device": "j", "operation": "read", "action": action}
        if action != "stop":
            assert job.io_status == "ok"
            assert not job.user_paused
            return
        assert world.take() == ["BLOCK_JOB_ERROR", "j paused"]
        stopped = "nospace" if code == errno.ENOSPC else "failed"
        assert to_json(job.block_info())["io-status"] == stopped
        job.handle_error(policy, False, os_error(code))
        job.user_resume()
        info = to_json(job.block_info())
        assert (info["io-status"], info["status"]) == ("ok", "running")

    in_world(story)


def test_only_block_jobs_are_found() -> None:
    async def story(world: World) -> None:
        ScriptedJob(world, "k", succeed)
        job = Backup(world)
        assert get_block_job(world.registry, "j") is job
        for name in ("k", "x"):
            with pytest.raises(QmpError) as caught:
                get_block_job(world.registry, name)
            assert caught.value.desc == f"Block job '{name}' not found"
            assert caught.value.error_class == "DeviceNotActive"

    in_world(story)


def test_nothing_waits_for_the_target_of_a_cancelled_job(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(world: World) -> None:
        async with Rig() as rig:
            source, target = await rig.memory("s"), await rig.memory("t")
            given_up: list[Driver] = []

            def note(driver: Driver) -> None:
                given_up.append(driver)

            monkeypatch.setattr(MemoryDriver, "cancel_in_flight", note)
            job = Backup(world, sleep_long, rig.graph)
            job.use_node(source.node, "main node", 0, perms.ALL)
            job.use_node(target.node, "target", perms.WRITE, perms.ALL)
            job.start()
            await turns(2)
            await job.cancel(force=True)
            await job.wait_end()
            assert given_up == [target]

    in_world(story)


def test_a_conflict_names_what_the_job_uses_the_node_as() -> None:
    async def story(world: World) -> None:
        async with Rig() as rig:
            driver = await rig.memory("n")
            other = Backend(rig.graph, "x", "somebody")
            other.attach(driver.node, perms.RESIZE, perms.ALL)
            job = Backup(world, sleep_long, rig.graph)
            with pytest.raises(QmpError, match=r"\(uses node 'n' as 'main node' child\)"):
                job.use_node(driver.node, "main node", 0, perms.ALL & ~perms.RESIZE)
            await other.detach()
            job.start()
            await turns()
            await job.cancel(force=True)
            await job.wait_end()

    in_world(story)


def test_nodes_are_busy_and_pause_the_job_while_drained() -> None:
    async def story(world: World) -> None:
        async with Rig() as rig:
            driver = await rig.memory("n")
            other = await rig.memory("o")
            job = Backup(world, sleep_long, rig.graph)
            backend = job.use_node(driver.node, "target", perms.WRITE, perms.ALL)
            assert backend.edge is not None
            assert backend.edge.describe() == "backup job 'j' (uses node 'n' as 'target' child)"
            job.start()
            await turns()
            assert reason_busy(world.registry, other.node) is None
            check_not_busy(world.registry, other.node)
            with pytest.raises(QmpError) as caught:
                check_not_busy(world.registry, driver.node)
            assert (
                caught.value.desc == "Node 'n' is busy: block device is in use by block job: backup"
            )
            world.take()
            async with Drained([driver.node]):
                assert job.status == "paused"
            assert world.take() == ["j paused", "j running"]
            await job.cancel(force=True)
            await job.wait_end()
            check_not_busy(world.registry, driver.node)
            assert not rig.graph.backends

    in_world(story)


def test_a_job_with_io_under_way_does_not_hold_up_a_drain() -> None:
    async def story(world: World) -> None:
        async with Rig() as rig:
            driver = await rig.memory("n")

            async def work(job: Job) -> None:
                for _ in range(3):
                    await backend.write(0, memoryview(b"x"))
                    await turns(1)

            job = Backup(world, work, rig.graph)
            backend = job.use_node(driver.node, "target", perms.WRITE, perms.ALL)
            job.start()
            await turns(2)
            async with Drained([driver.node]):
                await turns()
                assert job.status == "running"
            await job.wait_end()
            assert job.error is None

    in_world(story)
