# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Ordinary files that are taken for such on a FUSE file system; real ones: iotests."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qsd.aio import fdio
from qsd.aio.loop import run
from qsd.block import perms
from qsd.block.backend import Backend
from qsd.catalog import find_driver
from qsd.errors import QmpError
from qsd.protocols.file import image
from qsd.protocols.file.driver import FileDriver
from qsd.protocols.file.served import ServedFile
from tests.protocols.file.test_driver import modify
from tests.support.memory import Rig

SIZE = 1 << 20


@pytest.fixture(autouse=True)
def _taken_for_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "_is_served", lambda device: True)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "f"
    path.write_bytes(bytes(SIZE))
    return path


@pytest.fixture
def calls_of_loop(path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list of calls with a descriptor of the file that the loop's thread makes."""
    found: list[str] = []
    place = path.stat().st_ino
    owner = threading.get_ident()
    is_of_file = os.fstat

    def watch(target: Any, name: str) -> None:
        original: Callable[..., Any] = getattr(target, name)

        def watched(fd: Any, *args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() == owner and isinstance(fd, int):
                try:
                    if is_of_file(fd).st_ino == place:
                        found.append(name)
                except OSError:
                    pass  # about to fail
            return original(fd, *args, **kwargs)

        monkeypatch.setattr(target, name, watched)

    for name in ("pwrite", "lseek", "fstat", "close", "dup2", "fdatasync", "ftruncate"):
        watch(os, name)
    for name in ("_pwrite", "_pwritev", "_preadv"):
        watch(fdio, name)
    return found


def new_rig() -> Rig:
    rig = Rig()
    rig.graph.find_driver = find_driver
    return rig


async def opened(rig: Rig, path: Path, **more: Any) -> tuple[FileDriver, Backend]:
    node = await rig.add(driver="file", node_name="f", filename=str(path), **more)
    assert isinstance(node.driver, FileDriver)
    user = Backend(rig.graph, "", "user")
    user.attach(node, perms.CONSISTENT_READ, perms.ALL)
    return node.driver, user


@pytest.mark.parametrize("direct", [False, True])
def test_the_loop_makes_no_call(path: Path, calls_of_loop: list[str], direct: bool) -> None:
    async def main() -> None:
        async with new_rig() as rig:
            driver, user = await opened(
                rig, path, auto_read_only=True, discard="unmap", cache={"direct": direct}
            )
            assert driver.is_served()
            content = bytearray(4096)
            user.set_perms(perms.CONSISTENT_READ | perms.WRITE | perms.RESIZE, perms.ALL)
            await user.write(4096, memoryview(b"x" * 4096))
            await user.read(4096, memoryview(content))
            assert content == b"x" * 4096
            assert not user.write_nowait(0, memoryview(b""))
            assert not user.read_nowait(4096, memoryview(content))
            assert user.view_nowait(4096, 4096) is None
            await user.zero(8192, 4096, 0)
            await user.discard(12288, 4096)
            await user.flush()
            assert driver.runs_nowait(0, SIZE, 10) is None
            assert driver.extent_path() is None
            assert driver.locate_nowait(0, 4096) is None
            assert driver.late_path(is_write=False) is None
            assert driver.later_path() is None
            assert not await driver.write_from(0, 0, 0, 4096)
            assert (await user.block_status(0, SIZE)).length
            await driver.truncate(2 * SIZE, True, "off", 0)
            driver.image_info()
            user.set_perms(perms.CONSISTENT_READ, perms.ALL)
            await user.detach()

    run(main())
    assert not calls_of_loop
    assert path.stat().st_size == 2 * SIZE
    assert path.read_bytes()[4096:8192] == b"x" * 4096


def test_descriptors_are_kept_and_locks_are_not(path: Path) -> None:
    async def main() -> None:
        async with new_rig() as rig:
            driver, user = await opened(rig, path, auto_read_only=True)
            used: set[int] = set()
            for _ in range(3):
                user.set_perms(perms.CONSISTENT_READ | perms.WRITE, perms.ALL)
                used.add(driver.io.fd)
                await user.write(0, memoryview(b"w" * 512))
                user.set_perms(perms.CONSISTENT_READ, perms.ALL)
                used.add(driver.io.fd)
                await modify(rig, driver="file", node_name="f", filename=str(path))
                used.add(driver.io.fd)
            assert len(used) == 2
            # A rival that refuses to share what only the other descriptor's user takes.
            rival = await rig.add(driver="file", node_name="r", filename=str(path), read_only=True)
            other = Backend(rig.graph, "", "rival")
            user.set_perms(perms.CONSISTENT_READ | perms.WRITE, perms.ALL)
            with pytest.raises(QmpError, match='Failed to get shared "write" lock'):
                other.attach(rival, perms.CONSISTENT_READ, perms.ALL & ~perms.WRITE)
            await modify(rig, driver="file", node_name="f", filename=str(path))
            user.set_perms(perms.CONSISTENT_READ, perms.ALL)
            await modify(rig, driver="file", node_name="f", filename=str(path), read_only=True)
            other.attach(rival, perms.CONSISTENT_READ, perms.ALL & ~perms.WRITE)
            await other.detach()
            await user.detach()

    before = set(os.listdir("/proc/self/fd"))
    run(main())
    assert set(os.listdir("/proc/self/fd")) == before


def test_what_cannot_be_opened_ahead_is_told_when_it_is_needed(path: Path) -> None:
    def refuse(flags: int) -> image.OpenFile:
        raise QmpError("not today")

    async def main() -> None:
        async with new_rig() as rig:
            file = image.open_file(str(path), os.O_RDONLY, lambda mode: None, image.seek_size)
            served = ServedFile(file, rig.pool)
            await served.open_ahead((os.O_RDONLY, os.O_RDWR), refuse)
            assert served.find(os.O_RDONLY) is file
            with pytest.raises(QmpError, match="not today"):
                served.find(os.O_RDWR)

            def accept(flags: int) -> image.OpenFile:
                return image.open_file(str(path), flags, lambda mode: None, image.seek_size)

            await served.open_ahead((os.O_RDWR,), accept)
            assert served.find(os.O_RDWR).flags == os.O_RDWR
            await served.close()

    run(main())


def test_the_space_taken_is_looked_at_again(path: Path) -> None:
    async def main() -> None:
        async with new_rig() as rig:
            driver, user = await opened(rig, path)
            user.set_perms(perms.CONSISTENT_READ | perms.WRITE, perms.ALL)
            before = driver.image_info()["actual-size"]
            assert before == path.stat().st_blocks * 512
            os.truncate(path, 0)
            os.truncate(path, SIZE)
            while driver.image_info()["actual-size"] == before:
                await asyncio.sleep(0.001)
            await user.detach()

    run(main())


def test_a_server_that_is_gone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with new_rig() as rig:
            file = image.open_file(str(path), os.O_RDONLY, lambda mode: None, image.seek_size)
            served = ServedFile(file, rig.pool)
            fd = file.fd

            def fail() -> None:
                os.close(fd)
                raise OSError(107, "Transport endpoint is not connected")

            monkeypatch.setattr(image.OpenFile, "close", lambda self: fail())
            await served.close()

    run(main())
