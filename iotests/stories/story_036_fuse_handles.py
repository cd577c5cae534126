# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""A mounted node open several times in different ways, and calls that ordinary files also know.

The order is random but always the same.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import random
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from iotests.harness.story import Story
from iotests.stories.story_035_fuse_mixture import answer, digest, fallocate

NEEDS = ("qemu-img", "qemu-io")
SIZE = 1 << 20
STEPS = 120
WAYS = (0, os.O_DIRECT, os.O_SYNC, os.O_DSYNC)
OFFSETS = (0, 511, 512, 4095, 4096, 131072, SIZE - 512, SIZE - 1, SIZE, SIZE * 2)
FAR = (1 << 62, (1 << 63) - 1, (1 << 63) - 4096, -1, -4096)
LENGTHS = (0, 1, 512, 4096, 65536, 300000)
MODES = (0, 1, 2, 3, 8, 16, 17, 32, 64, 128)
SIZES = (100, 512, SIZE // 2, SIZE, SIZE, SIZE + 100, *FAR)
FLAGS = (os.RWF_DSYNC, os.RWF_SYNC, os.RWF_HIPRI, 0x20, 0x40)
RIGHTS = (0o600, 0o400, 0o000, 0o644, 0o777, 0o4600, 0o7777)
NAMES = ("user.a", "security.b", "trusted.c", "system.posix_acl_access")


def exactly(call: Callable[..., Any], *arguments: Any) -> Any:
    """Return an answer, or the name of the error that never got to the file."""
    try:
        return answer(call, *arguments)
    except (ValueError, OverflowError) as exc:
        return type(exc).__name__


class Player:
    """Does things to a file by several handles, and between it and a file beside it."""

    def __init__(self, path: Path, source: random.Random) -> None:
        self.path = path
        self.source = source
        self.ways = list(WAYS)
        self.handles = [os.open(path, os.O_RDWR | way) for way in WAYS]
        beside = path.with_name("beside")
        beside.write_bytes(bytes(range(256)) * 2048)
        self.beside = os.open(beside, os.O_RDWR)

    def close(self) -> None:
        for fd in (*self.handles, self.beside):
            os.close(fd)

    def step(self) -> str:
        choose = self.source.choice
        name = choose([name for name in dir(Player) if name.startswith("do_")])
        number = self.source.randrange(len(self.handles))
        offset = choose(FAR) if self.source.random() < 0.1 else choose(OFFSETS)
        result = getattr(self, name)(self.handles[number], offset, choose(LENGTHS))
        return f"{name[3:]} by {number} at {offset}: {result}"

    def _data(self, length: int) -> bytes:
        return bytes((self.source.randrange(1, 256),)) * length

    def do_read(self, fd: int, offset: int, length: int) -> Any:
        with mmap.mmap(-1, LENGTHS[-1]) as memory, memoryview(memory)[:length] as view:
            return length, exactly(os.preadv, fd, [view], offset), digest(bytes(view))

    def do_write(self, fd: int, offset: int, length: int) -> Any:
        with mmap.mmap(-1, LENGTHS[-1]) as memory, memoryview(memory)[:length] as view:
            view[:] = self._data(length)
            return length, exactly(os.pwritev, fd, [view], offset)

    def do_write_flags(self, fd: int, offset: int, length: int) -> Any:
        flags = self.source.choice(FLAGS)
        return flags, exactly(os.pwritev, fd, [self._data(512)], offset, flags)

    def do_pieces(self, fd: int, offset: int, length: int) -> Any:
        return exactly(os.pwritev, fd, [self._data(n) for n in (100, 5000, 1)], offset)

    def do_truncate(self, fd: int, offset: int, length: int) -> Any:
        size = self.source.choice(SIZES)
        return size, exactly(os.ftruncate, fd, size), os.stat(self.path).st_size

    def do_fallocate(self, fd: int, offset: int, length: int) -> Any:
        mode = self.source.choice(MODES)
        return mode, length, exactly(fallocate, fd, mode, offset, length), os.fstat(fd).st_size

    def do_seek(self, fd: int, offset: int, length: int) -> Any:
        whence = self.source.choice((os.SEEK_SET, os.SEEK_CUR, os.SEEK_END, 7))
        result = exactly(os.lseek, fd, offset, whence)
        os.lseek(fd, 0, os.SEEK_SET)
        return whence, result

    def do_copy_range(self, fd: int, offset: int, length: int) -> Any:
        ends = self.source.choice(((fd, self.beside), (self.beside, fd), (fd, self.handles[0])))
        where = (4096, max(offset, 0))
        return length, exactly(os.copy_file_range, *ends, length, *where)

    def do_sendfile(self, fd: int, offset: int, length: int) -> Any:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            return exactly(os.sendfile, ours.fileno(), fd, max(offset, 0), 4096)

    def do_splice(self, fd: int, offset: int, length: int) -> Any:
        reader, writer = os.pipe()
        try:
            os.write(writer, self._data(4096))
            return exactly(os.splice, reader, fd, 4096, None, max(offset, 0))
        finally:
            os.close(reader)
            os.close(writer)

    def do_attribute(self, fd: int, offset: int, length: int) -> Any:
        name = self.source.choice(NAMES)
        calls = ((os.setxattr, fd, name, b"x"), (os.getxattr, fd, name), (os.removexattr, fd, name))
        return name, [exactly(*call) for call in calls], exactly(os.listxattr, fd)

    def do_lock(self, fd: int, offset: int, length: int) -> Any:
        other = self.handles[0]
        exclusive, shared = fcntl.LOCK_EX | fcntl.LOCK_NB, fcntl.LOCK_SH | fcntl.LOCK_NB
        taken = [exactly(fcntl.flock, fd, exclusive), exactly(fcntl.flock, other, shared)]
        taken += [exactly(fcntl.flock, each, fcntl.LOCK_UN) for each in (fd, other)]
        taken += [exactly(fcntl.lockf, each, exclusive, 10, 5) for each in (fd, other)]
        return taken, exactly(fcntl.lockf, fd, fcntl.LOCK_UN)

    def do_names(self, fd: int, offset: int, length: int) -> Any:
        path, other = self.path, self.path.with_name("other")
        calls: list[tuple[Any, ...]] = [
            *((os.unlink, path), (os.rename, path, other), (os.link, path, other)),
            *((os.rmdir, path), (os.mkdir, path), (os.listdir, path), (os.readlink, path)),
            *((os.open, path, os.O_DIRECTORY), (os.open, path, os.O_CREAT | os.O_EXCL)),
        ]
        return [exactly(*call) for call in calls]

    def do_mode(self, fd: int, offset: int, length: int) -> Any:
        mode = self.source.choice(RIGHTS)
        return f"{mode:o}", exactly(os.fchmod, fd, mode), f"{os.fstat(fd).st_mode:o}"

    def do_times(self, fd: int, offset: int, length: int) -> Any:
        return [exactly(os.utime, fd, times) for times in (None, (0, 0), (1 << 33, 5))]

    def do_advise(self, fd: int, offset: int, length: int) -> Any:
        return [exactly(os.posix_fadvise, fd, 0, 65536, advice) for advice in range(7)]

    def do_open_again(self, fd: int, offset: int, length: int) -> Any:
        number = self.handles.index(fd)
        os.close(fd)
        self.handles[number] = os.open(self.path, os.O_RDWR | self.ways[number])
        return os.fstat(self.handles[number]).st_size


def story(h: Story) -> None:
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        pytest.skip("mounting needs root and FUSE")
    h.start()
    path = h.folder / "mounted"
    path.touch()
    for number, (fmt, growable) in enumerate(
        (("raw", False), ("raw", True), ("qcow2", False), ("qcow2", True))
    ):
        h.heading(f"{fmt}, growable {growable}")
        h.run("qemu-img", "create", "-q", "-f", fmt, "image", "1M")
        h.run("qemu-io", "-f", fmt, "-c", "write -q -P 1 0 128k", "image")
        image = {"driver": "file", "filename": "image", "discard": "unmap"}
        h.qmp("blockdev-add", driver=fmt, node_name="n", file=image, discard="unmap")
        export = {"type": "fuse", "id": "e", "node-name": "n", "mountpoint": str(path)}
        h.qmp("block-export-add", {**export, "writable": True, "growable": growable})
        player = Player(path, random.Random(f"handles {number}"))
        try:
            for _ in range(STEPS):
                h.say(player.step())
            os.ftruncate(player.handles[0], SIZE)
            h.say("in the end", digest(path.read_bytes()))
        finally:
            player.close()
        h.qmp("block-export-del", id="e")
        h.qmp("blockdev-del", node_name="n")
        if fmt == "qcow2":
            h.run("qemu-img", "check", "-q", "image")
    h.quit()
