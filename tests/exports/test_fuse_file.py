# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""What the mounted file answers, without a kernel: every rule of the C daemon's behaviour."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsd.aio import loop
from qsd.aio.fdio import FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE
from qsd.block import perms
from qsd.block.backend import Backend
from qsd.errors import QmpError, os_error
from qsd.exports.fuse_file import FuseFile
from qsd.wire import fuse
from tests.support.memory import MemoryDriver, Rig

SIZE = 1 << 20
HOLE = FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE


class FileRig(Rig):
    """A node of 1 MiB of which the first 8 KiB are data."""

    driver: MemoryDriver

    async def file(self, *, writable: bool = True, growable: bool = False) -> FuseFile:
        self.driver = await self.memory("m", discard="unmap")
        self.driver.data[:8192] = b"d" * 8192
        backend = Backend(self.graph, "", "test")
        backend.attach(self.graph.nodes["m"], perms.CONSISTENT_READ | perms.WRITE, perms.ALL)
        return FuseFile(backend, writable=writable, growable=growable)


def with_file(use: Callable[[FuseFile, FileRig], Awaitable[None]], **options: Any) -> None:
    async def main() -> None:
        async with FileRig() as rig:
            file = await rig.file(**options)
            await use(file, rig)
            await file.backend.detach()

    loop.run(main())


async def error_of(answer: Awaitable[Any]) -> str | None:
    try:
        await answer
    except OSError as exc:
        return errno.errorcode[exc.errno or 0]
    return None


def wanted(**values: int) -> fuse.SetAttributes:
    flags = {
        "size": fuse.FATTR_SIZE,
        "mode": fuse.FATTR_MODE,
        "uid": fuse.FATTR_UID,
        "gid": fuse.FATTR_GID,
        "mtime": fuse.FATTR_MTIME,
    }
    valid = sum(flags[name] for name in values)
    values.pop("mtime", None)
    return fuse.SetAttributes(valid, **{"size": 0, "mode": 0, "uid": 0, "gid": 0, **values})


@pytest.mark.parametrize(("writable", "mode"), [(True, 0o600), (False, 0o400)])
def test_attributes(writable: bool, mode: int) -> None:
    async def use(file: FuseFile, rig: FileRig) -> None:
        found = file.attributes()
        assert (found.size, found.allocated, found.blksize) == (SIZE, SIZE, 1)
        assert found.mode == stat.S_IFREG | mode
        assert (found.uid, found.gid) == (os.getuid(), os.getgid())

    with_file(use, writable=writable)


@pytest.mark.parametrize(("allocated", "shown"), [(0, SIZE), (8192, 8192), (None, SIZE)])
def test_a_file_without_anything_allocated_looks_full(allocated: int | None, shown: int) -> None:
    async def use(file: FuseFile, rig: FileRig) -> None:
        info = {} if allocated is None else {"actual-size": allocated}
        rig.driver.image_info = lambda: info  # type: ignore[method-assign]
        assert file.attributes().allocated == shown

    with_file(use)


@pytest.mark.parametrize(
    ("writable", "others", "mode", "error"),
    [
        (True, True, 0o777, None),
        (True, False, 0o700, None),
        (True, False, 0o640, "EPERM"),
        (True, False, 0o4600, None),
        (False, True, 0o555, None),
        (False, True, 0o600, "EROFS"),
        (False, False, 0o644, "EPERM"),  # before EROFS
        (False, False, 0o200, "EROFS"),
    ],
)
def test_chmod(writable: bool, others: bool, mode: int, error: str | None) -> None:
    async def use(file: FuseFile, rig: FileRig) -> None:
        before = file.attributes().mode
        file.allow_other = others
        assert await error_of(file.set_attributes(wanted(mode=mode))) == error
        assert file.attributes().mode == (before if error else stat.S_IFREG | mode)

    with_file(use, writable=writable)


def test_owner_and_times() -> None:
    async def use(file: FuseFile, rig: FileRig) -> None:
        assert await error_of(file.set_attributes(wanted(uid=1))) == "ENOTSUP"
        file.allow_other = True
        await file.set_attributes(wanted(uid=1))
        await file.set_attributes(wanted(gid=2))
        assert (file.attributes().uid, file.attributes().gid) == (1, 2)
        assert await error_of(file.set_attributes(wanted(mtime=0))) == "ENOTSUP"

    with_file(use)


def test_a_refused_change_changes_nothing() -> None:
    async def use(file: FuseFile, rig: FileRig) -> None:
        assert await error_of(file.set_attributes(wanted(size=512, mode=0o666))) == "EPERM"
        assert await error_of(file.set_attributes(wanted(size=512, mtime=0))) == "ENOTSUP"
        assert file.attributes().size == SIZE

    with_file(use)


def test_resize() -> None:
    async def use(file: FuseFile, rig: FileRig) -> None:
        for size in (512, 3 << 20):
            await file.set_attributes(wanted(size=size))
            assert len(rig.driver.data) == size
        assert await error_of(file.set_attributes(wanted(size=(1 << 63) - 1))) == "EIO"
        assert file.attributes().size == 3 << 20

    with_file(use)


@pytest.mark.parametrize(
    ("size", "failure", "error"),
    [
        (4096, os_error(errno.EFBIG), "EFBIG"),
        (4096, QmpError("only words"), "ENOTSUP"),
        (4097, QmpError("only words"), "ENOTSUP"),
    ],
)
def test_errors_of_a_resize(size: int, failure: Exception, error: str) -> None:
    async def use(file: FuseFile, rig: FileRig) -> None:
        async def refuse(*_: object) -> None:
            if isinstance(failure, OSError):
                raise QmpError("in words") from failure
            raise failure

        rig.driver.truncate = refuse  # type: ignore[assignment, method-assign]
        assert await error_of(file.set_attributes(wanted(size=size))) == error
        assert not file.backend.in_flight

    with_file(use)


def test_reads_stop_at_the_end() -> None:
    async def use(file: FuseFile, rig: FileRig) -> None:
        assert file.readable(0, 4096) == 4096
        assert file.readable(SIZE - 10, 4096) == 10
        assert file.readable(SIZE, 1) == file.readable(SIZE * 9, 1) == 0
        assert file.readable(0, 1 << 40) == fuse.MAX_PAYLOAD
        view = memoryview(bytearray(4))
        await file.read(8190, view)
        assert bytes(view) == b"dd\0\0"
        await file.read(SIZE, view[:0])

    with_file(use)


def test_writes_at_the_end() -> None:
    async def use(file: FuseFile, rig: FileRig) -> None:
        assert await file.write(SIZE - 3, memoryview(b"abcdef")) == 3
        assert rig.driver.data[-4:] == b"\0abc"
        for offset in (SIZE, SIZE * 5):
            assert await error_of(file.write(offset, memoryview(b"x"))) == "EIO"
        file.growable = True
        assert await file.write(SIZE * 2, memoryview(b"x" * 512)) == 512
        assert len(rig.driver.data) == SIZE * 2 + 512
        file.writable = False
        assert await error_of(file.write(0, memoryview(b"x"))) == "EACCES"

    with_file(use)


@pytest.mark.parametrize(
    ("mode", "offset", "length", "result"),
    [
        # Space inside the file cannot be reserved.
        (0, 0, 4096, "ENOTSUP"),
        (0, SIZE - 4096, 8192, "ENOTSUP"),
        (0, SIZE, 8192, SIZE + 8192),
        (0, SIZE * 4, 4096, SIZE * 4 + 4096),
        (FALLOC_KEEP_SIZE, 0, 4096, "ENOTSUP"),
        (FALLOC_KEEP_SIZE, SIZE * 2, 4096, "ENOTSUP"),
        # Holes never change the length, and begin in the file.
        (HOLE, 0, 4096, SIZE),
        (HOLE, SIZE - 512, SIZE, SIZE),
        (HOLE, SIZE, 4096, SIZE),
        (HOLE, SIZE + 1, 4096, "EIO"),
        # Zeroes may do so.
        (FALLOC_ZERO_RANGE, 0, 4096, SIZE),
        (FALLOC_ZERO_RANGE, SIZE - 512, 1024, SIZE + 512),
        (FALLOC_ZERO_RANGE, SIZE * 3, 4096, SIZE * 3 + 4096),
        (FALLOC_ZERO_RANGE | FALLOC_KEEP_SIZE, SIZE - 512, 1024, SIZE),
        (FALLOC_ZERO_RANGE | FALLOC_KEEP_SIZE, SIZE, 1024, SIZE),
        (FALLOC_ZERO_RANGE | FALLOC_KEEP_SIZE, SIZE + 512, 1024, "EIO"),
        # Collapse, insert, unshare and what nobody knows yet.
        (8, 0, 4096, "ENOTSUP"),
        (32, 0, 4096, "ENOTSUP"),
        (64, 0, 4096, "ENOTSUP"),
        (1 << 20, 0, 4096, "ENOTSUP"),
    ],
)
def test_fallocate(mode: int, offset: int, length: int, result: int | str) -> None:
    async def use(file: FuseFile, rig: FileRig) -> None:
        error = await error_of(file.allocate(offset, length, mode))
        assert result == (error or len(rig.driver.data))
        if not error and mode & (FALLOC_PUNCH_HOLE | FALLOC_ZERO_RANGE):
            assert not any(rig.driver.data[offset : offset + length])
        file.writable = False
        assert await error_of(file.allocate(offset, length, mode)) == "EACCES"

    with_file(use)


def test_only_what_is_asked_for_is_allocated() -> None:
    """Not what lies between; and when it fails, the file is longer all the same."""

    async def use(file: FuseFile, rig: FileRig) -> None:
        calls: list[tuple[int, str]] = []
        driver, room = rig.driver, SIZE * 8

        class Watched(MemoryDriver):
            async def truncate(self, length: int, exact: bool, prealloc: str, flags: int) -> None:
                calls.append((length, prealloc))
                if prealloc != "off" and length > room:
                    raise QmpError("full") from os_error(errno.ENOSPC)
                await super().truncate(length, exact, prealloc, flags)

        driver.__class__ = Watched
        await file.allocate(SIZE, 4096, 0)
        await file.allocate(SIZE * 3, 4096, 0)
        assert await error_of(file.allocate(SIZE * 5, room, 0)) == "ENOSPC"
        assert len(driver.data) == SIZE * 5
        assert calls == [
            (SIZE + 4096, "falloc"),
            (SIZE * 3, "off"),
            (SIZE * 3 + 4096, "falloc"),
            (SIZE * 5, "off"),
            (SIZE * 5 + room, "falloc"),
        ]

    with_file(use)


@settings(max_examples=30, deadline=None)
@given(
    pages=st.sets(st.integers(0, 15)),
    length=st.integers(1, 127).map(lambda sectors: sectors * 512),
    offset=st.integers(0, 70000),
)
def test_holes_against_a_model(pages: set[int], length: int, offset: int) -> None:
    """The driver tells data from holes by pages of 4 KiB."""

    def model(whence: int) -> int | str:
        if offset > length or (offset == length and whence == os.SEEK_DATA):
            return "ENXIO"
        at = offset
        while at < length and (at // 4096 in pages) != (whence == os.SEEK_DATA):
            at = at // 4096 * 4096 + 4096
        if at >= length:
            return "ENXIO" if whence == os.SEEK_DATA else length
        return at

    async def use(file: FuseFile, rig: FileRig) -> None:
        rig.driver.data[:] = b"".join(
            (b"x" if page in pages else b"\0") * 4096 for page in range(16)
        )[:length]
        rig.graph.nodes["m"].length_changed()
        for whence in (os.SEEK_DATA, os.SEEK_HOLE):
            try:
                found: int | str = await file.seek(offset, whence)
            except OSError as exc:
                found = errno.errorcode[exc.errno or 0]
            assert found == model(whence)

    with_file(use)


def test_other_ways_to_seek() -> None:
    async def use(file: FuseFile, rig: FileRig) -> None:
        assert await error_of(file.seek(0, os.SEEK_END)) == "EINVAL"
        for negative in (-1, -(1 << 63)):  # as the kernel passes it on
            offset = negative + (1 << 64)
            assert await error_of(file.seek(offset, os.SEEK_HOLE)) == "EINVAL"
            assert await error_of(file.seek(offset, os.SEEK_DATA)) == "ENXIO"

    with_file(use)


def test_flush() -> None:
    async def use(file: FuseFile, rig: FileRig) -> None:
        await file.write(0, memoryview(b"x"))
        await file.flush()
        assert ("flush", 0, 0) in rig.driver.log

    with_file(use)


def test_growing_twice_at_the_same_time() -> None:
    """The one that ends earlier waited for the other's resize and then shrank the node again."""

    async def use(file: FuseFile, rig: FileRig) -> None:
        rig.driver.gate = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            far = group.create_task(file.write(5 << 20, memoryview(bytes(512))))
            near = group.create_task(file.write(3 << 20, memoryview(bytes(512))))
            await asyncio.sleep(0)
            rig.driver.gate.set()
        assert (far.result(), near.result()) == (512, 512)
        assert len(rig.driver.data) == (5 << 20) + 512

    with_file(use, growable=True)
