# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

import asyncio
import errno
import itertools
import mmap
import os
import subprocess
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qsd.aio import fdio, slowness
from qsd.aio.bounce import BouncePool
from qsd.aio.fdio import FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FileIO
from qsd.aio.loop import run
from qsd.aio.workers import WorkerPool


def with_io(
    path: Path,
    body: Callable[[FileIO], Coroutine[Any, Any, None]],
    flags: int = 0,
    *,
    ring: bool = True,
) -> None:
    async def main() -> None:
        pool = WorkerPool()
        pool._can_ring = ring
        fd = os.open(path, os.O_RDWR | os.O_CREAT | flags)
        io = FileIO(fd, pool)
        if flags & os.O_DIRECT:
            io.set_direct(BouncePool(), 512, 512)
        try:
            await body(io)
        finally:
            os.close(fd)
            await pool.close()

    run(main())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "f"


def forbid_threads(io: FileIO, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise AssertionError("a thread was asked")

    monkeypatch.setattr(io.pool, "run", refuse)


def test_cached_data_needs_no_thread(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(io: FileIO) -> None:
        forbid_threads(io, monkeypatch)
        view = memoryview(bytearray(8))
        await io.write(0, memoryview(b"abcdefgh"))
        await io.writev(8, [memoryview(b"ijkl"), memoryview(b"mnop")])
        await io.read(4, view)
        assert bytes(view) == b"efghijkl"
        assert await io.next_extent(0) == (0, 16)
        monkeypatch.undo()

    with_io(path, body)


def test_reads_past_the_end_give_zeroes(path: Path) -> None:
    path.write_bytes(b"abc")

    async def body(io: FileIO) -> None:
        for offset, expected in ((0, b"abc" + bytes(5)), (2, b"c" + bytes(7)), (100, bytes(8))):
            view = memoryview(bytearray(b"\xa5" * 8))
            assert not io.read_nowait(offset, view)
            await io.read(offset, view)
            assert bytes(view) == expected

    with_io(path, body)


def test_kernel_without_nowait(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_bytes(b"abcd")
    real = fdio._preadv
    calls: list[int] = []

    def preadv(fd: int, views: Any, offset: int, flags: int = 0) -> int:
        calls.append(flags)
        if flags:
            raise OSError(errno.EOPNOTSUPP, "not here")
        return real(fd, views, offset)

    monkeypatch.setattr(fdio, "_preadv", preadv)

    async def body(io: FileIO) -> None:
        view = memoryview(bytearray(4))
        for _ in range(3):
            await io.read(0, view)
            assert bytes(view) == b"abcd"
        assert calls == [os.RWF_NOWAIT, 0, 0, 0]

    with_io(path, body, ring=False)


def test_cold_data_is_read_in_a_thread(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_bytes(b"abcd")
    real = fdio._preadv

    def preadv(fd: int, views: Any, offset: int, flags: int = 0) -> int:
        if flags:
            raise BlockingIOError(errno.EAGAIN, "not yet")
        return real(fd, views, offset)

    monkeypatch.setattr(fdio, "_preadv", preadv)

    async def body(io: FileIO) -> None:
        view = memoryview(bytearray(4))
        assert not io.read_nowait(0, view)
        await io.read(0, view)
        assert bytes(view) == b"abcd"

    with_io(path, body)


def test_real_read_errors(path: Path) -> None:
    async def body(io: FileIO) -> None:
        bad = FileIO(os.open(path, os.O_WRONLY), io.pool)
        with pytest.raises(OSError) as info:
            bad.read_nowait(0, memoryview(bytearray(4)))
        assert info.value.errno == errno.EBADF
        os.close(bad.fd)

    with_io(path, body)


def test_slow_writes_go_to_threads_for_a_while(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    cost = [0.0]
    inline: list[int] = []
    real = os.pwrite

    def pwrite(fd: int, view: memoryview, offset: int) -> int:
        inline.append(offset)
        now[0] += cost[0]
        return real(fd, view, offset)

    monkeypatch.setattr(fdio, "_pwrite", pwrite)
    monkeypatch.setattr(fdio, "monotonic", lambda: now[0])
    waits = itertools.count()
    monkeypatch.setattr(slowness, "_voluntary_switches", lambda: next(waits))

    async def body(io: FileIO) -> None:
        data = memoryview(b"x" * 512)
        await io.write(0, data)
        cost[0] = 0.05  # the kernel throttles
        await io.write(512, data)
        now[0] += 2
        await io.write(1024, data)  # long after the other: each may be chance
        await io.write(1536, data)
        await io.write(2048, data)
        now[0] += 1
        cost[0] = 0
        await io.write(2560, data)
        assert inline == [0, 512, 1024, 1536, 2560]
        await io.write(0, memoryview(bytes(fdio.MAX_INLINE_WRITE + 1)))
        assert inline == [0, 512, 1024, 1536, 2560]

    with_io(path, body)
    assert path.stat().st_size == fdio.MAX_INLINE_WRITE + 1


def test_slow_seeks_go_to_threads_for_a_while(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(fdio, "monotonic", lambda: now[0])
    real = fdio.find_extent

    def slow(fd: int, offset: int) -> tuple[int, int] | None:
        now[0] += 0.1
        return real(fd, offset)

    monkeypatch.setattr(fdio, "find_extent", slow)
    path.write_bytes(b"x" * 10)

    async def body(io: FileIO) -> None:
        assert await io.next_extent(0) == (0, 10)
        called: list[Any] = []
        real_run = io.pool.run

        def note(*args: Any) -> Any:
            called.append(args[0])
            return real_run(*args)

        monkeypatch.setattr(io.pool, "run", note)
        assert await io.next_extent(5) == (5, 10)
        assert called == [slow]

    with_io(path, body)


def test_extents(path: Path) -> None:
    with path.open("wb") as file:
        file.seek(1 << 20)
        file.write(b"x" * 4096)
        file.truncate(2 << 20)

    async def body(io: FileIO) -> None:
        assert await io.next_extent(0) == (1 << 20, (1 << 20) + 4096)
        assert await io.next_extent((1 << 20) + 4000) == ((1 << 20) + 4000, (1 << 20) + 4096)
        assert await io.next_extent((1 << 20) + 4096) is None
        assert await io.next_extent(5 << 20) is None

    with_io(path, body)


def test_fallocate(path: Path) -> None:
    path.write_bytes(b"x" * 8192)

    async def body(io: FileIO) -> None:
        await io.fallocate(FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, 0, 4096)
        await io.fallocate(0, 8192, 4096)
        with pytest.raises(OSError) as info:
            await io.fallocate(FALLOC_PUNCH_HOLE, 0, 4096)  # only together with KEEP_SIZE
        assert info.value.errno == errno.EOPNOTSUPP
        await io.sync()
        await io.truncate(10000)

    with_io(path, body)
    assert path.read_bytes() == bytes(4096) + b"x" * 4096 + bytes(10000 - 8192)


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    pieces=st.lists(
        st.tuples(st.integers(0, 500), st.integers(1, 400), st.integers(0, 512), st.booleans()),
        min_size=1,
        max_size=8,
    )
)
def test_direct_io_from_any_address(pieces: list[tuple[int, int, int, bool]], path: Path) -> None:
    """Sectors at any place, from and to buffers at any address, large and small, read-only too."""
    path.write_bytes(b"")
    model = bytearray(1000 * 512)

    async def body(io: FileIO) -> None:
        for sector, count, shift, split in pieces:
            offset, length = sector * 512, count * 512
            data = os.urandom(length)
            store = memoryview(bytearray(length + 512))[shift : shift + length]
            store[:] = data
            if split:
                await io.writev(offset, [store[:100], store[100:]])
            else:
                await io.write(offset, memoryview(data) if shift % 2 else store)
            model[offset : offset + length] = data
            store[:] = b"\xa5" * length
            await io.read(offset, store)
            assert store == data
        whole = memoryview(mmap.mmap(-1, len(model)))
        await io.read(0, whole)
        assert whole == model
        whole.release()

    with_io(path, body, os.O_DIRECT)
    path.write_bytes(b"")
    model[:] = bytes(len(model))
    with_io(path, body, os.O_DIRECT, ring=False)


@pytest.mark.parametrize("ring", [True, False])
def test_direct_io_at_the_end(path: Path, ring: bool) -> None:
    path.write_bytes(b"x" * 1000)

    async def body(io: FileIO) -> None:
        view = memoryview(bytearray(b"\xa5" * 2048))
        await io.read(512, view)
        assert bytes(view) == b"x" * 488 + bytes(1560)

    with_io(path, body, os.O_DIRECT, ring=ring)


def test_addresses() -> None:
    assert fdio.address_of(memoryview(b"abc")) == 0
    buffer = memoryview(bytearray(10))
    assert fdio.address_of(buffer[3:]) == fdio.address_of(buffer) + 3


@pytest.mark.parametrize("flags", [0, os.O_DIRECT])
def test_reads_that_end_without_a_coroutine(path: Path, flags: int) -> None:
    content = os.urandom(300 << 10)
    path.write_bytes(content)

    async def body(io: FileIO) -> None:
        if io.pool.ring() is None:
            pytest.skip("the kernel gives no io_uring here")
        for offset, length in ((0, 512), (4096, 4096), (0, 256 << 10)):
            view = memoryview(bytearray(length + 3))[3:]
            arrived: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
            assert io.read_later(offset, view, arrived.set_result)
            assert await arrived
            assert view == content[offset : offset + length]
        arrived = asyncio.get_running_loop().create_future()
        assert io.read_later(300 << 10, memoryview(bytearray(512)), arrived.set_result)
        assert not await arrived  # the end of the file is for the plain way

    with_io(path, body, flags)


def test_writes_that_end_without_a_coroutine(path: Path) -> None:
    path.write_bytes(bytes(300 << 10))

    async def body(io: FileIO) -> None:
        if io.pool.ring() is None:
            pytest.skip("the kernel gives no io_uring here")
        expected = bytearray(300 << 10)
        for offset, length in ((512, 512), (4096, 4096), (8192, 256 << 10)):
            view = memoryview(bytearray(os.urandom(length + 3)))[3:]
            arrived: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
            assert io.write_later(offset, view, arrived.set_result)
            assert await arrived
            expected[offset : offset + length] = view
        assert path.read_bytes() == expected
        with memoryview(mmap.mmap(-1, 256 << 10)) as aligned:
            aligned[:4] = b"page"
            arrived = asyncio.get_running_loop().create_future()
            assert io.write_later(0, aligned, arrived.set_result)
            assert await arrived
        assert path.read_bytes()[:5] == b"page\0"
        arrived = asyncio.get_running_loop().create_future()
        assert io.write_later(1, memoryview(bytes(512)), arrived.set_result)
        assert not await arrived  # not aligned: the plain way tells

    with_io(path, body, os.O_DIRECT)


def test_buffered_writes_need_no_ring(path: Path) -> None:
    async def body(io: FileIO) -> None:
        assert not io.write_later(0, memoryview(b"x"), lambda full: None)

    with_io(path, body)


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="no file system in memory here")
def test_files_in_memory_are_read_at_once() -> None:
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
        file.write(b"memory")
        file.flush()
        assert fdio.lives_in_memory(file.fileno())

        async def body(io: FileIO) -> None:
            view = memoryview(bytearray(6))
            assert io.read_nowait(0, view)
            assert bytes(view) == b"memory"
            assert not io.read_nowait(1, view)  # not all of it is there

        with_io(Path(file.name), body)


def test_ordinary_files_do_not_live_in_memory(path: Path) -> None:
    path.write_bytes(b"x")
    with path.open() as file:
        found = fdio.lives_in_memory(file.fileno())
    kind = subprocess.run(
        ["stat", "-f", "-c", "%T", path], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert found == (kind in ("tmpfs", "ramfs"))
