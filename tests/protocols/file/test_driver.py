# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

import asyncio
import errno
import os
import stat
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from qsd.aio import fdio, folios
from qsd.aio.linux_aio import LinuxAio
from qsd.aio.loop import run
from qsd.block import perms
from qsd.block.backend import Backend
from qsd.block.mapping import MAY_UNMAP, NO_FALLBACK, ST_ALLOCATED, ST_DATA, ST_OFFSET, ST_ZERO
from qsd.block.node import Node
from qsd.block.reopen import reopen
from qsd.catalog import find_driver
from qsd.errors import QmpError
from qsd.protocols.file import driver as driver_module
from qsd.protocols.file.driver import FileDriver
from qsd.qapi.convert import from_json
from qsd.qapi.schema.block_options import BlockdevOptions
from tests.support import conformance
from tests.support.memory import Rig

LENGTH = 1 << 20


def new_rig() -> Rig:
    rig = Rig()
    rig.graph.find_driver = find_driver
    return rig


async def add(rig: Rig, filename: Path | str, **more: Any) -> FileDriver:
    node = await rig.add(driver="file", node_name="f", filename=str(filename), **more)
    assert isinstance(node.driver, FileDriver)
    return node.driver


def with_file(
    body: Callable[[Rig, FileDriver], Coroutine[Any, Any, None]], path: Path | str, **more: Any
) -> None:
    async def main() -> None:
        async with new_rig() as rig:
            await body(rig, await add(rig, path, **more))

    run(main())


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "f"
    path.touch()
    os.truncate(path, LENGTH)
    return path


def refusal(path: Path | str, **more: Any) -> str:
    async def main() -> str:
        async with new_rig() as rig:
            with pytest.raises(QmpError) as info:
                await add(rig, path, **more)
            assert not rig.graph.nodes
            return info.value.desc

    before = set(os.listdir("/proc/self/fd"))
    text = run(main())
    assert set(os.listdir("/proc/self/fd")) == before
    return text


def modify(rig: Rig, **tree: Any) -> Coroutine[Any, Any, None]:
    options: BlockdevOptions = from_json(
        BlockdevOptions, {key.replace("_", "-"): value for key, value in tree.items()}
    )
    return reopen(rig.graph, [options])


# Conformance

VARIANTS: list[dict[str, Any]] = [
    {},
    {"discard": "unmap", "detect-zeroes": "unmap"},
    {"cache": {"direct": True}, "discard": "unmap"},
    {"cache": {"direct": True}, "aio": "native"},
    {"auto-read-only": True, "detect-zeroes": "on"},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(program=conformance.programs(LENGTH))
def test_like_a_bytearray(
    variant: dict[str, Any], program: list[conformance.Step], tmp_path: Path
) -> None:
    path = tmp_path / "f"
    path.write_bytes(os.urandom(3000) + b"\0" * (LENGTH - 3000))

    async def body(rig: Rig, driver: FileDriver) -> None:
        content = await conformance.check_program(rig, driver.node, program)
        assert path.read_bytes() == content

    with_file(body, path, **variant)


@pytest.mark.parametrize("variant", [*VARIANTS, {"read-only": True}], ids=str)
def test_contract(variant: dict[str, Any], image: Path) -> None:
    async def body(rig: Rig, driver: FileDriver) -> None:
        await conformance.check_contract(rig, driver.node)

    with_file(body, image, **variant)


def test_no_descriptor_is_left(image: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))

    async def body(rig: Rig, driver: FileDriver) -> None:
        await conformance.check_contract(rig, driver.node)

    with_file(body, image, cache={"direct": True})
    assert set(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("aio", ["native", "threads"])
def test_contract_without_io_uring(aio: str, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "as in a container")

    monkeypatch.setattr("qsd.aio.uring.Ring.__init__", refuse)

    async def body(rig: Rig, driver: FileDriver) -> None:
        await conformance.check_contract(rig, driver.node)
        queue = driver.io.queue()
        assert queue is None if aio == "threads" else isinstance(queue, LinuxAio)

    with_file(body, image, cache={"direct": True}, aio=aio)


# Opening


def test_missing(tmp_path: Path) -> None:
    path = tmp_path / "nope"
    assert refusal(path) == f"Could not open '{path}': No such file or directory"
    # The file comes before the other options.
    assert refusal(path, aio="native") == f"Could not open '{path}': No such file or directory"


def test_wrong_types(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("fifo")
    assert refusal(".") == "Could not open '.': Is a directory"
    for name in (".", "fifo"):
        text = f"'file' driver requires '{name}' to be a regular file"
        assert refusal(name, read_only=True) == text
    assert refusal("/dev/null") == "'file' driver requires '/dev/null' to be a regular file"


def test_names(image: Path) -> None:
    assert refusal("") == "The 'file' block driver requires a file name"
    # A prefix is part of the name here.
    assert refusal("file:x") == "Could not open 'file:x': No such file or directory"
    assert refusal(f"{image}/x") == f"Could not open '{image}/x': Not a directory"
    long = "x" * 300
    assert refusal(long) == f"Could not open '{long}': File name too long"
    assert refusal("a\0b") == "Could not open 'a\0b': No such file or directory"


def test_fdset() -> None:
    assert refusal("/dev/fdset/0") == (
        "Could not dup FD for /dev/fdset/0 flags 2: Function not implemented"
    )
    assert refusal("/dev/fdset/0", read_only=True) == (
        "Could not dup FD for /dev/fdset/0 flags 0: Function not implemented"
    )
    assert refusal("/dev/fdset/x") == "Could not parse fdset /dev/fdset/x"


def test_native_aio_needs_direct(image: Path) -> None:
    text = "aio=native was specified, but it requires cache.direct=on, which was not specified."
    assert refusal(image, aio="native") == text
    assert refusal("/dev/null", aio="native") == text


def test_pr_manager(image: Path) -> None:
    text = "No persistent reservation manager with id 'x'"
    assert refusal(image, pr_manager="x") == text
    assert refusal("nope", pr_manager="x") == text


def test_size_unknown() -> None:
    text = "Could not refresh total sector count: Invalid argument"
    assert refusal("/proc/self/stat") == text


def test_no_direct_io_there() -> None:
    assert refusal("/proc/self/stat", cache={"direct": True}) == (
        "Could not open '/proc/self/stat': filesystem does not support O_DIRECT"
    )


def test_cancelled_open_leaves_nothing(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(os.listdir("/proc/self/fd"))
    started = asyncio.Event()
    real = FileDriver._open_now

    async def main() -> None:
        loop = asyncio.get_running_loop()

        def slow(self: FileDriver, flags: int, check: Any) -> Any:
            loop.call_soon_threadsafe(started.set)
            return real(self, flags, check)

        monkeypatch.setattr(FileDriver, "_open_now", slow)
        async with new_rig() as rig:
            task = rig.tasks.spawn(add(rig, image), "add")
            await started.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    run(main())
    assert set(os.listdir("/proc/self/fd")) == before


# Reading and writing


def test_last_sector_is_filled_up(tmp_path: Path) -> None:
    path = tmp_path / "odd"
    path.write_bytes(b"x" * 1000)

    async def body(rig: Rig, driver: FileDriver) -> None:
        node = driver.node
        assert node.length() == 1024
        backend = conformance.attach(rig, node)
        assert await conformance.read(backend, 512, 512) == b"x" * 488 + bytes(24)
        await backend.write(1010, memoryview(b"yy"))
        assert path.stat().st_size == 1012
        await backend.write(1000, memoryview(b"z" * 24))
        assert path.stat().st_size == 1024
        assert node.length() == 1024
        await backend.detach()

    for cache in ({}, {"direct": True}):
        path.write_bytes(b"x" * 1000)
        if cache:
            with_file(_odd_direct, path, cache=cache)
        else:
            with_file(body, path)


async def _odd_direct(rig: Rig, driver: FileDriver) -> None:
    backend = conformance.attach(rig, driver.node)
    assert await conformance.read(backend, 512, 512) == b"x" * 488 + bytes(24)
    await backend.write(1010, memoryview(b"yy"))
    assert (await conformance.read(backend, 990, 34)) == b"x" * 10 + bytes(10) + b"yy" + bytes(12)
    await backend.detach()


def test_cached_data_needs_no_suspension(image: Path) -> None:
    async def body(rig: Rig, driver: FileDriver) -> None:
        node = driver.node
        view = memoryview(bytearray(4096))
        assert node.write_nowait(0, memoryview(b"a" * 4096))
        assert node.read_nowait(0, view)
        assert bytes(view) == b"a" * 4096
        assert node.wr_highest_offset == 4096
        assert driver.locate_nowait(4096, 512) == (driver.io.fd, 4096)
        assert driver.locate_nowait(LENGTH, 512) is None
        # Formats grow their file by writing behind its end.
        assert node.write_nowait(LENGTH, view)
        assert node.length() == LENGTH + 4096

    with_file(body, image)


def test_slow_small_writes_are_noted_and_prepared_for(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split: list[int] = []
    monkeypatch.setattr(folios, "_splitter", lambda: lambda fd, offset: split.append(offset))

    async def body(rig: Rig, driver: FileDriver) -> None:
        small, large = memoryview(bytes(4096)), memoryview(bytes(folios.SMALL + 4096))
        watched = driver.io.folios
        monkeypatch.setattr(folios, "_ENOUGH", 1e-9)
        monkeypatch.setattr(driver_module, "SLOW_SMALL", 0)
        monkeypatch.setattr(fdio, "SLOW_SMALL", 0)
        assert driver.write_nowait(0, large)
        assert not watched.until
        assert driver.write_nowait(0, small)
        assert watched.until
        if not watched._probe.is_cached(driver.io.fd, 0, 1):
            pytest.skip("the kernel does not tell what is cached")
        assert driver.write_nowait(8192, large)
        assert driver.write_nowait(4096, small)
        await driver.io.write(0, small)
        assert split == [4096]

    with_file(body, image)


def test_direct_io_has_no_fast_path(image: Path) -> None:
    async def body(rig: Rig, driver: FileDriver) -> None:
        assert driver.limits.request_alignment >= 512
        assert not driver.node.read_nowait(0, memoryview(bytearray(4096)))
        assert not driver.write_nowait(0, memoryview(bytearray(4096)))
        assert driver.locate_nowait(0, 512) is None

    with_file(body, image, cache={"direct": True})


def test_read_errors_are_reported(image: Path) -> None:
    async def body(rig: Rig, driver: FileDriver) -> None:
        fd = os.open(image, os.O_WRONLY)
        os.dup2(fd, driver.io.fd)  # not readable any more
        os.close(fd)
        with pytest.raises(OSError) as info:
            await driver.node.read(0, memoryview(bytearray(512)))
        assert info.value.errno == errno.EBADF

    with_file(body, image)


# Zeroing and discarding


def blocks(path: Path) -> int:
    return path.stat().st_blocks


def test_zero_keeps_space_unless_it_may_unmap(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"x" * LENGTH)

    async def body(rig: Rig, driver: FileDriver) -> None:
        backend = conformance.attach(rig, driver.node)
        full = blocks(path)
        await backend.zero(0, 65536, NO_FALLBACK)
        assert blocks(path) == full
        await backend.zero(65536, 65536, MAY_UNMAP | NO_FALLBACK)
        assert blocks(path) == full - 128
        await backend.detach()

    with_file(body, path, discard="unmap")


def test_discard_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"x" * LENGTH)

    async def body(rig: Rig, driver: FileDriver) -> None:
        backend = conformance.attach(rig, driver.node)
        await backend.discard(65536, 65536)
        assert await conformance.read(backend, 65536, 65536) == bytes(65536)
        assert driver.driver_stats() == {
            "driver": "file",
            "discard-nb-ok": 1,
            "discard-nb-failed": 0,
            "discard-bytes-ok": 65536,
        }
        await backend.detach()

    with_file(body, path, discard="unmap")


def test_discard_ignored_by_default(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"x" * LENGTH)

    async def body(rig: Rig, driver: FileDriver) -> None:
        backend = conformance.attach(rig, driver.node)
        await backend.discard(0, LENGTH)
        await backend.detach()

    with_file(body, path)
    assert path.read_bytes() == b"x" * LENGTH


def deny(*denied: int) -> Callable[[int, int, int, int], None]:
    """Make an fallocate that can do everything but the given modes."""
    real = fdio.fallocate

    def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
        if mode in denied:
            raise OSError(errno.EOPNOTSUPP, "not here")
        real(fd, mode, offset, length)

    return fallocate


PUNCH = fdio.FALLOC_PUNCH_HOLE | fdio.FALLOC_KEEP_SIZE


@pytest.mark.parametrize("denied", [(fdio.FALLOC_ZERO_RANGE,), (PUNCH,)])
def test_zero_without_some_kernel_feature(
    denied: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fdio, "fallocate", deny(*denied))
    path = tmp_path / "f"
    path.write_bytes(b"x" * LENGTH)

    async def body(rig: Rig, driver: FileDriver) -> None:
        backend = conformance.attach(rig, driver.node)
        for flags in (0, MAY_UNMAP, NO_FALLBACK):
            await backend.zero(0, 65536, flags)
        await backend.detach()

    with_file(body, path, discard="unmap")
    assert path.read_bytes() == bytes(65536) + b"x" * (LENGTH - 65536)


def test_without_any_kernel_feature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fdio, "fallocate", deny(fdio.FALLOC_ZERO_RANGE, PUNCH, 0))
    path = tmp_path / "f"
    path.write_bytes(b"x" * LENGTH)

    async def body(rig: Rig, driver: FileDriver) -> None:
        backend = conformance.attach(rig, driver.node)
        await backend.zero(0, 4096)
        with pytest.raises(OSError) as info:
            await backend.zero(0, 4096, NO_FALLBACK)
        assert info.value.errno == errno.ENOTSUP
        await backend.discard(0, 4096)
        await backend.discard(0, 4096)
        stats = driver.driver_stats()
        assert stats is not None
        assert stats["discard-nb-failed"] == 2
        await backend.detach()

    with_file(body, path, discard="unmap")
    assert path.read_bytes() == bytes(4096) + b"x" * (LENGTH - 4096)


# Status


async def extents(node: Node) -> list[tuple[int, int, bool]]:
    result = []
    position = 0
    while position < node.length():
        status = await node.block_status(position, node.length() - position)
        assert status.flags & (ST_ALLOCATED | ST_OFFSET) == ST_ALLOCATED | ST_OFFSET
        assert status.host_offset == position
        assert bool(status.flags & ST_DATA) != bool(status.flags & ST_ZERO)
        result.append((position, status.length, bool(status.flags & ST_DATA)))
        position += status.length
    return result


def test_status_finds_holes(image: Path) -> None:
    with open(image, "r+b") as file:
        file.seek(131072)
        file.write(b"x" * 65536)

    async def body(rig: Rig, driver: FileDriver) -> None:
        node = driver.node
        assert await extents(node) == [
            (0, 131072, False),
            (131072, 65536, True),
            (196608, LENGTH - 196608, False),
        ]
        # What is remembered does not outlive its truth.
        backend = conformance.attach(rig, node)
        await backend.discard(131072, 4096)
        assert (await extents(node))[0] == (0, 135168, False)
        await backend.write(0, memoryview(b"y" * 4096))
        assert (await extents(node))[0] == (0, 4096, True)
        await backend.detach()

    with_file(body, image, discard="unmap")


def test_status_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "odd"
    path.write_bytes(b"abc")

    async def body(rig: Rig, driver: FileDriver) -> None:
        assert await extents(driver.node) == [(0, 3, True), (3, 509, False)]

    with_file(body, path)


def test_status_without_seeking_for_holes(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(fd: int, offset: int) -> None:
        raise OSError(errno.EINVAL, "no holes here")

    monkeypatch.setattr(fdio, "find_extent", cannot)

    async def body(rig: Rig, driver: FileDriver) -> None:
        assert await extents(driver.node) == [(0, LENGTH, True)]

    with_file(body, image)


def test_status_of_allocation_only(image: Path) -> None:
    async def body(rig: Rig, driver: FileDriver) -> None:
        status = await driver.node.block_status(0, LENGTH, False)
        assert status.flags == ST_DATA | ST_ALLOCATED | ST_OFFSET
        assert status.length == LENGTH

    with_file(body, image)


# Flushing


class Syncs:
    """Counts and steers fdatasync."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.fail = False
        monkeypatch.setattr(os, "fdatasync", self)

    def __call__(self, fd: int) -> None:
        self.count += 1
        if self.fail:
            raise OSError(errno.ENOSPC, "disk full")


def test_flush_only_after_a_change(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    syncs = Syncs(monkeypatch)

    async def body(rig: Rig, driver: FileDriver) -> None:
        node = driver.node
        backend = conformance.attach(rig, node)
        await backend.flush()
        assert syncs.count == 0
        changes: list[Callable[[], Coroutine[Any, Any, None]]] = [
            lambda: backend.write(0, memoryview(b"x" * 512)),
            lambda: backend.zero(0, 512),
            lambda: backend.discard(0, 512),
        ]
        for change in changes:
            before = syncs.count
            await change()
            await backend.flush()
            await backend.flush()
            assert syncs.count == before + 1
        await backend.detach()

    with_file(body, image, discard="unmap")


def test_concurrent_flushes_share(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    syncs = Syncs(monkeypatch)

    async def body(rig: Rig, driver: FileDriver) -> None:
        backend = conformance.attach(rig, driver.node)
        await backend.write(0, memoryview(b"x"))
        tasks = [rig.tasks.spawn(backend.flush(), "flush") for _ in range(5)]
        for task in tasks:
            await task
        assert syncs.count == 1
        await backend.detach()

    with_file(body, image)


def test_flush_failure_is_remembered(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    syncs = Syncs(monkeypatch)

    async def body(rig: Rig, driver: FileDriver) -> None:
        backend = conformance.attach(rig, driver.node)
        await backend.write(0, memoryview(b"x"))
        syncs.fail = True
        codes = []
        for _ in range(2):
            with pytest.raises(OSError) as info:
                await backend.flush()
            codes.append(info.value.errno)
            # The kernel has dropped the pages and would say yes now; that would be a lie.
            syncs.fail = False
        assert codes == [errno.ENOSPC, errno.EIO]
        assert syncs.count == 1
        await backend.detach()

    with_file(body, image)


def test_flush_failure_with_direct_io_can_be_repeated(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    syncs = Syncs(monkeypatch)

    async def body(rig: Rig, driver: FileDriver) -> None:
        backend = conformance.attach(rig, driver.node)
        await backend.write(0, memoryview(b"x" * 4096))
        syncs.fail = True
        with pytest.raises(OSError, match="disk full"):
            await backend.flush()
        syncs.fail = False
        await backend.flush()
        assert syncs.count == 2
        await backend.detach()

    with_file(body, image, cache={"direct": True})


def test_no_flush(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    syncs = Syncs(monkeypatch)

    async def body(rig: Rig, driver: FileDriver) -> None:
        backend = conformance.attach(rig, driver.node)
        await backend.write(0, memoryview(b"x"))
        await backend.flush()
        await backend.detach()

    with_file(body, image, cache={"no-flush": True})
    assert syncs.count == 0


# Size


def test_truncate(image: Path) -> None:
    async def body(rig: Rig, driver: FileDriver) -> None:
        node = driver.node
        await node.truncate(2 * LENGTH)
        assert node.length() == 2 * LENGTH
        await node.truncate(1000)
        assert node.length() == 1024
        with pytest.raises(QmpError, match=r"^Could not resize file: File too large$"):
            await node.truncate(1 << 62)
        assert node.length() == 1024

    with_file(body, image)
    assert image.stat().st_size == 1000


# auto-read-only, permissions, reopening


def access_mode(driver: FileDriver) -> int:
    import fcntl

    return fcntl.fcntl(driver.io.fd, fcntl.F_GETFL) & os.O_ACCMODE


def is_direct(driver: FileDriver) -> bool:
    return driver.io.bounce is not None


def user(rig: Rig, node: Node, perm: int) -> Backend:
    backend = Backend(rig.graph, "user", "a user")
    backend.attach(node, perm, perms.ALL)
    return backend


def test_auto_read_only_follows_its_users(image: Path) -> None:
    async def body(rig: Rig, driver: FileDriver) -> None:
        fd = driver.io.fd
        assert access_mode(driver) == os.O_RDONLY
        reader = user(rig, driver.node, perms.CONSISTENT_READ)
        assert access_mode(driver) == os.O_RDONLY
        for perm in (perms.WRITE, perms.RESIZE):
            writer = user(rig, driver.node, perm)
            assert access_mode(driver) == os.O_RDWR
            if perm == perms.WRITE:
                await writer.write(0, memoryview(b"x" * 512))
            await writer.detach()
            assert access_mode(driver) == os.O_RDONLY
        assert driver.io.fd == fd
        assert not os.get_inheritable(fd)
        await reader.detach()

    with_file(body, image, auto_read_only=True)
    assert image.read_bytes()[:512] == b"x" * 512


def test_auto_read_only_refusal_changes_nothing(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(rig: Rig, driver: FileDriver) -> None:
        name = str(image)
        driver.options.filename = name + "-gone"
        before = set(os.listdir("/proc/self/fd"))
        with pytest.raises(QmpError) as info:
            user(rig, driver.node, perms.WRITE)
        assert info.value.desc == f"Could not open '{name}-gone': No such file or directory"
        assert set(os.listdir("/proc/self/fd")) == before
        assert access_mode(driver) == os.O_RDONLY
        driver.options.filename = name

    with_file(body, image, auto_read_only=True)


def test_reopen_switches_modes(image: Path) -> None:
    async def body(rig: Rig, driver: FileDriver) -> None:
        base = {"driver": "file", "node-name": "f", "filename": str(image)}
        reader = user(rig, driver.node, perms.CONSISTENT_READ)
        await modify(rig, **base, read_only=True)
        assert access_mode(driver) == os.O_RDONLY
        await modify(rig, **base, cache={"direct": True})
        assert access_mode(driver) == os.O_RDWR
        assert is_direct(driver)
        assert driver.limits.request_alignment >= 512
        assert await conformance.read(reader, 100, 1000) == bytes(1000)
        await modify(rig, **base)
        assert not is_direct(driver)
        assert driver.limits.request_alignment == 1
        assert reader.read_nowait(0, memoryview(bytearray(10)))
        await reader.detach()

    with_file(body, image)


def test_reopen_refuses_what_cannot_change(image: Path) -> None:
    async def body(rig: Rig, driver: FileDriver) -> None:
        base: dict[str, Any] = {"driver": "file", "node-name": "f", "filename": str(image)}
        for change in (
            {"filename": f"{image.parent}/./f"},
            {"locking": "on"},
            {"aio": "threads"},
            {"aio-max-batch": 5},
            {"pr-manager": "x"},
        ):
            with pytest.raises(QmpError) as info:
                await modify(rig, **{**base, **change})
            assert info.value.desc == f"Cannot change the option '{next(iter(change))}'"
        await modify(rig, **base, **{"drop-cache": False, "x-check-cache-dropped": True})
        await modify(rig, **base, **{"drop-cache": True})
        with pytest.raises(QmpError) as info:
            await modify(rig, **base)
        assert info.value.desc == "Option 'drop-cache' cannot be reset to its default value"
        base["drop-cache"] = True
        writer = user(rig, driver.node, perms.WRITE)
        with pytest.raises(QmpError):
            await modify(rig, **base, read_only=True)
        assert access_mode(driver) == os.O_RDWR
        assert not driver.node.read_only
        await writer.detach()

    with_file(body, image)


def test_reopen_to_the_same_costs_no_descriptor(image: Path) -> None:
    async def body(rig: Rig, driver: FileDriver) -> None:
        before = set(os.listdir("/proc/self/fd"))
        await modify(rig, driver="file", **{"node-name": "f", "filename": str(image)})
        assert set(os.listdir("/proc/self/fd")) == before

    with_file(body, image)


# Description


def test_info(image: Path) -> None:
    with open(image, "r+b") as file:
        file.write(b"x" * 4096)

    async def body(rig: Rig, driver: FileDriver) -> None:
        assert driver.filename() == str(image)
        assert driver.image_info() == {"actual-size": 4096, "dirty-flag": False}
        assert stat.S_ISREG(driver.file.mode)

    with_file(body, image)
