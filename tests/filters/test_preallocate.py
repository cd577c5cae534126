# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Files that grow in large steps."""

from __future__ import annotations

from typing import Any

import pytest

from qsd.aio.loop import run
from qsd.block import perms
from qsd.block.backend import Backend
from qsd.errors import QmpError
from tests.filters.support import Growing, data, edges, filter_rig, read, refuse

ALL = perms.CONSISTENT_READ | perms.WRITE | perms.RESIZE


async def add(rig: Any, taken: int = ALL) -> tuple[Any, Growing, Backend]:
    await rig.add(driver="file", node_name="n", filename="x")
    node = await rig.add(
        driver="preallocate", node_name="f", file="n",
        **{"prealloc-size": 10000, "prealloc-align": 4096},
    )  # fmt: skip
    user = Backend(rig.graph, "u", "a user")
    user.attach(node, taken, perms.ALL)
    file = rig.graph.nodes["n"].driver
    assert isinstance(file, Growing)
    return node, file, user


def test_growing() -> None:
    async def main() -> None:
        async with filter_rig() as rig:
            node, file, user = await add(rig)
            alone = perms.ALL & ~(perms.WRITE | perms.RESIZE)
            assert edges(node) == {"file": (ALL, alone)}
            await node.write(1024, data(2, 100))
            assert len(file.data) == 12288
            assert node.length() == 1536  # whole sectors
            await node.write(2000, data(3, 48))
            assert (node.length(), len(file.data)) == (2048, 12288)
            assert await read(node, 1124, 20) == bytes(20)
            await node.zero(2048, 20000)
            assert node.length() == 22528
            assert len(file.data) == 32768
            await user.detach()
            await rig.graph.release(node)
            assert len(file.data) == 22048

    run(main())


def test_resizing_is_exact() -> None:
    async def main() -> None:
        async with filter_rig() as rig:
            node, file, user = await add(rig)
            await node.write(1024, data(2, 1024))
            await node.truncate(4096)
            assert node.length() == len(file.data) == 4096
            assert file.data[2048:] == bytes(2048)
            await user.detach()

    run(main())


def test_who_may_not_resize_does_not_grow() -> None:
    async def main() -> None:
        async with filter_rig() as rig:
            node, file, user = await add(rig, perms.WRITE)
            assert edges(node) == {"file": (perms.WRITE, perms.ALL)}
            await node.write(0, data(2, 1024))
            assert len(file.data) == 1024
            await user.detach()

    run(main())


def test_options() -> None:
    async def main() -> None:
        async with filter_rig() as rig:
            node, _, user = await add(rig)
            await rig.reopen(node, **{"prealloc-size": 0, "prealloc-align": 512})
            for missing in ("prealloc-size", "prealloc-align"):
                message = f"Option '{missing}' cannot be reset to its default value"
                with pytest.raises(QmpError, match=message):
                    await rig.reopen(node, **{missing: None})
            with pytest.raises(QmpError, match="'prealloc-size' cannot be reset"):
                await rig.reopen(node, **{"prealloc-size": None, "prealloc-align": 1000})
            await user.detach()
            common = {"driver": "preallocate", "node-name": "g", "file": "n"}
            await refuse(
                rig, "prealloc-align parameter of preallocate filter is not aligned to 512",
                **common, **{"prealloc-align": 1000},
            )  # fmt: skip
            await refuse(
                rig, "Parameter 'prealloc-size' expects a non-negative number below 2^64",
                **common, **{"prealloc-size": -5},
            )  # fmt: skip

    run(main())
