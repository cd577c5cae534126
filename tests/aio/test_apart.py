# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

import os
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from qsd.aio import apart
from qsd.aio.apart import ApartPool
from qsd.aio.loop import run


def with_pool(path: Path, use: Callable[[ApartPool, int], Awaitable[None]]) -> None:
    async def main() -> None:
        fd = os.open(path, os.O_RDWR)
        pool = ApartPool(fd, 4)
        try:
            await use(pool, fd)
        finally:
            await pool.close()
            await pool.close()
            os.close(fd)

    before = set(os.listdir("/proc/self/fd"))
    run(main())
    assert set(os.listdir("/proc/self/fd")) == before


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "f"
    path.write_bytes(b"content")
    return path


def test_threads_know_one_file_and_no_other(path: Path) -> None:
    async def use(pool: ApartPool, fd: int) -> None:
        reading, writing = os.pipe()
        assert await pool.run(os.pread, fd, 7, 0) == b"content"
        with pytest.raises(OSError, match="Bad file descriptor"):
            await pool.run(os.fstat, writing)
        os.close(writing)
        assert os.read(reading, 1) == b""  # nobody else holds the other end
        os.close(reading)
        known = {int(name) for name in await pool.run(os.listdir, "/proc/thread-self/fd")}
        assert fd in known
        assert len(known - {0, 1, 2}) == 3  # the file, the bell, and the folder just listed

    with_pool(path, use)


def test_many_calls_at_once(path: Path) -> None:
    async def use(pool: ApartPool, fd: int) -> None:
        calls = [pool.submit(os.pread, fd, 1, place % 7) for place in range(100)]
        assert b"".join([await call for call in calls]) == (b"content" * 15)[:100]
        with pytest.raises(OSError, match="Invalid argument"):
            await pool.run(os.pread, fd, 1, -1)

    with_pool(path, use)


def test_a_sandbox_that_lets_nobody_leave(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apart, "_libc_unshare", lambda: lambda flags: -1)

    async def use(pool: ApartPool, fd: int) -> None:
        assert stat.S_ISREG((await pool.run(os.fstat, fd)).st_mode)
        assert await pool.run(os.listdir, "/proc/thread-self/fd")

    with_pool(path, use)


def test_no_kernel_queue(path: Path) -> None:
    async def use(pool: ApartPool, fd: int) -> None:
        assert pool.ring() is None
        assert pool.linux_aio() is None

    with_pool(path, use)
