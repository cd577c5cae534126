# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""What a driver that declares nothing can do, and what the engine makes of that."""

from __future__ import annotations

import errno
from collections.abc import Coroutine
from typing import Any

import pytest

from qsd.aio.loop import run
from qsd.block.driver import Driver
from qsd.block.mapping import ST_ALLOCATED, ST_DATA, Status
from qsd.errors import QmpError
from tests.support.memory import Rig


class Bare(Driver):
    name = "null-co"
    family = "protocol"

    async def open(self, options: Any, opener: Any) -> None:
        pass

    def length(self) -> int:
        return 4096


def test_a_bare_driver_refuses_everything_it_did_not_declare() -> None:
    async def main() -> None:
        async with Rig(null_co=Bare) as rig:
            node = await rig.add(driver="null-co", node_name="n", discard="unmap")
            driver = node.driver
            view = memoryview(bytearray(512))
            assert not node.read_nowait(0, view)
            assert not node.write_nowait(0, view)
            assert not node.read_later(0, view, lambda full: None)
            assert driver.locate_nowait(0, 512) is None
            requests: list[Coroutine[Any, Any, None]] = [
                node.read(0, view),
                node.write(0, view),
                node.zero(0, 512),
            ]
            for request in requests:
                with pytest.raises(OSError, match=r".") as caught:
                    await request
                assert caught.value.errno == errno.ENOTSUP
            await node.discard(0, 512)  # a discard is but a hint
            await node.flush()
            with pytest.raises(QmpError, match="Image format driver does not support resize"):
                await node.truncate(8192)
            with pytest.raises(QmpError, match="does not support reopening files"):
                await driver.prepare_reopen(None, False)
            assert await node.block_status(0, 512) == Status(512, ST_DATA | ST_ALLOCATED)

    run(main())


def test_flushing_reaches_the_children_that_are_written_to() -> None:
    async def main() -> None:
        async with Rig() as rig:
            memory = await rig.memory("n")
            top = await rig.add(driver="copy-on-read", node_name="f", file="n")
            await Driver.flush(top.driver)
            assert memory.log == []
            top.children["file"].perm = 2
            await Driver.flush(top.driver)
            assert memory.log == [("flush", 0, 0)]
            top.children["file"].perm = 0

    run(main())
