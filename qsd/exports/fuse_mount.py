# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Mounting and unmounting one file: mount(2) for root, fusermount3 for everybody else.

Options as mount.fuse(8) names them.  All functions block and run in worker threads: an unmount
waits for the kernel to write dirty pages back, through the very export that is being unmounted.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import socket
import stat
import subprocess

from qsd.errors import QmpError, describe_path_error

_MS_NOSUID, _MS_NODEV = 2, 4
#: Dead mounts on top of each other that are taken away.
_MAX_DEAD = 16
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8


def check_mountpoint(path: str) -> str:
    """Refuse what cannot carry a mount; return the path that it will be found by in the end too.

    That is the absolute path without symbolic links: who unmounts may be somewhere else, and a link
    is not followed then.

    A mount that a killed daemon left is taken away first.  The C daemon only fails with the errno
    that such a mount answers everything with.

    Raises:
        QmpError: It is no regular file.
    """
    try:
        mode = _stat(path).st_mode
    except (OSError, ValueError) as exc:
        raise QmpError(f"Failed to stat '{path}': {describe_path_error(exc)}") from exc
    if not stat.S_ISREG(mode):
        raise QmpError(f"'{path}' is not a regular file")
    return os.path.realpath(path)


def _stat(path: str) -> os.stat_result:
    """Look at a file behind the dead mounts that may lie on it."""
    for _ in range(_MAX_DEAD):
        if not (_is_dead(path) and _is_one_file(path)):
            break
        unmount(os.path.realpath(path))
    return os.stat(path)


def _is_dead(path: str) -> bool:
    """Tell whether the server of a file system is gone for good.

    The kernel may remember what stat(2) says, but never what statvfs(3) does.
    """
    try:
        os.statvfs(path)
    except OSError as exc:
        return exc.errno == errno.ENOTCONN
    return False


def _is_one_file(path: str) -> bool:
    """Tell whether the mount on top of a path is named like ours and those of the C daemon.

    A folder of somebody's network file system is none of our business, dead or not.
    """
    wanted = os.path.realpath(path)
    source = ""
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            # proc(5), "/proc/pid/mountinfo": what may be a separator stands there in octal.
            words = line.split()
            point = re.sub(rb"\\([0-7]{3})", lambda found: bytes((int(found[1], 8),)), words[4])
            if os.fsdecode(point) == wanted:
                kind = words.index(b"-", 6) + 1
                source = os.fsdecode(b" ".join(words[kind : kind + 2]))
    return source == "fuse /dev/fuse"


def mount(path: str, *, allow_other: bool) -> int:
    """Mount a new FUSE file on `path` and return the connection's descriptor, non-blocking.

    Raises:
        OSError: It failed; nothing is mounted.
    """
    if os.geteuid() == 0:
        return _mount_directly(path, allow_other)
    return _mount_by_helper(path, allow_other)


def _mount_directly(path: str, allow_other: bool) -> int:
    import ctypes

    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    options = (
        f"fd={fd},rootmode={stat.S_IFREG:o},user_id={os.getuid()},group_id={os.getgid()},"
        f"default_permissions,max_read={64 << 20}"
    )
    if allow_other:
        options += ",allow_other"
    libc = ctypes.CDLL(None, use_errno=True)
    result = libc.mount(
        b"/dev/fuse",
        os.fsencode(path),
        b"fuse",
        ctypes.c_ulong(_MS_NOSUID | _MS_NODEV),
        options.encode(),
    )
    if result < 0:
        code = ctypes.get_errno()
        os.close(fd)
        raise OSError(code, os.strerror(code))
    return fd


def _mount_by_helper(path: str, allow_other: bool) -> int:
    """Let the set-uid helper mount; it passes the descriptor over a socket (fusermount3(1))."""
    helper = shutil.which("fusermount3") or shutil.which("fusermount")
    if helper is None:
        raise OSError(errno.EPERM, "fusermount3 is not installed")
    options = f"default_permissions,max_read={64 << 20}"
    if allow_other:
        options += ",allow_other"
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            theirs.set_inheritable(True)
            done = _run([helper, "-o", options, "--", path], _FUSE_COMMFD=str(theirs.fileno()))
        if done.returncode:
            raise OSError(errno.EPERM, done.stderr.strip() or "fusermount3 failed")
        _, fds, _, _ = socket.recv_fds(ours, 1, 1)
    if not fds:
        raise OSError(errno.EPROTO, "fusermount3 passed no descriptor")
    os.set_inheritable(fds[0], False)
    os.set_blocking(fds[0], False)
    return fds[0]


def unmount(path: str) -> None:
    """Take the mount away; files that are still open keep it alive, unseen, until the fd closes."""
    if os.geteuid() == 0:
        import ctypes

        ctypes.CDLL(None, use_errno=True).umount2(os.fsencode(path), _MNT_DETACH | _UMOUNT_NOFOLLOW)
        return
    helper = shutil.which("fusermount3") or shutil.which("fusermount")
    if helper is not None:
        _run([helper, "-u", "-z", "-q", "--", path])


def _run(words: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the helper.

    Descriptors that it has no use for close when it starts, and not before, as subprocess would
    have it: that is done with the interpreter locked, and to close a file that this daemon shows
    takes an answer of this daemon.
    """
    return subprocess.run(  # noqa: S603 - a list of words, no shell
        words,
        env={**os.environ, **environment},
        close_fds=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
