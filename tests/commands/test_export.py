# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qsd.aio import loop
from qsd.errors import QmpError
from qsd.exports.base import ExportRegistry
from qsd.exports.nbd import NbdExport
from tests.commands.support import Daemon
from tests.support.memory import Rig


class ExportingDaemon(Daemon):
    """A daemon with exports."""

    def __init__(self) -> None:
        super().__init__(Rig())
        self.context.exports = ExportRegistry(
            self.rig.graph,
            self.context.objects,
            self.rig.events,
            self.rig.tasks,
            lambda name: NbdExport if name == "nbd" else None,
        )

    async def __aexit__(self, *args: object) -> None:
        await self.context.exports.close()
        await super().__aexit__(*args)

    async def refused(self, name: str, /, **arguments: Any) -> str:
        with pytest.raises(QmpError) as caught:
            await self.qmp(name, **arguments)
        return caught.value.desc

    def deleted(self) -> list[str]:
        return [event.id for event in self.rig.events.events]


def unix(path: Path) -> dict[str, Any]:
    return {"type": "unix", "data": {"path": str(path)}}


def test_exports(tmp_path: Path) -> None:
    async def main() -> None:
        async with ExportingDaemon() as daemon:
            await daemon.rig.memory("m")
            text = await daemon.refused(
                "block-export-add", **{"type": "nbd", "id": "e", "node-name": "m"}
            )
            assert text == "NBD server not running"
            await daemon.qmp("nbd-server-start", addr=unix(tmp_path / "s"))
            await daemon.qmp(
                "block-export-add", **{"type": "nbd", "id": "e", "node-name": "m", "writable": True}
            )
            assert await daemon.qmp("query-block-exports") == [
                {"id": "e", "type": "nbd", "node-name": "m", "shutting-down": False}
            ]
            text = await daemon.refused("block-export-del", id="nope")
            assert text == "Export 'nope' is not found"
            await daemon.qmp("block-export-del", id="e", mode="safe")
            assert await daemon.qmp("query-block-exports") == []
            assert daemon.deleted() == ["e"]

    loop.run(main())
