# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Copies of sources in many pieces go in one request, and are what the plain way makes."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from qsd.aio import fdio
from qsd.aio.loop import run
from qsd.block import patches as patches_module
from qsd.block import perms
from qsd.block.backend import Backend
from qsd.block.copy import RangeCopier
from qsd.block.mapped import MappedDriver
from qsd.block.mapping import Patch
from qsd.block.patches import copy_patches
from qsd.errors import os_error
from qsd.formats.qcow2.driver import Qcow2Driver
from qsd.formats.raw import RawDriver
from qsd.protocols.file import copying
from qsd.protocols.file.driver import FileDriver
from tests.formats.qcow2.support import add_image, check, content, make
from tests.support.memory import Rig
from tests.support.tools import need

UNIT = 64 << 10
SIZE = 64 * UNIT


def _source(path: Path, seed: int) -> bytes:
    """Make a file with holes."""
    dice = random.Random(seed)
    data = bytearray(SIZE)
    path.write_bytes(b"")
    os.truncate(path, SIZE)
    with path.open("r+b") as file:
        at = 0
        while at < 62:
            count = dice.randrange(1, 3)
            data[at * UNIT : (at + count) * UNIT] = dice.randbytes(count * UNIT)
            file.seek(at * UNIT)
            file.write(data[at * UNIT : (at + count) * UNIT])
            at += count + dice.randrange(1, 4)
    return bytes(data)


async def _open(rig: Rig, folder: Path) -> tuple[Backend, Backend]:
    file: dict[str, Any] = {"driver": "file", "filename": str(folder / "source")}
    users = []
    for node in (
        await rig.add(**{"driver": "raw", "node-name": "s", "file": file}),
        await add_image(rig, folder / "target", "t"),
    ):
        users.append(Backend(rig.graph, "", "a test"))
        users[-1].attach(node, perms.CONSISTENT_READ | perms.WRITE, perms.ALL)
    return users[0], users[1]


def _rig() -> Rig:
    return Rig(qcow2=Qcow2Driver, raw=RawDriver, file=FileDriver)


@pytest.mark.parametrize("limit", [2, 256])
@pytest.mark.parametrize("is_new", [True, False])
def test_a_source_in_pieces_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, is_new: bool
) -> None:
    need("qemu-img")
    want = _source(tmp_path / "source", limit)
    make(tmp_path / "target", SIZE)
    monkeypatch.setattr(patches_module, "_MAX_PATCHES", limit)
    served: list[int] = []
    real = Qcow2Driver.write_patches

    async def write_patches(
        self: Qcow2Driver, offset: int, length: int, patches: Sequence[Patch], flags: int
    ) -> int:
        served.append(await real(self, offset, length, patches, flags))
        return served[-1]

    monkeypatch.setattr(Qcow2Driver, "write_patches", write_patches)

    async def main() -> None:
        async with _rig() as rig:
            source, target = await _open(rig, tmp_path)
            if not is_new:
                await target.write(20 * UNIT, memoryview(b"old" * UNIT))
            copier = RangeCopier(source, target)
            moved = 0
            for offset in range(0, SIZE, 16 * UNIT):
                moved += await copier.copy(offset, 16 * UNIT)
            assert moved == SIZE - sum(
                not any(want[at : at + UNIT]) for at in range(0, SIZE, UNIT)
            ) * UNIT  # fmt: skip
            await target.flush()
            for user in (source, target):
                await user.detach()

    run(main())
    assert bool(all(served)) is is_new
    assert len(served) >= (4 if limit > 2 else 8)
    assert content(tmp_path / "target", tmp_path) == want
    check(tmp_path / "target")


def test_what_declines_holds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need("qemu-img")
    _source(tmp_path / "source", 1)
    make(tmp_path / "target", SIZE)

    async def fails(self: object, *arguments: object) -> int:
        raise os_error(errno.ENOSPC)

    async def main() -> None:
        async with _rig() as rig:
            source, target = await _open(rig, tmp_path)
            # The plain way finds out what is wrong.
            monkeypatch.setattr(FileDriver, "write_patches", fails)
            pieces = [(0, UNIT), (2 * UNIT, UNIT)]
            assert not await copy_patches(source.node, target.node, 0, 4 * UNIT, pieces, 0)
            # A new image's pieces lie nowhere.
            assert not await copy_patches(target.node, source.node, 0, 4 * UNIT, pieces, 0)
            driver = target.node.driver
            assert isinstance(driver, MappedDriver)
            assert not len(driver.ranges)
            for user in (source, target):
                await user.detach()

    run(main())
    check(tmp_path / "target")


@pytest.mark.parametrize("fault", ["none", "no fallocate", "window", "growing"])
@pytest.mark.parametrize("discard", ["unmap", "ignore"])
def test_zeroes_between_go_to_files_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, discard: str
) -> None:
    want = _source(tmp_path / "source", 3)
    start = 2 * UNIT if fault == "window" else 0
    there = start + (10 * UNIT if fault == "growing" else SIZE)
    (tmp_path / "target").write_bytes(b"?" * there)
    modes: list[int] = []
    served: list[int] = []
    real_zero, real_write = fdio.fallocate, FileDriver.write_patches

    def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
        modes.append(mode)
        if fault == "no fallocate":
            raise os_error(errno.EOPNOTSUPP)
        real_zero(fd, mode, offset, length)

    async def write_patches(self: FileDriver, *arguments: Any) -> int:
        served.append(await real_write(self, *arguments))
        return served[-1]

    monkeypatch.setattr(copying, "fallocate", fallocate)
    monkeypatch.setattr(FileDriver, "write_patches", write_patches)

    async def main() -> None:
        async with _rig() as rig:
            users = []
            for name in ("source", "target"):
                node = await rig.add(
                    **{
                        "driver": "raw",
                        "node-name": name[0],
                        "offset": start if name == "target" else 0,
                        "discard": discard,
                        "file": {
                            "driver": "file",
                            "filename": str(tmp_path / name),
                            "discard": discard,
                        },
                    }
                )
                users.append(Backend(rig.graph, "", "a test"))
                users[-1].attach(node, perms.CONSISTENT_READ | perms.WRITE, perms.ALL)
            copier = RangeCopier(*users)
            end = there - start
            for offset in range(0, end, 16 * UNIT):
                await copier.copy(offset, min(16 * UNIT, end - offset))
            # What goes behind the end of a file is left to the plain way.
            behind = await users[1].node.driver.write_patches(
                end - UNIT, 4 * UNIT, [Patch(end - UNIT, UNIT, 0, 0)], 0
            )
            assert not behind
            for user in users:
                await user.detach()

    run(main())
    assert (tmp_path / "target").read_bytes() == b"?" * start + want[: there - start]
    assert all(served[:-1]) is (fault != "no fallocate")
    # It is tried once.
    assert len(modes) == 1 if fault == "no fallocate" else len(modes) > 1
    punched = fdio.FALLOC_PUNCH_HOLE | fdio.FALLOC_KEEP_SIZE
    assert set(modes) == {punched if discard == "unmap" else fdio.FALLOC_ZERO_RANGE}
