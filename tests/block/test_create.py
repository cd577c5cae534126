# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Using a node while an image is made in it."""

from __future__ import annotations

import pytest

from qsd.aio.loop import run
from qsd.block import perms
from qsd.block.backend import Backend
from qsd.block.create import open_target
from qsd.errors import QmpError
from qsd.qapi.convert import from_json
from qsd.qapi.schema.block_options import BlockdevOptions
from tests.support.memory import Rig


def options(**tree: object) -> BlockdevOptions:
    return from_json(BlockdevOptions, {"driver": "null-co", **tree})


def test_a_node_given_by_name_stays() -> None:
    async def main() -> None:
        async with Rig() as rig:
            driver = await rig.memory("n", 4096)
            async with open_target(rig.graph, "n") as backend:
                await backend.write(0, memoryview(b"abc"))
                assert rig.graph.backends == [backend]
            assert bytes(driver.data[:3]) == b"abc"
            assert not rig.graph.backends
            assert "n" in rig.graph.nodes

    run(main())


def test_a_node_given_by_options_is_opened_and_closed() -> None:
    async def main() -> None:
        async with Rig() as rig:
            async with open_target(rig.graph, options(size=512)) as backend:
                assert backend.length() == 512
                assert len(rig.graph.nodes) == 1
            assert not rig.graph.nodes

    run(main())


@pytest.mark.parametrize(
    ("ref", "message"),
    [
        ("nope", "Cannot find device='nope' nor node-name='nope'"),
        (options(**{"node-name": "n"}), "Duplicate nodes with node-name='n'"),
        (options(**{"read-only": True}), "Block node is read-only"),
    ],
)
def test_refusals_leave_nothing_behind(ref: BlockdevOptions | str, message: str) -> None:
    async def main() -> None:
        async with Rig() as rig:
            await rig.memory("n")
            with pytest.raises(QmpError) as caught:
                async with open_target(rig.graph, ref):
                    pytest.fail("it was opened")
            assert caught.value.desc == message
            assert set(rig.graph.nodes) == {"n"}

    run(main())


def test_an_image_in_use_is_not_overwritten() -> None:
    async def main() -> None:
        async with Rig() as rig:
            driver = await rig.memory("n")
            user = Backend(rig.graph, "", "somebody")
            user.attach(driver.node, perms.CONSISTENT_READ, perms.CONSISTENT_READ)
            with pytest.raises(QmpError) as caught:
                async with open_target(rig.graph, "n"):
                    pytest.fail("it was opened")
            assert caught.value.desc == (
                "Permission conflict on node 'n': permissions 'write, resize' are both required "
                "by an unnamed block device (uses node 'n' as 'root' child) and unshared by "
                "somebody (uses node 'n' as 'root' child)."
            )
            await user.detach()

    run(main())


def test_a_failure_inside_releases_the_node() -> None:
    async def main() -> None:
        async with Rig() as rig:
            with pytest.raises(ZeroDivisionError):
                async with open_target(rig.graph, options()):
                    raise ZeroDivisionError
            assert not rig.graph.nodes

    run(main())
