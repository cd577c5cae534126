# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Descriptions of nodes and images."""

from __future__ import annotations

from typing import Any

import pytest

from qsd.aio.loop import run
from qsd.block.info import (
    allocated_size,
    chain_of,
    driver_info,
    image_info,
    named_nodes_info,
    nested_image_info,
    node_info,
)
from qsd.qapi.convert import to_json
from tests.support.memory import MemoryDriver
from tests.support.named import disk, named_rig

Q = {"driver": "qcow2", "file": disk("q")}
OVER = {"driver": "qcow2", "file": {**disk("over-b"), "node-name": "of"}}


def test_everything_about_a_plain_node() -> None:
    async def main() -> None:
        async with named_rig() as rig:
            node = await rig.add(node_name="f", cache={"no-flush": True}, **disk("f"))
            assert to_json(node_info(node, flat=False)) == {
                "file": "f",
                "node-name": "f",
                "ro": False,
                "drv": "file",
                "backing_file_depth": 0,
                "encrypted": False,
                "detect_zeroes": "off",
                "bps": 0,
                "bps_rd": 0,
                "bps_wr": 0,
                "iops": 0,
                "iops_rd": 0,
                "iops_wr": 0,
                "image": {
                    "filename": "f",
                    "format": "file",
                    "dirty-flag": False,
                    "actual-size": 4096,
                    "virtual-size": 1048576,
                },
                "cache": {"writeback": True, "direct": False, "no-flush": True},
                "write_threshold": 0,
            }

    run(main())


def test_backing_chain_nested_and_flat() -> None:
    async def main() -> None:
        async with named_rig() as rig:
            node = await rig.add(node_name="o", **OVER, backing=Q)
            info = to_json(node_info(node, flat=False))
            assert info["backing_file"] == "q"
            assert info["backing_file_depth"] == 1
            image = info["image"]
            assert image["backing-filename"] == "b"
            assert image["full-backing-filename"] == "b"
            assert image["backing-filename-format"] == "raw"
            assert image["backing-image"]["filename"] == "q"
            assert image["format-specific"] == {"type": "qcow2", "data": {"compat": "1.1"}}
            flat = to_json(node_info(node, flat=True))
            assert flat["backing_file"] == "q"
            assert flat["backing_file_depth"] == 0
            assert "backing-image" not in flat["image"]

    run(main())


def test_no_backing_file_whatever_the_image_records() -> None:
    async def main() -> None:
        async with named_rig() as rig:
            node = await rig.add(node_name="o", **OVER, backing=None)
            info = to_json(node_info(node, flat=False))
            assert "backing_file" not in info
            assert info["image"]["backing-filename"] == "b"

    run(main())


def test_filters_let_things_shine_through() -> None:
    async def main() -> None:
        async with named_rig() as rig:
            node = await rig.add(
                node_name="t", driver="throttle", throttle_group="g", file={**Q, "node-name": "q"}
            )
            info = to_json(image_info(node))
            assert (info["cluster-size"], info["dirty-flag"]) == (4096, False)
            assert info["snapshots"] == [{"id": "1", "name": "s"}]
            assert "format-specific" not in info
            nested, depth = nested_image_info(node)
            assert depth == 1
            assert nested.backing_image is not None
            assert [member.name for member in chain_of(node)] == ["t", "q"]
            assert "backing_file" not in to_json(node_info(node, flat=False))

    run(main())


def test_raw_lets_things_shine_through_but_is_no_filter() -> None:
    async def main() -> None:
        async with named_rig() as rig:
            node = await rig.add(node_name="r", driver="raw", file=Q)
            assert driver_info(node)["cluster-size"] == 4096
            assert nested_image_info(node)[1] == 0

    run(main())


def test_a_driver_can_stop_things_from_shining_through() -> None:
    class Opaque(MemoryDriver):
        name = "throttle"
        family = "filter"

        async def open(self, options: Any, opener: Any) -> None:
            self.data = bytearray(512)

        def image_info(self) -> dict[str, Any]:
            return {"dirty-flag": None, "cluster-size": None, "actual-size": None}

    async def main() -> None:
        async with named_rig(throttle=Opaque) as rig:
            node = await rig.add(node_name="t", driver="throttle", throttle_group="g", file=Q)
            info = to_json(image_info(node))
            assert not info.keys() & {"dirty-flag", "cluster-size", "actual-size"}

    run(main())


@pytest.mark.parametrize(
    ("tree", "size"),
    [
        ({"driver": "null-co"}, 0),
        (disk("f"), 4096),
        ({"driver": "raw", "file": disk("f")}, 4096),
        ({**Q, "data-file": disk("d")}, 8192),
        ({**Q, "backing": disk("b")}, 4096),
    ],
)
def test_allocated_size(tree: dict[str, Any], size: int) -> None:
    async def main() -> None:
        async with named_rig() as rig:
            assert allocated_size(await rig.add(node_name="n", **tree)) == size

    run(main())


def test_allocated_size_is_unknown_if_that_of_a_child_is() -> None:
    async def main() -> None:
        async with named_rig(null_co=MemoryDriver) as rig:
            node = await rig.add(
                node_name="n", driver="qcow2", file=disk("q"), data_file={"driver": "null-co"}
            )
            assert allocated_size(node) is None
            assert "actual-size" not in to_json(image_info(node))

    run(main())


def test_encryption_is_the_nodes_own() -> None:
    async def main() -> None:
        async with named_rig() as rig:
            node = await rig.add(
                node_name="t", driver="throttle", throttle_group="g",
                file={"driver": "qcow2", "node-name": "e", "file": disk("secret")},
            )  # fmt: skip
            below = to_json(node_info(rig.graph.nodes["e"], flat=True))
            assert below["encrypted"] is True
            assert below["image"]["encrypted"] is True
            above = to_json(node_info(node, flat=True))
            assert above["encrypted"] is False
            assert "encrypted" not in above["image"]

    run(main())


def test_huge_thresholds_wrap_as_in_the_c_daemon() -> None:
    async def main() -> None:
        async with named_rig() as rig:
            node = await rig.add(node_name="f", **disk("f"))
            node.write_threshold = (1 << 64) - 1
            assert node_info(node, flat=True).write_threshold == -1

    run(main())


def test_nodes_are_listed_newest_first() -> None:
    async def main() -> None:
        async with named_rig() as rig:
            await rig.add(node_name="a", **disk("a"))
            await rig.add(node_name="o", **OVER, backing="a")
            names = [info.node_name for info in named_nodes_info(rig.graph, flat=True)]
            assert names == ["o", "of", "a"]
            child = rig.graph.nodes["o"].primary_child()
            assert child is not None
            assert child.name == "of"

    run(main())
