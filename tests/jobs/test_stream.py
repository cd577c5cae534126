# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

import errno
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsd.errors import os_error
from tests.jobs.chains import RecordingFormat, World, content, tell


def record_of(world: World, name: str) -> RecordingFormat:
    driver = world.rig.graph.nodes[name].driver
    assert isinstance(driver, RecordingFormat)
    return driver


@pytest.mark.parametrize(
    ("bounds", "backing"),
    [({}, None), ({"base_node": "base"}, "base"), ({"bottom": "mid"}, "base")],
)
def test_a_guest_writes_while_data_comes_up(bounds: dict[str, str], backing: str | None) -> None:
    async def story(world: World) -> None:
        guest = await world.guest()
        top = guest.backend.node
        record_of(world, "top").record = ("mid", "qcow2")
        await world.qmp("block-stream", job_id="j", device="top", **bounds)
        await guest.work(1, 80)
        await world.status()
        await guest.work(2, 10)
        await guest.check()
        assert guest.backend.node is top
        edge = top.children.get("backing")
        assert (edge.node.name if edge is not None else None) == backing
        assert (record_of(world, "top").record is None) == (backing is None)
        await guest.leave()

    tell(story)


def test_a_name_for_the_record_can_be_given() -> None:
    async def story(world: World) -> None:
        await world.chain()
        await world.qmp(
            "block-stream", job_id="j", device="top", base_node="base", backing_file="x"
        )
        await world.status()
        assert record_of(world, "top").record == ("x", "qcow2")

    tell(story)


@pytest.mark.parametrize("how", ["cancel", "fail", "record"])
def test_failure_leaves_the_chain_as_it_was(how: str) -> None:
    async def story(world: World) -> None:
        guest = await world.guest()
        before = world.edges()
        if how == "fail":
            world.driver("mid-file").fail = lambda operation, offset: (
                errno.EIO if operation == "read" else 0
            )
        elif how == "record":
            record_of(world, "top").record_error = os_error(errno.ENOSPC)
        speed = 1 if how == "cancel" else 0
        await world.qmp("block-stream", job_id="j", device="top", speed=speed)
        if how == "cancel":
            await world.status("running")
            await world.qmp("job-cancel", id="j")
        await world.status()
        events = world.take()
        assert "aborting" in events
        assert ("BLOCK_JOB_ERROR" in events) == (how == "fail")
        world.driver("mid-file").fail = lambda operation, offset: 0
        assert world.edges() == before
        assert guest.backend.node is world.rig.graph.nodes["top"]
        await guest.check()
        await guest.leave()

    tell(story)


def test_ignored_errors_fail_the_job_in_the_end() -> None:
    async def story(world: World) -> None:
        await world.chain()
        driver = world.driver("mid-file")
        driver.fail = lambda operation, offset: (
            errno.EIO if operation == "read" and offset == 0 else 0
        )
        await world.qmp(
            "block-stream", job_id="j", device="top", on_error="ignore", auto_dismiss=False
        )
        await world.status("concluded")
        job = world.job()
        assert job.progress_current == job.progress_total
        assert job.info().error == "Input/output error"
        assert world.take().count("BLOCK_JOB_ERROR") == 1
        driver.fail = lambda operation, offset: 0
        await world.qmp("job-dismiss", id="j")

    tell(story)


def test_stop_waits_for_the_user() -> None:
    async def story(world: World) -> None:
        top, *_ = await world.chain()
        want = await content(top)
        driver = world.driver("mid-file")
        driver.fail = lambda operation, offset: errno.ENOSPC if operation == "read" else 0
        await world.qmp("block-stream", job_id="j", device="top", on_error="enospc")
        await world.status("paused")
        assert world.job().io_status == "nospace"
        driver.fail = lambda operation, offset: 0
        await world.qmp("job-resume", id="j")
        await world.status()
        assert "backing" not in top.children
        assert await content(top) == want

    tell(story)


def test_what_it_refuses() -> None:
    async def story(world: World) -> None:
        await world.chain()
        await world.rig.add(driver="copy-on-read", node_name="filter", file="top")
        cases: list[tuple[dict[str, Any], str]] = [
            ({"speed": -1}, "Parameter 'speed' expects a non-negative value"),
            ({"base_node": "top"}, "Node 'top' is not a backing image of 'top'"),
            (
                {"device": "filter", "base_node": "top"},
                "'top' is not in the backing chain of 'filter'",
            ),
            ({"filter_node_name": "mid"}, "Could not create node: Duplicate nodes"),
            ({"backing_file": "x"}, "backing file specified, but streaming the entire chain"),
        ]
        await world.refuses("block-stream", cases)

    tell(story)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1 << 30), base=st.sampled_from([None, "base", "mid"]))
def test_nothing_is_ever_lost(seed: int, base: str | None) -> None:
    async def story(world: World) -> None:
        guest = await world.guest()
        more = {} if base is None else {"base_node": base}
        await world.qmp("block-stream", job_id="j", device="top", **more)
        await guest.work(seed, 40)
        await world.status()
        await guest.check()
        await guest.leave()

    tell(story)
