# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Statistics of nodes."""

from __future__ import annotations

from qsd.aio.loop import run
from qsd.block.stats import all_stats, node_stats
from qsd.qapi.convert import to_json
from tests.support.named import disk, named_rig

SPECIFIC = {
    "driver": "file",
    "discard-nb-ok": 1,
    "discard-nb-failed": 0,
    "discard-bytes-ok": 2,
}


def test_everything_about_a_plain_node() -> None:
    async def main() -> None:
        async with named_rig() as rig:
            node = await rig.add(node_name="f", **disk("f"))
            await node.write(4096, memoryview(bytes(512)))
            stats = to_json(node_stats(node))
            assert stats.pop("stats") | {"timed_stats": []} == {
                "wr_highest_offset": 4608,
                "timed_stats": [],
                "account_invalid": False,
                "account_failed": False,
                **{
                    f"{prefix}{kind}_{suffix}": 0
                    for prefix, kinds, suffix in (
                        ("", ("rd", "wr", "unmap"), "bytes"),
                        ("", ("rd", "wr", "unmap"), "merged"),
                        ("", ("rd", "wr", "flush", "unmap"), "operations"),
                        ("", ("rd", "wr", "flush", "unmap"), "total_time_ns"),
                        ("failed_", ("rd", "wr", "flush", "unmap"), "operations"),
                        ("invalid_", ("rd", "wr", "flush", "unmap"), "operations"),
                    )
                    for kind in kinds
                },
            }
            assert stats == {"node-name": "f", "driver-specific": SPECIFIC}

    run(main())


def test_parent_is_the_child_with_the_data() -> None:
    async def main() -> None:
        async with named_rig() as rig:
            await rig.add(node_name="d", **disk("d"))
            await rig.add(node_name="f", **disk("f"))
            await rig.add(node_name="b", **disk("b"))
            await rig.add(node_name="q", driver="qcow2", file="f", backing="b")
            await rig.add(
                node_name="e", driver="qcow2", file=disk("g"), data_file="d", backing=None
            )
            await rig.add(node_name="r", driver="throttle", throttle_group="g", file="q")
            stats = {entry["node-name"]: entry for entry in to_json(all_stats(rig.graph))}
            assert list(stats)[:4] == ["d", "f", "b", "q"]
            assert stats["q"]["parent"] == stats["f"]
            assert stats["e"]["parent"] == stats["d"]
            assert stats["r"]["parent"] == stats["q"]
            assert "backing" not in stats["q"]
            assert "driver-specific" not in stats["q"]

    run(main())
