# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Worker threads with a table of file descriptors of their own: they know one file and no other.

A thread that waits for the answer of a FUSE server cannot be killed once the server has taken the
request.  If the server is this very process, and is killed, then ``/dev/fuse`` must close for the
thread to be let go; but a table of descriptors lives as long as any thread that has it.  So threads
which make such calls leave the table of the process (unshare(2), CLONE_FILES) and close all in
their copy of it but that one file.  They are of no use for anything else.
"""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, Final

from qsd.aio.workers import WorkerPool

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

#: unshare(2), from linux/sched.h.
_CLONE_FILES: Final = 0x400
#: Descriptors of standard streams.
_STANDARD: Final = (0, 1, 2)


@functools.cache
def _libc_unshare() -> Callable[[int], int]:
    """Return unshare(2), which the os module has since Python 3.12."""
    import ctypes

    call: Callable[[int], int] = ctypes.CDLL(None, use_errno=True).unshare
    return call


class ApartPool(WorkerPool):
    """Threads for calls with one descriptor."""

    _bell: int  # an eventfd(2), made with the first job
    _owner: asyncio.AbstractEventLoop

    def __init__(self, fd: int, max_threads: int) -> None:
        """Start without a thread.

        Args:
            fd: The descriptor, which stays open until the pool is closed.
            max_threads: Threads at most.
        """
        # io_uring's threads have the table of the process.
        super().__init__(max_threads, use_ring=False)
        self._fd = fd

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        super()._begin(loop)
        self._owner = loop
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        loop.add_reader(self._bell, self._rung)

    def _begin_thread(self) -> None:
        """Leave the table of the process, unless a sandbox forbids that."""
        if _libc_unshare()(_CLONE_FILES):
            return
        start = 0
        for keep in sorted({*_STANDARD, self._bell, self._fd}):
            if start < keep:  # else it would close whatever there is
                os.closerange(start, keep)
            start = keep + 1
        os.closerange(start, os.sysconf("SC_OPEN_MAX"))

    def _wake_loop(self) -> None:
        # The loop's own means to be woken is a descriptor which threads like this do not have.
        os.eventfd_write(self._bell, 1)

    def _rung(self) -> None:
        os.eventfd_read(self._bell)
        self._deliver()

    async def close(self) -> None:
        """Finish what is queued, end all threads and wait for them.  Idempotent."""
        begun = self._loop is not None and not self._closed
        await super().close()
        if begun:
            self._owner.remove_reader(self._bell)
            os.close(self._bell)
