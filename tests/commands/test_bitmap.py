# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The commands for dirty bitmaps, alone and in transactions."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from qsd.aio.loop import run
from qsd.block.dirty import find_bitmap
from qsd.errors import QmpError
from tests.commands.support import Daemon

Story = Callable[[Daemon], Awaitable[None]]


def tell(story: Story) -> None:
    async def main() -> None:
        async with Daemon() as daemon:
            await daemon.qmp("blockdev-add", driver="null-co", node_name="n", size=1 << 20)
            await daemon.qmp("blockdev-add", driver="null-co", node_name="m", size=1 << 21)
            await story(daemon)

    run(main())


async def fails(daemon: Daemon, text: str, command: str, /, **arguments: Any) -> None:
    with pytest.raises(QmpError) as info:
        await daemon.qmp(command, **arguments)
    assert info.value.desc == text


async def write(daemon: Daemon, offset: int) -> None:
    await daemon.context.graph.find("n").write(offset, memoryview(b"x"))


async def shown(daemon: Daemon) -> dict[str, dict[str, Any]]:
    nodes = await daemon.qmp("query-named-block-nodes")
    found = next(node for node in nodes if node["node-name"] == "n")
    return {bitmap["name"]: bitmap for bitmap in found.get("dirty-bitmaps", [])}


async def counts(daemon: Daemon) -> dict[str, int]:
    return {name: bitmap["count"] for name, bitmap in (await shown(daemon)).items()}


def test_life() -> None:
    async def story(daemon: Daemon) -> None:
        await daemon.qmp("block-dirty-bitmap-add", node="n", name="a")
        await daemon.qmp("block-dirty-bitmap-add", node="n", name="b", granularity=512)
        await daemon.qmp("block-dirty-bitmap-add", node="n", name="c", disabled=True)
        await write(daemon, 70000)
        assert await counts(daemon) == {"c": 0, "b": 512, "a": 65536}
        assert list(await shown(daemon)) == ["c", "b", "a"]  # the newest first
        await daemon.qmp("block-dirty-bitmap-enable", node="n", name="c")
        await daemon.qmp("block-dirty-bitmap-disable", node="n", name="a")
        await write(daemon, 0)
        assert await counts(daemon) == {"c": 65536, "b": 1024, "a": 65536}
        assert [item["recording"] for item in (await shown(daemon)).values()] == [True, True, False]
        await daemon.qmp("block-dirty-bitmap-clear", node="n", name="b")
        await daemon.qmp("block-dirty-bitmap-remove", node="n", name="a")
        assert await counts(daemon) == {"c": 65536, "b": 0}

    tell(story)


def test_each_source_of_a_merge_is_looked_at_in_turn() -> None:
    async def story(daemon: Daemon) -> None:
        for name in ("t", "busy", "ok"):
            await daemon.qmp("block-dirty-bitmap-add", node="n", name=name)
        await daemon.qmp("block-dirty-bitmap-add", node="m", name="long")
        find_bitmap(daemon.context.graph, "n", "busy").busy = True
        in_use = "Bitmap 'busy' is currently in use by another operation and cannot be used"
        lengths = (
            "Bitmaps are of different sizes (destination size is 1048576, source size is 2097152) "
            "and can't be merged"
        )
        missing = "Dirty bitmap 'nope' not found"
        long = {"node": "m", "name": "long"}
        for target, sources, text in (
            ("busy", ["nope"], missing),
            ("busy", ["ok", "nope"], in_use),
            ("busy", [long], in_use),
            ("t", ["busy", "nope"], in_use),
            ("t", [long, "nope"], lengths),
            ("t", ["ok", "nope", long], missing),
        ):
            merge = "block-dirty-bitmap-merge"
            await fails(daemon, text, merge, node="n", target=target, bitmaps=sources)

    tell(story)


def test_refusals() -> None:
    async def story(daemon: Daemon) -> None:
        add = "block-dirty-bitmap-add"
        await daemon.qmp(add, node="n", name="a")
        await fails(daemon, "Bitmap already exists: a", add, node="n", name="a")
        await fails(daemon, "Bitmap name cannot be empty", add, node="n", name="")
        await fails(daemon, "Cannot find device='x' nor node-name='x'", add, node="x", name="a")
        await fails(
            daemon, "Granularity must be power of 2 and at least 512",
            add, node="n", name="b", granularity=256,
        )  # fmt: skip
        await fails(
            daemon, "Can't store persistent bitmaps to n: Operation not supported",
            add, node="n", name="b", persistent=True,
        )  # fmt: skip
        for what in ("remove", "clear", "enable", "disable"):
            command = f"block-dirty-bitmap-{what}"
            await fails(daemon, "Dirty bitmap 'b' not found", command, node="n", name="b")
            await fails(daemon, "Node 'x' not found", command, node="x", name="b")

    tell(story)


def test_busy() -> None:
    text = "Bitmap 'a' is currently in use by another operation and cannot be used"

    async def story(daemon: Daemon) -> None:
        await daemon.qmp("block-dirty-bitmap-add", node="n", name="a")
        await daemon.qmp("block-dirty-bitmap-add", node="n", name="b")
        bitmap: Any = daemon.context.graph.find("n").bitmaps["a"]
        bitmap.busy = True
        for what in ("remove", "clear", "enable", "disable"):
            with pytest.raises(QmpError, match=text):
                await daemon.qmp(f"block-dirty-bitmap-{what}", node="n", name="a")
        for target, source in ("ab", "ba"):
            with pytest.raises(QmpError, match=text):
                await daemon.qmp(
                    "block-dirty-bitmap-merge", node="n", target=target, bitmaps=[source]
                )
        bitmap.busy = False
        await daemon.qmp("block-dirty-bitmap-clear", node="n", name="a")

    tell(story)


def test_merging() -> None:
    async def story(daemon: Daemon) -> None:
        for name in "abc":
            await daemon.qmp("block-dirty-bitmap-add", node="n", name=name)
            await write(daemon, 65536 * "abc".index(name))
        await daemon.qmp("block-dirty-bitmap-add", node="n", name="t")
        merge = "block-dirty-bitmap-merge"
        await daemon.qmp(merge, node="n", target="t", bitmaps=["b", {"node": "n", "name": "c"}])
        assert (await counts(daemon))["t"] == 2 * 65536
        await daemon.qmp("block-dirty-bitmap-add", node="m", name="big")
        with pytest.raises(QmpError, match="destination size is 1048576, source size is 2097152"):
            await daemon.qmp(
                merge, node="n", target="t", bitmaps=["a", {"node": "m", "name": "big"}]
            )
        assert (await counts(daemon))["t"] == 2 * 65536
        checksum = "x-debug-block-dirty-bitmap-sha256"
        same = [await daemon.qmp(checksum, node="n", name=name) for name in ("b", "t")]
        assert same[0] == same[1]

    tell(story)


def action(kind: str, **data: Any) -> dict[str, Any]:
    return {"type": f"block-dirty-bitmap-{kind}", "data": {"node": "n", **data}}


ACTIONS = [
    action("add", name="new"),
    action("clear", name="a"),
    action("disable", name="a"),
    action("enable", name="b"),
    action("merge", target="b", bitmaps=["c"]),
    action("remove", name="c"),
]


@pytest.mark.parametrize("count", range(1, len(ACTIONS) + 1))
def test_a_failed_transaction_leaves_no_trace(count: int) -> None:
    async def story(daemon: Daemon) -> None:
        await prepare(daemon)
        before = await shown(daemon)
        actions = [*ACTIONS[:count], {"type": "abort", "data": {}}]
        with pytest.raises(QmpError, match="Transaction aborted"):
            await daemon.qmp("transaction", actions=actions)
        assert await shown(daemon) == before

    tell(story)


async def prepare(daemon: Daemon) -> None:
    await daemon.qmp("block-dirty-bitmap-add", node="n", name="c")
    await write(daemon, 0)
    await daemon.qmp("block-dirty-bitmap-add", node="n", name="a")
    await daemon.qmp("block-dirty-bitmap-add", node="n", name="b", disabled=True)
    await write(daemon, 65536)


def test_a_transaction() -> None:
    async def story(daemon: Daemon) -> None:
        await prepare(daemon)
        await daemon.qmp("transaction", actions=ACTIONS)
        assert await counts(daemon) == {"new": 0, "b": 131072, "a": 0}
        found = await shown(daemon)
        assert [found[name]["recording"] for name in ("new", "b", "a")] == [True, True, False]

    tell(story)


def test_what_a_transaction_removes_cannot_be_used_in_it() -> None:
    async def story(daemon: Daemon) -> None:
        await prepare(daemon)
        with pytest.raises(QmpError, match="Bitmap already exists: a"):
            await daemon.qmp(
                "transaction", actions=[action("remove", name="a"), action("add", name="a")]
            )
        assert not (await shown(daemon))["a"]["busy"]

    tell(story)
