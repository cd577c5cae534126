# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""What is peculiar to the engine of pyfuse3; ``test_fuse.py`` puts both through the same."""

from __future__ import annotations

import asyncio
import errno
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from qsd.aio import loop
from qsd.aio.fdio import FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, fallocate
from qsd.errors import QmpError
from qsd.exports.fuse import ENGINE_VARIABLE
from tests.exports.export_rig import ExportRig

needs_mount = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="mounting needs root and FUSE"
)


@pytest.fixture(autouse=True)
def _engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENGINE_VARIABLE, "pyfuse3")


async def mount(rig: ExportRig, name: str = "e", **more: Any) -> str:
    point = rig.path(name)
    Path(point).touch()
    await rig.export("fuse", "m", id=name, mountpoint=point, **more)
    return point


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyfuse3", None)

    async def main() -> None:
        async with ExportRig() as rig:
            await rig.memory("m")
            with pytest.raises(QmpError, match="The FUSE engine 'pyfuse3' cannot be used: import"):
                await mount(rig)
            assert not len(rig.registry)

    loop.run(main())


@pytest.mark.root
@needs_mount
def test_one_mount_at_a_time() -> None:
    pytest.importorskip("pyfuse3", reason="pyfuse3 is not installed")

    async def main() -> None:
        async with ExportRig() as rig, ExportRig() as other:
            await rig.memory("m")
            await other.memory("m")
            point = await mount(rig)
            for refused in (rig, other):  # another daemon in this process is no better off
                with pytest.raises(QmpError, match="'pyfuse3' serves only one export at a time"):
                    await mount(refused, "second")
            assert (await asyncio.to_thread(os.stat, point)).st_size == 1 << 20
            await rig.registry.delete("e", None)
            point = await mount(other, "second")
            assert (await asyncio.to_thread(os.stat, point)).st_size == 1 << 20

    loop.run(main())


@pytest.mark.root
@needs_mount
def test_a_mount_that_fails_leaves_the_session_free(monkeypatch: pytest.MonkeyPatch) -> None:
    library = pytest.importorskip("pyfuse3", reason="pyfuse3 is not installed")

    async def main() -> None:
        def fail(*_: object) -> None:
            raise RuntimeError("fuse_session_mount failed")

        async with ExportRig() as rig:
            await rig.memory("m")
            with monkeypatch.context() as patch:
                patch.setattr(library, "init", fail)
                with pytest.raises(QmpError, match="Failed to mount FUSE session to export: fuse_"):
                    await mount(rig)
            await mount(rig, "second")

    loop.run(main())


@pytest.mark.root
@needs_mount
def test_what_it_cannot_do() -> None:
    pytest.importorskip("pyfuse3", reason="pyfuse3 is not installed")

    def use(point: str) -> None:
        fd = os.open(point, os.O_RDWR)
        try:
            with pytest.raises(OSError, match="not supported") as caught:
                fallocate(fd, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, 0, 4096)
            assert caught.value.errno == errno.EOPNOTSUPP
            # All is data, says the kernel, as with any file system that cannot tell.
            assert os.lseek(fd, 0, os.SEEK_HOLE) == 1 << 20
            with pytest.raises(OSError, match="not supported"):
                os.getxattr(point, "user.x")
        finally:
            os.close(fd)

    async def main() -> None:
        async with ExportRig() as rig:
            await rig.memory("m")
            await asyncio.to_thread(use, await mount(rig, writable=True))

    loop.run(main())
