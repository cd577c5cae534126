# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The filter above what is committed: data passes, permissions do not."""

from __future__ import annotations

import pytest

from qsd.block import perms
from qsd.block.backend import Backend
from qsd.errors import QmpError
from qsd.filters.commit_top import CommitTopDriver
from qsd.jobs.filters import drop_filter, insert_filter
from tests.jobs.chains import Guest, World, content, tell


def test_data_passes_and_permissions_do_not() -> None:
    async def story(world: World) -> None:
        top, mid, base = await world.chain()
        guest = Guest(world.rig, top)
        await guest.learn()
        before = await content(mid)
        jealous = Backend(world.rig.graph, "", "one who shares nothing")
        with pytest.raises(QmpError, match="consistent read"):
            jealous.attach(mid, perms.WRITE, 0)
        filter_ = await insert_filter(world.rig.graph, CommitTopDriver, "f", mid)
        assert top.children["backing"].node is filter_
        below = filter_.children["backing"]
        assert (below.perm, below.shared) == (0, perms.ALL)
        jealous.attach(mid, perms.WRITE, 0)  # now nobody is in the way
        await jealous.detach()
        assert await content(filter_) == before
        await guest.work(3, 20)
        assert filter_.driver.filename() == filter_.children["backing"].node.driver.filename()
        await drop_filter(world.rig.graph, filter_)
        assert top.children["backing"].node is mid
        await guest.check()
        await guest.leave()
        assert base.children.keys() == {"file"}

    tell(story)
