# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

from typing import Any

import pytest

from qsd.aio import loop
from qsd.block.node import Node
from qsd.block.runs import Runs
from qsd.errors import QmpError
from tests.exports.rig import REQ_ONE, STATUS, NbdRig


def bitmaps_of(node: Node) -> dict[str, Any]:
    """Return a node's bitmaps, where ours take the place of true ones."""
    return node.bitmaps


class FakeBitmap:
    """A bitmap with fixed dirty areas."""

    def __init__(self, name: str, *areas: tuple[int, int], takes_writes: bool = True) -> None:
        self.name = name
        self.takes_writes = takes_writes
        self.busy = False
        self.inconsistent = False
        self.areas = areas

    def mark(self, offset: int, length: int) -> None:
        """Nothing is recorded."""

    def resized(self, *_: Any) -> None:
        """It has the length of its node."""

    def runs(self, offset: int, length: int, limit: int) -> Runs:
        runs = Runs()
        bits = [any(0 <= at - start < size for start, size in self.areas)
                for at in range(offset, offset + length)]  # fmt: skip
        for bit in bits:
            runs.add(1, bit)
        runs.cut(limit)
        return runs


def test_bitmaps_are_contexts() -> None:
    async def main() -> None:
        async with NbdRig() as rig:
            await rig.memory("m", size=65536)
            one = FakeBitmap("one", (4096, 8192), (20480, 4096))
            two = FakeBitmap("two")
            bitmaps_of(rig.graph.nodes["m"]).update(one=one, two=two)
            export = await rig.export(
                "m", writable=True, bitmaps=["one", {"node": "m", "name": "two"}]
            )
            assert one.busy
            contexts = ["qemu:dirty-bitmap:two", "qemu:dirty-bitmap:one"]
            client = await rig.go("m", structured=True, contexts=contexts)
            assert await client.ask(STATUS, 0, 65536) == [
                (
                    "status",
                    2,
                    [(4096, 0), (8192, 1), (8192, 0), (4096, 1), (40960, 0)],
                ),
                ("status", 3, [(65536, 0)]),
            ]
            assert await client.ask(STATUS, 5000, 100, REQ_ONE) == [
                ("status", 2, [(100, 1)]),
                ("status", 3, [(100, 0)]),
            ]
            await rig.registry.delete(export.id, "hard")
            await export.wait_deleted()
            assert not one.busy

    loop.run(main())


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"bitmaps": ["x"]}, "Bitmap 'x' is not found"),
        ({"bitmaps": [{"node": "m", "name": "x"}]}, "Dirty bitmap 'x' not found"),
        ({"bitmaps": [{"node": "y", "name": "x"}]}, "Node 'y' not found"),
        ({"bitmaps": ["b"]}, "Enabled bitmap 'b' incompatible with readonly export"),
        ({"bitmaps": ["busy"]}, "Enabled bitmap 'busy' incompatible with readonly export"),
        (
            {"bitmaps": ["used"]},
            "Bitmap 'used' is currently in use by another operation and cannot be used",
        ),
    ],
)
def test_refusals(options: dict[str, Any], text: str) -> None:
    async def main() -> None:
        async with NbdRig() as rig:
            await rig.memory("m")
            bitmap, used, busy = FakeBitmap("b"), FakeBitmap("used"), FakeBitmap("busy")
            used.takes_writes = False
            used.busy = busy.busy = True
            bitmaps_of(rig.graph.nodes["m"]).update(b=bitmap, used=used, busy=busy)
            with pytest.raises(QmpError) as caught:
                await rig.export("m", **options)
            assert caught.value.desc == text
            assert not bitmap.busy

    loop.run(main())


def test_bitmaps_below_filters_are_found() -> None:
    async def main() -> None:
        async with NbdRig() as rig:
            await rig.memory("m")
            await rig.add(driver="copy-on-read", node_name="f", file="m")
            bitmaps_of(rig.graph.nodes["m"])["b"] = FakeBitmap("b", takes_writes=False)
            export = await rig.export("f", bitmaps=["b"])
            assert [name for _, name in export.contexts][-1] == "qemu:dirty-bitmap:b"

    loop.run(main())


def test_what_cannot_change_is_shown_though_it_records() -> None:
    async def main() -> None:
        async with NbdRig() as rig:
            await rig.memory("m")
            await rig.memory("other")
            await rig.add(driver="null-co", node_name="still", read_only=True)
            bitmaps_of(rig.graph.nodes["still"])["s"] = FakeBitmap("s")
            await rig.export("still", bitmaps=["s"])
            # Who says which node's bitmap he means is not held back.
            bitmaps_of(rig.graph.nodes["m"])["b"] = FakeBitmap("b")
            await rig.export("other", bitmaps=[{"node": "m", "name": "b"}])

    loop.run(main())
