# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Pipes that data passes through on its way from a socket to a file, seen by the kernel only.

splice(2) moves the pages of a socket's queue into a pipe without copying them, and copies them from
there into the page cache: one copy in place of two by way of a buffer.
"""

from __future__ import annotations

import fcntl
import os
from typing import Final

#: Bytes; what an unprivileged process may ask for (Linux, "/proc/sys/fs/pipe-max-size").
CAPACITY: Final = 1 << 20


class Pipe:
    """A pipe of `CAPACITY` bytes, in 4 KiB slots: many short pieces fill it earlier.

    Attributes:
        filled: Bytes that are in it.
    """

    __slots__ = ("_read_end", "_write_end", "filled")

    def __init__(self) -> None:
        """Make a pipe.

        Raises:
            OSError: EMFILE and the like, EPERM if pipes of this user take too much memory already.
        """
        self.filled = 0
        self._read_end, self._write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.fcntl(self._write_end, fcntl.F_SETPIPE_SZ, CAPACITY)
        except OSError:
            self.close()
            raise

    def fill(self, fd: int, length: int) -> int:
        """Move up to `length` bytes from a socket; return how many, 0 at its end.

        Raises:
            BlockingIOError: The socket is empty or the pipe is full.
            OSError: The socket's.
        """
        count = os.splice(fd, self._write_end, length)
        self.filled += count
        return count

    def write_to(self, fd: int, offset: int, length: int) -> int:
        """Write up to `length` bytes, all of which are here, to a file; return how many.

        Raises:
            OSError: The file's; what was not written is still here.
        """
        count = os.splice(self._read_end, fd, length, offset_dst=offset)
        self.filled -= count
        return count

    def read_all(self, view: memoryview) -> None:
        """Take out all bytes, into the start of `view`."""
        end = self.filled
        while self.filled:
            start = end - self.filled
            self.filled -= os.readv(self._read_end, [view[start:end]])

    def drop(self) -> None:
        """Throw away what is here."""
        if self.filled:
            self.read_all(memoryview(bytearray(self.filled)))

    def close(self) -> None:
        """Give up the pipe and what is in it; nothing happens the second time."""
        if self._read_end >= 0:
            os.close(self._read_end)
            os.close(self._write_end)
            self._read_end = self._write_end = -1
