# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""A mounted node used in every way at once: any order of operations, each with its answer.

The order is random but always the same.  Left out is what depends on how long the kernel believes
an old length: appending to a file that has just grown.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import mmap
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from iotests.harness.story import Story

NEEDS = ("qemu-img", "qemu-io")
SIZE = 1 << 20
STEPS = 60
OFFSETS = (0, 1, 511, 512, 4095, 4096, 65536, SIZE - 512, SIZE - 1, SIZE, SIZE + 1, SIZE * 2)
LENGTHS = (1, 100, 512, 4096, 65536, 300000)
MODES = (0, 1, 2, 3, 8, 16, 17, 19, 32, 64)
TRUNCATED = (0, 512, 4096, SIZE // 2, SIZE - 512, SIZE, SIZE + 100, SIZE * 2)


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    if libc.fallocate(fd, mode, offset, length):
        raise OSError(ctypes.get_errno(), "")


def answer(call: Callable[..., Any], *arguments: Any) -> Any:
    try:
        result = call(*arguments)
    except OSError as exc:
        return errno.errorcode[exc.errno or 0]
    return digest(result) if isinstance(result, bytes) else result


def digest(data: bytes) -> str:
    return f"{len(data)}:{hashlib.sha256(data).hexdigest()[:8]}"


class Player:
    """Does things to a mounted file."""

    def __init__(self, path: Path, source: random.Random, flags: int) -> None:
        self.path = path
        self.source = source
        self.flags = flags
        self.fd = os.open(path, flags)

    def step(self) -> str:
        names = [name for name in dir(Player) if name.startswith("do_")]
        name = self.source.choice(names)
        choose = self.source.choice
        offset, length = choose((*OFFSETS, self.source.randrange(SIZE))), choose(LENGTHS)
        return f"{name[3:]} {offset} {length}: {getattr(self, name)(offset, length)}"

    def _data(self, length: int) -> bytes:
        return bytes((self.source.randrange(1, 256),)) * length

    def do_read(self, offset: int, length: int) -> Any:
        return answer(os.pread, self.fd, length, offset)

    def do_write(self, offset: int, length: int) -> Any:
        return answer(os.pwrite, self.fd, self._data(length), offset)

    def do_truncate(self, offset: int, length: int) -> Any:
        size = self.source.choice(TRUNCATED)
        return size, answer(os.ftruncate, self.fd, size), self.do_size(0, 0)

    def do_fallocate(self, offset: int, length: int) -> Any:
        mode = self.source.choice(MODES)
        return mode, answer(fallocate, self.fd, mode, offset, length)

    def do_seek(self, offset: int, length: int) -> Any:
        whence = self.source.choice((os.SEEK_DATA, os.SEEK_HOLE))
        return whence, answer(os.lseek, self.fd, offset, whence)

    def do_size(self, offset: int, length: int) -> Any:
        return os.stat(self.path).st_size if self.fd >= 0 else 0

    def do_sync(self, offset: int, length: int) -> Any:
        return answer(os.fsync, self.fd)

    def do_open_again(self, offset: int, length: int) -> Any:
        os.close(self.fd)
        self.fd = os.open(self.path, self.flags)
        return "done"

    def do_open_and_truncate(self, offset: int, length: int) -> Any:
        if length != LENGTHS[0]:
            return "not now"
        fd = answer(os.open, self.path, os.O_WRONLY | os.O_TRUNC)
        if isinstance(fd, int):
            os.close(fd)
            fd = "done"
        return fd

    def do_map(self, offset: int, length: int) -> Any:
        size = os.fstat(self.fd).st_size
        if not size:
            return "empty"
        is_writable = self.flags == os.O_RDWR and offset + length <= size
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if is_writable else 0)
        with mmap.mmap(self.fd, size, prot=protection) as memory:
            if is_writable:
                memory[offset : offset + length] = self._data(length)
                memory.flush()
            return digest(memory[:])

    def do_direct(self, offset: int, length: int) -> Any:
        offset &= ~511
        fd = os.open(self.path, self.flags | os.O_DIRECT)
        try:
            with mmap.mmap(-1, 65536) as memory:
                if self.source.random() < 0.5:
                    memory[:] = self._data(65536)
                    return "write", answer(os.pwritev, fd, [memory], offset)
                return answer(os.preadv, fd, [memory], offset), digest(memory[:])
        finally:
            os.close(fd)


def story(h: Story) -> None:
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        pytest.skip("mounting needs root and FUSE")
    h.start()
    path = h.folder / "mounted"
    path.touch()
    for number, (fmt, writable, growable) in enumerate(
        (
            ("raw", True, False),
            ("raw", True, True),
            ("raw", False, True),
            ("qcow2", True, False),
            ("qcow2", True, True),
            ("qcow2", True, True),
        )
    ):
        h.heading(f"{fmt}, writable {writable}, growable {growable}")
        h.run("qemu-img", "create", "-q", "-f", fmt, "image", "1M")
        h.run("qemu-io", "-f", fmt, "-c", "write -q -P 1 0 128k", "image")
        image = {"driver": "file", "filename": "image", "discard": "unmap"}
        h.qmp("blockdev-add", driver=fmt, node_name="n", file=image, discard="unmap")
        export = {"type": "fuse", "id": "e", "node-name": "n", "mountpoint": str(path)}
        h.qmp("block-export-add", {**export, "writable": writable, "growable": growable})
        player = Player(path, random.Random(number), os.O_RDWR if writable else os.O_RDONLY)
        try:
            for _ in range(STEPS):
                h.say(player.step())
        finally:
            os.close(player.fd)
        h.qmp("block-export-del", id="e")
        h.qmp("blockdev-del", node_name="n")
        h.run("qemu-img", "convert", "-f", fmt, "-O", "raw", "image", "plain")
        h.say("image", digest((h.folder / "plain").read_bytes()))
        if fmt == "qcow2":
            h.run("qemu-img", "check", "-q", "image")
    h.quit()
