# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

import errno
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsd.errors import os_error
from tests.jobs.chains import RecordingFormat, World, tell


def record_of(world: World, name: str) -> RecordingFormat:
    driver = world.rig.graph.nodes[name].driver
    assert isinstance(driver, RecordingFormat)
    return driver


def test_an_intermediate_image_is_merged() -> None:
    async def story(world: World) -> None:
        guest = await world.guest()
        top, base = guest.backend.node, world.rig.graph.nodes["base"]
        record_of(world, "top").record = ("mid", "qcow2")
        await world.qmp("block-commit", job_id="j", device="top", top_node="mid")
        await guest.work(1, 60)
        await world.status()
        assert world.take()[:2] == ["created", "running"]
        await guest.work(2, 10)
        await guest.check()
        assert top.children["backing"].node is base
        record = record_of(world, "top").record
        assert record is not None
        assert record[1] == "qcow2"
        await guest.leave()

    tell(story)


@pytest.mark.parametrize("how", ["cancel", "read", "write", "record"])
def test_failure_leaves_the_chain_as_it_was(how: str) -> None:
    async def story(world: World) -> None:
        guest = await world.guest()
        before = world.edges()
        culprits = {"read": "mid-file", "write": "base-file"}
        if how in culprits:
            world.driver(culprits[how]).fail = lambda operation, offset: (
                errno.EIO if operation == how else 0
            )
        elif how == "record":
            record_of(world, "top").record_error = os_error(errno.ENOSPC)
        speed = 1 if how == "cancel" else 0
        await world.qmp("block-commit", job_id="j", device="top", top_node="mid", speed=speed)
        if how == "cancel":
            await world.status("running")
            await world.qmp("job-cancel", id="j")
        await world.status()
        events = world.take()
        assert "aborting" in events
        for name in culprits.values():
            world.driver(name).fail = lambda operation, offset: 0
        assert world.edges() == before
        await guest.check()
        await guest.leave()

    tell(story)


def test_ignored_errors_are_tried_again() -> None:
    async def story(world: World) -> None:
        guest = await world.guest()
        left = [3]

        def fail(operation: str, offset: int) -> int:
            if operation == "write" and left[0]:
                left[0] -= 1
                return errno.EIO
            return 0

        world.driver("base-file").fail = fail
        await world.qmp("block-commit", job_id="j", device="top", top_node="mid", on_error="ignore")
        await world.status()
        events = world.take()
        assert events.count("BLOCK_JOB_ERROR") >= 1
        assert "aborting" not in events
        await guest.check()
        await guest.leave()

    tell(story)


def test_a_read_only_base_is_writable_for_the_time_of_the_job() -> None:
    async def story(world: World) -> None:
        await world.rig.memory("base-file", 8 << 20)
        base = await world.rig.add(
            driver="qcow2", node_name="base", file="base-file", read_only=True
        )
        mid = await world.image("mid", "base")
        await mid.write(0, memoryview(b"x" * 4096))
        await world.image("top", "mid")
        await world.qmp(
            "block-commit", job_id="j", device="top", top_node="mid", auto_finalize=False
        )
        await world.status("pending")
        assert not base.read_only
        await world.qmp("job-finalize", id="j")
        await world.status()
        assert base.read_only

    tell(story)


def test_what_it_refuses() -> None:
    async def story(world: World) -> None:
        await world.chain()
        cases: list[tuple[dict[str, Any], str]] = [
            ({"speed": -1}, "Parameter 'speed' expects a non-negative value"),
            ({"top_node": "base"}, "cannot commit an image into itself"),
            ({"top_node": "base", "base_node": "mid"}, "'mid' is not in this backing file chain"),
            ({"top_node": "mid", "filter_node_name": "mid"}, "Duplicate nodes"),
            ({"backing_file": "x"}, "'backing-file' specified, but 'top' is the active layer"),
        ]
        await world.refuses("block-commit", cases)

    tell(story)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1 << 30), pause=st.booleans())
def test_nothing_is_ever_lost(seed: int, pause: bool) -> None:
    async def story(world: World) -> None:
        guest = await world.guest()
        await world.qmp("block-commit", job_id="j", device="top", top_node="mid")
        if pause:
            await world.qmp("job-pause", id="j")
        await guest.work(seed, 30)
        if pause:
            await world.qmp("job-resume", id="j")
        await guest.work(seed + 1, 10)
        await world.status()
        await guest.check()
        await guest.leave()

    tell(story)
