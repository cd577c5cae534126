# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Connecting, and connecting again."""

from __future__ import annotations

import asyncio
import errno

import pytest

from qsd.aio.loop import run
from qsd.aio.tasks import TaskOwner
from qsd.errors import QmpError
from qsd.protocols.nbd.link import Link
from qsd.qapi.convert import from_json
from qsd.qapi.schema.block_protocols import BlockdevOptionsNbd
from tests.exports.rig import NbdRig


def options(path: str, **more: object) -> BlockdevOptionsNbd:
    return from_json(
        BlockdevOptionsNbd, {"server": {"type": "unix", "path": path}, "export": "s", **more}
    )


def test_open_timeout_waits_for_the_server() -> None:
    async def main() -> None:
        async with NbdRig() as rig:
            await rig.memory("s")
            await rig.server.stop()
            rig.registry.servers.clear()
            tasks = TaskOwner("t")
            link = Link(options(rig.path, **{"open-timeout": 30}), tasks, None)
            opening = tasks.spawn(link.open(), "open")
            await asyncio.sleep(0)
            await rig.start_server()
            await rig.export("s", name="s")
            await opening
            assert link.agreement.size == 1 << 20
            await link.close()
            await tasks.close()

    run(main())


def test_no_server() -> None:
    async def main() -> None:
        link = Link(options("/nonexistent/socket"), TaskOwner("t"), None)
        with pytest.raises(QmpError, match="No such file or directory"):
            await link.open()

    run(main())


def test_another_export_is_not_the_same() -> None:
    async def main() -> None:
        async with NbdRig() as rig:
            await rig.memory("s")
            await rig.export("s", name="s")
            tasks = TaskOwner("t")
            link = Link(options(rig.path), tasks, None)
            await link.open()
            same = link.agreement
            assert link._is_same(same)
            assert not link._is_same(same._replace(size=same.size + 512))
            assert not link._is_same(same._replace(flags=1))
            assert not link._is_same(same._replace(context_id=None))
            assert link.connection is not None
            link.connection.fail()
            with pytest.raises(OSError) as caught:
                await link.usable()
            assert caught.value.errno == errno.EIO
            await link.close()
            await tasks.close()
            assert link.connection is None

    run(main())
