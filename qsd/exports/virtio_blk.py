# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""A virtio block device over a node: what its queues share, and what requests do.

The queues (:mod:`qsd.exports.virtio_queue`) answer most reads and writes themselves; all others are
carried out here.  What a driver asks wrongly is answered with an error status (virtio 1.2, 5.2.6
"Device Operation").
"""

from __future__ import annotations

import errno
import os
import struct
from typing import TYPE_CHECKING, Final

from qsd.block.mapping import MAY_UNMAP
from qsd.errors import QmpError, os_error
from qsd.exports.buffers import BufferPool
from qsd.wire.virtio import blk
from qsd.wire.virtio.ring import F_EVENT_IDX, F_INDIRECT_DESC, F_NOTIFY_ON_EMPTY, F_VERSION_1

if TYPE_CHECKING:
    from collections.abc import Callable

    from qsd.aio.tasks import TaskOwner
    from qsd.block.backend import Backend

#: Bytes; what a block may have (as the C daemon).
_MIN_BLOCK, _MAX_BLOCK = 512, 2 << 20
#: Buffers per preadv(2) call (IOV_MAX of linux/uio.h).
_MAX_PIECES: Final = 1024
#: Bytes; smaller pieces are cheaper copied together than written one by one.
_LARGE_PIECE: Final = 16 << 10
#: Bytes; what is copied at once where the payload lies in several places.
_MAX_COPY: Final = 2 << 20
#: Bytes; longest request whose pieces are no whole sectors.
_MAX_PIECEMEAL: Final = 32 << 20
#: Nanoseconds; longest busy wait of a queue (manual, "iothread", default of poll-max-ns).
_POLL_MAX_NS: Final = 32768


def check_block_size(export_id: str, block_size: int | None) -> int:
    """Return the logical block size to use; none or 0 is the default.

    Raises:
        QmpError: It cannot be one.
    """
    if not block_size:
        return blk.SECTOR
    name = f"{export_id}.logical-block-size"
    if not _MIN_BLOCK <= block_size <= _MAX_BLOCK:
        # The C daemon prints it as a signed number.
        shown = block_size - (1 << 64) if block_size >> 63 else block_size
        raise QmpError(
            f"Property {name} doesn't take value {shown} "
            f"(minimum: {_MIN_BLOCK}, maximum: {_MAX_BLOCK})"
        )
    if block_size & (block_size - 1):
        raise QmpError(f"Property {name} doesn't take value '{block_size}', it's not a power of 2")
    return block_size


class VirtioBlk:
    """The device: what all its queues share.

    Attributes:
        backend: What is served.
        writable: Whether the driver may change it.
        block_size: Logical block size in bytes; requests begin at its multiples.
        num_queues: How many queues there are.
        seg_max: Descriptors of payload in one request; a hint for the driver.
        serial: Answer to GET_ID.
        tasks: Owner of requests that wait.
        pool: Buffers for payload in many pieces.
        poll_max_ns: Longest busy wait of a queue for its driver, nanoseconds.
    """

    __slots__ = (
        "backend",
        "block_size",
        "num_queues",
        "poll_max_ns",
        "pool",
        "seg_max",
        "serial",
        "tasks",
        "writable",
        "writethrough",
    )

    def __init__(
        self,
        backend: Backend,
        tasks: TaskOwner,
        *,
        writable: bool,
        block_size: int,
        num_queues: int,
        serial: bytes,
        seg_max: int = blk.SEG_MAX,
    ) -> None:
        self.backend = backend
        self.tasks = tasks
        self.writable = writable
        self.block_size = block_size
        self.num_queues = num_queues
        self.seg_max = seg_max
        self.serial = serial[: blk.ID_LENGTH]
        self.writethrough = backend.force_writethrough
        self.pool = BufferPool()
        self.poll_max_ns = _POLL_MAX_NS

    def features(self) -> int:
        """Return the feature bits that the device offers."""
        bits = F_VERSION_1 | F_INDIRECT_DESC | F_EVENT_IDX | F_NOTIFY_ON_EMPTY
        bits |= (
            blk.F_SIZE_MAX
            | blk.F_SEG_MAX
            | blk.F_BLK_SIZE
            | blk.F_FLUSH
            | blk.F_TOPOLOGY
            | blk.F_MQ
        )
        bits |= blk.F_CONFIG_WCE | blk.F_DISCARD | blk.F_WRITE_ZEROES
        return bits if self.writable else bits | blk.F_RO

    def config(self) -> bytes:
        """Return the configuration space."""
        return blk.pack_config(
            self.backend.length(),
            self.block_size,
            self.num_queues,
            self.seg_max,
            writeback=not self.backend.force_writethrough,
        )

    def set_writeback(self, writeback: bool) -> None:
        """Let writes be durable by themselves or by flushes (virtio 1.2, 5.2.5, `writeback`).

        An export that was made writethrough stays so.
        """
        self.backend.force_writethrough = self.writethrough or not writeback
        self.backend.rebind()

    # Requests

    def begin(self, request: blk.Request, done: Callable[[bool], None]) -> bool:
        """Fast path: begin a read or write that waits for a device, without a coroutine.

        Args:
            request: Any request.
            done: Called from the loop: True if the payload was moved, False if :meth:`perform` has
                to be called.

        Returns:
            Whether it was begun.
        """
        if request.kind == blk.IN:
            views, move = request.writable, self.backend.read_later
        elif request.kind == blk.OUT and self.writable:
            views, move = request.readable, self.backend.write_later
        else:
            return False
        offset = request.sector * blk.SECTOR
        return (
            len(views) == 1
            and self._is_range(offset, len(views[0]))
            and move(offset, views[0], done)
        )

    async def perform(self, request: blk.Request) -> tuple[int, int]:
        """Carry out any request; return its status and how many bytes were written to memory.

        Raises:
            OSError: It failed.
            QmpError: It failed.
        """
        kind = request.kind
        if kind == blk.IN:
            return await self._read(request.sector * blk.SECTOR, request.writable)
        if kind == blk.OUT:
            return await self._write(request.sector * blk.SECTOR, request.readable), 0
        if kind == blk.FLUSH:
            await self.backend.flush()
            return blk.OK, 0
        if kind == blk.GET_ID:
            # With an end mark if there is room; what lies behind it stays as it is.
            return blk.OK, scatter((self.serial + b"\0")[: blk.ID_LENGTH], request.writable)
        if kind in (blk.DISCARD, blk.WRITE_ZEROES):
            if not self.writable:
                return blk.IOERR, 0
            if sum(map(len, request.readable)) > blk.SEGMENT.size:
                return blk.UNSUPP, 0  # the configuration offers one segment
            return await self._discard_or_zero(kind, b"".join(request.readable)), 0
        return blk.UNSUPP, 0

    def _is_range(self, offset: int, length: int) -> bool:
        return (
            not length % blk.SECTOR
            and not offset % self.block_size
            and offset + length <= self.backend.length()
        )

    async def _read(self, offset: int, views: list[memoryview]) -> tuple[int, int]:
        length = sum(map(len, views))
        if not self._is_range(offset, length):
            return blk.IOERR, 0
        if len(views) > 1 and self.read_pieces_nowait(offset, length, views):
            return blk.OK, length
        for group in _groups(views):
            if len(group) == 1:
                await self.backend.read(offset, group[0])
                offset += len(group[0])
                continue
            # A copy: one request to the disk instead of one for each page of the guest.
            size = sum(map(len, group))
            buffer = self.pool.take(size)
            try:
                await self.backend.read(offset, buffer.view[:size])
                scatter(buffer.view[:size], group)
            finally:
                buffer.drop()
            offset += size
        return blk.OK, length

    def read_pieces_nowait(self, offset: int, length: int, views: list[memoryview]) -> bool:
        """Fast path: fill all pieces by one system call, if their bytes are in the page cache."""
        backend = self.backend
        if backend.quiesced or len(views) > _MAX_PIECES:
            return False
        place = backend.node.driver.locate_nowait(offset, length)
        if place is None:
            return False
        try:
            return os.preadv(place[0], views, place[1], os.RWF_NOWAIT) == length
        except OSError:
            return False  # the plain path meets the same error, or waits

    async def _write(self, offset: int, views: list[memoryview]) -> int:
        if not self.writable or not self._is_range(offset, sum(map(len, views))):
            return blk.IOERR
        if len(views) > 1 and self.write_pieces_nowait(offset, views):
            return blk.OK
        for group in _groups(views):
            if len(group) == 1:
                await self.backend.write(offset, group[0])
                offset += len(group[0])
                continue
            # A copy: one request to the disk, for the reason given in _read.
            size = sum(map(len, group))
            buffer = self.pool.take(size)
            try:
                gather(group, buffer.view)
                await self.backend.write(offset, buffer.view[:size])
            finally:
                buffer.drop()
            offset += size
        return blk.OK

    def write_pieces_nowait(self, offset: int, views: list[memoryview]) -> bool:
        """Fast path: write large pieces where they lie, if that is but a memory copy.

        What was written before a piece that must wait is written once more, which does no harm.
        """
        if any(len(view) < _LARGE_PIECE or len(view) % blk.SECTOR for view in views):
            return False
        for view in views:
            if not self.backend.write_nowait(offset, view):
                return False
            offset += len(view)
        return True

    async def _discard_or_zero(self, kind: int, segments: bytes) -> int:
        try:
            sector, count, flags = blk.SEGMENT.unpack(segments)
        except struct.error:
            return blk.IOERR
        offset, length = sector * blk.SECTOR, count * blk.SECTOR
        if count > blk.MAX_DISCARD_SECTORS or not self._is_range(offset, length):
            return blk.IOERR
        if flags & ~(blk.FLAG_UNMAP if kind == blk.WRITE_ZEROES else 0):
            return blk.UNSUPP  # virtio 1.2, 5.2.6.2: unknown flags MUST give UNSUPP
        backend = self.backend
        if kind == blk.DISCARD:
            await backend.discard(offset, length)
        else:
            await backend.zero(offset, length, MAY_UNMAP if flags else 0)
        return blk.OK


def _groups(views: list[memoryview]) -> list[list[memoryview]]:
    """Divide views into groups that are moved together, whole sectors each.

    A driver may name the same memory a thousand times in one request: what is copied has a limit.

    Raises:
        OSError: EINVAL if sectors are in pieces, and there is too much to copy it as a whole.
    """
    if any(len(view) % blk.SECTOR for view in views):
        if sum(map(len, views)) > _MAX_PIECEMEAL:
            raise os_error(errno.EINVAL)
        return [views]
    groups: list[list[memoryview]] = []
    room = 0
    for view in views:
        if len(view) > room:
            groups.append([])
            room = _MAX_COPY
        groups[-1].append(view)
        room -= len(view)
    return groups


def gather(views: list[memoryview], buffer: memoryview) -> None:
    """Copy all views to the beginning of `buffer`."""
    done = 0
    for view in views:
        buffer[done : done + len(view)] = view
        done += len(view)


def scatter(data: bytes | memoryview, views: list[memoryview]) -> int:
    """Copy as much of `data` as there is room for; return how much."""
    done = 0
    for view in views:
        part = data[done : done + len(view)]
        view[: len(part)] = part
        done += len(part)
    return done
