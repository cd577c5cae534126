# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The backup job: what arrives, what the guest may do meanwhile, and what failures leave."""

from __future__ import annotations

import asyncio
import errno
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from qsd.aio.loop import run
from qsd.block import perms
from qsd.block.backend import Backend
from qsd.block.dirty import DirtyBitmap
from qsd.block.drain import Drained
from qsd.block.mapping import ST_OFFSET, Status
from qsd.filters.copy_before_write import CopyBeforeWriteDriver
from qsd.jobs.backup import BackupJob
from tests.commands.support import Daemon
from tests.support.memory import MemoryDriver, Rig
from tests.support.toyformat import CLUSTER as TOY_CLUSTER
from tests.support.toyformat import ToyFormat

SIZE = 1 << 20
CLUSTER = 65536


class Disk(MemoryDriver):
    """Memory that says it has no clusters, so that nobody has to be warned."""

    def image_info(self) -> dict[str, Any]:
        return {"dirty-flag": False}


class World:
    """A daemon with a source, a target, and a guest that uses the source."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.source: MemoryDriver
        self.target: MemoryDriver
        self.guest: Backend
        self.old = b""

    async def build(self) -> None:
        rig = self.daemon.rig
        self.source = await rig.memory("a", SIZE)
        self.target = await rig.memory("t", SIZE)
        data = random.Random(1).randbytes(SIZE // 2)
        self.source.data[: SIZE // 2] = data
        self.old = bytes(self.source.data)
        self.guest = Backend(rig.graph, "guest", "the guest")
        self.guest.attach(self.source.node, perms.CONSISTENT_READ | perms.WRITE, perms.ALL)

    async def start(self, **arguments: Any) -> BackupJob:
        await self.daemon.qmp(
            "blockdev-backup", **{"job_id": "j", "device": "a", "target": "t", **arguments}
        )
        job = self.daemon.context.jobs.get("j")
        assert isinstance(job, BackupJob)
        return job

    async def write(self, offset: int, length: int, byte: int) -> None:
        await self.guest.write(offset, memoryview(bytes([byte]) * length))

    def bitmap(self) -> DirtyBitmap:
        bitmap = DirtyBitmap(self.source.node, "b", CLUSTER)
        bitmap.attach()
        return bitmap

    def events(self) -> list[str]:
        return [getattr(event, "status", event.NAME) for event in self.daemon.rig.events.events]

    def check_graph(self) -> None:
        """Nothing of the job is left."""
        assert list(self.daemon.rig.graph.nodes) == ["a", "t"]
        assert self.guest.node is self.source.node
        assert not self.guest.quiesced


async def _turn() -> None:
    await asyncio.sleep(0)


def tell(story: Callable[[World], Awaitable[None]]) -> None:
    async def main() -> None:
        rig = Rig(null_co=Disk, copy_before_write=CopyBeforeWriteDriver)
        async with Daemon(rig) as daemon:
            world = World(daemon)
            await world.build()
            await story(world)
            for job in list(daemon.context.jobs):
                await job.cancel(force=True)
                await job.wait_end()
            world.check_graph()
            await world.guest.detach()
        assert not rig.errors

    run(main())


def test_a_full_copy() -> None:
    async def story(world: World) -> None:
        job = await world.start(sync="full")
        await job.wait_end()
        assert job.error is None
        assert world.target.data == world.old
        assert (job.progress_current, job.progress_total) == (SIZE, SIZE)
        # The second half is zero and was not copied as data.
        assert not any(
            offset >= SIZE // 2 for what, offset, _ in world.target.log if what == "write"
        )
        assert world.events() == [
            "created", "running", "paused", "running", "waiting", "pending",
            "BLOCK_JOB_COMPLETED", "concluded", "null",
        ]  # fmt: skip

    tell(story)


def test_what_is_neither_data_nor_known_to_be_zero_is_copied(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As holes of other servers may be: they are read."""

    async def unknown(self: Disk, offset: int, length: int, want_zero: bool) -> Status:
        return Status(length, ST_OFFSET, offset)

    async def story(world: World) -> None:
        monkeypatch.setattr(Disk, "block_status", unknown)
        job = await world.start(sync="full")
        await job.wait_end()
        assert job.error is None
        assert world.target.data == world.old

    tell(story)


def test_the_guest_writes_meanwhile() -> None:
    async def story(world: World) -> None:
        dice = random.Random(2)
        world.source.fast = world.target.fast = False
        job = await world.start(sync="full", x_perf={"max-chunk": CLUSTER})
        expected = bytearray(world.old)
        writes = 0
        while job.status != "null":
            offset = dice.randrange(SIZE - 5000)
            length = dice.randrange(1, 5000)
            byte = dice.randrange(256)
            await world.write(offset, length, byte)
            expected[offset : offset + length] = bytes([byte]) * length
            writes += 1
            await _turn()
        assert writes > 3
        assert world.target.data == world.old
        assert world.source.data == expected
        assert job.progress_current == SIZE

    tell(story)


def test_only_old_data() -> None:
    async def story(world: World) -> None:
        job = await world.start(sync="none")
        await world.write(CLUSTER + 10, 20, 9)
        await world.write(CLUSTER + 50, 20, 9)
        await world.write(SIZE - 512, 512, 9)
        assert world.target.data[CLUSTER : 2 * CLUSTER] == world.old[CLUSTER : 2 * CLUSTER]
        assert not any(world.target.data[:CLUSTER])
        assert job.progress_current == 2 * CLUSTER
        assert job.status == "running"
        await job.cancel(force=False)
        await job.wait_end()
        assert world.events()[-4:] == ["aborting", "BLOCK_JOB_CANCELLED", "concluded", "null"]

    tell(story)


@pytest.mark.parametrize("mode", ["on-success", "always", "never"])
@pytest.mark.parametrize("fails", [False, True])
def test_what_becomes_of_a_bitmap(mode: str, fails: bool) -> None:
    async def story(world: World) -> None:
        bitmap = world.bitmap()
        await world.write(0, 10, 1)
        await world.write(4 * CLUSTER, 10, 1)
        old = bytes(world.source.data)
        if fails:
            world.source.fail = lambda what, offset: (
                errno.EIO if what == "read" and offset == 4 * CLUSTER else 0
            )
        world.source.fast = False
        job = await world.start(
            sync="bitmap", bitmap="b", bitmap_mode=mode, x_perf={"max-workers": 1}
        )
        assert [bitmap.busy] == [True]
        await world.write(8 * CLUSTER, 10, 2)
        await job.wait_end()
        assert (job.error is not None) is fails
        assert not bitmap.busy
        dirty = [start // CLUSTER for start, _ in bitmap.bits.areas()]
        expected = {8}
        if mode == "never" or (mode == "on-success" and fails):
            expected |= {0, 4}
        elif fails:
            expected |= {4}
        assert dirty == sorted(expected)
        assert world.target.data[:CLUSTER] == old[:CLUSTER]
        if not fails:
            assert world.target.data[4 * CLUSTER : 5 * CLUSTER] == old[4 * CLUSTER : 5 * CLUSTER]
            assert (job.progress_current, job.progress_total) == (2 * CLUSTER, 2 * CLUSTER)
        bitmap.detach()

    tell(story)


@pytest.mark.parametrize("side", ["source", "target"])
def test_failures_are_judged_by_the_user(side: str) -> None:
    async def story(world: World) -> None:
        driver = getattr(world, side)
        wanted = "read" if side == "source" else "write"
        left = 1

        def fail(what: str, offset: int) -> int:
            nonlocal left
            if what == wanted and left:
                left -= 1
                return errno.ENOSPC
            return 0

        driver.fail, driver.fast = fail, False
        job = await world.start(sync="full", **{f"on_{side}_error": "enospc"})
        while "BLOCK_JOB_ERROR" not in world.events() or job.busy:
            await _turn()
        assert (job.user_paused, job.io_status) == (True, "nospace")
        job.user_resume()
        await job.wait_end()
        assert job.error is None
        assert world.target.data == world.old
        left = 1
        job = await world.start(sync="full", **{f"on_{side}_error": "report"})
        await job.wait_end()
        assert isinstance(job.error, OSError)
        left = 1
        job = await world.start(sync="full", **{f"on_{side}_error": "ignore"})
        await job.wait_end()
        assert job.error is None
        assert world.target.data == world.old

    tell(story)


def test_a_target_that_fails_fails_the_guest_not_the_backup() -> None:
    async def story(world: World) -> None:
        job = await world.start(sync="none")
        world.target.fast = False
        world.target.fail = lambda what, offset: errno.EIO if what == "write" else 0
        with pytest.raises(OSError, match="Input/output error"):
            await world.write(0, 512, 7)
        assert world.source.data == world.old
        world.target.fail = lambda what, offset: 0
        await world.write(0, 512, 7)
        assert world.target.data[:CLUSTER] == world.old[:CLUSTER]
        assert job.status == "running"

    tell(story)


def test_the_end_of_a_backup_to_a_plain_file_waits_for_no_flush() -> None:
    async def story(world: World) -> None:
        job = await world.start(sync="full")
        await job.wait_end()
        assert job.error is None
        assert "flush" not in {operation for operation, _, _ in world.target.log}

    tell(story)


@pytest.mark.parametrize("policy", ["report", "stop"])
def test_tables_of_the_target_are_written_before_the_end(policy: str) -> None:
    async def main() -> None:
        rig = Rig(null_co=Disk, copy_before_write=CopyBeforeWriteDriver, qcow2=ToyFormat)
        async with Daemon(rig) as daemon:
            source = await rig.memory("a", 64 * TOY_CLUSTER)
            source.data[:] = random.Random(1).randbytes(len(source.data))
            file = await rig.memory("f", 8 << 20)
            target = await rig.add(driver="qcow2", node_name="t", file="f")
            failing = True
            file.fail = lambda what, offset: errno.EIO if what == "flush" and failing else 0
            await daemon.qmp(
                "blockdev-backup",
                job_id="j", device="a", target="t", sync="full", on_target_error=policy,
            )  # fmt: skip
            job = daemon.context.jobs.get("j")
            assert isinstance(job, BackupJob)
            if policy == "report":
                await job.wait_end()
                assert isinstance(job.error, OSError)
                return
            while job.status != "paused" or job.io_status != "failed":
                await _turn()
            failing = False
            job.user_resume()
            await job.wait_end()
            assert job.error is None
            view = memoryview(bytearray(len(source.data)))
            await target.read(0, view)
            assert view == source.data
            writes = [entry[0] for entry in file.log if entry[0] in ("write", "flush")]
            assert writes[-1] == "flush"

    run(main())


def test_two_backups_of_one_node() -> None:
    async def story(world: World) -> None:
        second = await world.daemon.rig.memory("t2", SIZE)
        await world.start(sync="none")
        await world.write(0, 512, 7)
        await world.start(sync="none", job_id="k", target="t2")
        middle = bytes(world.source.data)
        await world.write(0, 512, 8)
        await world.write(CLUSTER, 512, 8)
        jobs = world.daemon.context.jobs
        for job_id in ("j", "k"):  # the upper filter goes first
            job = jobs.get(job_id)
            await job.cancel(force=True)
            await job.wait_end()
        assert world.target.data[: 2 * CLUSTER] == world.old[: 2 * CLUSTER]
        assert second.data[: 2 * CLUSTER] == middle[: 2 * CLUSTER]
        await world.daemon.rig.graph.release(second.node)

    tell(story)


def test_a_drained_section_waits_for_whole_chunks() -> None:
    async def story(world: World) -> None:
        world.source.fast = world.target.fast = False
        job = await world.start(sync="full", x_perf={"max-chunk": CLUSTER})
        for _ in range(5):
            async with Drained([world.source.node]):
                before = len(world.target.log)
                for _ in range(20):
                    await _turn()
                assert len(world.target.log) == before
            await _turn()
        await job.wait_end()
        assert world.target.data == world.old

    tell(story)


def test_speed() -> None:
    async def story(world: World) -> None:
        job = await world.start(sync="full", speed=1, x_perf={"max-chunk": CLUSTER})
        while not job.progress_current:
            await _turn()
        for _ in range(50):
            await _turn()
        assert job.progress_current == CLUSTER  # one piece is always free
        job.user_set_speed(0)
        await job.wait_end()
        assert world.target.data == world.old

    tell(story)


def test_the_limit_is_not_waited_for_when_all_is_copied() -> None:
    async def story(world: World) -> None:
        bitmap = world.bitmap()
        bitmap.mark(CLUSTER, CLUSTER)
        job = await world.start(sync="incremental", bitmap="b", speed=1)
        async with asyncio.timeout(10):
            await job.wait_end()
        assert job.error is None
        assert world.target.data[CLUSTER : 2 * CLUSTER] == world.old[CLUSTER : 2 * CLUSTER]

    tell(story)
