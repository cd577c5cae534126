# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""A virtio block device over a node, whatever transport brings its queues.

One kick brings many requests.  A read or write whose data is in memory is done at once, between the
page cache and the guest's memory, without a copy or a coroutine; the driver is called once for
the whole batch::

    kick ─▶ pop ─▶ Backend.read_nowait(offset, view of guest memory) ─▶ push ─┐
             ▲                  └─ must wait ─▶ coroutine ─▶ push ─▶ call      │
             └─────────────────────── until the ring is empty ────────────────┴─▶ call

What a driver asks wrongly is answered with an error status (virtio 1.2, 5.2.6 "Device Operation");
a damaged ring ends the queue.
"""

from __future__ import annotations

import asyncio
import os
import struct
from typing import TYPE_CHECKING

from qsd.aio import eager
from qsd.block.mapping import MAY_UNMAP
from qsd.errors import PeerError, QmpError
from qsd.exports.buffers import BufferPool
from qsd.wire.virtio import blk
from qsd.wire.virtio.ring import F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1

if TYPE_CHECKING:
    from collections.abc import Callable

    from qsd.aio.tasks import TaskOwner
    from qsd.block.backend import Backend
    from qsd.wire.virtio.inflight import InflightLog
    from qsd.wire.virtio.ring import Chain, SplitRing

#: Chains that one wakeup serves before others get a turn.
_TURN = 256

#: Bytes; what a block may have (as the C daemon).
_MIN_BLOCK, _MAX_BLOCK = 512, 2 << 20


def check_block_size(export_id: str, block_size: int | None) -> int:
    """Return the logical block size to use.

    Raises:
        QmpError: It cannot be one.
    """
    if block_size is None:
        return blk.SECTOR
    name = f"{export_id}.logical-block-size"
    if not _MIN_BLOCK <= block_size <= _MAX_BLOCK:
        raise QmpError(
            f"Property {name} doesn't take value {block_size} "
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
        serial: Answer to GET_ID.
        tasks: Owner of requests that wait.
        pool: Buffers for payload in many pieces.
    """

    __slots__ = (
        "backend",
        "block_size",
        "num_queues",
        "pool",
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
    ) -> None:
        self.backend = backend
        self.tasks = tasks
        self.writable = writable
        self.block_size = block_size
        self.num_queues = num_queues
        self.serial = serial[: blk.ID_LENGTH]
        self.writethrough = backend.force_writethrough
        self.pool = BufferPool()

    def features(self) -> int:
        """Return the feature bits that the device offers."""
        bits = F_VERSION_1 | F_INDIRECT_DESC | F_EVENT_IDX
        bits |= blk.F_SEG_MAX | blk.F_BLK_SIZE | blk.F_FLUSH | blk.F_TOPOLOGY | blk.F_MQ
        bits |= blk.F_CONFIG_WCE | blk.F_DISCARD | blk.F_WRITE_ZEROES
        return bits if self.writable else bits | blk.F_RO

    def config(self) -> bytes:
        """Return the configuration space."""
        return blk.pack_config(
            self.backend.length(),
            self.block_size,
            self.num_queues,
            writeback=not self.backend.force_writethrough,
        )

    def set_writeback(self, writeback: bool) -> None:
        """Let writes be durable by themselves or by flushes (virtio 1.2, 5.2.5, `writeback`).

        An export that was made writethrough stays so.
        """
        self.backend.force_writethrough = self.writethrough or not writeback
        self.backend.rebind()


class BlkQueue:
    """One running queue of the device.

    Attributes:
        ring: The ring.
        in_flight: Chains taken and not given back.
    """

    __slots__ = (
        "_call",
        "_device",
        "_failed",
        "_idle",
        "_kick",
        "_log",
        "_loop",
        "_running",
        "_scheduled",
        "in_flight",
        "ring",
    )

    def __init__(
        self,
        device: VirtioBlk,
        ring: SplitRing,
        kick: int,
        call: int,
        failed: Callable[[PeerError], None],
        log: InflightLog | None = None,
    ) -> None:
        """Make a queue; :meth:`start` lets it run.

        Args:
            device: The device.
            ring: The ring.
            kick: Event that the driver signals, -1 for none.
            call: Event to signal, -1 for none; both stay the caller's.
            failed: Called when the driver has broken the ring, which is not served any more.
            log: Where chains in flight are noted.
        """
        self._device = device
        self.ring = ring
        self._kick = kick
        self._call = call
        self._failed = failed
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._running = False
        self._scheduled: asyncio.Handle | None = None
        self._idle: list[asyncio.Future[None]] = []
        self.in_flight = 0

    def start(self) -> None:
        """Serve: first what an earlier daemon left over, then what is available.

        Raises:
            OSError: The kick descriptor cannot be waited for.
        """
        self._running = True
        if self._kick >= 0:
            self._loop.add_reader(self._kick, self._on_kick)
        try:
            if self._log is not None:
                self._recover(self._log)
        except PeerError as exc:
            self._break(exc)
        else:
            self._scheduled = self._loop.call_soon(self._serve)

    def _recover(self, log: InflightLog) -> None:
        ring = self.ring
        heads = log.recover(ring.used_idx)
        ring.last_avail = (ring.used_idx + len(heads)) & 0xFFFF
        for head in heads:
            self._begin(ring.chain(head))

    def replace_call(self, call: int) -> None:
        """Signal another event from now on, and now: what is done may have gone unheard."""
        self._call = call
        self._notify()

    def halt(self) -> None:
        """Take no more chains; those in flight go on.  Idempotent."""
        if self._running:
            self._running = False
            if self._kick >= 0:
                self._loop.remove_reader(self._kick)
        if self._scheduled is not None:
            self._scheduled.cancel()
            self._scheduled = None

    async def stop(self) -> int:
        """Halt, wait for the chains in flight, and return where the ring can be gone on with."""
        self.halt()
        while self.in_flight:
            future: asyncio.Future[None] = self._loop.create_future()
            self._idle.append(future)
            await future
        return self.ring.last_avail

    def _break(self, exc: PeerError) -> None:
        self.halt()
        self._failed(exc)

    def _on_kick(self) -> None:
        try:
            os.read(self._kick, 8)
        except OSError:
            pass  # nothing to read after all; looking at the ring does no harm
        self._serve()

    def _serve(self) -> None:
        """Serve what is available, or a turn of it."""
        self._scheduled = None
        if not self._running:
            return
        ring = self.ring
        ring.stop_kicks()
        try:
            for _ in range(_TURN):
                chain = ring.pop()
                if chain is None:
                    if ring.want_kicks():
                        ring.stop_kicks()
                        continue
                    break
                self._begin(chain)
            else:
                self._scheduled = self._loop.call_soon(self._serve)
        except PeerError as exc:
            self._break(exc)
            return
        self._signal()

    def _signal(self) -> None:
        if self.ring.wants_call():
            self._notify()

    def _notify(self) -> None:
        if self._call >= 0:
            try:
                os.write(self._call, b"\1\0\0\0\0\0\0\0")
            except OSError:
                pass  # a full counter wakes the driver too; any other end is the driver's own

    def _begin(self, chain: Chain) -> None:
        """Serve a chain, at once or later.

        Raises:
            PeerError: It is no request at all.
        """
        readable, writable, head = chain
        if not writable or not readable or self.in_flight >= self.ring.size:
            raise PeerError("a chain that is no request")
        if self._log is not None:
            self._log.begin(head)
        first = readable[0]
        if len(first) < blk.HEADER.size:
            readable = _regroup(readable)
            first = readable[0]
        kind, _, sector = blk.HEADER.unpack_from(first)
        if len(first) == blk.HEADER.size:
            del readable[0]
        else:
            readable[0] = first[blk.HEADER.size :]
        status = writable[-1]
        if len(status) == 1:
            writable.pop()
        else:
            writable[-1], status = status[:-1], status[-1:]
        # Fast path.
        views = writable if kind == blk.IN else readable
        if kind <= blk.OUT and len(views) == 1:
            view = views[0]
            if self._move_at_once(kind, sector * blk.SECTOR, view):
                status[0] = blk.OK
                self._finish(head, len(view) + 1 if kind == blk.IN else 1)
                return
        self.in_flight += 1
        eager.start(
            self._request(kind, sector, readable, writable, status, head),
            self._device.tasks,
            f"virtio-blk {kind}",
        )

    def _move_at_once(self, kind: int, offset: int, view: memoryview) -> bool:
        """Read or write if that is but a memory copy."""
        device = self._device
        backend = device.backend
        length = len(view)
        if (
            length % blk.SECTOR
            or offset % device.block_size
            or offset + length > backend.length()
            or not (kind == blk.IN or device.writable)
        ):
            return False
        try:
            if kind == blk.IN:
                return backend.read_nowait(offset, view)
            return backend.write_nowait(offset, view)
        except OSError:
            return False  # the slow path meets the same error and reports it

    def _finish(self, head: int, written: int) -> None:
        log = self._log
        if log is None:
            self.ring.push(head, written)
            return
        log.finish(head)
        self.ring.push(head, written)
        log.finished(head, self.ring.used_idx)

    async def _request(
        self,
        kind: int,
        sector: int,
        readable: list[memoryview],
        writable: list[memoryview],
        status: memoryview,
        head: int,
    ) -> None:
        """Slow path: any request.  If it never waits, the driver is called with its batch."""
        written = 0
        code = blk.IOERR
        try:
            code, written = await self._perform(kind, sector, readable, writable)
        except (OSError, QmpError):
            pass
        finally:
            status[0] = code
            self._finish(head, written + 1)
            self.in_flight -= 1
            if not self._running or asyncio.current_task() is not None:
                self._signal()
            if not self.in_flight:
                for future in self._idle:
                    if not future.done():
                        future.set_result(None)
                self._idle.clear()

    async def _perform(
        self, kind: int, sector: int, readable: list[memoryview], writable: list[memoryview]
    ) -> tuple[int, int]:
        device = self._device
        if kind == blk.IN:
            return await self._read(sector * blk.SECTOR, writable)
        if kind == blk.OUT:
            return await self._write(sector * blk.SECTOR, readable)
        if kind == blk.FLUSH:
            await device.backend.flush()
            return blk.OK, 0
        if kind == blk.GET_ID:
            left = device.serial.ljust(blk.ID_LENGTH, b"\0")
            total = 0
            for view in writable:
                part = left[: len(view)]
                view[: len(part)] = part
                left = left[len(part) :]
                total += len(part)
            return blk.OK, total
        if kind in (blk.DISCARD, blk.WRITE_ZEROES):
            if not device.writable:
                return blk.IOERR, 0
            return await self._discard_or_zero(kind, b"".join(readable)), 0
        return blk.UNSUPP, 0

    def _is_range(self, offset: int, length: int) -> bool:
        device = self._device
        return (
            not length % blk.SECTOR
            and not offset % device.block_size
            and offset + length <= device.backend.length()
        )

    async def _read(self, offset: int, views: list[memoryview]) -> tuple[int, int]:
        length = sum(map(len, views))
        if not self._is_range(offset, length):
            return blk.IOERR, 0
        backend = self._device.backend
        if self._in_pieces(backend.read_nowait, offset, views):
            return blk.OK, length
        if len(views) == 1:
            await backend.read(offset, views[0])
            return blk.OK, length
        # A copy: one request to the disk instead of one for each page of the guest.
        buffer = self._device.pool.take(length)
        try:
            await backend.read(offset, buffer.view[:length])
            done = 0
            for view in views:
                view[:] = buffer.view[done : done + len(view)]
                done += len(view)
        finally:
            buffer.drop()
        return blk.OK, length

    async def _write(self, offset: int, views: list[memoryview]) -> tuple[int, int]:
        length = sum(map(len, views))
        if not self._device.writable or not self._is_range(offset, length):
            return blk.IOERR, 0
        backend = self._device.backend
        if self._in_pieces(backend.write_nowait, offset, views):
            return blk.OK, 0
        if len(views) == 1:
            await backend.write(offset, views[0])
            return blk.OK, 0
        # A copy: one request to the disk, for the reason given in _read.
        buffer = self._device.pool.take(length)
        try:
            done = 0
            for view in views:
                buffer.view[done : done + len(view)] = view
                done += len(view)
            await backend.write(offset, buffer.view[:length])
        finally:
            buffer.drop()
        return blk.OK, 0

    def _in_pieces(
        self, move: Callable[[int, memoryview], bool], offset: int, views: list[memoryview]
    ) -> bool:
        """Move all pieces at once; a part that was moved before one that must wait does no harm."""
        if any(len(view) % blk.SECTOR for view in views):
            return False
        for view in views:
            if not move(offset, view):
                return False
            offset += len(view)
        return True

    async def _discard_or_zero(self, kind: int, segments: bytes) -> int:
        if len(segments) > blk.SEGMENT.size:
            return blk.UNSUPP  # config offers one segment
        try:
            sector, count, flags = blk.SEGMENT.unpack(segments)
        except struct.error:
            return blk.IOERR
        if flags & ~(blk.FLAG_UNMAP if kind == blk.WRITE_ZEROES else 0):
            return blk.UNSUPP  # virtio 1.2, 5.2.6.2: unknown flags MUST give UNSUPP
        offset, length = sector * blk.SECTOR, count * blk.SECTOR
        if count > blk.MAX_DISCARD_SECTORS or not self._is_range(offset, length):
            return blk.IOERR
        backend = self._device.backend
        if kind == blk.DISCARD:
            await backend.discard(offset, length)
        else:
            await backend.zero(offset, length, MAY_UNMAP if flags else 0)
        return blk.OK


def _regroup(readable: list[memoryview]) -> list[memoryview]:
    """Return the same bytes with a whole header in the first view.

    Raises:
        PeerError: There are too few for a header.
    """
    head = b""
    rest = list(readable)
    while rest and len(head) < blk.HEADER.size:
        view = rest[0]
        need = blk.HEADER.size - len(head)
        head += view[:need]
        if len(view) > need:
            rest[0] = view[need:]
        else:
            del rest[0]
    if len(head) < blk.HEADER.size:
        raise PeerError("a request without a whole header")
    return [memoryview(head), *rest]
