# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Positioned I/O on a file descriptor that never blocks the loop.

Calls fall into four classes:

* Reads are tried inline with ``RWF_NOWAIT`` (Linux 4.14): data in the page cache arrives without a
  thread; otherwise the kernel says EAGAIN.
* Buffered writes and the search for holes are memory operations nearly always, and no flag keeps
  them from waiting.  They run inline until one took suspiciously long (the kernel throttles writers
  when too many pages are dirty; a map of extents must be read from disk); then calls of that kind
  go to threads for a while.
* Reads that must wait and all I/O with O_DIRECT go through io_uring, where the kernel has it
  (:mod:`qsd.aio.uring`), else through a thread; or, with O_DIRECT and if that is wanted, through
  Linux AIO (:mod:`qsd.aio.linux_aio`).
* Everything else (fsync, fallocate, truncate) always runs in a thread.

Offsets and lengths are bytes.  Buffers are contiguous memoryviews of the caller, who keeps them
alive and unchanged until the call returns.
"""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Callable, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from qsd.aio.folios import SLOW_SMALL, SMALL, FolioSplitter
from qsd.aio.slowness import SLOW_CALL, SLOW_PAUSE, WriteWatch
from qsd.util.zeroes import fill_zero

if TYPE_CHECKING:
    from qsd.aio.bounce import AlignedBuffer, BouncePool
    from qsd.aio.kernel_queue import KernelQueue
    from qsd.aio.workers import WorkerPool

#: fallocate(2) modes, from linux/falloc.h.
FALLOC_KEEP_SIZE: Final = 0x01
FALLOC_PUNCH_HOLE: Final = 0x02
FALLOC_ZERO_RANGE: Final = 0x10

#: Bytes; a longer buffered write goes to a thread so that other clients get their turn.
MAX_INLINE_WRITE: Final = 2 << 20
#: Bytes; below it copying through an aligned buffer is cheaper than asking for the address.
_MIN_ADDRESS_CHECK: Final = 128 << 10

_preadv = os.preadv
_pwrite = os.pwrite
_pwritev = os.pwritev
_NOWAIT = os.RWF_NOWAIT


@functools.cache
def _libc_fallocate() -> tuple[Callable[[int, int, int, int], int], Callable[[], int]]:
    """Return fallocate(2) and a function that tells its errno; the os module has no modes."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    call = libc.fallocate64 if hasattr(libc, "fallocate64") else libc.fallocate
    call.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    return call, ctypes.get_errno


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """Call fallocate(2).

    Raises:
        OSError: EOPNOTSUPP where the file system cannot do it, and whatever else the call reports.
    """
    call, get_errno = _libc_fallocate()
    while call(fd, mode, offset, length) != 0:
        code = get_errno()
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))


def file_system_of(device: int) -> str:
    """Return the type of the mounted file system that has this st_dev, "" if nobody knows."""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as mounts:
            # proc_pid_mountinfo(5): the third field is the device; after a lone "-" comes the type.
            for line in mounts:
                fields = line.split()
                if fields[2] == wanted:
                    return fields[fields.index("-") + 1]
    except OSError:
        pass  # no /proc here
    return ""


def lives_in_memory(fd: int) -> bool:
    """Tell whether a file lies in a file system without a device, where no read waits for one."""
    return file_system_of(os.fstat(fd).st_dev) in ("tmpfs", "ramfs")


def address_of(view: memoryview) -> int:
    """Return the address of a writable buffer, 0 for a read-only one, whose address is hidden."""
    if view.readonly:
        return 0
    import ctypes

    return ctypes.addressof(ctypes.c_char.from_buffer(view))


def read_full(fd: int, view: memoryview, offset: int) -> None:
    """Read until `view` is full; what lies beyond the end of the file reads as zeroes."""
    done = 0
    length = len(view)
    while done < length:
        count = _preadv(fd, [view[done:]], offset + done)
        if count == 0:
            fill_zero(view[done:])
            return
        done += count


def write_full(fd: int, views: Sequence[memoryview], offset: int) -> None:
    """Write all views one after the other at `offset`."""
    for view in views:
        done = 0
        while done < len(view):
            done += _pwritev(fd, [view[done:] if done else view], offset + done)
        offset += len(view)


def copy_full(source: int, target: int, source_offset: int, offset: int, length: int) -> None:
    """Copy between files with copy_file_range(2).

    Raises:
        OSError: What the call reports; ENODATA if the source ends before the range does.
    """
    done = 0
    while done < length:
        count = os.copy_file_range(
            source, target, length - done, source_offset + done, offset + done
        )
        if count == 0:
            raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))
        done += count


def read_direct(
    fd: int, view: memoryview, offset: int, align: int, memory_align: int, pool: BouncePool
) -> None:
    """Fill `view` from a descriptor with O_DIRECT; blocks.

    Args:
        fd: The descriptor.
        view: Where to; any address, its length a multiple of `align`.
        offset: A multiple of `align`.
        align: Request alignment.
        memory_align: What buffers must be aligned to.
        pool: Where aligned buffers come from.
    """
    length = len(view)
    if length >= _MIN_ADDRESS_CHECK and address_of(view) % memory_align == 0 and not view.readonly:
        fill_zero(view[_read_aligned(fd, view, offset, align) :])
        return
    buffer = pool.take(length)
    count = _read_aligned(fd, buffer.view[:length], offset, align)
    # The kernel reads to aligned memory only; this copy brings the bytes to the caller's.
    view[:count] = buffer.view[:count]
    fill_zero(view[count:])
    pool.give(buffer)


def _read_aligned(fd: int, view: memoryview, offset: int, align: int) -> int:
    """Read into aligned memory; return how many bytes there were before the end of the file."""
    done = 0
    while done < len(view):
        count = _preadv(fd, [view[done:]], offset + done)
        done += count
        if count == 0 or done % align:
            break
    return done


def write_direct(
    fd: int,
    views: Sequence[memoryview],
    offset: int,
    memory_align: int,
    pool: BouncePool,
) -> None:
    """Write all views through a descriptor with O_DIRECT; blocks.

    Together the views are a multiple of the request alignment.
    """
    if len(views) == 1:
        view = views[0]
        address = address_of(view) if len(view) >= _MIN_ADDRESS_CHECK else 0
        if address and address % memory_align == 0:
            write_full(fd, views, offset)
            return
    buffer = _gather(views, pool)
    write_full(fd, [buffer.view[: sum(map(len, views))]], offset)
    pool.give(buffer)


def _gather(views: Sequence[memoryview], pool: BouncePool) -> AlignedBuffer:
    """Copy all views to an aligned buffer, because the kernel writes from aligned memory only."""
    buffer = pool.take(sum(map(len, views)))
    at = 0
    for view in views:
        buffer.view[at : at + len(view)] = view
        at += len(view)
    return buffer


class FileIO:
    """I/O on one descriptor, which stays the caller's to close.

    The descriptor may be exchanged by dup2(2) at any time.

    Attributes:
        fd: The descriptor.
        pool: Worker threads.
        may_stall: Whether each call can take long: then all go to threads.
        max_inline: Bytes; a longer write goes to a thread; -1 if all writes do.
        bounce: Source of aligned buffers; set means that the descriptor has O_DIRECT.
        align: With O_DIRECT, what offsets and lengths are multiples of.
        memory_align: With O_DIRECT, what addresses must be multiples of.
        watch: Decides whether writes may run inline.
        folios: Keeps small writes cheap.
    """

    __slots__ = (
        "_can_nowait",
        "_native",
        "_read_flags",
        "_ring",
        "_slow_seek_until",
        "align",
        "bounce",
        "fd",
        "folios",
        "max_inline",
        "may_stall",
        "memory_align",
        "pool",
        "watch",
    )

    def __init__(self, fd: int, pool: WorkerPool, *, may_stall: bool = False) -> None:
        self.fd = fd
        self.pool = pool
        self.may_stall = may_stall
        self.max_inline = -1 if may_stall else MAX_INLINE_WRITE
        self.bounce: BouncePool | None = None
        self.align = 1
        self.memory_align = 1
        self._can_nowait = not may_stall
        self._read_flags = _NOWAIT
        self._native = False
        self._ring: KernelQueue | None = None
        self.watch = WriteWatch()
        self.folios = FolioSplitter()
        self._slow_seek_until = 0.0

    def set_direct(
        self,
        bounce: BouncePool | None,
        align: int = 1,
        memory_align: int = 1,
        *,
        native: bool = False,
    ) -> None:
        """Tell whether the descriptor has O_DIRECT now: then `bounce` is not None.

        With `native`, Linux AIO serves it where there is no io_uring.
        """
        self.bounce = bounce
        self._native = native and bounce is not None
        self._ring = None
        self.align = align
        self.memory_align = memory_align
        plain = bounce is None and not self.may_stall
        self._can_nowait = plain
        self.max_inline = MAX_INLINE_WRITE if plain else -1
        self._read_flags = _NOWAIT

    # Reading

    def read_nowait(self, offset: int, view: memoryview) -> bool:
        """Read all of `view` if that needs no waiting; False leaves its content undefined.

        Raises:
            OSError: The read failed for a reason that waiting does not cure.
        """
        if not self._can_nowait:
            return False
        try:
            return _preadv(self.fd, (view,), offset, self._read_flags) == len(view)
        except BlockingIOError:
            return False
        except OSError as exc:
            if exc.errno != errno.EOPNOTSUPP:
                raise
            # A file system without support for it; one in memory does not need it.
            self._can_nowait = lives_in_memory(self.fd)
            self._read_flags = 0
            return self._can_nowait and self.read_nowait(offset, view)

    async def read(self, offset: int, view: memoryview) -> None:
        """Fill `view`; bytes beyond the end of the file are zero."""
        if self.bounce is None and self.read_nowait(offset, view):
            return
        ring = self.queue()
        if ring is not None:
            await self._read_ring(ring, view, offset)
        elif self.bounce is not None:
            await self.pool.run(
                read_direct, self.fd, view, offset, self.align, self.memory_align, self.bounce
            )
        else:
            await self.pool.run(read_full, self.fd, view, offset)

    def read_later(self, offset: int, view: memoryview, done: Callable[[bool], None]) -> bool:
        """Begin a read by io_uring that finishes without a coroutine.

        Args:
            offset: Where; with O_DIRECT what is not aligned is refused.
            view: Where to.
            done: Called from the loop: True if `view` is full, False if :meth:`read` has to be
                called (short read, error).

        Returns:
            Whether the read was begun.
        """
        ring = self._ring or self._find_queue()
        if ring is None:
            return False
        length = len(view)
        bounce = self.bounce
        if (offset | length) & (self.align - 1):
            return False
        if bounce is None or (length >= _MIN_ADDRESS_CHECK and not self._needs_bounce(view)):

            def arrived(count: int) -> None:
                done(count == length)

            ring.start(ring.READ, self.fd, address_of(view), length, offset, view, arrived)
            return True
        buffer = bounce.take(length)

        def arrived_aligned(count: int) -> None:
            if count == length:
                # The kernel reads to aligned memory only; this copy brings the bytes to the
                # caller's.
                view[:] = buffer.view[:length]
            bounce.give(buffer)
            done(count == length)

        ring.start(ring.READ, self.fd, buffer.address, length, offset, buffer, arrived_aligned)
        return True

    def queue(self) -> KernelQueue | None:
        """Return where the kernel takes requests that wait, None if they are for threads."""
        ring = self.pool.ring()
        return self.pool.linux_aio() if ring is None and self._native else ring

    def _find_queue(self) -> KernelQueue | None:
        self._ring = self.queue()
        return self._ring

    def _needs_bounce(self, view: memoryview) -> bool:
        """Tell whether O_DIRECT needs an aligned buffer in the place of this one."""
        return self.bounce is not None and (
            len(view) < _MIN_ADDRESS_CHECK
            or view.readonly
            or address_of(view) % self.memory_align != 0
        )

    async def _read_ring(self, ring: KernelQueue, view: memoryview, offset: int) -> None:
        """Read by io_uring; what lies beyond the end of the file reads as zeroes."""
        if not self._needs_bounce(view):
            done = await self._read_ring_at(ring, address_of(view), len(view), offset, view)
            fill_zero(view[done:])
            return
        assert self.bounce is not None
        buffer = self.bounce.take(len(view))
        done = await self._read_ring_at(ring, buffer.address, len(view), offset, buffer)
        # The kernel reads to aligned memory only; this copy brings the bytes to the caller's.
        view[:done] = buffer.view[:done]
        fill_zero(view[done:])
        self.bounce.give(buffer)

    async def _read_ring_at(
        self, ring: KernelQueue, address: int, length: int, offset: int, keep: object
    ) -> int:
        """Return how many bytes there were before the end of the file."""
        done = 0
        while done < length:
            count = await ring.read(self.fd, address + done, length - done, offset + done, keep)
            done += count
            if count == 0 or done % self.align:
                break
        return done

    # Writing

    def write_nowait(self, offset: int, view: memoryview) -> bool:
        """Write all of `view` if that is but a memory copy; False means nothing was decided.

        After False some bytes may have been written; the caller writes the whole again.
        """
        if len(view) > self.max_inline:
            return False
        before = monotonic()
        if before < self.watch.until and not self.watch.may_write(before):
            return False
        length = len(view)
        if before < self.folios.until and length <= SMALL:
            before = self.folios.prepare(self.fd, offset, before)
        count = _pwrite(self.fd, view, offset)
        self.note_duration(before, length)
        return count == length

    def note_duration(self, before: float, length: int) -> None:
        """Look how long the inline write of some bytes took that started at `before`."""
        after = monotonic()
        if after - before > SLOW_SMALL:
            if length <= SMALL:
                self.folios.was_slow(before, after)
            if after - before > SLOW_CALL:
                self.watch.was_slow(before, after)

    async def write(self, offset: int, view: memoryview) -> None:
        """Write all of `view`."""
        if self.bounce is not None:
            await self._write_direct((view,), offset, self.bounce)
        elif not self.write_nowait(offset, view):
            await self.pool.run(write_full, self.fd, (view,), offset)

    async def _write_direct(
        self, views: Sequence[memoryview], offset: int, pool: BouncePool
    ) -> None:
        """Write with O_DIRECT: by io_uring where there is one, else in a thread."""
        ring = self.queue()
        if ring is None:
            await self.pool.run(write_direct, self.fd, views, offset, self.memory_align, pool)
            return
        if len(views) == 1 and not self._needs_bounce(views[0]):
            view = views[0]
            await self._write_ring_at(ring, address_of(view), len(view), offset, view)
            return
        buffer = _gather(views, pool)
        await self._write_ring_at(ring, buffer.address, sum(map(len, views)), offset, buffer)
        pool.give(buffer)

    def write_later(self, offset: int, view: memoryview, done: Callable[[bool], None]) -> bool:
        """Begin a write with O_DIRECT by io_uring that finishes without a coroutine.

        Args:
            offset: Where; aligned.
            view: What to write.
            done: Called from the loop: True if all is written, False if :meth:`write` has to be
                called (short write, error).

        Returns:
            Whether the write was begun.
        """
        pool = self.bounce
        if pool is None or (ring := self._ring or self._find_queue()) is None:
            return False
        length = len(view)
        if self._needs_bounce(view):
            buffer = _gather((view,), pool)

            def gathered(count: int) -> None:
                pool.give(buffer)
                done(count == length)

            ring.start(ring.WRITE, self.fd, buffer.address, length, offset, buffer, gathered)
        else:

            def written(count: int) -> None:
                done(count == length)

            ring.start(ring.WRITE, self.fd, address_of(view), length, offset, view, written)
        return True

    async def _write_ring_at(
        self, ring: KernelQueue, address: int, length: int, offset: int, keep: object
    ) -> None:
        done = 0
        while done < length:
            done += await ring.write(self.fd, address + done, length - done, offset + done, keep)

    async def writev(self, offset: int, views: Sequence[memoryview]) -> None:
        """Write all views, one after the other."""
        if self.bounce is not None:
            await self._write_direct(views, offset, self.bounce)
            return
        total = sum(map(len, views))
        if total <= self.max_inline and len(views) <= _IOV_MAX:
            before = monotonic()
            if before >= self.watch.until or self.watch.may_write(before):
                count = _pwritev(self.fd, views, offset)
                self.note_duration(before, total)
                if count == total:
                    return
        await self.pool.run(write_full, self.fd, views, offset)

    # Holes

    async def next_extent(self, offset: int) -> tuple[int, int] | None:
        """Return (start, end) of the first data that ends behind `offset`, None if there is none.

        The end of the file ends the last extent.  `start` is `offset` if there is data right there.

        Raises:
            OSError: EINVAL where the file system cannot tell data from holes.
        """
        before = monotonic()
        if self.may_stall or before < self._slow_seek_until:
            return await self.pool.run(find_extent, self.fd, offset)
        extent = find_extent(self.fd, offset)
        after = monotonic()
        if after - before > SLOW_CALL:
            self._slow_seek_until = after + SLOW_PAUSE
        return extent

    # The rest

    async def sync(self) -> None:
        """Make data, and what is needed to find it again, durable (fdatasync)."""
        await self.pool.run(os.fdatasync, self.fd)

    async def truncate(self, length: int) -> None:
        """Set the size of the file."""
        await self.pool.run(os.ftruncate, self.fd, length)

    async def fallocate(self, mode: int, offset: int, length: int) -> None:
        """Call fallocate(2)."""
        await self.pool.run(fallocate, self.fd, mode, offset, length)

    async def call(self, func: Callable[..., Any], *args: Any) -> Any:
        """Call ``func(fd, *args)`` in a thread."""
        return await self.pool.run(func, self.fd, *args)


#: Buffers per writev(2) call (IOV_MAX of linux/uio.h).
_IOV_MAX: Final = 1024


def find_extent(fd: int, offset: int) -> tuple[int, int] | None:
    """Do the work of :meth:`FileIO.next_extent`; may block."""
    try:
        start = os.lseek(fd, offset, os.SEEK_DATA)
        end = os.lseek(fd, start, os.SEEK_HOLE)
    except OSError as exc:
        if exc.errno == errno.ENXIO:
            return None  # nothing but a hole, or the file was just cut off by somebody else
        raise
    # Data that vanished between the two calls counts as data: that is always true enough.
    return start, max(end, start + 1)
