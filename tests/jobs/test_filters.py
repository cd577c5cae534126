# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

import pytest

from qsd.aio import loop
from qsd.block import perms
from qsd.errors import QmpError
from qsd.filters.commit_top import CommitTopDriver
from qsd.jobs.filters import check_root, drop_filter, insert_filter, is_job_edge, make_backend
from tests.support.memory import Rig


def test_users_move_to_the_filter_and_back() -> None:
    async def main() -> None:
        async with Rig() as rig:
            memory = await rig.memory("m")
            user, job = make_backend(rig.graph), make_backend(rig.graph)
            for backend in (user, job):
                backend.attach(memory.node, perms.CONSISTENT_READ, perms.ALL)
            check_root(memory.node)
            assert job.edge is not None
            job.edge.name = "target"
            assert is_job_edge(job.edge)
            node = await insert_filter(rig.graph, CommitTopDriver, "f", memory.node)
            assert user.node is node
            assert job.node is memory.node
            with pytest.raises(QmpError, match="Need a root block node"):
                check_root(memory.node)
            await drop_filter(rig.graph, node)
            assert user.node is memory.node
            assert node.closed
            await drop_filter(rig.graph, node)  # again
            await user.detach()
            await job.detach()

    loop.run(main())


def test_a_filter_that_cannot_be_named_leaves_nothing_behind() -> None:
    async def main() -> None:
        async with Rig() as rig:
            memory = await rig.memory("m")
            for name, text in [("m", "Duplicate nodes"), ("a/b", "Invalid node-name: 'a/b'")]:
                with pytest.raises(QmpError, match=text):
                    await insert_filter(rig.graph, CommitTopDriver, name, memory.node)
            assert list(rig.graph.nodes) == ["m"]
            assert not memory.node.parents

    loop.run(main())
