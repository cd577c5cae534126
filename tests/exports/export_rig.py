# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""A graph and an export registry that knows every type of export.

Clients of these exports block; tests run them in threads: ``await asyncio.to_thread(...)``.
"""

from __future__ import annotations

import os
import tempfile
from typing import Any, Self

from qsd.catalog import find_export
from qsd.exports.base import Export, ExportRegistry
from qsd.objects.tree import ObjectTree
from qsd.qapi.convert import from_json
from qsd.qapi.schema.block_export import BlockExportOptions
from tests.support.memory import Rig


class ExportRig(Rig):
    """``async with ExportRig() as rig``; all exports end with it.

    Attributes:
        registry: The exports.
        reports: What the registry printed.
        folder: A temporary folder.
    """

    def __init__(self, **drivers: Any) -> None:
        super().__init__(**drivers)
        self.reports: list[str] = []
        self.registry = ExportRegistry(
            self.graph,
            ObjectTree(),
            self.events,
            self.tasks,
            find_export,
            report=self.reports.append,
        )
        self._dir = tempfile.TemporaryDirectory(prefix="qsd-export-")
        self.folder = self._dir.name

    def path(self, name: str) -> str:
        return os.path.join(self.folder, name)

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        return self

    async def __aexit__(self, exc_type: object, *rest: object) -> None:
        await self.registry.close()
        await super().__aexit__(exc_type, *rest)
        self._dir.cleanup()
        if exc_type is None:
            assert not self.errors, self.errors

    async def export(
        self, kind: str, node: str, *, by_monitor: bool = False, **more: Any
    ) -> Export:
        options: dict[str, Any] = {"type": kind, "id": "e", "node-name": node}
        options.update({key.replace("_", "-"): value for key, value in more.items()})
        typed = from_json(BlockExportOptions, options)
        return await self.registry.add(typed, by_monitor=by_monitor)
