# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Positioned I/O on a file descriptor that never blocks the loop.

Reads are tried inline with ``RWF_NOWAIT`` (Linux 4.14): data in the page cache arrives without a
thread; otherwise the kernel says EAGAIN and a worker thread reads.  Buffered writes run inline
while they are memory copies; when one took suspiciously long (the kernel throttles writers when
too many pages are dirty) writes go to threads for a while.  Everything else (fsync, fallocate,
truncate, seeking for holes, O_DIRECT) always runs in a thread.

Offsets and lengths are bytes.  Buffers are contiguous memoryviews of the caller, who keeps them
alive and unchanged until the call returns.
"""

from __future__ import annotations

import errno
import os
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qsd.aio.workers import WorkerPool

#: fallocate(2) modes, from linux/falloc.h.
FALLOC_KEEP_SIZE = 0x01
FALLOC_PUNCH_HOLE = 0x02
FALLOC_ZERO_RANGE = 0x10

#: Bytes; a longer buffered write goes to a thread so that other clients get their turn.
MAX_INLINE_WRITE = 2 << 20
#: Seconds; an inline write that takes longer means that the kernel is throttling.
SLOW_WRITE = 0.02
#: Seconds; how long writes go to threads after a slow one.
SLOW_WRITE_PAUSE = 0.5

_preadv = os.preadv
_pwritev = os.pwritev
_NOWAIT = os.RWF_NOWAIT


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """Call fallocate(2), which the os module does not offer with a mode.

    Raises:
        OSError: EOPNOTSUPP where the file system cannot do it, and whatever else the call reports.
    """
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    call = libc.fallocate64 if hasattr(libc, "fallocate64") else libc.fallocate
    call.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    while call(fd, mode, offset, length) != 0:
        code = ctypes.get_errno()
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))


def read_full(fd: int, view: memoryview, offset: int) -> None:
    """Read until `view` is full; what lies beyond the end of the file reads as zeroes."""
    done = 0
    length = len(view)
    while done < length:
        count = _preadv(fd, [view[done:]], offset + done)
        if count == 0:
            view[done:] = bytes(length - done)
            return
        done += count


def write_full(fd: int, views: Sequence[memoryview], offset: int) -> None:
    """Write all views one after the other at `offset`."""
    for view in views:
        done = 0
        while done < len(view):
            done += _pwritev(fd, [view[done:] if done else view], offset + done)
        offset += len(view)


class FileIO:
    """I/O on one descriptor, which stays the caller's to close.

    Attributes:
        fd: The descriptor.
        inline: Whether page-cache I/O in the loop is possible (not with O_DIRECT).
    """

    __slots__ = ("_can_nowait", "_slow_until", "fd", "inline", "pool")

    def __init__(self, fd: int, pool: WorkerPool, *, direct: bool = False) -> None:
        self.fd = fd
        self.pool = pool
        self.inline = not direct
        self._can_nowait = not direct
        self._slow_until = 0.0

    def read_nowait(self, offset: int, view: memoryview) -> bool:
        """Read all of `view` if that needs no waiting; False leaves its content undefined.

        Raises:
            OSError: The read failed for a reason that waiting does not cure.
        """
        if not self._can_nowait:
            return False
        try:
            return _preadv(self.fd, (view,), offset, _NOWAIT) == len(view)
        except BlockingIOError:
            return False
        except OSError as exc:
            if exc.errno != errno.EOPNOTSUPP:
                raise
            self._can_nowait = False  # e.g. a file system without support for it
            return False

    async def read(self, offset: int, view: memoryview) -> None:
        """Fill `view`; bytes beyond the end of the file are zero."""
        if not self.read_nowait(offset, view):
            await self.pool.run(read_full, self.fd, view, offset)

    def write_nowait(self, offset: int, view: memoryview) -> bool:
        """Write all of `view` if that is but a memory copy; False means nothing was decided.

        After False some bytes may have been written; the caller writes the whole again.
        """
        if not self.inline or len(view) > MAX_INLINE_WRITE:
            return False
        before = monotonic()
        if before < self._slow_until:
            return False
        count = _pwritev(self.fd, (view,), offset)
        if monotonic() - before > SLOW_WRITE:
            self._slow_until = monotonic() + SLOW_WRITE_PAUSE
        return count == len(view)

    async def write(self, offset: int, view: memoryview) -> None:
        """Write all of `view`."""
        if not self.write_nowait(offset, view):
            await self.pool.run(write_full, self.fd, (view,), offset)

    async def writev(self, offset: int, views: Sequence[memoryview]) -> None:
        """Write all views, one after the other."""
        total = sum(map(len, views))
        if self.inline and total <= MAX_INLINE_WRITE and monotonic() >= self._slow_until:
            before = monotonic()
            count = _pwritev(self.fd, views, offset)
            if monotonic() - before > SLOW_WRITE:
                self._slow_until = monotonic() + SLOW_WRITE_PAUSE
            if count == total:
                return
        await self.pool.run(write_full, self.fd, views, offset)

    async def sync(self) -> None:
        """Make data, and what is needed to find it again, durable (fdatasync)."""
        await self.pool.run(os.fdatasync, self.fd)

    async def truncate(self, length: int) -> None:
        """Set the size of the file."""
        await self.pool.run(os.ftruncate, self.fd, length)

    async def fallocate(self, mode: int, offset: int, length: int) -> None:
        """Call fallocate(2)."""
        await self.pool.run(fallocate, self.fd, mode, offset, length)

    async def next_data(self, offset: int) -> int | None:
        """Return the offset of the first data at or behind `offset`, None if there is none."""
        return await self.pool.run(_seek, self.fd, offset, os.SEEK_DATA)

    async def next_hole(self, offset: int) -> int | None:
        """Return the offset of the first hole at or behind `offset` (the end of file is one)."""
        return await self.pool.run(_seek, self.fd, offset, os.SEEK_HOLE)


def _seek(fd: int, offset: int, whence: int) -> int | None:
    try:
        return os.lseek(fd, offset, whence)
    except OSError as exc:
        if exc.errno == errno.ENXIO:
            return None
        raise
