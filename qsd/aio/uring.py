# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""io_uring without compiled code: shared rings through mmap, system calls through ctypes.

What it is for: reads and writes that really wait for a device (O_DIRECT, cold pages).  A worker
thread costs two thread switches and a fight for the interpreter lock for each of them; the ring
costs one system call for all requests of a loop turn, and one wakeup for all that completed.

::

    request ─▶ SQE in the ring ─┐                        all requests of one turn of the loop
    request ─▶ SQE in the ring ─┼─▶ io_uring_enter       (a callback at the end of the turn)
    request ─▶ SQE in the ring ─┘        │
                                         ▼ kernel
    futures ◀─ CQEs ◀─ add_reader(eventfd) ◀─ eventfd    all completions of one wakeup

Layout and constants: io_uring_setup(2), io_uring_enter(2), io_uring_register(2), linux/io_uring.h.

Memory order: the submission tail is published before the enter call, which is a barrier;
completions are read after a read(2) of the eventfd, which is one too.  Completions that arrive
meanwhile raise the eventfd again, so none is missed.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import struct
from collections import deque
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

#: Submission entries; more requests wait in a queue of ours.
ENTRIES: Final = 256

_SETUP, _ENTER, _REGISTER = 425, 426, 427  # the same on all architectures since Linux 5.1
_REGISTER_EVENTFD = 4
_OFF_CQ_RING, _OFF_SQES = 0x8000000, 0x10000000
_FEAT_SINGLE_MMAP = 1

#: struct io_uring_params: ten words, then ten for the submission and ten for the completion ring.
_PARAMS = struct.Struct("=40s10I10I")
#: struct io_uring_sqe up to user_data; the remaining 24 bytes stay zero.
_SQE = struct.Struct("=BBHiQQIIQ")
_SQE_SIZE = 64
_CQE = struct.Struct("=QiI")


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


class Ring:
    """One ring that belongs to one event loop.

    Attributes:
        READ, WRITE: Operations for :meth:`start`.

    Raises:
        OSError: The kernel has no io_uring, or policy forbids it.
    """

    READ: Final = 22
    WRITE: Final = 23

    def __init__(self, loop: asyncio.AbstractEventLoop, entries: int = ENTRIES) -> None:
        import ctypes

        self._loop = loop
        libc = ctypes.CDLL(None, use_errno=True)
        self._syscall = libc.syscall
        self._syscall.restype = ctypes.c_long
        self._get_errno = ctypes.get_errno
        params = ctypes.create_string_buffer(_PARAMS.size)
        self._fd = self._call(_SETUP, entries, params)
        self._eventfd = -1
        try:
            head, *offsets = _PARAMS.unpack(params.raw)
            self._map(head, offsets[:10], offsets[10:])
            self._eventfd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            number = ctypes.c_int(self._eventfd)
            self._call(_REGISTER, self._fd, _REGISTER_EVENTFD, ctypes.byref(number), 1)
        except BaseException:
            os.close(self._fd)
            if self._eventfd >= 0:
                os.close(self._eventfd)
            raise
        # In the kernel: whom to tell, and the owner of the memory, which must live until then.
        self._requests: dict[int, tuple[Callable[[int], None], object]] = {}
        # What found no room: the arguments of :meth:`start`.
        self._waiting: deque[tuple[int, int, int, int, int, object, Callable[[int], None]]] = (
            deque()
        )
        self._number = 0
        self._unsubmitted = 0
        self._enter_scheduled = False
        self._closed = False
        self._idle: asyncio.Future[None] | None = None
        loop.add_reader(self._eventfd, self._on_event)

    def _call(self, *args: Any) -> int:
        result: int = self._syscall(*args)
        if result < 0:
            code = self._get_errno()
            raise OSError(code, os.strerror(code))
        return result

    def _map(self, head: bytes, sq: list[int], cq: list[int]) -> None:
        """Map both rings; the offsets are struct io_sqring_offsets and io_cqring_offsets."""
        sq_entries, cq_entries, _, _, _, features = struct.unpack_from("=6I", head)
        sq_size = sq[6] + sq_entries * 4
        cq_size = cq[5] + cq_entries * _CQE.size
        if features & _FEAT_SINGLE_MMAP:
            sq_size = cq_size = max(sq_size, cq_size)
        self._sq_map = mmap.mmap(self._fd, sq_size)
        self._cq_map = (
            self._sq_map
            if features & _FEAT_SINGLE_MMAP
            else mmap.mmap(self._fd, cq_size, offset=_OFF_CQ_RING)
        )
        self._sqes = mmap.mmap(self._fd, sq_entries * _SQE_SIZE, offset=_OFF_SQES)
        self._sq = memoryview(self._sq_map).cast("I")
        self._cq = memoryview(self._cq_map).cast("I")
        self._sq_tail, self._sq_mask = sq[1] // 4, self._sq[sq[2] // 4]
        self._cq_head, self._cq_tail = cq[0] // 4, cq[1] // 4
        self._cq_mask, self._cqes = self._cq[cq[2] // 4], cq[5]
        self._room = min(sq_entries, cq_entries)
        for index in range(sq_entries):  # the indirection array: entry n is SQE n, for good
            self._sq[sq[6] // 4 + index] = index

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
        return await self._run(self.READ, fd, address, length, offset, keep)

    async def write(self, fd: int, address: int, length: int, offset: int, keep: object) -> int:
        """Write from memory; return the number of bytes, which may be short.

        Raises:
            OSError: The write failed.
        """
        return await self._run(self.WRITE, fd, address, length, offset, keep)

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
        requests = self._requests
        if self._closed:
            raise RuntimeError("ring is closed")
        if len(requests) >= self._room:
            self._waiting.append((opcode, fd, address, length, offset, keep, done))
            return
        self._number = number = self._number + 1
        requests[number] = done, keep
        ring = self._sq
        tail = ring[self._sq_tail]
        _SQE.pack_into(
            self._sqes,
            (tail & self._sq_mask) * _SQE_SIZE,
            opcode,
            0,
            0,
            fd,
            offset,
            address,
            length,
            0,
            number,
        )
        ring[self._sq_tail] = (tail + 1) & 0xFFFFFFFF
        self._unsubmitted += 1
        if not self._enter_scheduled:
            self._enter_scheduled = True
            self._loop.call_soon(self._enter)

    async def _run(
        self, opcode: int, fd: int, address: int, length: int, offset: int, keep: object
    ) -> int:
        waiter = _Waiter(self._loop)
        self.start(opcode, fd, address, length, offset, keep, waiter.done)
        result = await waiter.wait()
        if result < 0:
            raise OSError(-result, os.strerror(-result))
        return result

    def _enter(self) -> None:
        self._enter_scheduled = False
        if self._closed:
            return
        try:
            self._unsubmitted -= self._call(_ENTER, self._fd, self._unsubmitted, 0, 0, None, 0)
        except (BlockingIOError, InterruptedError):
            pass  # out of memory for now, or a signal: again in the next turn
        if self._unsubmitted:
            self._enter_scheduled = True
            self._loop.call_soon(self._enter)
        self._reap()

    # Completions

    def _on_event(self) -> None:
        try:
            os.eventfd_read(self._eventfd)
        except BlockingIOError:
            pass
        self._reap()

    def _reap(self) -> None:
        ring = self._cq
        head, tail = ring[self._cq_head], ring[self._cq_tail]
        if head == tail:
            return
        finished: list[tuple[Callable[[int], None], int]] = []
        while head != tail:
            number, result, _ = _CQE.unpack_from(
                self._cq_map, self._cqes + (head & self._cq_mask) * _CQE.size
            )
            head = (head + 1) & 0xFFFFFFFF
            finished.append((self._requests.pop(number)[0], result))
        # The entries are the kernel's again before anybody reacts with new requests.
        ring[self._cq_head] = head
        for done, result in finished:
            done(result)
        if not self._requests and self._idle is not None and not self._idle.done():
            self._idle.set_result(None)
        while self._waiting and len(self._requests) < self._room:
            self.start(*self._waiting.popleft())

    async def close(self) -> None:
        """Wait for what is in flight and give everything back.  Idempotent."""
        if self._closed:
            return
        while self._requests:
            self._idle = self._loop.create_future()
            await self._idle
        self._closed = True
        self._loop.remove_reader(self._eventfd)
        self._sq.release()
        self._cq.release()
        self._sqes.close()
        self._sq_map.close()
        self._cq_map.close()
        os.close(self._eventfd)
        os.close(self._fd)
