# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The FUSE export through the real kernel: mounted, used from a thread, unmounted.

Both engines go through the same tests, as far as pyfuse3 reaches.
"""

from __future__ import annotations

import asyncio
import errno
import os
import random
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from qsd.aio import loop
from qsd.aio.fdio import fallocate
from qsd.block.drain import Drained
from qsd.errors import QmpError
from qsd.exports.fuse import ENGINE_VARIABLE, FuseExport
from tests.exports.export_rig import ExportRig
from tests.support.memory import MemoryDriver

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(
        os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="mounting needs root and FUSE"
    ),
]

NATIVE_ONLY = pytest.mark.parametrize("engine", ["native"], indirect=True)


@pytest.fixture(autouse=True, params=["native", "pyfuse3"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    name: str = request.param
    if name == "pyfuse3":
        pytest.importorskip("pyfuse3", reason="pyfuse3 is not installed")
    monkeypatch.setenv(ENGINE_VARIABLE, name)
    return name


KEEP_SIZE, PUNCH_HOLE, COLLAPSE_RANGE, ZERO_RANGE = 1, 2, 8, 16


class FuseRig(ExportRig):
    @property
    def point(self) -> str:
        return self.path("point")

    async def mount(self, node: str = "m", **more: Any) -> FuseExport:
        Path(self.point).touch()
        export = await self.export("fuse", node, **{"mountpoint": self.point, **more})
        assert isinstance(export, FuseExport)
        return export

    async def __aexit__(self, exc_type: object, *rest: object) -> None:
        await super().__aexit__(exc_type, *rest)
        mounts = Path("/proc/mounts").read_text()
        assert self.folder not in mounts, "a mount was left behind"


def with_file(
    use: Callable[[str], None],
    prepare: Callable[[MemoryDriver], None] = lambda driver: None,
    **options: Any,
) -> MemoryDriver:
    """Run `use` with the path of a mounted node of 1 MiB; return the node's driver."""

    async def main() -> MemoryDriver:
        async with FuseRig() as rig:
            driver = await rig.memory("m", discard="unmap")
            driver.data[:8192] = bytes(range(256)) * 32
            prepare(driver)
            await rig.mount(**options)
            await asyncio.to_thread(use, rig.point)
            return driver

    return loop.run(main())


def slow(driver: MemoryDriver) -> None:
    driver.fast = False


def open_file(path: str, flags: int = os.O_RDWR) -> int:
    return os.open(path, flags | os.O_CLOEXEC)


def error_of(call: Callable[..., object], *args: Any) -> int | None:
    try:
        call(*args)
    except OSError as exc:
        return exc.errno
    return None


def test_a_file_shows_the_node() -> None:
    def use(path: str) -> None:
        found = os.stat(path)
        assert (found.st_size, found.st_mode, found.st_uid) == (1 << 20, 0o100400, 0)
        assert found.st_blksize == 1
        with open(path, "rb") as file:
            assert file.read(512) == bytes(range(256)) * 2
            file.seek(-100, os.SEEK_END)
            assert file.read() == bytes(100)
        space = os.statvfs(path)
        assert (space.f_blocks, space.f_bsize) == (0, 512)

    with_file(use)


def test_a_read_only_export() -> None:
    def use(path: str) -> None:
        fd = open_file(path)  # root may open anything
        try:
            assert error_of(os.pwrite, fd, b"x", 0) == errno.EACCES
            assert error_of(os.ftruncate, fd, 1) == errno.EACCES
        finally:
            os.close(fd)
        assert error_of(os.chmod, path, 0o600) == errno.EROFS
        os.chmod(path, 0o444)
        assert os.stat(path).st_mode & 0o777 == 0o444

    with_file(use)


@pytest.mark.parametrize("prepare", [lambda driver: None, slow], ids=["fast", "slow"])
@pytest.mark.parametrize("direct", [0, os.O_DIRECT])
def test_random_writes_and_reads(prepare: Callable[[MemoryDriver], None], direct: int) -> None:
    import mmap

    source = random.Random(5)
    model = bytearray(1 << 20)
    model[:8192] = bytes(range(256)) * 32

    def use(path: str) -> None:
        fd = open_file(path, os.O_RDWR | direct)
        buffer = mmap.mmap(-1, 1 << 20)
        try:
            for _ in range(60):
                length = source.choice([512, 4096, 65536, 300 * 1024])
                offset = source.randrange((1 << 20) - length) // 512 * 512
                view = memoryview(buffer)[:length]
                if source.random() < 0.5:
                    view[:] = source.randbytes(length)
                    assert os.pwritev(fd, [view], offset) == length
                    model[offset : offset + length] = view
                else:
                    assert os.preadv(fd, [view], offset) == length
                    assert view == model[offset : offset + length]
                view.release()
            os.fsync(fd)
        finally:
            os.close(fd)
            buffer.close()

    driver = with_file(use, prepare, writable=True)
    assert driver.data == model
    assert any(operation == "flush" for operation, _, _ in driver.log)


def test_writes_behind_the_end() -> None:
    def use(path: str) -> None:
        fd = open_file(path)
        try:
            assert error_of(os.pwrite, fd, b"x", 1 << 20) == errno.EIO
            assert os.pwrite(fd, b"y" * 1000, (1 << 20) - 10) == 10
            assert os.fstat(fd).st_size == 1 << 20
        finally:
            os.close(fd)

    assert with_file(use, writable=True).data[-10:] == b"y" * 10


def test_a_growable_file() -> None:
    def use(path: str) -> None:
        with open(path, "r+b") as file:
            file.seek(3 << 20)
            file.write(b"end")
        assert os.stat(path).st_size == (3 << 20) + 512  # nodes have whole sectors

    driver = with_file(use, writable=True, growable=True)
    assert driver.data[(3 << 20) - 1 : (3 << 20) + 3] == b"\0end"


def test_two_writes_that_lengthen_do_not_cut_each_other_off() -> None:
    """The one that ends earlier waited for the other's resize and then shrank the node again."""

    async def main() -> None:
        async with FuseRig() as rig:
            driver = await rig.memory("m")
            await rig.mount(writable=True, growable=True)
            driver.gate = asyncio.Event()

            def write(offset: int) -> int:
                fd = open_file(rig.point, os.O_RDWR | os.O_DIRECT)
                try:
                    return os.pwrite(fd, bytes([offset >> 20]) * 4096, offset)
                finally:
                    os.close(fd)

            running = asyncio.get_running_loop()
            far = running.run_in_executor(None, write, 5 << 20)
            while not driver.log:
                await asyncio.sleep(0.001)
            near = running.run_in_executor(None, write, 3 << 20)
            await asyncio.sleep(0.02)
            driver.gate.set()
            assert (await far, await near) == (4096, 4096)
            assert len(driver.data) == (5 << 20) + 4096
            assert driver.data[5 << 20] == 5
            assert driver.data[3 << 20] == 3

    loop.run(main())


def test_truncate() -> None:
    def use(path: str) -> None:
        os.truncate(path, 4096)
        assert os.stat(path).st_size == 4096
        os.truncate(path, 8192)
        with open(path, "rb") as file:
            assert file.read()[4096:] == bytes(4096)

    assert len(with_file(use, writable=True).data) == 8192


@NATIVE_ONLY
def test_fallocate_on_a_read_only_export() -> None:
    def use(path: str) -> None:
        fd = open_file(path)
        try:
            assert error_of(fallocate, fd, PUNCH_HOLE | KEEP_SIZE, 0, 4096) == errno.EACCES
        finally:
            os.close(fd)

    with_file(use)


@NATIVE_ONLY
def test_fallocate() -> None:
    def use(path: str) -> None:
        fd = open_file(path)
        try:
            fallocate(fd, PUNCH_HOLE | KEEP_SIZE, 0, 4096)
            fallocate(fd, ZERO_RANGE, 4096, 512)
            assert os.pread(fd, 4097 + 512, 0).rstrip(b"\0") == b""
            assert error_of(fallocate, fd, 0, 0, 4096) == errno.EOPNOTSUPP
            assert error_of(fallocate, fd, KEEP_SIZE, 0, 4096) == errno.EOPNOTSUPP
            assert error_of(fallocate, fd, COLLAPSE_RANGE, 0, 4096) == errno.EOPNOTSUPP
            fallocate(fd, ZERO_RANGE | KEEP_SIZE, 1 << 20, 4096)
            assert os.fstat(fd).st_size == 1 << 20
            fallocate(fd, ZERO_RANGE, 1 << 20, 4096)
            assert os.fstat(fd).st_size == (1 << 20) + 4096
            fallocate(fd, 0, (1 << 20) + 4096, 4096)
            assert os.fstat(fd).st_size == (1 << 20) + 8192
        finally:
            os.close(fd)

    driver = with_file(use, writable=True)
    assert driver.data[4096 + 512 : 8192] == (bytes(range(256)) * 32)[4096 + 512 :]


@NATIVE_ONLY
def test_holes() -> None:
    def use(path: str) -> None:
        fd = open_file(path, os.O_RDONLY)
        try:
            assert os.lseek(fd, 0, os.SEEK_DATA) == 0
            assert os.lseek(fd, 0, os.SEEK_HOLE) == 8192
            assert os.lseek(fd, 8192, os.SEEK_DATA) == 65536
            assert os.lseek(fd, 65536 + 4096, os.SEEK_HOLE) == 65536 + 4096
            assert error_of(os.lseek, fd, 65536 + 4096, os.SEEK_DATA) == errno.ENXIO
            assert error_of(os.lseek, fd, (1 << 20) + 1, os.SEEK_HOLE) == errno.ENXIO
        finally:
            os.close(fd)

    def prepare(driver: MemoryDriver) -> None:
        driver.data[65536:69632] = b"d" * 4096

    with_file(use, prepare)


def test_mode_and_owner() -> None:
    def with_others(path: str) -> None:
        os.chmod(path, 0o644)
        os.chown(path, 1, 2)
        found = os.stat(path)
        assert (found.st_mode & 0o777, found.st_uid, found.st_gid) == (0o644, 1, 2)
        assert error_of(os.utime, path) == errno.EOPNOTSUPP

    def alone(path: str) -> None:
        assert error_of(os.chmod, path, 0o644) == errno.EPERM
        assert error_of(os.chown, path, 1, 2) == errno.EOPNOTSUPP
        os.chmod(path, 0o700)
        assert os.stat(path).st_mode & 0o777 == 0o700

    with_file(with_others, writable=True)
    with_file(alone, writable=True, allow_other="off")


def test_errors_of_the_node() -> None:
    def prepare(driver: MemoryDriver) -> None:
        driver.fast = False
        driver.fail = lambda operation, offset: errno.ENOSPC if operation == "write" else 0

    def use(path: str) -> None:
        fd = open_file(path)
        try:
            assert error_of(os.pwrite, fd, b"x" * 512, 0) == errno.ENOSPC
            assert len(os.pread(fd, 512, 0)) == 512
        finally:
            os.close(fd)

    with_file(use, prepare, writable=True)


def test_mount_points_that_are_refused() -> None:
    async def main() -> None:
        async with FuseRig() as rig:
            await rig.memory("m")
            await rig.mount()
            link = rig.path("link")
            os.symlink(rig.point, link)
            other_name = f"{rig.folder}/./{os.path.basename(rig.point)}"
            for point, text in [
                (link, f"There already is a FUSE export on '{link}'"),
                (other_name, f"There already is a FUSE export on '{other_name}'"),
                (rig.point, f"There already is a FUSE export on '{rig.point}'"),
                (rig.folder, f"'{rig.folder}' is not a regular file"),
                ("", "Failed to stat '': No such file or directory"),
                (rig.path("x"), f"Failed to stat '{rig.path('x')}': No such file or directory"),
            ]:
                with pytest.raises(QmpError) as caught:
                    await rig.export("fuse", "m", id="e2", mountpoint=point)
                assert caught.value.desc == text

    loop.run(main())


@NATIVE_ONLY
def test_several_at_once_and_a_new_length_is_seen() -> None:
    async def main() -> None:
        async with FuseRig() as rig:
            await rig.memory("m")
            await rig.mount(writable=True)
            Path(rig.path("other")).touch()
            await rig.export("fuse", "m", id="e2", mountpoint=rig.path("other"))
            assert (await asyncio.to_thread(os.stat, rig.path("other"))).st_size == 1 << 20
            await asyncio.to_thread(os.truncate, rig.point, 512)
            assert (await asyncio.to_thread(os.stat, rig.path("other"))).st_size == 512

    loop.run(main())


def test_unmounted_by_somebody_else() -> None:
    async def main() -> None:
        async with FuseRig() as rig:
            await rig.memory("m")
            await rig.mount()
            await asyncio.to_thread(subprocess.run, ["umount", rig.point], check=True)
            assert (await asyncio.to_thread(os.stat, rig.point)).st_size == 0
            assert len(rig.registry.query()) == 1
            with pytest.raises(QmpError, match="already is a FUSE export"):
                await rig.mount(id="e2")
            await rig.registry.delete("e", None)
            await rig.mount(id="e2")

    loop.run(main())


def test_deleting_while_the_file_is_open() -> None:
    async def main() -> None:
        async with FuseRig() as rig:
            await rig.memory("m")
            await rig.mount(writable=True)
            fd = await asyncio.to_thread(open_file, rig.point)
            try:
                await rig.registry.delete("e", None)
                assert not len(rig.registry)
                assert await asyncio.to_thread(error_of, os.pread, fd, 1, 0) is not None
            finally:
                with suppress(OSError):
                    await asyncio.to_thread(os.close, fd)

    loop.run(main())


def test_a_new_length_is_seen_at_once() -> None:
    async def main() -> None:
        async with FuseRig() as rig:
            await rig.memory("m")
            await rig.mount()
            assert (await asyncio.to_thread(os.stat, rig.point)).st_size == 1 << 20
            await rig.graph.nodes["m"].truncate(2 << 20)
            assert (await asyncio.to_thread(os.stat, rig.point)).st_size == 2 << 20

    loop.run(main())


@pytest.mark.parametrize("name", ["point", "link"])
def test_a_mount_point_is_found_again(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """By a relative name from another folder, and through a symbolic link."""

    async def main() -> None:
        async with FuseRig() as rig:
            await rig.memory("m")
            Path(rig.point).touch()
            Path(rig.path("link")).symlink_to("point")
            monkeypatch.chdir(rig.folder)
            await rig.export("fuse", "m", mountpoint=name)
            assert (await asyncio.to_thread(os.stat, rig.point)).st_size == 1 << 20
            monkeypatch.chdir("/")
            await rig.registry.delete("e", None)
            assert (await asyncio.to_thread(os.stat, rig.point)).st_size == 0

    loop.run(main())


def test_errors_of_a_resize() -> None:
    def prepare(driver: MemoryDriver) -> None:
        driver.fail = lambda operation, offset: errno.ENOSPC if operation == "truncate" else 0

    def use(path: str) -> None:
        assert error_of(os.truncate, path, 4096) == errno.ENOSPC
        assert error_of(os.truncate, path, (1 << 63) - 512) == errno.EIO

    with_file(use, prepare, writable=True)


def test_a_drained_node_keeps_the_file_waiting() -> None:
    async def main() -> None:
        async with FuseRig() as rig:
            await rig.memory("m")
            await rig.mount(writable=True)

            def use() -> bytes:
                with open(rig.point, "r+b", buffering=0) as file:
                    os.ftruncate(file.fileno(), 4096)
                    return file.read(4)

            async with Drained([rig.graph.nodes["m"]]):
                running = asyncio.get_running_loop().run_in_executor(None, use)
                await asyncio.sleep(0.03)
                assert not running.done()
            assert await running == bytes(4)

    loop.run(main())


def test_a_client_that_is_killed_while_it_waits() -> None:
    """Its requests are interrupted; the answers that nobody wants any more do no harm."""

    async def main() -> None:
        async with FuseRig() as rig:
            driver = await rig.memory("m")
            driver.fast = False
            await rig.mount()
            driver.gate = asyncio.Event()
            client = await asyncio.to_thread(subprocess.Popen, ["cat", rig.point])
            while not any(operation == "read" for operation, _, _ in driver.log):
                await asyncio.sleep(0.001)
            client.kill()
            driver.gate.set()
            await asyncio.to_thread(client.wait)
            with_content = await asyncio.to_thread(Path(rig.point).read_bytes)
            assert len(with_content) == 1 << 20

    loop.run(main())


@NATIVE_ONLY
def test_engines_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with FuseRig() as rig:
            await rig.memory("m")
            monkeypatch.setenv(ENGINE_VARIABLE, "other")
            with pytest.raises(QmpError, match="QSD_FUSE_ENGINE is 'other', not 'native' or"):
                await rig.mount()
            assert not len(rig.registry)

    loop.run(main())
