# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Encrypted sectors in worker threads, from the file to the user's memory: a fast path.

Where the encrypted data lies plainly in a file, a thread does the whole of a request::

    preadv(2) --> decrypt in place          copy --> encrypt --> pwrite(2)

A piece of `PIECE` bytes goes through all steps before the next one does, so it stays in the
processor's second cache, and the loop is left with receiving and sending.  The plain way of
:class:`qsd.formats.sectors.Sectors` moves a whole request on the loop, and encrypts it in a thread.

Threads take what is in the queue, several requests at once if they are short: a call of the cipher
costs the same for 4 KiB and for 64.  A thread ends its work when the queue is empty; until then it
neither waits for the loop nor the loop for it.

Whatever goes wrong here (an error, the end of the file) is left to the plain way, which meets the
same and tells the user.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from typing import TYPE_CHECKING, Final

from qsd.crypto.rows import SECTOR

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from qsd.aio.bounce import BouncePool
    from qsd.aio.workers import WorkerPool
    from qsd.crypto.volume import Volume

#: Bytes that go through all steps together: with tweaks and other scratch space of the cipher they
#: fit the second cache, or nearly so.  More calls for less cost more of the interpreter's lock.
PIECE: Final = 512 << 10
#: Bytes; a thread more works on requests of this length only.  The one that is there takes several
#: short ones at once, and two threads would wait for the interpreter's lock (64 KiB: 230 us of
#: processor time with two, 160 with one, and a third more requests a second).
_LONG: Final = 256 << 10


class SectorJob:
    """A request.

    Attributes:
        is_write: Else a read.
        offset: In the volume, bytes.
        view: The plain text; whole sectors.
        fd, host: Where the encrypted text is.
        done: Called from the loop, with whether all was done.
        full: That, once it is known.
    """

    __slots__ = ("done", "fd", "full", "host", "is_write", "offset", "view")

    def __init__(
        self,
        is_write: bool,
        offset: int,
        view: memoryview,
        place: tuple[int, int],
        done: Callable[[bool], None],
    ) -> None:
        self.is_write = is_write
        self.offset = offset
        self.view = view
        self.fd, self.host = place
        self.done = done
        self.full = False


class SectorJobs:
    """The requests of one volume."""

    __slots__ = (
        "_bounces", "_finished", "_is_woken", "_loop", "_pool", "_queue", "_running", "_threads",
        "_volume",
    )  # fmt: skip

    def __init__(self, volume: Volume, pool: WorkerPool, bounces: BouncePool, threads: int) -> None:
        """Start without threads.

        Args:
            volume: Encrypts and decrypts.
            pool: Where threads come from.
            bounces: Where memory comes from.
            threads: How many work at the same time.
        """
        self._volume = volume
        self._pool = pool
        self._bounces = bounces
        self._threads = threads
        self._running = 0
        self._queue: deque[SectorJob] = deque()
        self._finished: deque[list[SectorJob]] = deque()
        self._is_woken = False
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def is_busy(self) -> bool:
        """Whether threads are at work."""
        return self._running > 0

    def add(self, job: SectorJob) -> None:
        """Queue a request; called from the loop."""
        self._queue.append(job)
        is_long = len(job.view) >= _LONG or self._volume.is_slow
        if not self._running or (self._running < self._threads and is_long):
            self._start()

    def _start(self) -> None:
        self._running += 1
        self._loop = asyncio.get_running_loop()
        self._pool.submit(self._work).add_done_callback(self._ended)

    def _ended(self, future: asyncio.Future[None]) -> None:
        """A thread found the queue empty, which it may not be any more."""
        self._running -= 1
        if self._queue:
            self._start()
        future.result()  # a defect of ours, if it raises: the loop's handler tells of it

    def _deliver(self) -> None:
        """Tell users what has ended."""
        self._is_woken = False
        while self._finished:
            for job in self._finished.popleft():
                job.done(job.full)

    # In a thread

    def _work(self) -> None:
        while jobs := self._take():
            try:
                self._carry_out(jobs)
            finally:
                self._finished.append(jobs)
                # As in the pool of threads: no wake-up is lost, and few are sent.
                if not self._is_woken:
                    self._is_woken = True
                    assert self._loop is not None  # there is one since this thread was asked for
                    self._loop.call_soon_threadsafe(self._deliver)

    def _take(self) -> list[SectorJob]:
        """Take requests that go through the cipher together, up to `PIECE`, or a longer one."""
        taken: list[SectorJob] = []
        room = PIECE
        try:
            while room > 0:
                job = self._queue.popleft()
                if taken and (len(job.view) > room or job.is_write != taken[0].is_write):
                    self._queue.appendleft(job)
                    break
                taken.append(job)
                room -= len(job.view)
        except IndexError:
            pass  # there are no more
        return taken

    def _carry_out(self, jobs: list[SectorJob]) -> None:
        bounce = self._bounces.take(PIECE)
        try:
            if len(jobs) == 1:
                job = jobs[0]
                job.full = (self._write_long if job.is_write else self._read_long)(job, bounce.view)
            else:
                act = self._write_short if jobs[0].is_write else self._read_short
                full = act(jobs, bounce.view)
                for job in jobs:
                    job.full = full
        except OSError:
            pass  # the plain way meets the same
        finally:
            self._bounces.give(bounce)

    def _read_long(self, job: SectorJob, bounce: memoryview) -> bool:
        """Read and decrypt in place, piece by piece."""
        for start in range(0, len(job.view), PIECE):
            piece = job.view[start : start + PIECE]
            if os.preadv(job.fd, [piece], job.host + start) != len(piece):
                return False
            self._volume.decrypt((job.offset + start) // SECTOR, piece, piece)
        return True

    def _write_long(self, job: SectorJob, bounce: memoryview) -> bool:
        """Encrypt and write piece by piece; the plain text is left alone."""
        for start in range(0, len(job.view), PIECE):
            piece = job.view[start : start + PIECE]
            text = bounce[: len(piece)]
            self._volume.encrypt((job.offset + start) // SECTOR, piece, text)
            if os.pwrite(job.fd, text, job.host + start) != len(piece):
                return False
        return True

    def _read_short(self, jobs: Sequence[SectorJob], bounce: memoryview) -> bool:
        """Read several, and decrypt them together."""
        for job in jobs:
            if os.preadv(job.fd, [job.view], job.host) != len(job.view):
                return False
        self._volume.decrypt_pieces([(job.offset // SECTOR, job.view, job.view) for job in jobs])
        return True

    def _write_short(self, jobs: Sequence[SectorJob], bounce: memoryview) -> bool:
        """Encrypt several together, and write them."""
        pieces, end = [], 0
        for job in jobs:
            start, end = end, end + len(job.view)
            pieces.append((job.offset // SECTOR, job.view, bounce[start:end]))
        self._volume.encrypt_pieces(pieces)
        return all(
            os.pwrite(job.fd, text, job.host) == len(text)
            for job, (_, _, text) in zip(jobs, pieces, strict=True)
        )
