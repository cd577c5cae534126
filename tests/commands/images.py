# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""A daemon with real files and images, in a folder of its own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from qsd.catalog import find_creator, find_driver
from qsd.errors import QmpError
from tests.commands.support import Daemon
from tests.support.memory import MemoryDriver, Rig


class ImageDaemon(Daemon):
    """A Daemon with the drivers of the catalog; "null-co" nodes are in memory."""

    def __init__(self, folder: Path) -> None:
        rig = Rig()
        rig.graph.find_driver = lambda name: (
            MemoryDriver if name == "null-co" else find_driver(name)
        )
        super().__init__(rig)
        self.context.find_creator = find_creator
        os.chdir(folder)

    async def image(self, name: str, size: int = 1 << 20, **more: Any) -> None:
        """Make a qcow2 image and open it under a node name."""
        await self.make(name, size)
        await self.add(name, **more)

    async def make(self, name: str, size: int = 1 << 20) -> None:
        """Make a qcow2 image."""
        from qsd.commands.new_image import make_image

        await make_image(self.context, f"{name}.qcow2", "qcow2", size)

    async def add(self, name: str, **more: Any) -> None:
        """Open an image."""
        file = {"driver": "file", "filename": f"{name}.qcow2"}
        await self.qmp("blockdev-add", driver="qcow2", node_name=name, file=file, **more)

    async def error(self, command: str, /, **arguments: Any) -> str:
        """Return with what text a command fails."""
        try:
            await self.qmp(command, **arguments)
        except QmpError as exc:
            return exc.desc
        return "no error"

    def names(self) -> list[str]:
        """Return the names that users gave to nodes."""
        return [name for name in self.rig.graph.nodes if not name.startswith("#")]
