# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Image locks: permissions shown to other processes as locked bytes of the file.

The permissions of a node (:mod:`qsd.block.perms`) hold inside one daemon.  Between processes they
are represented by *shared* open-file-description locks (fcntl(2), "Open file description locks") on
single bytes; nothing is ever locked exclusively, and the bytes need not exist::

    permission         in use by me    not shared by me
    consistent read        100              200
    write                  101              201
    write unchanged        102              202
    resize                 103              203

Who takes permissions first locks all bytes of what it uses and of what it does not share, and then
looks (F_OFD_GETLK for an exclusive lock, which conflicts with every shared one) whether somebody
else has locked the opposite byte: 200 + n for a permission n in use, 100 + n for one not shared.
Locking before looking makes sure that of two rivals at least one sees the other.  QEMU uses the
same bytes in the same way (found with strace), so its tools and this daemon keep each other out.

The locks belong to the open file description: they vanish when its last descriptor is closed, and
closing another descriptor of the same file does not release them.
"""

from __future__ import annotations

import fcntl
import os
import struct
from typing import Final

from qsd.block import perms
from qsd.errors import QmpError
from qsd.util.namedtuple import NamedTuple

#: First byte of those that say what is in use, and of those that say what is not shared.
USED_BASE: Final = 100
UNSHARED_BASE: Final = 200

#: Whether this system has such locks (Linux 3.15).
CAN_LOCK: Final = hasattr(fcntl, "F_OFD_SETLK")

#: struct flock of fcntl(2) on 64-bit Linux: l_type, l_whence, l_start, l_len, l_pid, padding.
_FLOCK: Final = struct.Struct("hhqqi4x")

_BITS: Final = tuple((index, 1 << index) for index in range(4))

#: Bytes of text; a command line in a hint is cut to this length.
_MAX_COMMAND: Final = 64


class Holder(NamedTuple):
    """A process that has the image open with locks."""

    pid: int
    command: str


class LockConflict(QmpError):
    """Another process uses the image in a way that does not go together with ours."""


class ImageLock:
    """The locks on one open file description.

    The life of a change is ``prepare`` and then exactly one of ``commit`` and ``abort``.

    Attributes:
        used, unshared: What is locked now (perms bits).
    """

    __slots__ = ("_fd", "_filename", "_place", "_previous", "_wanted", "unshared", "used")

    def __init__(self, fd: int, filename: str, place: tuple[int, int]) -> None:
        """Start without locks.

        Args:
            fd: A descriptor of the description that is to have them.
            filename: What messages call the file.
            place: Its st_dev and st_ino.
        """
        self._fd = fd
        self._filename = filename
        self._place = place
        self.used = 0
        self.unshared = 0
        self._previous = (0, 0)
        self._wanted = (0, 0)

    def prepare(self, used: int, shared: int) -> None:
        """Lock for new permissions in addition to the old ones, and look for conflicts.

        Who only gives something up looks for none: somebody who just tries to lock may show.

        Args:
            used: Permissions that will be in use.
            shared: Permissions that others may use.

        Raises:
            LockConflict: Another process is in the way; the locks are as before.
            QmpError: The file system cannot lock; the locks are as before.
        """
        unshared = perms.ALL & ~shared
        self._previous = (self.used, self.unshared)
        self._wanted = (used, unshared)
        if not (used & ~self.used or unshared & ~self.unshared):
            return
        try:
            self._lock(used, unshared)
            self._check(used, unshared)
        except BaseException:
            self.abort()
            raise

    def commit(self) -> None:
        """Give up what the new permissions do not need."""
        self._unlock_all_but(*self._wanted)

    def abort(self) -> None:
        """Go back to the locks before `prepare`."""
        self._unlock_all_but(*self._previous)

    def copy_to(self, fd: int) -> None:
        """Take on another description of the same file what is locked here, without looking.

        Raises:
            QmpError: The file system cannot lock.
        """
        other = ImageLock(fd, self._filename, self._place)
        other._lock(*self._wanted)

    def move_to(self, fd: int) -> None:
        """Go over to a description that `copy_to` was called for, and leave the old one bare."""
        self.leave(self._fd)
        self._fd = fd

    def leave(self, fd: int) -> None:
        """Give up all locks of a description that stays open."""
        other = ImageLock(fd, self._filename, self._place)
        other.used = other.unshared = perms.ALL
        other._unlock_all_but(0, 0)

    def _lock(self, used: int, unshared: int) -> None:
        for index, bit in _BITS:
            if used & bit and not self.used & bit:
                self._set(USED_BASE + index, fcntl.F_RDLCK)
                self.used |= bit
        for index, bit in _BITS:
            if unshared & bit and not self.unshared & bit:
                self._set(UNSHARED_BASE + index, fcntl.F_RDLCK)
                self.unshared |= bit

    def _check(self, used: int, unshared: int) -> None:
        for index, bit in _BITS:
            if used & bit and self._is_locked_elsewhere(UNSHARED_BASE + index):
                raise self._conflict(f'Failed to get "{_name(bit)}" lock')
        for index, bit in _BITS:
            if unshared & bit and self._is_locked_elsewhere(USED_BASE + index):
                raise self._conflict(f'Failed to get shared "{_name(bit)}" lock')

    def _conflict(self, text: str) -> LockConflict:
        hint = f"Is another process using the image [{self._filename}]?"
        holders = find_holders(self._place)
        if holders:
            names = ", ".join(f"{holder.pid} ({holder.command})" for holder in holders)
            hint += f"\nIt is in use by process {names}."
        return LockConflict(text, hint=hint)

    def _unlock_all_but(self, used: int, unshared: int) -> None:
        for index, bit in _BITS:
            if self.used & bit and not used & bit:
                self._unset(USED_BASE + index)
        for index, bit in _BITS:
            if self.unshared & bit and not unshared & bit:
                self._unset(UNSHARED_BASE + index)
        self.used &= used
        self.unshared &= unshared

    def _set(self, byte: int, kind: int) -> None:
        try:
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, byte, 1, 0))
        except OSError as exc:
            raise QmpError(f"Failed to lock byte {byte}: {os.strerror(exc.errno or 0)}") from exc

    def _unset(self, byte: int) -> None:
        try:
            self._set(byte, fcntl.F_UNLCK)
        except QmpError:
            # The lock goes with the descriptor at the latest; holding it too long harms nobody's
            # data, while failing here would leave a half-made change.
            pass

    def _is_locked_elsewhere(self, byte: int) -> bool:
        request = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
        try:
            answer = fcntl.fcntl(self._fd, fcntl.F_OFD_GETLK, request)
        except OSError as exc:
            raise QmpError(f"Failed to lock byte {byte}: {os.strerror(exc.errno or 0)}") from exc
        kind: int = _FLOCK.unpack(answer)[0]
        return kind != fcntl.F_UNLCK


def _name(bit: int) -> str:
    return perms.names(bit)


def find_holders(place: tuple[int, int]) -> list[Holder]:
    """Return the other processes that hold locks on a file, as far as that can be known.

    Such a lock has no process id of its own, so the descriptors of all processes that we may look
    at are searched (proc(5), "/proc/[pid]/fdinfo/").  Slow; only for error messages.
    """
    try:
        mine = os.getpid()
        pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return []
    device, inode = place
    wanted = f"{os.major(device):02x}:{os.minor(device):02x}:{inode} "
    return [Holder(pid, _command(pid)) for pid in pids if pid != mine and _holds(pid, wanted)]


def _holds(pid: int, place: str) -> bool:
    folder = f"/proc/{pid}/fdinfo"
    try:
        for name in os.listdir(folder):
            with open(f"{folder}/{name}") as info:
                for line in info:
                    if line.startswith("lock:") and "OFDLCK" in line and place in line:
                        return True
    except OSError:
        pass  # gone meanwhile, or somebody else's
    return False


def _command(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as text:
            words = text.read(_MAX_COMMAND * 4).split(b"\0")
    except OSError:
        return "?"
    return os.fsdecode(words[0]).rpartition("/")[2][:_MAX_COMMAND] or "?"
