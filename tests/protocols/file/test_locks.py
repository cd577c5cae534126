# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsd.aio.loop import run
from qsd.block import perms
from qsd.block.backend import Backend
from qsd.catalog import find_driver
from qsd.errors import QmpError
from qsd.protocols.file import locks
from qsd.protocols.file.locks import ImageLock, LockConflict, find_holders
from tests.support.memory import Rig
from tests.support.tools import need, real_daemon

READ, WRITE, RESIZE = perms.CONSISTENT_READ, perms.WRITE, perms.RESIZE


@pytest.fixture
def fds(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """Two open file descriptions of one file: for locks they are as good as two processes."""
    path = tmp_path / "f"
    path.touch()
    os.truncate(path, 1 << 20)
    pair = (os.open(path, os.O_RDWR), os.open(path, os.O_RDONLY))
    yield pair
    for fd in pair:
        os.close(fd)


def locked_bytes(fd: int) -> set[int]:
    """Return the bytes that others than `fd` have locked."""
    request = locks._FLOCK
    found = set()
    for base in (100, 200):
        for byte in range(base, base + 4):
            answer = fcntl.fcntl(
                fd, fcntl.F_OFD_GETLK, request.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
            )
            if request.unpack(answer)[0] != fcntl.F_UNLCK:
                found.add(byte)
    return found


def place_of(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def on(fd: int, filename: str) -> ImageLock:
    return ImageLock(fd, filename, place_of(fd))


def take(lock: ImageLock, used: int, shared: int = perms.ALL) -> None:
    lock.prepare(used, shared)
    lock.commit()


def test_bytes_of_permissions(fds: tuple[int, int]) -> None:
    lock = on(fds[0], "f")
    for used, shared, expected in (
        (0, perms.ALL, set()),
        (READ, perms.ALL, {100}),
        (READ | WRITE, perms.ALL & ~RESIZE, {100, 101, 203}),
        (perms.ALL, 0, {100, 101, 102, 103, 200, 201, 202, 203}),
        (WRITE | RESIZE, perms.ALL & ~WRITE, {101, 103, 201}),
        (0, perms.ALL, set()),
    ):
        take(lock, used, shared)
        assert locked_bytes(fds[1]) == expected


def test_conflicts_name_the_permission(fds: tuple[int, int]) -> None:
    first, second = on(fds[0], "f"), on(fds[1], "a/f")
    take(first, READ | WRITE, perms.ALL & ~RESIZE)
    with pytest.raises(LockConflict) as info:
        second.prepare(RESIZE, perms.ALL)
    assert info.value.desc == 'Failed to get "resize" lock'
    assert info.value.hint == "Is another process using the image [a/f]?"
    with pytest.raises(LockConflict) as info:
        second.prepare(READ, perms.ALL & ~WRITE)
    assert info.value.desc == 'Failed to get shared "write" lock'
    assert locked_bytes(fds[0]) == set()
    take(second, READ | WRITE, perms.ALL & ~RESIZE)


def test_used_is_looked_at_before_unshared(fds: tuple[int, int]) -> None:
    first, second = on(fds[0], "f"), on(fds[1], "f")
    take(first, WRITE, READ)
    with pytest.raises(LockConflict) as info:
        second.prepare(WRITE, 0)
    assert info.value.desc == 'Failed to get "write" lock'


def test_abort_restores(fds: tuple[int, int]) -> None:
    lock = on(fds[0], "f")
    take(lock, READ, perms.ALL & ~WRITE)
    lock.prepare(READ | WRITE, perms.ALL)
    assert locked_bytes(fds[1]) == {100, 101, 201}
    lock.abort()
    assert locked_bytes(fds[1]) == {100, 201}


def test_giving_up_looks_for_no_conflict(fds: tuple[int, int]) -> None:
    """Who tries to lock, and is refused, has locks for a moment; others must not see conflicts."""
    lock, other = on(fds[0], "f"), on(fds[1], "f")
    take(lock, READ | WRITE | RESIZE, perms.ALL & ~RESIZE)
    other._lock(WRITE, perms.ALL & ~READ)
    take(lock, READ | WRITE, perms.ALL & ~RESIZE)
    take(lock, READ, perms.ALL)
    assert locked_bytes(fds[1]) == {100}
    with pytest.raises(LockConflict):
        lock.prepare(READ | WRITE, perms.ALL)


def test_copy(fds: tuple[int, int]) -> None:
    lock = on(fds[0], "f")
    take(lock, READ)
    lock.prepare(READ | WRITE, perms.ALL & ~RESIZE)
    lock.copy_to(fds[1])
    assert locked_bytes(fds[0]) == {100, 101, 203}


@given(
    first=st.tuples(st.integers(0, 15), st.integers(0, 15)),
    second=st.tuples(st.integers(0, 15), st.integers(0, 15)),
)
def test_same_rule_as_inside_one_daemon(
    first: tuple[int, int], second: tuple[int, int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "lock-rule"
    path.touch()
    one, two = os.open(path, os.O_RDWR), os.open(path, os.O_RDWR)
    try:
        take(on(one, "f"), *first)
        lock = on(two, "f")
        if first[0] & ~second[1] or second[0] & ~first[1]:
            with pytest.raises(LockConflict):
                lock.prepare(*second)
            assert locked_bytes(one) == set()
        else:
            lock.prepare(*second)
    finally:
        os.close(one)
        os.close(two)


def test_file_system_that_cannot_lock(
    fds: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(fd: int, command: int, argument: bytes) -> bytes:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    with pytest.raises(QmpError, match=r"^Failed to lock byte 100: No locks available$"):
        on(fds[0], "f").prepare(READ, perms.ALL)


# Between processes

_HOLD = """
import os, sys
sys.path.insert(0, {root!r})
from qsd.protocols.file.locks import ImageLock
lock = ImageLock(os.open({path!r}, os.O_RDWR), "f", (0, 0))
lock.prepare(3, 7)
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "f"
    path.touch()
    os.truncate(path, 1 << 20)
    return path


def test_holder_is_named(image: Path) -> None:
    root = str(Path(__file__).parents[3])
    script = _HOLD.format(root=root, path=str(image))
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "ready\n"
        fd = os.open(image, os.O_RDWR)
        try:
            assert [found.pid for found in find_holders(place_of(fd))] == [holder.pid]
            with pytest.raises(LockConflict) as info:
                on(fd, "f").prepare(RESIZE, perms.ALL)
            assert info.value.hint is not None
            assert info.value.hint.startswith("Is another process using the image [f]?\n")
            assert f"process {holder.pid} (python" in info.value.hint
        finally:
            os.close(fd)
        holder.communicate("")


def in_use(path: Path, perm: int, shared: int, **more: Any) -> Any:
    """Make an asynchronous context in which the driver holds permissions on the image."""

    class Use:
        async def __aenter__(self) -> Backend:
            self.rig = await Rig().__aenter__()
            self.rig.graph.find_driver = find_driver
            try:
                node = await self.rig.add(driver="file", node_name="f", filename=str(path), **more)
                self.backend = Backend(self.rig.graph, "user", "a user")
                self.backend.attach(node, perm, shared)
            except BaseException as exc:
                await self.rig.__aexit__(type(exc))
                raise
            return self.backend

        async def __aexit__(self, *exc: object) -> None:
            await self.backend.detach()
            await self.rig.__aexit__(None)

    return Use()


def tool(*words: str) -> tuple[int, str]:
    done = subprocess.run(words, capture_output=True, text=True, timeout=30)
    return done.returncode, done.stderr


@pytest.mark.interop
def test_tools_are_kept_out(image: Path) -> None:
    need("qemu-img", "qemu-io")

    async def main() -> None:
        async with in_use(image, READ | WRITE, perms.ALL & ~RESIZE):
            hint = f"Is another process using the image [{image}]?\n"
            code, text = tool("qemu-img", "resize", "-f", "raw", str(image), "2M")
            assert code == 1
            assert text.endswith('Failed to get "resize" lock\n' + hint)
            code, text = tool("qemu-img", "convert", "-f", "raw", str(image), f"{image}.out")
            assert code == 1
            assert text.endswith('Failed to get shared "write" lock\n' + hint)
            assert tool("qemu-io", "-r", "-f", "raw", "-c", "read 0 512", str(image))[0] == 0
            assert tool("qemu-img", "info", "-U", str(image))[0] == 0

    run(main())
    assert tool("qemu-img", "resize", "-f", "raw", str(image), "2M") == (0, "")


@pytest.mark.interop
def test_we_are_kept_out_by_the_tools(image: Path) -> None:
    words = [
        real_daemon(),
        *("--blockdev", f"file,filename={image},node-name=f"),
        *("--nbd-server", f"addr.type=unix,addr.path={image}.sock"),
        *("--export", "nbd,id=e,node-name=f,writable=on"),
        *("--chardev", "stdio,id=m", "--monitor", "m"),
    ]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert "QMP" in holder.stdout.readline()

        async def refused(**more: Any) -> str:
            with pytest.raises(QmpError) as info:
                async with in_use(image, READ, READ, **more):
                    pass
            return info.value.desc

        assert run(refused()) == 'Failed to get shared "write" lock'
        assert run(refused(read_only=True)) == 'Failed to get shared "write" lock'

        async def allowed(**more: Any) -> None:
            async with in_use(image, READ, READ, **more):
                pass

        run(allowed(locking="off"))
        run(allowed(read_only=True, force_share=True))
        holder.send_signal(signal.SIGTERM)
        holder.communicate()


def test_locks_follow_the_users(image: Path) -> None:
    async def main() -> None:
        fd = os.open(image, os.O_RDONLY)
        for more in ({}, {"auto_read_only": True}):
            async with in_use(image, READ, perms.ALL & ~RESIZE, **more) as backend:
                assert locked_bytes(fd) == {100, 203}
                # With auto-read-only this opens the file anew; the locks must move along.
                backend.set_perms(READ | WRITE, perms.ALL & ~RESIZE)
                assert locked_bytes(fd) == {100, 101, 203}
                backend.set_perms(READ, perms.ALL & ~RESIZE)
                assert locked_bytes(fd) == {100, 203}
            assert locked_bytes(fd) == set()
        os.close(fd)

    run(main())


def test_refused_user_leaves_no_lock(image: Path) -> None:
    async def main() -> None:
        fd = os.open(image, os.O_RDWR)
        rival = on(fd, "f")
        take(rival, READ, perms.ALL & ~WRITE)
        for more in ({}, {"auto_read_only": True}):
            async with in_use(image, READ, perms.ALL, **more) as backend:
                before = set(os.listdir("/proc/self/fd"))
                with pytest.raises(LockConflict):
                    backend.set_perms(READ | WRITE, READ)
                assert locked_bytes(fd) == {100}
                assert set(os.listdir("/proc/self/fd")) == before
        os.close(fd)

    run(main())
