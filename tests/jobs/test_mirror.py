# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

import asyncio
import errno
import random
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsd.block import perms
from qsd.block.backend import Backend
from qsd.block.drain import Drained
from qsd.block.info import bitmaps_info
from qsd.block.naming import filename
from qsd.block.node import Node
from qsd.errors import QmpError
from tests.jobs.chains import SIZE, Guest, World, content, tell
from tests.jobs.support import turns
from tests.support.toyformat import CLUSTER


@pytest.mark.parametrize("mode", ["background", "write-blocking"])
def test_guest_writes_are_in_the_copy(mode: str) -> None:
    async def story(world: World) -> None:
        (top, *_), target = await world.chain(), await world.image("t")
        guest = Guest(world.rig, top)
        await guest.learn()
        await world.qmp(
            "blockdev-mirror", job_id="j", device="top", target="t", sync="full", copy_mode=mode
        )
        await guest.work(1, 60)
        await world.status("ready")
        await guest.work(2, 60)
        await world.qmp("job-complete", id="j")
        await guest.work(3, 60)
        await world.status()
        assert guest.backend.node is target
        await guest.work(4, 20)
        await guest.check()
        assert await content(target) == guest.content
        await guest.leave()

    tell(story)


@pytest.mark.parametrize("mode", ["background", "write-blocking"])
def test_fast_writes_are_in_the_copy(mode: str) -> None:
    async def story(world: World) -> None:
        source = (await world.rig.memory("m", SIZE)).node
        target = (await world.rig.memory("t", SIZE)).node
        memories = world.driver("m"), world.driver("t")
        memories[1].data[:CLUSTER] = b"?" * CLUSTER
        guest = Guest(world.rig, source)
        await world.qmp(
            "blockdev-mirror", job_id="j", device="m", target="t", sync="full",
            copy_mode=mode, granularity=4096,
        )  # fmt: skip
        dice = random.Random(7)
        for seed in range(12):
            for memory in memories:
                memory.fast = dice.random() < 0.7
            await guest.work(seed, 20)
        await world.status("ready")
        for memory in memories:
            memory.fast = True
            memory.log.clear()
        await asyncio.sleep(1)
        for seed in range(12, 20):
            await guest.work(seed, 20)
        job = world.job()
        if mode == "write-blocking":
            # Nothing was copied again: what is equal stays so.
            assert job.progress_current == job.progress_total
            assert not any(what in ("read", "write") for what, *_ in memories[1].log)
            assert await content(target) == guest.content
        await world.qmp("job-complete", id="j")
        await world.status()
        await guest.check()
        assert await content(target) == guest.content
        await guest.leave()

    tell(story)


@pytest.mark.parametrize("side", ["m", "t"])
def test_a_fast_write_that_fails_on_one_side_is_made_good(side: str) -> None:
    async def story(world: World) -> None:
        source = (await world.rig.memory("m", SIZE)).node
        target = (await world.rig.memory("t", SIZE)).node
        guest = Guest(world.rig, source)
        await world.qmp(
            "blockdev-mirror", job_id="j", device="m", target="t", sync="full",
            copy_mode="write-blocking", on_target_error="stop",
        )  # fmt: skip
        await world.status("ready")
        broken = world.driver(side)

        def fails_half_way(offset: int, view: memoryview) -> bool:
            broken.data[offset : offset + 256] = b"!" * 256
            raise OSError(errno.EIO, "half way")

        node = world.rig.graph.nodes[side]
        node.write_nowait = fails_half_way
        if side == "t":
            broken.fail = lambda what, offset: errno.EIO if what == "write" else 0
            await guest.write(CLUSTER, b"x" * 512)  # the guest is not to blame
            await world.status("standby")
            broken.fail = lambda what, offset: 0
            node.refresh_fast_paths()
            await world.qmp("job-resume", id="j")
            await world.status("ready")
        else:
            with pytest.raises(OSError, match="half way"):
                await guest.write(CLUSTER, b"x" * 512)
            node.refresh_fast_paths()
            guest.content[CLUSTER : CLUSTER + 256] = b"!" * 256
        await world.qmp("job-complete", id="j")
        await world.status()
        assert await content(source) == guest.content == await content(target)
        await guest.leave()

    tell(story)


def test_a_fast_write_that_is_given_up_is_copied() -> None:
    async def story(world: World) -> None:
        source = (await world.rig.memory("m", SIZE)).node
        target = (await world.rig.memory("t", SIZE)).node
        guest = Guest(world.rig, source)
        await world.qmp(
            "blockdev-mirror", job_id="j", device="m", target="t", sync="full",
            copy_mode="write-blocking",
        )  # fmt: skip
        await world.status("ready")
        world.driver("m").fast = True
        # The source is written, and nobody comes back to do it the plain way.
        assert not guest.backend.write_nowait(CLUSTER, memoryview(b"x" * 512))
        guest.content[CLUSTER : CLUSTER + 512] = b"x" * 512
        await world.qmp("job-complete", id="j")
        await world.status()
        assert await content(source) == guest.content == await content(target)
        await guest.leave()

    tell(story)


async def quorum_mirror(world: World, *, read_only: bool = False) -> None:
    """Have a mirror of a quorum over "a" and "b" that is to replace "b" by "t"."""
    for name in "abt":
        await world.rig.memory(name, SIZE)
    await world.rig.add(
        driver="quorum", node_name="q", children=["a", "b"],
        **{"vote-threshold": 1, "read-only": read_only},
    )  # fmt: skip
    await world.qmp(
        "blockdev-mirror", job_id="j", device="q", target="t", sync="full", replaces="b",
        auto_finalize=False, auto_dismiss=False,
    )  # fmt: skip
    await world.status("ready")


def test_what_is_to_be_replaced_stays_until_then() -> None:
    async def story(world: World) -> None:
        await quorum_mirror(world)
        await world.qmp("job-complete", id="j")
        await world.status("pending")
        await world.qmp("x-blockdev-change", parent="q", child="children.0")
        for command, arguments in (
            ("blockdev-del", {"node_name": "b"}),
            ("blockdev-backup", {"job_id": "k", "device": "b", "target": "a", "sync": "full"}),
        ):
            with pytest.raises(QmpError, match=r"'b' is busy: .* in use by block-job-complete"):
                await world.qmp(command, **arguments)
        await world.qmp("job-finalize", id="j")
        await world.status("concluded")
        assert ("q", "children.1", "t") in world.edges()
        await world.qmp("blockdev-del", node_name="b")

    tell(story)


def test_the_target_may_be_written_to_if_what_it_replaces_may() -> None:
    """Whatever the source, from which that was copied, says."""

    async def story(world: World) -> None:
        await quorum_mirror(world, read_only=True)
        nodes = world.rig.graph.nodes
        await world.qmp("job-complete", id="j")
        await world.qmp("job-finalize", id="j")
        await world.status("concluded")
        assert ("q", "children.1", "t") in world.edges()
        assert nodes["q"].read_only
        assert not nodes["t"].read_only

    tell(story)


def test_what_others_came_to_see_is_not_replaced(capsys: pytest.CaptureFixture[str]) -> None:
    async def story(world: World) -> None:
        await quorum_mirror(world)
        reader = Backend(world.rig.graph, "", "a reader")
        reader.attach(world.rig.graph.nodes["b"], perms.CONSISTENT_READ, perms.ALL)
        await world.qmp("job-complete", id="j")
        await world.status("pending")
        await world.qmp("job-finalize", id="j")
        await world.status("concluded")
        assert world.job().info().error == "Operation not permitted"
        assert ("q", "children.1", "b") in world.edges()
        await reader.detach()

    tell(story)
    assert "Can no longer replace 'b' by 't', because it can no longer" in capsys.readouterr().err


def test_nothing_is_replaced_by_the_name_of_what_is_gone() -> None:
    async def story(world: World) -> None:
        await quorum_mirror(world)
        await world.qmp("x-blockdev-change", parent="q", child="children.1")
        await world.qmp("blockdev-del", node_name="b")
        with pytest.raises(QmpError, match="Node name 'b' not found"):
            await world.qmp("job-complete", id="j")
        await world.rig.memory("b", SIZE)
        await world.qmp("job-complete", id="j")
        await world.status("pending")
        await world.qmp("job-finalize", id="j")
        await world.status("concluded")
        assert world.job().info().error == "Operation not permitted"

    tell(story)


def test_its_filter_goes_by_the_name_of_the_source() -> None:
    async def story(world: World) -> None:
        await quorum_mirror(world)
        (edge,) = [edge for edge in world.rig.graph.nodes["q"].parents if edge.name == "backing"]
        assert isinstance(edge.user, Node)
        assert filename(edge.user) == filename(edge.node)
        assert filename(edge.node).startswith("json:")

    tell(story)


@pytest.mark.parametrize("mode", ["background", "write-blocking"])
def test_what_is_to_be_copied_is_shown(mode: str) -> None:
    async def story(world: World) -> None:
        (top, *_), _ = await world.chain(), await world.image("t")
        assert bitmaps_info(top) is None
        await world.qmp(
            "blockdev-mirror",
            job_id="j",
            device="top",
            target="t",
            sync="full",
            copy_mode=mode,
            granularity=4096,
        )
        (shown,) = bitmaps_info(top) or []
        assert (shown.name, shown.granularity) == (None, 4096)
        assert shown.recording is (mode == "background")
        await world.status("ready")
        (shown,) = bitmaps_info(top) or []
        assert not shown.count
        await world.qmp("block-job-cancel", device="j")
        await world.status()
        assert bitmaps_info(top) is None

    tell(story)


def test_what_is_written_while_pending_is_in_the_copy() -> None:
    async def story(world: World) -> None:
        (top, *_), target = await world.chain(), await world.image("t")
        guest = Guest(world.rig, top)
        await guest.learn()
        await world.qmp(
            "blockdev-mirror",
            job_id="j",
            device="top",
            target="t",
            sync="full",
            auto_finalize=False,
        )
        await world.status("ready")
        await world.qmp("job-complete", id="j")
        await world.status("pending")
        await guest.work(5, 40)
        await world.qmp("job-finalize", id="j")
        await world.status()
        await guest.check()
        assert await content(target) == guest.content
        await guest.leave()

    tell(story)


def test_an_older_copy_never_comes_last() -> None:
    """A granule changes while it is copied: the copy in flight must not land after the next one."""

    class Gate(asyncio.Event):
        """Holds back the first request, and the second until it is told."""

        def __init__(self) -> None:
            super().__init__()
            self.came = 0
            self.second = asyncio.Event()

        async def wait(self) -> Literal[True]:
            self.came += 1
            if self.came == 2:
                await self.second.wait()
            return await super().wait() if self.came == 1 else True

    async def story(world: World) -> None:
        (top, *_), target = await world.chain(), await world.image("t")
        guest = Guest(world.rig, top)
        await guest.learn()
        await world.qmp(
            "blockdev-mirror",
            job_id="j",
            device="top",
            target="t",
            sync="full",
            granularity=CLUSTER,
        )
        await world.status("ready")
        await world.qmp("job-pause", id="j")
        await guest.write(0, b"old" * 1000)
        await guest.write(5 * CLUSTER, b"other")
        world.driver("t-file").gate = gate = Gate()
        await world.qmp("job-resume", id="j")
        while gate.came < 2:
            await asyncio.sleep(0)
        await guest.write(0, b"new" * 1000)
        gate.second.set()
        await turns(200)  # enough for the next copy, if it does not wait
        gate.set()
        await world.qmp("job-complete", id="j")
        await world.status()
        await guest.check()
        assert await content(target) == guest.content
        await guest.leave()

    tell(story)


@pytest.mark.parametrize("soft", [False, True])
def test_cancelling_in_sync_leaves_the_graph_as_it_was(soft: bool) -> None:
    async def story(world: World) -> None:
        (top, *_), target = await world.chain(), await world.image("t")
        before = world.edges()
        guest = Guest(world.rig, top)
        await guest.learn()
        await world.qmp("blockdev-mirror", job_id="j", device="top", target="t", sync="full")
        await world.status("ready")
        await guest.work(6, 20)
        world.take()
        await world.qmp("block-job-cancel", device="j", force=not soft)
        await world.status()
        end = "BLOCK_JOB_COMPLETED" if soft else "BLOCK_JOB_CANCELLED"
        assert end in world.take()
        assert world.edges() == before
        assert guest.backend.node is top
        await guest.check()
        if soft:
            assert await content(target) == guest.content
        await guest.leave()

    tell(story)


@pytest.mark.parametrize("side", ["read", "write"])
def test_a_failure_leaves_the_graph_as_it_was(side: str) -> None:
    async def story(world: World) -> None:
        (top, *_), _ = await world.chain(), await world.image("t")
        before = world.edges()
        guest = Guest(world.rig, top)
        await guest.learn()
        culprit = world.driver("mid-file" if side == "read" else "t-file")
        culprit.fail = lambda operation, offset: errno.EIO if operation == side else 0
        await world.qmp(
            "blockdev-mirror", job_id="j", device="top", target="t", sync="full",
            auto_dismiss=False,
        )  # fmt: skip
        await world.status("concluded")
        events = world.take()
        assert "BLOCK_JOB_ERROR" in events
        assert events[-3:] == ["aborting", "BLOCK_JOB_COMPLETED", "concluded"]
        assert world.job().info().error == "Input/output error"
        culprit.fail = lambda operation, offset: 0
        assert world.edges() == before
        await guest.check()
        await world.qmp("job-dismiss", id="j")
        await guest.leave()

    tell(story)


@pytest.mark.parametrize("mode", ["background", "write-blocking"])
def test_stop_pauses_and_resume_tries_again(mode: str) -> None:
    async def story(world: World) -> None:
        (top, *_), target = await world.chain(), await world.image("t")
        guest = Guest(world.rig, top)
        await guest.learn()
        await world.qmp(
            "blockdev-mirror", job_id="j", device="top", target="t", sync="full",
            on_target_error="enospc", copy_mode=mode,
        )  # fmt: skip
        await world.status("ready")
        culprit = world.driver("t-file")
        culprit.fail = lambda operation, offset: errno.ENOSPC if operation == "write" else 0
        await guest.write(100, b"x" * 5000)
        await world.status("standby")
        assert world.job().io_status == "nospace"
        await guest.work(7, 20)
        culprit.fail = lambda operation, offset: 0
        await world.qmp("job-resume", id="j")
        assert world.job().io_status == "ok"
        await world.qmp("job-complete", id="j")
        await world.status()
        assert await content(target) == guest.content
        await guest.leave()

    tell(story)


def test_pausing_and_draining_lose_nothing() -> None:
    async def story(world: World) -> None:
        (top, *_), target = await world.chain(), await world.image("t")
        guest = Guest(world.rig, top)
        await guest.learn()
        await world.qmp(
            "blockdev-mirror", job_id="j", device="top", target="t", sync="full", speed=4096
        )
        await world.status("running")
        await world.qmp("job-pause", id="j")
        await world.status("paused")
        copied = world.job().progress_current
        await guest.work(8, 20)
        assert world.job().progress_current == copied
        async with Drained([top]):
            await asyncio.sleep(0)
        assert world.job().status == "paused"
        await world.qmp("block-job-set-speed", device="j", speed=0)
        await world.qmp("job-resume", id="j")
        await world.status("ready")
        await guest.work(9, 20)
        await world.qmp("job-complete", id="j")
        await world.status()
        assert await content(target) == guest.content
        await guest.leave()

    tell(story)


def test_only_the_top_layer_is_copied_with_sync_top() -> None:
    async def story(world: World) -> None:
        await world.chain()
        target = await world.image("t")
        await world.qmp(
            "blockdev-mirror", job_id="j", device="top", target="t", sync="top", granularity=4096
        )
        await world.status("ready")
        job = world.job()
        assert job.progress_current == job.progress_total == 3 * CLUSTER
        await world.qmp("job-cancel", id="j")
        await world.status()
        got = await content(target)
        for index in range(64):
            want = 32 + index + 1 if index in (2, 6, 10) else 0
            assert got[index * CLUSTER] == want

    tell(story)


def test_sizes_must_agree() -> None:
    async def story(world: World) -> None:
        await world.chain()
        await world.rig.memory("small", 4096)
        await world.qmp("blockdev-mirror", job_id="j", device="top", target="small", sync="full")
        await world.status()
        failed = [event for event in world.rig.events.events if hasattr(event, "error")]
        assert failed[0].error == "Source and target image have different sizes"

    tell(story)


def test_unmap_holds_for_the_time_of_the_job() -> None:
    async def story(world: World) -> None:
        await world.chain()
        target = await world.image("t")
        await world.qmp("blockdev-mirror", job_id="j", device="top", target="t", sync="none")
        assert target.discard_unmap
        await world.qmp("job-cancel", id="j")
        await world.status()
        assert not target.discard_unmap

    tell(story)


def test_an_active_commit_merges_and_switches() -> None:
    async def story(world: World) -> None:
        top, mid, base = await world.chain()
        guest = Guest(world.rig, top)
        await guest.learn()
        await world.qmp("block-commit", job_id="j", device="top")
        await guest.work(10, 40)
        await world.status("ready")
        await guest.work(11, 40)
        await world.qmp("job-complete", id="j")
        await guest.work(12, 40)
        await world.status()
        assert guest.backend.node is base
        assert await content(base) == guest.content
        assert mid.children["backing"].node is base
        await guest.leave()

    tell(story)


def test_a_node_in_use_cannot_be_mirrored_again() -> None:
    async def story(world: World) -> None:
        await world.chain()
        await world.image("t")
        await world.image("u")
        await world.qmp("blockdev-mirror", job_id="j", device="top", target="t", sync="none")
        with pytest.raises(QmpError, match="Need a root block node"):
            await world.qmp("blockdev-mirror", job_id="k", device="top", target="u", sync="none")
        with pytest.raises(QmpError, match="busy: block device is in use by block job: mirror"):
            await world.qmp("blockdev-mirror", job_id="k", device="u", target="t", sync="none")
        await world.qmp("job-cancel", id="j")
        await world.status()

    tell(story)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1 << 30),
    mode=st.sampled_from(["background", "write-blocking"]),
    sync=st.sampled_from(["full", "top"]),
    steps=st.lists(
        st.sampled_from(["write", "pause", "resume", "fail", "heal", "drain", "speed"]),
        max_size=12,
    ),
    ending=st.sampled_from(["complete", "cancel", "soft"]),
)
def test_nothing_is_ever_lost(
    seed: int, mode: str, sync: str, steps: list[str], ending: str
) -> None:
    async def story(world: World) -> None:
        top, *_ = await world.chain()
        target = await world.image("t", "mid" if sync == "top" else None)
        before = world.edges()
        guest = Guest(world.rig, top)
        await guest.learn()
        await world.qmp(
            "blockdev-mirror", job_id="j", device="top", target="t", sync=sync, copy_mode=mode,
            on_target_error="stop", granularity=4096,
        )  # fmt: skip
        culprit = world.driver("t-file")
        for number, step in enumerate(steps):
            job = world.job()
            if step == "pause" and not job.user_paused:
                await world.qmp("job-pause", id="j")
            elif step == "resume" and job.user_paused:
                await world.qmp("job-resume", id="j")
            elif step == "fail":
                culprit.fail = lambda operation, offset: errno.EIO if operation == "write" else 0
            elif step == "heal":
                culprit.fail = lambda operation, offset: 0
            elif step == "drain":
                async with Drained([top]):
                    await asyncio.sleep(0)
            elif step == "speed":
                await world.qmp("block-job-set-speed", device="j", speed=1 << 20)
            await guest.work(seed + number, 10)
        culprit.fail = lambda operation, offset: 0
        while world.job().status != "ready":
            if world.job().user_paused:
                await world.qmp("job-resume", id="j")
            await asyncio.sleep(0.01)
        if ending == "complete":
            await world.qmp("job-complete", id="j")
        else:
            await world.qmp("block-job-cancel", device="j", force=ending == "cancel")
        await guest.work(seed - 1, 10)
        while world.context.jobs.find("j") is not None:
            if world.job().user_paused:
                await world.qmp("job-resume", id="j")
            await asyncio.sleep(0.01)
        await guest.check()
        if ending == "complete":
            assert guest.backend.node is target
        else:
            assert guest.backend.node is top
            assert world.edges() == before
        await guest.leave()

    tell(story)


def test_the_toy_is_as_long_as_the_tests_think() -> None:
    async def story(world: World) -> None:
        assert (await world.image("t")).length() == SIZE

    tell(story)
