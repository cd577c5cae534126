# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Faults on demand."""

from __future__ import annotations

import errno
from collections.abc import Awaitable
from typing import Any

import pytest

from qsd.aio.loop import run
from qsd.block import perms
from qsd.block.mapping import FUA
from qsd.block.node import Node
from qsd.errors import QmpError
from qsd.filters.blkdebug import BlkdebugDriver
from tests.filters.support import data, driver_of, edges, filter_rig, read, refuse


async def fails(request: Awaitable[object]) -> int:
    with pytest.raises(OSError) as info:
        await request
    return info.value.errno or 0


async def add(rig: Any, **options: Any) -> Node:
    await rig.memory("n")
    node: Node = await rig.add(
        driver="blkdebug", node_name="b", image="n", discard="unmap", **options
    )
    return node


def test_kinds_of_requests() -> None:
    async def main() -> None:
        async with filter_rig() as rig:
            kinds = ("read", "write", "write-zeroes", "discard", "flush", "block-status")
            rules = [
                {"event": "none", "iotype": kind, "errno": 10 + index}
                for index, kind in enumerate(kinds)
            ]
            node = await add(rig, **{"inject-error": rules})
            assert not node.read_nowait(0, data(0, 1))
            assert not node.write_nowait(0, data(0, 1))
            assert await fails(read(node, 0, 1)) == 10
            assert await fails(node.write(0, data(1, 1))) == 11
            assert await fails(node.zero(0, 1)) == 12
            assert await fails(node.discard(0, 512)) == 13
            assert await fails(node.block_status(0, 512)) == 15
            assert await fails(node.flush()) == 14  # after writes, if only failed ones

    run(main())


def test_flushes_fail_when_there_is_something_to_flush() -> None:
    async def main() -> None:
        async with filter_rig() as rig:
            node = await add(rig, **{"inject-error": [{"event": "none", "iotype": "flush"}]})
            await node.flush()
            await node.write(0, data(1, 1), FUA)
            assert await fails(node.write(0, data(1, 1), FUA)) == errno.EIO
            assert await fails(node.flush()) == errno.EIO

    run(main())


def test_sector_once_and_harmless_errnos() -> None:
    async def main() -> None:
        async with filter_rig() as rig:
            rules = [
                {"event": "none", "sector": 8, "once": True, "errno": 28},
                {"event": "none", "sector": 16, "errno": -5},
            ]
            node = await add(rig, **{"inject-error": rules})
            await node.write(0, data(1, 4096))
            assert await fails(node.write(4000, data(1, 200))) == errno.ENOSPC
            await node.write(4000, data(1, 200))
            await node.write(8192, data(1, 512))

    run(main())


def test_events_and_states() -> None:
    async def main() -> None:
        async with filter_rig() as rig:
            node = await add(
                rig,
                **{
                    "inject-error": [{"event": "l2_load", "state": 2, "errno": 28}],
                    "set-state": [{"event": "read_aio", "state": 1, "new_state": 2}],
                },
            )
            node.driver.debug_event("l2_load")
            await node.write(0, data(1, 1))
            node.driver.debug_event("read_aio")
            await node.write(0, data(1, 1))
            node.driver.debug_event("l2_load")
            assert await fails(node.write(0, data(1, 1))) == errno.ENOSPC

    run(main())


@pytest.mark.parametrize("event", ["pwritev_rmw_after_head", "pwritev_rmw_after_tail"])
def test_events_of_writing(event: str) -> None:
    async def main() -> None:
        async with filter_rig() as rig:
            node = await add(rig, align=4096, **{"inject-error": [{"event": event}]})
            await node.write(0, data(1, 4096))
            # A block that is changed in its middle has both ends.
            assert await fails(node.write(512, data(1, 10))) == errno.EIO

    run(main())


def test_events_of_the_ends_of_a_write(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(BlkdebugDriver, "debug_event", lambda _, event: seen.append(event))

    async def main() -> None:
        async with filter_rig() as rig:
            node = await add(rig, align=4096)
            for offset, length in ((100, 3996), (0, 100), (100, 8192)):
                await node.write(offset, data(1, length))
            ends = [event.removeprefix("pwritev_rmw_") for event in seen if "rmw" in event]
            assert ends == [
                *("head", "after_head"),
                *("tail", "after_tail"),
                *("head", "after_head", "tail", "after_tail"),
            ]

    run(main())


def test_copying_up_counts_as_a_write() -> None:
    async def main() -> None:
        async with filter_rig() as rig:
            await rig.memory("below")
            await rig.memory("above")
            await rig.add(driver="qcow2", node_name="base", file="below")
            await rig.add(driver="qcow2", node_name="top", file="above", backing="base")
            node = await rig.add(
                driver="blkdebug",
                node_name="b",
                image="top",
                **{"inject-error": [{"event": "cor_write", "errno": 28, "once": True}]},
            )
            assert await fails(node.copy_up(0, 4096)) == errno.ENOSPC
            await node.copy_up(0, 4096)
            await rig.graph.release(node)
            looks = [{"event": "none", "iotype": "block-status"}]
            node = await rig.add(
                driver="blkdebug", node_name="b", image="top", **{"inject-error": looks}
            )
            assert await fails(node.copy_up(0, 4096)) == errno.EIO
            await rig.graph.release(node)
            await rig.graph.release(rig.graph.nodes["top"])

    run(main())


def test_limits() -> None:
    async def main() -> None:
        async with filter_rig() as rig:
            node = await add(
                rig,
                align=4096,
                **{"max-transfer": 8192, "max-discard": 8192, "max-write-zero": 8192},
            )
            log = driver_of(rig, "n").log
            driver_of(rig, "n").fast = False
            await node.write(4096, data(1, 20000))
            await node.zero(0, 32768)
            await node.discard(0, 32768)
            assert {entry[2] for entry in log} == {4096, 8192}

    run(main())


def test_refusals() -> None:
    wrong: list[tuple[str, int, dict[str, int]]] = [
        ("align", 3, {}),
        ("align", 1536, {}),
        ("align", 1 << 31, {}),
        ("max-transfer", 512, {"align": 4096}),
        ("max-transfer", 6144, {"align": 4096}),
        ("opt-write-zero", 1024, {"align": 4096}),
        ("max-write-zero", 2048, {"opt-write-zero": 4096}),
        ("opt-discard", 1024, {"align": 4096}),
        ("max-discard", 4096, {"opt-discard": 8192}),
    ]

    async def main() -> None:
        async with filter_rig() as rig:
            await rig.memory("n")
            for name, value, others in wrong:
                options = {name: value, **others}
                await refuse(
                    rig, f"Cannot meet constraints with {name} {value}",
                    driver="blkdebug", node_name="b", image="n", **options,
                )  # fmt: skip
            await refuse(
                rig, "Parameter 'align' expects a non-negative number below 2^64",
                driver="blkdebug", node_name="b", image="n", align=-512,
            )  # fmt: skip
            for name in ("inject-error", "set-state", "take-child-perms", "unshare-child-perms"):
                await refuse(
                    rig, f"Block protocol 'blkdebug' doesn't support the option '{name}'",
                    driver="blkdebug", node_name="b", image="n", **{name: []},
                )  # fmt: skip

    run(main())


def test_permissions_and_reopening() -> None:
    async def main() -> None:
        async with filter_rig() as rig:
            node = await add(
                rig,
                **{"take-child-perms": ["write"], "unshare-child-perms": ["resize"]},
            )
            assert edges(node) == {"image": (perms.WRITE, perms.ALL & ~perms.RESIZE)}
            await rig.reopen(node)
            with pytest.raises(QmpError, match="Cannot change the option 'align'"):
                await rig.reopen(node, align=512)

    run(main())
