# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The FUSE export: a node appears as a regular file.

The parts::

    FuseExport     mounts and unmounts, and takes permissions on the node
        |
    FuseEngine     speaks to the kernel: fuse_native does it itself, fuse_pyfuse3 by libfuse
        |
    FuseFile       says what the file does

The kernel caches pages and attributes.  When the length changes behind its back (block_resize), it
is told that the attributes are stale.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import TYPE_CHECKING, Any, ClassVar, Final

from qsd.block import perms
from qsd.errors import QmpError, describe
from qsd.exports.base import Export
from qsd.exports.fuse_file import FuseFile
from qsd.exports.fuse_mount import check_mountpoint

if TYPE_CHECKING:
    from qsd.block.backend import Backend
    from qsd.exports.base import ExportRegistry
    from qsd.exports.fuse_file import FuseEngine

#: Environment variable that names the engine: "native" or "pyfuse3".
ENGINE_VARIABLE: Final = "QSD_FUSE_ENGINE"


class FuseExport(Export):
    """One mounted file.

    Attributes:
        mountpoint: Where, as the user gave it.
    """

    TYPE: ClassVar[str] = "fuse"

    __slots__ = ("_engine", "_mounted", "_path", "mountpoint")

    def __init__(
        self, registry: ExportRegistry, export_id: str, backend: Backend, writable: bool
    ) -> None:
        super().__init__(registry, export_id, backend, writable)
        self.mountpoint = self._path = ""
        self._engine: FuseEngine | None = None
        self._mounted = 0.0

    async def start(self, options: Any) -> None:
        """Mount the file.

        Raises:
            QmpError: It is impossible.
        """
        self._take_permissions()
        self._check_free(options.mountpoint, options.mountpoint)
        path = await self.backend.graph.pool.run(check_mountpoint, options.mountpoint)
        self._check_free(options.mountpoint, path)
        self.mountpoint, self._path = options.mountpoint, path
        self._mounted = asyncio.get_running_loop().time()
        file = FuseFile(self.backend, writable=self.writable, growable=bool(options.growable))
        try:
            self._engine = await self._mount(file, path, options.allow_other or "auto")
        except OSError as exc:
            self.mountpoint = self._path = ""
            raise QmpError(f"Failed to mount FUSE session to export: {describe(exc)}") from exc

    def _check_free(self, name: str, path: str) -> None:
        """Refuse a place that carries a mount of ours already, by whatever name.

        The C daemon waits for itself for ever when it looks at one by another name than before.
        And of two mounts in one place, only the upper one could be taken away.

        Raises:
            QmpError: It does.
        """
        for export in self.registry.of_type(self.TYPE):
            if not isinstance(export, FuseExport) or export is self:
                continue
            if path in (export.mountpoint, export._path):
                raise QmpError(f"There already is a FUSE export on '{name}'")

    def _take_permissions(self) -> None:
        """A writable file can be truncated, and nobody relies on its length."""
        perm = perms.CONSISTENT_READ
        if self.writable:
            perm |= perms.WRITE | perms.RESIZE
        self.backend.set_perms(perm, perms.ALL)

    async def _mount(self, file: FuseFile, path: str, allow_other: str) -> FuseEngine:
        """Mount, for other users too where that is wanted or, by default, allowed."""
        engine = self._new_engine(file)
        if allow_other != "off":
            file.allow_other = True
            try:
                await engine.mount(path, allow_other=True)
            except OSError:
                if allow_other == "on":
                    raise
                file.allow_other = False
            else:
                return engine
        await engine.mount(path, allow_other=False)
        return engine

    def _new_engine(self, file: FuseFile) -> FuseEngine:
        """Return the engine that the environment names, else the one that works here.

        Raises:
            QmpError: There is none of that name, or it is not installed.
        """
        name = os.environ.get(ENGINE_VARIABLE) or (
            "native" if sys.platform == "linux" else "pyfuse3"
        )
        if name == "native":
            from qsd.exports.fuse_native import NativeEngine

            return NativeEngine(file, self.registry.tasks)
        if name == "pyfuse3":
            from qsd.exports.fuse_pyfuse3 import Pyfuse3Engine

            return Pyfuse3Engine(file, self.registry.tasks)
        raise QmpError(f"{ENGINE_VARIABLE} is '{name}', not 'native' or 'pyfuse3'")

    def shows_file_since(self) -> float:
        """Return when it was mounted."""
        return self._mounted

    def disconnect(self) -> None:
        """Nothing: a mount counts no users."""

    async def released(self) -> None:
        """Unmount."""
        if self._engine is not None:
            await self._engine.unmount()

    def resized(self) -> None:
        """The length changed: the kernel must ask again."""
        if self._engine is not None:
            self._engine.length_changed()
