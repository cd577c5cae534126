# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Encrypted sectors: how requests get through the cipher without holding up the loop.

====================  ============================================================================
up to GATHER_LENGTH   when several come in one turn of the loop, they wait for its end and go
                      through the cipher together; else at once
up to INLINE_LENGTH   at once, if no other is on its way: a thread would cost more
longer                in worker threads: those of :mod:`qsd.formats.sector_jobs` where the data lies
                      plainly in a file, else in pieces of CHUNK that the loop reads and writes;
                      with one processor on the loop, in shorter pieces
====================  ============================================================================

*Why to gather.*  A call of a cipher mode costs some 12 us however short its text is, which is more
than all else that a request of 4 KiB needs.  For 32 of them at once it is 3 us each.

*How.*  ``read_nowait`` of a format asks :meth:`Sectors.defers` and refuses if so; the user of the
node then tries ``read_later``, where the encrypted data is read at once and noted down.
:meth:`Sectors._flush`, which the loop calls next, decrypts what was noted and ends the requests.
Writes likewise: the text is noted, and encrypted and stored by the flush.  Gathering starts when
several requests come together, and ends after a turn with few of them, so a client that waits for
each answer never waits for a turn of the loop.  4 KiB at queue depth 32: 28 us of processor time
for each, 70 when each goes through the cipher by itself.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Final, TypeVar

from qsd.aio.bounce import BouncePool
from qsd.crypto.rows import SECTOR
from qsd.formats.sector_jobs import SectorJob, SectorJobs
from qsd.util.namedtuple import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from qsd.aio.workers import WorkerPool
    from qsd.block.node import Node
    from qsd.crypto.volume import Volume

#: Bytes; longer requests are not encrypted in one go, which would hold the loop up (this length:
#: 0.1 ms).
INLINE_LENGTH: Final = 64 << 10
#: Bytes that are encrypted in one piece.
CHUNK: Final = 1 << 20
#: Processors that this process may use.
_PROCESSORS: Final = len(os.sched_getaffinity(0))
#: Threads that work for one volume at the same time; none where there is but one processor.  The
#: cipher and the arithmetic release the interpreter's lock, so the loop goes on reading and sending
#: meanwhile, and the second thread works while it does.  On two processors 1 MiB takes as much
#: processor time in two threads as on the loop (2.2 ms of the daemon's in both, with all copies),
#: but of two processors.
_THREADS: Final = min(_PROCESSORS, 4) if _PROCESSORS > 1 else 0
#: Bytes; longer requests do not wait for others: most of their cost is that of their length.
GATHER_LENGTH: Final = 16 << 10
#: Requests in a turn of the loop that make it worth while to gather those of the next.
_ENOUGH: Final = 3
#: Seconds; a request that comes so soon after another came together with it: no client has had the
#: answer in between.
_GAP: Final = 20e-6
#: Requests that are served at once after one was refused for nothing: users that know nothing of
#: `read_later` take the plain way instead, which costs them more.
_HOLD_OFF: Final = 1000
#: Bytes that go through the cipher together; what is more waits for another turn, so that the loop
#: is not held up (this length: 0.3 ms).
_TOGETHER: Final = 256 << 10
#: Bytes; both lengths for ciphers that OpenSSL does not have (2 ms where they are computed here).
_TOGETHER_SLOWLY: Final = 32 << 10


class _Read(NamedTuple):
    """A read whose encrypted data is there.

    Attributes:
        offset: In the volume.
        view: The data.
        done: Called with True.
    """

    offset: int
    view: memoryview
    done: Callable[[bool], None]


class _Write(NamedTuple):
    """A write that was not begun.

    Attributes:
        offset: In the volume.
        view: The plain text.
        node, host: Where it goes.
        done: Called with whether it was done.
    """

    offset: int
    view: memoryview
    node: Node
    host: int
    done: Callable[[bool], None]


_Note = TypeVar("_Note", _Read, _Write)


class Sectors:
    """Encrypts and decrypts requests of any length without blocking the loop.

    Attributes:
        volume: What does it.
    """

    __slots__ = (
        "_bounces",
        "_count",
        "_ended",
        "_hold_off",
        "_inline_length",
        "_is_gathering",
        "_is_scheduled",
        "_jobs",
        "_pool",
        "_reads",
        "_together",
        "_turns",
        "_writes",
        "volume",
    )

    def __init__(self, volume: Volume, pool: WorkerPool) -> None:
        self.volume = volume
        self._pool = pool
        self._bounces = BouncePool()
        self._jobs = SectorJobs(volume, pool, self._bounces, _THREADS)
        self._turns = asyncio.Semaphore(max(_THREADS, 1))
        self._inline_length = _TOGETHER_SLOWLY if volume.is_slow else INLINE_LENGTH
        self._together = _TOGETHER_SLOWLY if volume.is_slow else _TOGETHER
        self._reads: deque[_Read] = deque()
        self._writes: deque[_Write] = deque()
        self._count = 0  # short requests in this turn of the loop
        self._ended = 0.0  # when the last one was served at once; seconds
        self._hold_off = 0  # requests until gathering may be tried again
        self._is_gathering = False
        self._is_scheduled = False

    # Any request

    async def decrypt(self, offset: int, view: memoryview) -> None:
        """Decrypt in place what was read; `offset` is that of the first byte, in the volume."""
        length = len(view)
        if length <= self._inline_length:
            self.volume.decrypt(offset // SECTOR, view, view)
            return
        for start in range(0, length, CHUNK):
            piece = view[start : start + CHUNK]
            await self._carry_out(self.volume.decrypt, offset + start, piece, piece)

    async def write(
        self,
        offset: int,
        view: memoryview,
        store: Callable[[int, memoryview], Awaitable[None]],
    ) -> None:
        """Encrypt into other memory and hand that on.

        Args:
            offset: Of the first byte, in the volume.
            view: The plain text, which is left alone.
            store: Called with offsets from the start of the request, and what to store there.
        """
        for start in range(0, len(view), CHUNK):
            piece = view[start : start + CHUNK]
            bounce = self._bounces.take(len(piece))
            try:
                with memoryview(bounce) as whole, whole[: len(piece)] as target:
                    if len(piece) <= self._inline_length:
                        self.volume.encrypt((offset + start) // SECTOR, piece, target)
                    else:
                        await self._carry_out(self.volume.encrypt, offset + start, piece, target)
                    await store(start, target)
            finally:
                self._bounces.give(bounce)

    async def _carry_out(
        self,
        work: Callable[[int, memoryview, memoryview], None],
        offset: int,
        data: memoryview,
        out: memoryview,
    ) -> None:
        """Encrypt or decrypt much without holding up the loop."""
        async with self._turns:
            if _THREADS > 0 or self.volume.is_slow:
                await self._pool.run(work, offset // SECTOR, data, out)
                return
            for start in range(0, len(data), _TOGETHER):
                if start:
                    await asyncio.sleep(0)
                end = start + _TOGETHER
                work((offset + start) // SECTOR, data[start:end], out[start:end])

    # Short requests, at once

    def defers(self, offset: int, length: int) -> bool:
        """Tell whether a request should not be served at once; also counts it.

        True for one that cannot be: too long, or not of whole sectors; and for one of some length
        that others keep company, so that more than one processor works on them.
        """
        if (offset | length) & (SECTOR - 1) or not 0 < length <= self._inline_length:
            return True
        if length > GATHER_LENGTH:
            return self._jobs.is_busy or monotonic() - self._ended < _GAP
        if not self._is_gathering:
            if monotonic() - self._ended > _GAP:
                self._count = 0
            elif self._count >= _ENOUGH:
                self._hold_off = max(self._hold_off - 1, 0)
                self._is_gathering = not self._hold_off
        self._count += 1
        if self._is_gathering:
            self._schedule()  # to find out whether that still is worth while
        return self._is_gathering

    def read_nowait(self, node: Node, offset: int, host: int, view: memoryview) -> bool:
        """Fast: read and decrypt at once, if the data is in memory.

        Args:
            node: Where the data is.
            offset: Of the first byte, in the volume.
            host: Of the first byte, in the node.
            view: Where to.
        """
        if not node.read_nowait(host, view):
            return False
        self.volume.decrypt(offset // SECTOR, view, view)
        self._ended = monotonic()
        return True

    def write_nowait(self, node: Node, offset: int, host: int, view: memoryview) -> bool:
        """Fast: encrypt and write at once, if the node takes that; arguments as for reading."""
        length = len(view)
        bounce = self._bounces.take(length)
        try:
            with memoryview(bounce) as whole, whole[:length] as target:
                self.volume.encrypt(offset // SECTOR, view, target)
                return node.write_nowait(host, target)
        finally:
            self._bounces.give(bounce)
            self._ended = monotonic()

    # Short requests, several at once

    def read_run(self, node: Node, pieces: Sequence[tuple[int, int, memoryview]]) -> bool:
        """Fast: read all of what is in memory, and decrypt it together.

        Args:
            node: Where the data is.
            pieces: Offset in the volume, offset in the node, and where to; whole sectors.
        """
        if len(pieces[0][2]) > GATHER_LENGTH:
            return self._read_long_run(node, pieces)
        bounce = self._bounces.take(sum([len(view) for _, _, view in pieces]))
        try:
            text, end = bounce.view, 0
            for _, host, view in pieces:
                start, end = end, end + len(view)
                if not node.read_nowait(host, text[start:end]):
                    return False
            whole = text[:end]
            self.volume.decrypt_runs(_runs(pieces), whole, whole)
            end = 0
            for _, _, view in pieces:
                start, end = end, end + len(view)
                view[:] = text[start:end]
            return True
        except OSError:
            return False  # the plain way meets the same error
        finally:
            self._bounces.give(bounce)

    def _read_long_run(self, node: Node, pieces: Sequence[tuple[int, int, memoryview]]) -> bool:
        """Fast: read and decrypt where the data shall be; see :meth:`read_run`."""
        try:
            for _, host, view in pieces:
                if not node.read_nowait(host, view):
                    return False
            self.volume.decrypt_pieces(
                [(offset // SECTOR, view, view) for offset, _, view in pieces]
            )
            return True
        except OSError:
            return False  # the plain way meets the same error

    def write_run(self, node: Node, pieces: Sequence[tuple[int, int, memoryview]]) -> int:
        """Fast: encrypt together, and write what is but a copy; arguments as for reading.

        Returns:
            How many were written.
        """
        bounce = self._bounces.take(sum([len(view) for _, _, view in pieces]))
        try:
            text, end = bounce.view, 0
            if len(pieces[0][2]) > GATHER_LENGTH:
                parts = []
                for offset, _, view in pieces:
                    start, end = end, end + len(view)
                    parts.append((offset // SECTOR, view, text[start:end]))
                self.volume.encrypt_pieces(parts)
            else:
                for _, _, view in pieces:
                    start, end = end, end + len(view)
                    text[start:end] = view
                whole = text[:end]
                self.volume.encrypt_runs(_runs(pieces), whole, whole)
            end = 0
            for number, (_, host, view) in enumerate(pieces):
                start, end = end, end + len(view)
                if not node.write_nowait(host, text[start:end]):
                    return number
            return len(pieces)
        except OSError:
            return 0  # the plain way meets the same error
        finally:
            self._bounces.give(bounce)

    # Short requests, gathered, and long ones, handed on

    def read_later(
        self, node: Node, offset: int, host: int, view: memoryview, done: Callable[[bool], None]
    ) -> bool:
        """Fast: read and decrypt at the end of the turn, or in a thread; see the driver's function.

        Other arguments as those of :meth:`read_nowait`.
        """
        if len(view) > GATHER_LENGTH:
            return self._read_in_thread(node, offset, host, view, done)
        if self.read_in_memory(node, offset, host, view, done):
            return True

        def arrived(full: bool) -> None:
            if full:
                self._reads.append(_Read(offset, view, done))
                self._schedule()
            else:
                done(False)

        return node.read_later(host, view, arrived)

    def read_in_memory(
        self, node: Node, offset: int, host: int, view: memoryview, done: Callable[[bool], None]
    ) -> bool:
        """Do as :meth:`read_later`, if the data is in memory: it is read before this returns."""
        try:
            if not node.read_nowait(host, view):
                return False
        except OSError:
            return False  # the plain way meets the same error
        self._reads.append(_Read(offset, view, done))
        self._schedule()
        return True

    def write_later(
        self, node: Node, offset: int, host: int, view: memoryview, done: Callable[[bool], None]
    ) -> bool:
        """Fast: encrypt and write at the end of the turn, or in a thread.

        See the driver's `write_later`; other arguments as those of :meth:`write_nowait`.
        """
        if len(view) > GATHER_LENGTH:
            return self._write_in_thread(node, offset, host, view, done)
        self._writes.append(_Write(offset, view, node, host, done))
        self._schedule()
        return True

    # Long requests, in threads

    def _read_in_thread(
        self, node: Node, offset: int, host: int, view: memoryview, done: Callable[[bool], None]
    ) -> bool:
        place = node.driver.locate_nowait(host, len(view)) if _THREADS else None
        if place is None:
            return False
        self._jobs.add(SectorJob(False, offset, view, place, done))
        return True

    def _write_in_thread(
        self, node: Node, offset: int, host: int, view: memoryview, done: Callable[[bool], None]
    ) -> bool:
        driver = node.driver
        if not _THREADS or node.write_nowait != driver.write_nowait:
            return False
        lent = driver.lend_for_write_nowait(host, len(view))
        if lent is None:
            return False
        descriptor, start, written = lent

        def finished(full: bool) -> None:
            written()
            done(full)

        self._jobs.add(SectorJob(True, offset, view, (descriptor, start), finished))
        return True

    def _schedule(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        """End the turn of the loop: decrypt and encrypt what was noted."""
        self._is_scheduled = False
        self._is_gathering = self._count >= _ENOUGH
        self._count = 0
        if not (self._reads or self._writes):
            # Whoever was refused takes the plain way instead: not worth while for some time.
            self._is_gathering = False
            self._hold_off = _HOLD_OFF
        if self._reads:
            self._finish_reads(_take(self._reads, self._together))
        if self._writes:
            self._finish_writes(_take(self._writes, self._together))
        if self._reads or self._writes:
            self._schedule()

    def _finish_reads(self, reads: list[_Read]) -> None:
        """Decrypt the data of several reads in one call, and end them."""
        runs, total = _measure(reads)
        bounce = self._bounces.take(total)
        try:
            with memoryview(bounce) as whole, whole[:total] as text:
                # The cipher wants one piece; two copies cost a tenth of a call for each.
                end = 0
                for _, view, _ in reads:
                    start, end = end, end + len(view)
                    text[start:end] = view
                self.volume.decrypt_runs(runs, text, text)
                end = 0
                for _, view, _ in reads:
                    start, end = end, end + len(view)
                    view[:] = text[start:end]
        finally:
            self._bounces.give(bounce)
        for read in reads:
            read.done(True)

    def _finish_writes(self, writes: list[_Write]) -> None:
        """Encrypt the data of several writes in one call, and store it."""
        runs, total = _measure(writes)
        bounce = self._bounces.take(total)
        try:
            with memoryview(bounce) as whole, whole[:total] as text:
                end = 0
                for write in writes:
                    start, end = end, end + len(write.view)
                    text[start:end] = write.view
                self.volume.encrypt_runs(runs, text, text)
                end = 0
                for write in writes:
                    start, end = end, end + len(write.view)
                    with text[start:end] as piece:
                        _store(write, piece)
        finally:
            self._bounces.give(bounce)

    def forget(self) -> None:
        """Drop the key, and the memory that encrypted and plain text went through."""
        self.volume.forget()
        self._bounces = BouncePool()
        self._jobs = SectorJobs(self.volume, self._pool, self._bounces, _THREADS)


def _take(queue: deque[_Note], room: int) -> list[_Note]:
    """Take from the queue what goes through the cipher together, up to so many bytes."""
    taken = []
    while queue and room > 0:
        note = queue.popleft()
        room -= len(note.view)
        taken.append(note)
    return taken


def _runs(pieces: Sequence[tuple[int, int, memoryview]]) -> list[tuple[int, int]]:
    return [(offset // SECTOR, len(view) // SECTOR) for offset, _, view in pieces]


def _measure(notes: Sequence[_Read | _Write]) -> tuple[list[tuple[int, int]], int]:
    """Return the runs of sectors that requests are, and their length in bytes."""
    runs = [(note.offset // SECTOR, len(note.view) // SECTOR) for note in notes]
    return runs, sum(count for _, count in runs) * SECTOR


def _store(write: _Write, encrypted: memoryview) -> None:
    """Write at once, else later out of memory of its own, else let the plain way do it."""
    node, host, done = write.node, write.host, write.done
    try:
        if node.write_nowait(host, encrypted):
            done(True)
            return
    except OSError:
        done(False)  # the plain way meets the same error
        return
    if not node.write_later(host, memoryview(bytes(encrypted)), done):
        done(False)
