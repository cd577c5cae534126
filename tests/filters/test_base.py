# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""What all filters have in common: they show what they filter."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qsd.aio.loop import run
from qsd.block.info import image_info
from qsd.filters.base import same_buffers
from tests.filters.support import LENGTH, filter_rig, group
from tests.support import conformance

FILTERS: dict[str, dict[str, Any]] = {
    "blkdebug": {"image": "n", "inject-error": [{"event": "vmstate_load"}]},
    "blkdebug quiet": {"image": "n"},
    "blkdebug limits": {
        "image": "n", "align": 4096, "max-transfer": 8192, "opt-write-zero": 8192,
        "max-write-zero": 16384, "opt-discard": 4096, "max-discard": 8192,
    },
    "blklogwrites": {"file": "n", "log": "l"},
    "blklogwrites coarse": {"file": "n", "log": "l", "log-sector-size": 4096},
    "blkverify": {"test": "n", "raw": "m"},
    "compress": {"file": "c"},
    "copy-before-write": {"file": "n", "target": "m"},
    "copy-on-read": {"file": "n"},
    "preallocate": {"file": "n"},
    "quorum": {"children": ["n", "m"], "vote-threshold": 2},
    "quorum fifo": {"children": ["n", "m"], "vote-threshold": 1, "read-pattern": "fifo"},
    "throttle": {"file": "n", "throttle-group": "tg"},
}  # fmt: skip


async def _check(name: str, program: list[conformance.Step], fast: bool) -> None:
    rig = filter_rig()
    async with rig:
        await group(rig)
        for child in "nm":
            (await rig.memory(child, LENGTH, discard="unmap")).fast = fast
        await rig.memory("l", 1 << 25)
        await rig.add(driver="null-aio", node_name="c", size=LENGTH)
        node = await rig.add(
            driver=name.split(maxsplit=1)[0], node_name="f", discard="unmap", **FILTERS[name]
        )
        assert node.length() == LENGTH
        await conformance.check_program(rig, node, program)
        await conformance.check_contract(rig, node)
        assert not rig.errors
        rig.graph.nodes["f"].monitor_owned = False
        await rig.graph.close_node(node)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILTERS)
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(program=conformance.programs(LENGTH, 10), fast=st.booleans())
def test_like_a_bytearray(name: str, program: list[conformance.Step], fast: bool) -> None:
    run(_check(name, program, fast))


@pytest.mark.parametrize("name", FILTERS)
def test_the_length_follows_the_child(name: str) -> None:
    async def main() -> None:
        rig = filter_rig()
        async with rig:
            await group(rig)
            await rig.memory("n", LENGTH)
            await rig.memory("m", LENGTH)
            await rig.memory("l", LENGTH)
            await rig.add(driver="null-aio", node_name="c", size=LENGTH)
            node = await rig.add(driver=name.split(maxsplit=1)[0], node_name="f", **FILTERS[name])
            assert node.length() == LENGTH
            assert image_info(node).virtual_size == LENGTH
            for child in "nmc":
                await rig.graph.nodes[child].truncate(2 * LENGTH)
            assert node.length() == 2 * LENGTH
            rig.graph.nodes["f"].monitor_owned = False
            await rig.graph.close_node(node)

    run(main())


@given(st.binary(min_size=1, max_size=300), st.data())
def test_first_difference(buffer: bytes, choice: st.DataObject) -> None:
    other = bytearray(buffer)
    assert same_buffers(memoryview(buffer), memoryview(other)) == -1
    at = choice.draw(st.integers(0, len(buffer) - 1))
    for place in range(at, len(buffer)):
        other[place] ^= 1 if place == at else choice.draw(st.sampled_from([0, 0, 7]))
    assert same_buffers(memoryview(buffer), memoryview(other)) == at
