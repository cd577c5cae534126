# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Image files on FUSE file systems, where a process answers every call: perhaps this very one.

An export of type "fuse" shows a node as a file, and the same daemon may be told to open that file
as an image.  A call that reaches the server then waits for the event loop, so it must never be made
by the event loop: not even fstat(2), nor the close(2) that dup2(2) makes, which is a FLUSH request.
(The C daemon makes them, and stands still.)  Hence, for such a file:

* All calls go to worker threads, those of the file and not those of the daemon: threads that wait
  for a request must not be the ones which that request needs to be answered.  They have to be
  killed with the daemon, too (:mod:`qsd.aio.apart`).
* Nothing is read through mappings or by io_uring, and nobody else is given the descriptor.
* Descriptors are kept until the node is closed, one for each access mode; a node that may turn
  writable any time, in the middle of a change of the graph, has the other one opened beforehand.
* The space taken on disk is what it was a moment ago.

Locks need no thread.  The kernel keeps them itself, unless the server wants them; ours does not.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from qsd.aio.apart import ApartPool
from qsd.errors import QmpError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable

    from qsd.aio.workers import WorkerPool
    from qsd.protocols.file.image import OpenFile

#: Requests that wait for the server at a time; count.
_MAX_THREADS: Final = 16


class ServedFile:
    """The descriptors of one such file, and the threads that use them."""

    __slots__ = ("_allocated", "_errors", "_files", "_fstat", "_pools", "_workers")

    def __init__(self, file: OpenFile, workers: WorkerPool) -> None:
        """Take over an open file.

        Args:
            file: The file.
            workers: The daemon's threads, which open and close it.
        """
        self._workers = workers
        self._files = {file.flags: file}
        self._pools = {file.flags: ApartPool(file.fd, _MAX_THREADS)}
        #: Why it could not be opened in other ways.
        self._errors: dict[int, QmpError] = {}
        self._allocated = file.allocated
        self._fstat: asyncio.Future[os.stat_result] | None = None

    async def open_ahead(self, modes: Iterable[int], open_now: Callable[[int], OpenFile]) -> None:
        """Open the file in all these ways, as far as that is possible."""
        for flags in modes:
            if flags not in self._files:
                self._errors.pop(flags, None)
                await self._workers.run(self._open, flags, open_now)

    def _open(self, flags: int, open_now: Callable[[int], OpenFile]) -> None:
        try:
            file = open_now(flags)
        except QmpError as exc:
            self._errors[flags] = exc
        else:
            self._pools[flags] = ApartPool(file.fd, _MAX_THREADS)
            self._files[flags] = file

    def find(self, flags: int) -> OpenFile:
        """Return what was opened that way.

        Raises:
            QmpError: It could not be.
        """
        if flags in self._errors:
            raise self._errors[flags]
        return self._files[flags]

    def pool(self, flags: int) -> ApartPool:
        """Return the threads that know the descriptor of :meth:`find`, and no other one."""
        return self._pools[flags]

    def allocated(self) -> int:
        """Return the bytes taken on disk as last seen, and begin to look again."""
        if self._fstat is None:
            flags, file = next(iter(self._files.items()))
            self._fstat = self._pools[flags].submit(os.fstat, file.fd)
            self._fstat.add_done_callback(self._looked)
        return self._allocated

    def _looked(self, done: asyncio.Future[os.stat_result]) -> None:
        self._fstat = None
        if done.exception() is None:
            self._allocated = done.result().st_blocks * 512

    async def close(self) -> None:
        """Close all descriptors."""
        for pool in self._pools.values():
            await pool.close()
        for file in self._files.values():
            await self._workers.run(_close, file)


def _close(file: OpenFile) -> None:
    try:
        file.close()
    except OSError:
        # The server is gone, or cannot flush.  The descriptor is closed nevertheless, and who
        # wanted to be sure of the data has flushed it.
        pass
