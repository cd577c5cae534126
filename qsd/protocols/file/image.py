# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Opening files and devices, and finding out what they are.

All functions may block; they run in worker threads, or in the loop for the one case where a user of
a node suddenly needs a read-only file writable.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Final

from qsd.aio.fdio import file_system_of
from qsd.errors import QmpError, describe, describe_path_error

if TYPE_CHECKING:
    from collections.abc import Callable

#: Files of this name stand for descriptors passed by a monitor (QMP reference, "add-fd"), which a
#: storage daemon does not have.
_FDSET: Final = "/dev/fdset/"

#: Bytes; what is tried as alignment of O_DIRECT requests, in this order.
_ALIGNMENTS: Final = (512, 1024, 2048, 4096)
#: Bytes; the alignment that is safe where none can be found out.
_SAFE_ALIGNMENT: Final = 4096


class OpenFile:
    """An open descriptor and what is known about it.

    Attributes:
        fd: The descriptor; -1 once it was closed or given away.
        flags: Access mode and O_DIRECT.
        mode: The st_mode.
        size: Bytes.
        align: Bytes; what requests must be aligned to (1 without O_DIRECT).
        block: Bytes; the block size of a block device, 1 for everything else.
        allocated: Bytes; space taken on disk.
        place: What names the file: st_dev and st_ino.
        is_served: Whether a process answers every call, perhaps this one; see
            :mod:`qsd.protocols.file.served`.
    """

    __slots__ = (
        "align", "allocated", "block", "fd", "flags", "is_served", "mode", "place", "size",
    )  # fmt: skip

    def __init__(self, fd: int, flags: int) -> None:
        self.fd = fd
        self.flags = flags
        self.mode = 0
        self.size = 0
        self.align = 1
        self.block = 1
        self.allocated = 0
        self.place = (0, 0)
        self.is_served = False

    def look(self) -> None:
        """Find out what fstat(2) tells."""
        status = os.fstat(self.fd)
        self.mode = status.st_mode
        self.allocated = status.st_blocks * 512
        self.place = (status.st_dev, status.st_ino)
        self.is_served = stat.S_ISREG(self.mode) and _is_served(status.st_dev)

    def take(self) -> int:
        """Give the descriptor away: closing is the caller's business from now on."""
        fd, self.fd = self.fd, -1
        return fd

    def close(self) -> None:
        """Close the descriptor unless it was given away.  Idempotent."""
        if self.fd >= 0:
            os.close(self.take())


def open_file(
    filename: str, flags: int, check: Callable[[int], None], find_size: Callable[[int, int], int]
) -> OpenFile:
    """Open a file and look at it.

    Args:
        filename: The path.
        flags: Access mode, perhaps with O_DIRECT.
        check: Given the st_mode, raises QmpError if the driver cannot serve it.
        find_size: Given descriptor and st_mode, returns the size in bytes.

    Raises:
        QmpError: With the text a user should read; nothing is left open.
    """
    opened = OpenFile(_open(filename, flags), flags)
    try:
        opened.look()
        check(opened.mode)
        try:
            opened.size = find_size(opened.fd, opened.mode)
        except OSError as exc:
            raise QmpError(f"Could not refresh total sector count: {describe(exc)}") from exc
        if flags & os.O_DIRECT:
            opened.align = probe_alignment(opened.fd)
    except BaseException:
        opened.close()
        raise
    return opened


def _is_served(device: int) -> bool:
    """Tell whether a file system is a FUSE one (one on a block device has that device's number)."""
    return os.major(device) == 0 and file_system_of(device).partition(".")[0] == "fuse"


def _open(filename: str, flags: int) -> int:
    if filename.startswith(_FDSET):
        raise _fdset_error(filename, flags)
    wait = 0
    try:
        if stat.S_ISFIFO(os.stat(filename).st_mode):
            wait = os.O_NONBLOCK  # else opening waits for a writer, only to be refused then
    except (OSError, ValueError):
        pass  # open(2) will say it better
    try:
        return os.open(filename, flags | os.O_CLOEXEC | wait)
    except (OSError, ValueError) as exc:
        reason = describe_path_error(exc)
        if isinstance(exc, OSError) and exc.errno == errno.EINVAL and flags & os.O_DIRECT:
            reason = "filesystem does not support O_DIRECT"
        raise QmpError(f"Could not open '{filename}': {reason}") from exc


def _fdset_error(filename: str, flags: int) -> QmpError:
    number = filename[len(_FDSET) :]
    if not (number.isascii() and number.isdigit()):
        return QmpError(f"Could not parse fdset {filename}")
    return QmpError(f"Could not dup FD for {filename} flags {flags:x}: Function not implemented")


def create_file(filename: str) -> int:
    """Open a file for writing, making it if there is none.

    Raises:
        QmpError: With the text a user should read.
    """
    flags = os.O_RDWR | os.O_CREAT
    if filename.startswith(_FDSET):
        raise _fdset_error(filename, flags)
    try:
        return os.open(filename, flags | os.O_CLOEXEC, 0o644)
    except (OSError, ValueError) as exc:
        raise QmpError(f"Could not create '{filename}': {describe_path_error(exc)}") from exc


def seek_size(fd: int, mode: int) -> int:
    """Return the size of a regular file."""
    return os.lseek(fd, 0, os.SEEK_END)


def probe_alignment(fd: int) -> int:
    """Find out what O_DIRECT requests must be aligned to: the kernel refuses others with EINVAL.

    Reading a single byte must fail; where it does not, the file system hides its needs (or the file
    is empty), and the largest alignment is the only safe one.
    """
    import mmap

    with mmap.mmap(-1, _SAFE_ALIGNMENT) as buffer:
        if _can_read(fd, buffer, 1):
            return _SAFE_ALIGNMENT
        for align in _ALIGNMENTS:
            if _can_read(fd, buffer, align):
                return align
    return _SAFE_ALIGNMENT


def _can_read(fd: int, buffer: object, length: int) -> bool:
    with memoryview(buffer)[:length] as view:  # type: ignore[arg-type] # mmap is a buffer
        try:
            os.preadv(fd, [view], 0)
        except OSError as exc:
            return exc.errno != errno.EINVAL
    return True
