# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""io_uring without compiled code: shared rings through mmap, system calls through ctypes.

What it is for: reads and writes that really wait for a device (O_DIRECT, cold pages).  A worker
thread costs two thread switches and a fight for the interpreter lock for each of them; the ring
costs one system call for all requests of a loop turn, and one wakeup for all that completed.

::

    start        ─▶ SQE in the ring ─┐                        single requests of one turn of the
    start_all    ─▶ SQEs in the ring ┼─▶ io_uring_enter       loop together, by a callback at its
                                     │      │                 end; several at once
                                     │      │
                                     ▼      ▼ kernel
    Sink.finished ◀─ CQEs ◀─ add_reader(ring) ◀─ ring is readable      all completions of one wakeup

Layout and constants: io_uring_setup(2), io_uring_enter(2), linux/io_uring.h.

Completions are posted by our own thread, on its way out of some system call.  By default the kernel
interrupts the thread for that, whatever it is doing; asked not to (IORING_SETUP_COOP_TASKRUN, Linux
5.19), it only does so to a thread that sleeps.  To go further and defer all of it until we ask
(IORING_SETUP_DEFER_TASKRUN) would take an eventfd, as the ring's descriptor does not tell of work
that was deferred: two more system calls for each wakeup.

Memory order: the submission tail is published before the enter call, which is a barrier;
completions are read after the wait for the descriptor.  What should be seen late all the same
leaves the descriptor readable, so none is missed.
"""

from __future__ import annotations

import errno
import mmap
import os
import struct
from typing import TYPE_CHECKING, Any, Final

from qsd.aio.kernel_queue import ENTRIES, KernelQueue
from qsd.aio.operations import READ

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable

    from qsd.aio.operations import Operation

_SETUP, _ENTER = 425, 426  # the same on all architectures since Linux 5.1
_COOP_TASKRUN, _SINGLE_ISSUER = 1 << 8, 1 << 12
#: Flags to try, best first; every kernel knows the last ones.
_SETUPS: Final = (_COOP_TASKRUN | _SINGLE_ISSUER, _COOP_TASKRUN, 0)
_OFF_CQ_RING, _OFF_SQES = 0x8000000, 0x10000000
_FEAT_SINGLE_MMAP = 1

#: struct io_uring_params: ten words, then ten for the submission and ten for the completion ring.
_PARAMS = struct.Struct("=40s10I10I")
_PARAMS_FLAGS: Final = struct.Struct("=8xI108x")
#: struct io_uring_sqe up to user_data, opcode and descriptor in one; the other 24 bytes stay zero.
_SQE = struct.Struct("=QQQIIQ")
_SQE_SIZE = 64
_CQE_SIZE = 16
_READV: Final = 1
#: IOSQE_ASYNC, in the byte of flags beside the opcode.
_ASYNC: Final = 1 << 4 + 8
_MASK: Final = 0xFFFFFFFF
_SIGN: Final = 1 << 31


def _signed(word: int) -> int:
    """Return the result in the lower half of a word."""
    return ((word & _MASK) ^ _SIGN) - _SIGN


class Ring(KernelQueue):
    """One ring that belongs to one event loop.

    Raises:
        OSError: The kernel has no io_uring, or policy forbids it.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, entries: int = ENTRIES) -> None:
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        self._syscall = libc.syscall
        self._syscall.restype = ctypes.c_long
        self._get_errno = ctypes.get_errno
        self._fd, params = self._set_up(entries)
        try:
            head, *offsets = _PARAMS.unpack(params)
            room = self._map(head, offsets[:10], offsets[10:])
        except BaseException:
            os.close(self._fd)
            raise
        super().__init__(loop, room)
        loop.add_reader(self._fd, self._reap)

    def _set_up(self, entries: int) -> tuple[int, bytes]:
        """Make a ring with the best flags that the kernel knows; return it and its parameters."""
        import ctypes

        for flags in _SETUPS:
            params = ctypes.create_string_buffer(_PARAMS_FLAGS.pack(flags), _PARAMS.size)
            try:
                return self._call(_SETUP, entries, params), params.raw
            except OSError as exc:
                if exc.errno != errno.EINVAL or not flags:
                    raise
        raise AssertionError("the last flags are none")

    def _call(self, *args: Any) -> int:
        result: int = self._syscall(*args)
        if result < 0:
            code = self._get_errno()
            raise OSError(code, os.strerror(code))
        return result

    def _map(self, head: bytes, sq: list[int], cq: list[int]) -> int:
        """Map both rings; return how many requests there is room for.

        The offsets are struct io_sqring_offsets and io_cqring_offsets.
        """
        sq_entries, cq_entries, _, _, _, features = struct.unpack_from("=6I", head)
        sq_size = sq[6] + sq_entries * 4
        cq_size = cq[5] + cq_entries * _CQE_SIZE
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
        self._cq_mask = self._cq[cq[2] // 4]
        # Each entry is two words: whose it is; the result, below flags that are zero.
        end = cq[5] + cq_entries * _CQE_SIZE
        self._cqes = memoryview(self._cq_map)[cq[5] : end].cast("Q")
        for index in range(sq_entries):  # the indirection array: entry n is SQE n, for good
            self._sq[sq[6] // 4 + index] = index
        room: int = min(sq_entries, cq_entries)
        return room

    # Requests

    def start_aside(
        self, fd: int, operations: Iterable[Operation], *, vectored: bool = False
    ) -> None:
        """Begin reads in threads of the kernel, now: they copy while this one does other things.

        Args:
            fd: Descriptor, for all.
            operations: As for :meth:`start_all`.
            vectored: At each one's address are so many (`length`) struct iovec.
        """
        self.start_all((_READV if vectored else READ) | _ASYNC, fd, operations)

    def _put(self, opcode: int, fd: int, operations: Iterable[Operation]) -> None:
        if self._closed:
            raise RuntimeError("ring is closed")
        active, free, sqes, mask = self._active, self._free, self._sqes, self._sq_mask
        first = tail = self._sq[self._sq_tail]
        head = opcode | fd << 32 if fd >= 0 else opcode | _MASK << 32
        pack = _SQE.pack_into
        for operation in operations:
            if not free:
                self._waiting.append((opcode, fd, operation))
                continue
            number = free.pop()
            active[number] = operation
            pack(
                sqes,
                (tail & mask) * _SQE_SIZE,
                head,
                operation.offset,
                operation.address,
                operation.length,
                0,
                number,
            )
            tail += 1
        self._sq[self._sq_tail] = tail & _MASK
        self._unsubmitted += tail - first

    def _submit(self) -> None:
        try:
            self._unsubmitted -= self._call(_ENTER, self._fd, self._unsubmitted, 0, 0, None, 0)
        except OSError as exc:
            if exc.errno not in (errno.EAGAIN, errno.EBUSY, errno.EINTR):
                raise
            # Out of memory for now, or a signal: again in the next turn.

    # Completions

    def _reap(self) -> None:
        ring, mask = self._cq, self._cq_mask
        head, tail = ring[self._cq_head], ring[self._cq_tail]
        if head == tail:
            return
        first, last = head & mask, tail & mask
        if first < last:
            words = self._cqes[2 * first : 2 * last].tolist()
        else:
            words = self._cqes[2 * first :].tolist() + self._cqes[: 2 * last].tolist()
        # The entries are the kernel's again before anybody reacts with new requests.
        ring[self._cq_head] = tail
        results = words[1::2]
        self._end(words[::2], [result if result < _SIGN else _signed(result) for result in results])

    def _release(self) -> None:
        self._loop.remove_reader(self._fd)
        self._sq.release()
        self._cq.release()
        self._cqes.release()
        self._sqes.close()
        self._sq_map.close()
        self._cq_map.close()
        os.close(self._fd)
