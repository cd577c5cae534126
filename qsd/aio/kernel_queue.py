# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""What the ways to hand requests to the kernel have in common.

A queue belongs to one event loop.  It takes operations, hands them over, those that come one by one
at the end of the turn, and tells their sinks in company when they have ended.  How the kernel is
told, and how it answers, is a matter of :mod:`qsd.aio.uring` and :mod:`qsd.aio.linux_aio`.
"""

from __future__ import annotations

import asyncio
import os
from abc import abstractmethod
from collections import deque
from typing import TYPE_CHECKING, Final

from qsd.aio.operations import READ, SLICE, WRITE, CalledOperation, Operation, OperationPool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from qsd.aio.operations import Sink

#: Requests in the kernel at a time; more wait in a queue of ours.
ENTRIES: Final = 256


class _Waiter:
    """Waits for one operation in the kernel."""

    __slots__ = ("_future", "_is_done", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._future: asyncio.Future[int] = loop.create_future()
        self._is_done = False

    def done(self, result: int) -> None:
        """Note how the operation ended."""
        self._is_done = True
        if not self._future.done():
            self._future.set_result(result)

    async def wait(self) -> int:
        """Return the result.  A cancelled caller waits, too: the kernel uses the memory."""
        try:
            return await self._future
        except asyncio.CancelledError:
            while not self._is_done:
                self._future = self._loop.create_future()
                try:
                    await self._future
                except asyncio.CancelledError:
                    continue
            raise


class KernelQueue:
    """Reads and writes that the kernel carries out while the loop does other things.

    Attributes:
        READ, WRITE: Operations for :meth:`start`.
        pool: Operations with memory, for whoever starts some here.
    """

    READ: Final = READ
    WRITE: Final = WRITE

    def __init__(self, loop: asyncio.AbstractEventLoop, room: int) -> None:
        """Start empty.

        Args:
            loop: Whose queue this is.
            room: Requests in the kernel at a time.
        """
        self._loop = loop
        self._room = room
        self.pool = OperationPool()
        # In the kernel, by number: whom to tell, and the owner of the memory, which must live.
        self._active: list[Operation | None] = [None] * room
        self._free = list(range(room))
        # What found no room, with opcode and descriptor.
        self._waiting: deque[tuple[int, int, Operation]] = deque()
        self._unsubmitted = 0
        self._enter_scheduled = False
        self._closed = False
        self._reaping = False
        self._idle: asyncio.Future[None] | None = None

    # Requests

    async def read(self, fd: int, address: int, length: int, offset: int, keep: object) -> int:
        """Read into memory; return the number of bytes, which may be short.

        Args:
            fd: Descriptor.
            address: Where to.
            length: Bytes.
            offset: In the file.
            keep: Owner of the memory.

        Raises:
            OSError: The read failed.
        """
        return await self._run(READ, fd, address, length, offset, keep)

    async def write(self, fd: int, address: int, length: int, offset: int, keep: object) -> int:
        """Write from memory; return the number of bytes, which may be short.

        Raises:
            OSError: The write failed.
        """
        return await self._run(WRITE, fd, address, length, offset, keep)

    def start(
        self,
        opcode: int,
        fd: int,
        address: int,
        length: int,
        offset: int,
        keep: object,
        done: Callable[[int], None],
    ) -> None:
        """Begin an operation without a coroutine; the kernel learns of it at the end of the turn.

        Args:
            opcode: READ or WRITE.
            fd: Descriptor.
            address: Memory to read to or to write from.
            length: Bytes.
            offset: In the file.
            keep: Owner of the memory.
            done: Called from the loop with the number of bytes, which may be short, or a negative
                errno.
        """
        self._put(opcode, fd, (CalledOperation(address, length, offset, keep, done),))
        if self._unsubmitted >= SLICE:
            self._submit()
        if self._unsubmitted:
            self._schedule()

    def start_all(self, opcode: int, fd: int, operations: Iterable[Operation]) -> None:
        """Begin operations, at once.

        At the end of the turn the device would have idled while replies to other requests were
        sent: with 64 KiB read 16 at a time, 8,200/s in place of 9,900.

        Args:
            opcode: READ or WRITE.
            fd: Descriptor, for all.
            operations: Each one's sink is told from the loop, never before this returns.
        """
        self._put(opcode, fd, operations)
        if self._unsubmitted:
            self._submit()
        if self._unsubmitted:
            self._schedule()

    @abstractmethod
    def _put(self, opcode: int, fd: int, operations: Iterable[Operation]) -> None:
        """Note operations as `_unsubmitted`, and as `_waiting` those that find no room."""

    async def _run(
        self, opcode: int, fd: int, address: int, length: int, offset: int, keep: object
    ) -> int:
        waiter = _Waiter(self._loop)
        self.start(opcode, fd, address, length, offset, keep, waiter.done)
        result = await waiter.wait()
        if result < 0:
            raise OSError(-result, os.strerror(-result))
        return result

    def _schedule(self) -> None:
        """See to it that the kernel learns of what is left at the end of the turn."""
        if not self._enter_scheduled:
            self._enter_scheduled = True
            self._loop.call_soon(self._enter)

    def _enter(self) -> None:
        """Hand over what waits for it, and take what is done already."""
        self._enter_scheduled = False
        if self._closed:
            return
        if self._unsubmitted:
            self._submit()
        if self._unsubmitted:
            self._schedule()
        self._reap()

    @abstractmethod
    def _submit(self) -> None:
        """Hand over what the kernel takes; the rest stays `_unsubmitted`."""

    def advance(self) -> None:
        """Tell sinks what has ended by now, before the turn does."""
        if not (self._closed or self._reaping):
            self._reap()

    # Completions

    @abstractmethod
    def _reap(self) -> None:
        """Take what has ended and call :meth:`_end`."""

    def _end(self, numbers: Iterable[int], results: Iterable[int]) -> None:
        """Tell the sinks of operations, which are not in the kernel any more.

        Args:
            numbers: Theirs.
            results: Bytes, or a negative errno, of each.
        """
        active, free = self._active, self._free
        ended: dict[Sink, list[Operation]] = {}
        for number, result in zip(numbers, results, strict=True):
            operation = active[number]
            assert operation is not None
            active[number] = None
            free.append(number)
            operation.result = result
            sink = operation.sink
            if sink in ended:
                ended[sink].append(operation)
            else:
                ended[sink] = [operation]
        self._reaping = True
        for sink, operations in ended.items():
            try:
                sink.finished(operations)
            except Exception as exc:
                # A defect, which must not keep the others waiting.
                self._loop.call_exception_handler(
                    {"message": "end of operations not taken", "exception": exc}
                )
        self._reaping = False
        while self._waiting and free:
            opcode, fd, operation = self._waiting.popleft()
            self._put(opcode, fd, (operation,))
        if self._unsubmitted:
            self._schedule()
        if len(free) == self._room and self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    async def close(self) -> None:
        """Wait for what is in flight and give everything back.  Idempotent."""
        if self._closed:
            return
        while len(self._free) < self._room:
            self._idle = self._loop.create_future()
            await self._idle
        self._closed = True
        self._release()

    @abstractmethod
    def _release(self) -> None:
        """Give memory and descriptors back; nothing is in flight."""
