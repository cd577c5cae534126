# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""What every operation on a mounted node answers, for each combination of its options."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import itertools
import os
from collections.abc import Callable
from typing import Any

import pytest

from iotests.harness.story import Story

NEEDS = ("qemu-img", "qemu-io")
SIZE = 1 << 20
KEEP, PUNCH, COLLAPSE, ZERO, INSERT, UNSHARE = 1, 2, 8, 16, 32, 64
#: (mode, offset, length)
FALLOCATE = [
    (0, 0, 4096),
    (0, SIZE, 65536),
    (0, SIZE - 4096, 262144),
    (0, 1 << 60, 4096),
    (KEEP, 0, 4096),
    (KEEP, SIZE, 4096),
    (PUNCH, 0, 4096),
    (PUNCH | KEEP, 0, 65536),
    (PUNCH | KEEP, SIZE - 65536, SIZE),
    (PUNCH | KEEP, SIZE * 2, 4096),
    (ZERO, 65536, 65536),
    (ZERO, SIZE - 65536, SIZE * 2),
    (ZERO, 1 << 60, 4096),
    (ZERO | KEEP, 0, 65536),
    (ZERO | KEEP, SIZE * 9, 4096),
    (ZERO | KEEP, SIZE - 512, SIZE * 2),
    (PUNCH | KEEP | ZERO, 0, 4096),
    (COLLAPSE, 0, 65536),
    (INSERT, 0, 65536),
    (UNSHARE, 0, 65536),
]
FS_IOC_GETFLAGS, FS_IOC_FIEMAP = 0x80086601, 0xC020660B


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    if libc.fallocate(fd, mode, offset, length):
        raise OSError(ctypes.get_errno(), "")


def answer(call: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return call(*arguments)
    except OSError as exc:
        return errno.errorcode[exc.errno or 0]


def content(h: Story, fd: int, path: str) -> None:
    def size() -> int:
        return os.fstat(fd).st_size

    h.say("read at the end", answer(os.pread, fd, 100, SIZE), len(os.pread(fd, 100, SIZE - 10)))
    for offset in (5000, SIZE - 10, SIZE, SIZE * 2):
        h.say("write", offset, answer(os.pwrite, fd, b"abc" * 100, offset), size())
    for length in (size(), SIZE - 4096, SIZE * 3, SIZE * 2 + 100, SIZE, 1 << 60, (1 << 63) - 1):
        h.say("truncate", length, answer(os.ftruncate, fd, length), size())
    for mode, offset, length in FALLOCATE:
        h.say("fallocate", mode, offset, length, answer(fallocate, fd, mode, offset, length))
        h.say(" length", size(), answer(os.truncate, path, SIZE))
    h.say("sum", sum(os.pread(fd, SIZE, 0)))
    h.say("fallocate behind a hole", answer(fallocate, fd, 0, SIZE * 3, 65536))
    for whence in (os.SEEK_HOLE, os.SEEK_DATA):
        h.say(" seek", whence, answer(os.lseek, fd, SIZE, whence))
    h.say(" length", size(), answer(os.truncate, path, SIZE))
    for whence, offset in itertools.product(
        (os.SEEK_DATA, os.SEEK_HOLE), (-1, 0, 1, 131072, 400000, SIZE - 1, SIZE, SIZE + 1)
    ):
        h.say("seek", whence, offset, answer(os.lseek, fd, offset, whence))
    h.say("flush", answer(os.fsync, fd), answer(os.fdatasync, fd))


def attributes(h: Story, fd: int, path: str) -> None:
    for mode in (0o600, 0o400, 0o644, 0o444, 0o666, 0o200, 0o4600, 0o700, 0o601):
        h.say(f"chmod {mode:o}", answer(os.chmod, path, mode), f"{os.stat(path).st_mode:o}")
    for owner in ((0, 0), (1, 2), (-1, 3), (4, -1), (0, 0)):
        result = answer(os.chown, path, *owner)
        h.say("chown", owner, result, os.stat(path).st_uid, os.stat(path).st_gid)
    h.say("utime", answer(os.utime, path), answer(os.utime, path, (1, 2)))
    h.say("xattr", answer(os.getxattr, path, "user.x"), answer(os.setxattr, path, "user.x", b""))
    h.say("unlink", answer(os.unlink, path), answer(os.rename, path, path + "2"))
    h.say("ioctl", answer(fcntl.ioctl, fd, FS_IOC_GETFLAGS, bytes(8)))
    h.say("ioctl", answer(fcntl.ioctl, fd, FS_IOC_FIEMAP, bytes(32)))
    space = os.statvfs(path)
    h.say("statvfs", space.f_bsize, space.f_frsize, space.f_blocks, space.f_bavail, space.f_files)


def story(h: Story) -> None:
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        pytest.skip("mounting needs root and FUSE")
    h.start()
    path = str(h.folder / "mounted")
    (h.folder / "mounted").touch()
    for fmt, writable, growable, others in (
        ("raw", True, False, "auto"),
        ("raw", True, True, "off"),
        ("raw", False, False, "on"),
        ("raw", False, True, "off"),
        ("qcow2", True, False, "auto"),
        ("qcow2", True, True, "auto"),
    ):
        h.heading(f"{fmt}, writable {writable}, growable {growable}, allow-other {others}")
        h.run("qemu-img", "create", "-q", "-f", fmt, "image", "1M")
        h.run("qemu-io", "-f", fmt, "-c", "write -q -P 1 0 128k", "image")
        image = {"driver": "file", "filename": "image", "discard": "unmap"}
        h.qmp("blockdev-add", driver=fmt, node_name="n", file=image, discard="unmap")
        export = {"type": "fuse", "id": "e", "node-name": "n", "mountpoint": path}
        h.qmp(
            "block-export-add",
            {**export, "writable": writable, "growable": growable, "allow-other": others},
        )
        fd = os.open(path, os.O_RDWR)
        try:
            content(h, fd, path)
            attributes(h, fd, path)
        finally:
            os.close(fd)
        h.qmp("block-export-del", id="e")
        h.qmp("blockdev-del", node_name="n")
    h.quit()
