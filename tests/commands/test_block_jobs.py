# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

from typing import Any

import pytest

from qsd.commands.block_jobs import default_granularity, find_in_chain, on_or_off
from qsd.errors import DEVICE_NOT_FOUND, QmpError
from tests.jobs.chains import World, tell

REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("blockdev-mirror", {"device": "nope"}, "Cannot find device='nope' nor node-name='nope'"),
    ("blockdev-mirror", {"target": "nope"}, "Cannot find device='nope' nor node-name='nope'"),
    ("blockdev-mirror", {"device": "mid"}, "Need a root block node"),
    ("blockdev-mirror", {"target": "top"}, "Can't mirror node into itself"),
    ("blockdev-mirror", {"target": "mid"}, "busy: node is used as backing hd of 'top'"),
    ("blockdev-mirror", {"sync": "bitmap"}, "Sync mode 'bitmap' not supported"),
    ("blockdev-mirror", {"granularity": 256}, r"a value in range \[512B, 64MB\]"),
    ("blockdev-mirror", {"granularity": 1000}, "expects a power of 2"),
    ("blockdev-mirror", {"buf_size": -1}, "Invalid parameter 'buf-size'"),
    ("blockdev-mirror", {"speed": -1}, "Parameter 'speed' expects a non-negative value"),
    ("blockdev-mirror", {"job_id": "1j"}, "Invalid job ID '1j'"),
    ("blockdev-mirror", {"filter_node_name": "mid"}, "Duplicate nodes with node-name='mid'"),
    ("blockdev-mirror", {"replaces": "nope"}, "Failed to find node with node-name='nope'"),
    ("blockdev-mirror", {"replaces": "t"}, "Cannot replace 't' by a node mirrored from 'top'"),
    ("blockdev-mirror", {"replaces": "base"}, "'base' is busy: node is used as backing hd"),
    ("drive-mirror", {"format": "nope"}, "Unknown file format 'nope'"),
    ("drive-mirror", {"replaces": "mid"}, "a node-name must be provided when replacing"),
    ("drive-mirror", {"device": "mid"}, "Need a root block node"),
]


@pytest.mark.parametrize(("command", "arguments", "text"), REFUSED)
def test_what_a_mirror_refuses(command: str, arguments: dict[str, Any], text: str) -> None:
    async def story(world: World) -> None:
        await world.chain()
        await world.image("t")
        before = world.edges(), list(world.rig.graph.nodes)
        given = {"job_id": "j", "device": "top", "target": "t", "sync": "full", **arguments}
        with pytest.raises(QmpError, match=text):
            await world.qmp(command, **given)
        assert (world.edges(), list(world.rig.graph.nodes)) == before
        assert not list(world.context.jobs)

    tell(story)


def test_an_unknown_device_of_a_commit_has_its_own_class() -> None:
    async def story(world: World) -> None:
        with pytest.raises(QmpError, match="Device 'nope' not found") as caught:
            await world.qmp("block-commit", job_id="j", device="nope")
        assert caught.value.error_class == DEVICE_NOT_FOUND

    tell(story)


def test_images_are_found_by_what_the_one_above_records() -> None:
    async def story(world: World) -> None:
        top, mid, base = await world.chain()
        top.driver.record = ("mid.img", "qcow2")  # type: ignore[attr-defined]
        mid.driver.record = ("base.img", "qcow2")  # type: ignore[attr-defined]
        assert find_in_chain(top, "mid.img") is mid
        assert find_in_chain(top, "base.img") is base
        assert find_in_chain(mid, "mid.img") is None
        assert find_in_chain(top, "top.img") is None

    tell(story)


def test_defaults() -> None:
    async def story(world: World) -> None:
        assert default_granularity((await world.rig.memory("m")).node) == 65536

    tell(story)
    assert on_or_off(None)
    assert on_or_off(True)
    assert not on_or_off(False)
