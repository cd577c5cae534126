# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""One queue of a virtio block device, whatever transport brings it.

One kick brings many requests.  A read or write whose data is in memory is done at once, between the
page cache and the guest's memory, without a copy or a coroutine; the driver is called once for a
batch of them::

    kick ─▶ take ─▶ usual shape? ─▶ Backend.read_nowait(offset, guest memory) ─▶ push all ─┐
             ▲         │ no             └─ must wait ─▶ begin ─▶ push ─▶ call              │
             │         └─▶ chain ─▶ coroutine ─▶ push ─▶ call                              │
             └──── while there is more, or soon may be (polling) ──────────────────────────┴─▶ call

Batches are shorter than what a driver usually has in flight: while the second half is served, the
driver is busy with the first, and neither waits for the other.

Polling: when the driver's next batch usually comes within microseconds, the queue is looked at in
every turn of the loop for that long before it asks for a kick again, which saves both sides a
system call and a wakeup.  How long is learnt as the C daemon does it (manual, "iothread",
poll-max-ns): longer while kicks come soon after the last batch, not at all when they come late.
"""

from __future__ import annotations

import asyncio
import os
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Final

from qsd.aio import eager
from qsd.aio.pagemap import CHUNK, CHUNK_BITS, CHUNK_MASK
from qsd.errors import PeerError, QmpError
from qsd.exports.virtio_large import LARGE, LargeRequests
from qsd.exports.virtio_late import LateShapes
from qsd.exports.virtio_views import CachedReads
from qsd.wire.virtio import blk
from qsd.wire.virtio.memory import Region
from qsd.wire.virtio.ring import area_sizes
from qsd.wire.virtio.usual import DESC, THREE, Shape, UsualRequests

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from qsd.exports.vhost_log import DirtyLog
    from qsd.exports.virtio_blk import VirtioBlk
    from qsd.exports.virtio_large import LargeRead
    from qsd.exports.virtio_late import GuestOperation
    from qsd.wire.virtio.inflight import InflightLog
    from qsd.wire.virtio.ring import SplitRing
    from qsd.wire.virtio.usual import Scattered

#: Chains after which the driver is called.
_BATCH: Final = 16
#: Batches that one wakeup serves before others get a turn.
_TURN: Final = 16
#: Nanoseconds; polling begins with so much patience.
_MIN_POLL_NS: Final = 4000
_header = blk.TYPE_AND_SECTOR.unpack_from
#: Where nothing is recognised.
_NO_REGION: Final = Region(0, 0, 0, memoryview(b""))


class BlkQueue:
    """One running queue of the device.

    Attributes:
        ring: The ring.
        in_flight: Chains taken and not given back.
    """

    __slots__ = (
        "_cached",
        "_call",
        "_device",
        "_dirty",
        "_failed",
        "_idle",
        "_idle_since",
        "_kick",
        "_large",
        "_late",
        "_log",
        "_loop",
        "_region",
        "_running",
        "_scheduled",
        "_signalling",
        "_used_guest",
        "_usual",
        "_window",
        "in_flight",
        "ring",
    )

    def __init__(
        self,
        device: VirtioBlk,
        ring: SplitRing,
        kick: int,
        call: Callable[[], None],
        failed: Callable[[PeerError], None],
        log: InflightLog | None = None,
    ) -> None:
        """Make a queue; :meth:`start` lets it run.

        Args:
            device: The device.
            ring: The ring.
            kick: Event that the driver signals, -1 for none; it stays the caller's.
            call: Calls the driver.
            failed: Called when the driver has broken the ring, which is not served any more.
            log: Where chains in flight are noted.
        """
        self._device = device
        self._cached = CachedReads(device.backend)
        self._dirty: DirtyLog | None = None
        self._used_guest: int | None = None
        self.use_ring(ring)
        self._kick = kick
        self._call = call
        self._failed = failed
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._running = False
        self._scheduled: asyncio.Handle | None = None
        self._signalling = False
        self._window = 0
        self._idle_since = 0
        self._idle: list[asyncio.Future[None]] = []
        self.in_flight = 0

    def use_ring(self, ring: SplitRing) -> None:
        """Go on in another ring: the same one in other memory."""
        self.ring = ring
        self._recognise()

    def log_writes(self, dirty: DirtyLog | None, used_guest: int | None) -> None:
        """Note what is written to memory from now on; requests then take the plain path.

        Args:
            dirty: Where to note it; None for nowhere.
            used_guest: Guest address of the used ring; None if that is not noted.
        """
        self._dirty = dirty
        self._used_guest = used_guest
        self._recognise()

    def _recognise(self) -> None:
        ring = self.ring
        self._region = ring.memory.largest
        usable = self._dirty is None and not self._region.view.readonly
        region = self._region if usable else _NO_REGION
        self._usual = UsualRequests(ring.desc, region, indirect=ring.indirect)
        self._late: LateShapes | None = None
        self._large: LargeRequests | None = None
        if region.size:
            self._late = LateShapes(self._device, region, self._late_ended)
            self._large = LargeRequests(
                self._device,
                region,
                self._cached,
                self._began,
                self._late_ended,
                self._give_back,
            )

    # Life cycle

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
            self._scheduled = self._loop.call_soon(self._turn)

    def _recover(self, log: InflightLog) -> None:
        ring = self.ring
        heads = log.recover(ring.used_idx)
        ring.last_avail = (ring.used_idx + len(heads)) & 0xFFFF
        for head in heads:
            log.begin(head)
            self._begin(blk.request(ring.chain(head)))

    def replace_call(self, call: Callable[[], None]) -> None:
        """Call the driver in another way from now on, and now: much may have gone unheard."""
        self._call = call
        call()

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

    # Turns

    def _on_kick(self) -> None:
        try:
            os.read(self._kick, 8)
        except OSError:
            pass  # nothing to read after all; looking at the ring does no harm
        if self._scheduled is None:
            limit = self._device.poll_max_ns
            if monotonic_ns() - self._idle_since < limit:
                self._window = min(2 * self._window or _MIN_POLL_NS, limit)
            else:
                self._window = 0  # polling would not have seen it either
            self._turn()

    def _turn(self) -> None:
        """Serve what is available; come again if there is, or soon may be, more."""
        self._scheduled = None
        if not self._running:
            return
        try:
            again = self._serve_available()
            if self._dirty is not None:
                self._log_ring(self._dirty)
        except PeerError as exc:
            self._break(exc)
            return
        if again:
            self._scheduled = self._loop.call_soon(self._turn)

    def _serve_available(self) -> bool:
        """Serve what is available; return whether to look again in the next turn."""
        ring = self.ring
        served = False
        for _ in range(_TURN):
            heads = ring.take(_BATCH)
            if not heads:
                break
            served = True
            ring.stop_kicks()
            self._serve(heads)
            self._signal()
        if served:
            self._idle_since = monotonic_ns()
        if self._window and (served or monotonic_ns() - self._idle_since < self._window):
            return True
        if ring.want_kicks():
            ring.stop_kicks()
            return True
        return False

    def _signal(self) -> None:
        """Call the driver, if it wants to hear of what was pushed since the last time."""
        self._signalling = False
        if self.ring.wants_call():
            self._call()

    # Requests

    def _serve(self, heads: list[int]) -> None:
        """Serve chains, at once or later.

        Raises:
            PeerError: One is no request at all.
        """
        ring = self.ring
        if ring.memory.largest is not self._region:
            self._recognise()  # more memory became known
        log = self._log
        if log is not None:
            for head in heads:
                log.begin(head)
        rest = self._serve_at_once(heads)
        if rest and self._large is not None:
            rest = self._serve_large(rest, self._large)
        if rest and self._late is not None:
            rest = self._begin_late(rest, self._late)
        for head, shape in rest:
            if shape is None:
                self._begin(blk.request(ring.chain(head)))
            else:
                self._begin(self._usual.request(shape, head))

    def _serve_at_once(self, heads: list[int]) -> list[tuple[int, Shape | None]]:
        """Fast path: carry out the usual reads and writes that are but memory copies.

        Verdict of the benchmark (4k reads, 32 at a time, together with the short batches):
        115,000/s beside 95,000/s by calls for each step, 5.9 us of processor time beside 6.7;
        :meth:`UsualRequests.find` in line takes another 0.5 us off, and copies out of memory maps
        (:mod:`qsd.exports.virtio_views`) make 193,000/s of 138,000, 4.8 us of 6.4.

        Returns:
            The chains that are left, with their shape if it is a usual one.
        """
        usual, device = self._usual, self._device
        table, memory, known = usual.descriptors(), usual.memory, usual.known
        is_copy = isinstance(table, bytes)
        backend, block_mask = device.backend, device.block_size - 1
        end = backend.length()
        read, write = backend.read_nowait, backend.write_nowait
        cached = self._cached
        chunks, see = cached.begin()
        seen = unseen = 0
        finished: list[int] = []
        rest: list[tuple[int, Shape | None]] = []
        for head in heads:
            # UsualRequests.find in line, as far as it mostly goes: a call is a tenth of the cost.
            start = DESC * head
            key: Any = table[start : start + THREE]
            parts = known.get(key if is_copy else bytes(key))
            if parts is None or parts[0] != head:
                parts = usual.find_parts(table, head)
                if parts is None:
                    rest.append((head, None))
                    continue
            _, at, is_read, view, length, status, _, shape = parts
            kind, sector = _header(memory, at)
            offset = sector * blk.SECTOR
            try:
                if (
                    length >= LARGE
                    or offset + length > end
                    or offset & block_mask
                    or kind != (blk.IN if is_read else blk.OUT)
                ):
                    is_done = False
                elif is_read:
                    chunk = chunks.get(offset >> CHUNK_BITS)
                    start = offset & CHUNK_MASK
                    if chunk is None or start + length > CHUNK:
                        chunk, start = see(offset, length), 0
                    if chunk is None:
                        unseen += 1
                        is_done = read(offset, view)
                    else:
                        view[:] = chunk[start : start + length]
                        seen += 1
                        is_done = True
                else:
                    is_done = device.writable and write(offset, view)
            except OSError:
                is_done = False  # the plain path meets the same error and reports it
            if is_done:
                memory[status] = blk.OK
                finished += head, length + 1 if is_read else 1
            else:
                rest.append((head, shape))
        if not cached.end(seen, unseen):
            finished = self._doubt_reads(table, finished, rest)
        self._push_all(finished)
        return rest

    def _doubt_reads(
        self,
        table: bytes | memoryview,
        finished: list[int],
        rest: list[tuple[int, Shape | None]],
    ) -> list[int]:
        """Move reads, which may be wrong, from what is finished to the rest; return the writes.

        That something was written to memory of a guest that has not been told yet does no harm.
        """
        kept: list[int] = []
        for index in range(0, len(finished), 2):
            head, written = finished[index : index + 2]
            if written == 1:
                kept += head, written
            else:
                rest.append((head, self._usual.find(table, head)))
        return kept

    def _serve_large(
        self, chains: list[tuple[int, Shape | None]], large: LargeRequests
    ) -> list[tuple[int, Shape | None]]:
        """Fast path: serve large requests, and those in several pieces; return what is left."""
        if self.in_flight + len(chains) > self.ring.size:
            return chains  # there is something wrong, which the plain path meets
        usual = self._usual
        table = usual.descriptors()
        known: list[tuple[int, Shape | Scattered]] = []
        rest: list[tuple[int, Shape | None]] = []
        for head, shape in chains:
            found = usual.find_scattered(table, head) if shape is None else shape
            if found is None or (shape is not None and shape.length < LARGE):
                rest.append((head, shape))
            else:
                known.append((head, found))
        for head, left in large.serve(known, usual.memory):
            rest.append((head, left if isinstance(left, Shape) else None))
        return rest

    def _began(self) -> None:
        self.in_flight += 1

    def _give_back(self, finished: list[int]) -> None:
        """Give chains back: heads, and how much was written for each; call the driver."""
        self._push_all(finished)
        self._signal()

    def _begin_late(
        self, chains: list[tuple[int, Shape | None]], late: LateShapes
    ) -> list[tuple[int, Shape | None]]:
        """Fast path: begin what waits for a device; return what is left."""
        if self.in_flight + len(chains) > self.ring.size:
            return chains  # there is something wrong, which the plain path meets
        left = late.begin(chains, self._usual.memory)
        self.in_flight += len(chains) - len(left)
        return left

    def _late_ended(self, operations: Sequence[GuestOperation | LargeRead]) -> None:
        """Give back chains whose payload was moved all at once, and call the driver."""
        if self._dirty is not None:
            for operation in operations:
                self._moved(operation.request(), operation.is_full)
            return
        finished: list[int] = []
        failed: list[blk.Request] = []
        for operation in operations:
            if operation.result == operation.length:
                operation.memory[operation.shape.status] = blk.OK
                finished += operation.head, operation.written
            else:
                failed.append(operation.request())
        try:
            self._push_all(finished)
        except PeerError as exc:
            self._break(exc)
        self._leave(len(finished) // 2)
        self._signal()
        for request in failed:
            self._start(request)

    def _push_all(self, finished: list[int]) -> None:
        """Give chains back: heads, and how much was written for each."""
        if self._log is None:
            if finished:
                self.ring.push_all(finished)
        else:
            for index in range(0, len(finished), 2):
                self._push(finished[index], finished[index + 1])

    def _begin(self, request: blk.Request) -> None:
        """Begin a request that may have to wait.

        Raises:
            PeerError: There cannot be so many.
        """
        if self.in_flight >= self.ring.size:
            raise PeerError("more chains in flight than the ring has descriptors")
        self.in_flight += 1
        if not self._device.begin(request, lambda full: self._moved(request, full)):
            self._start(request)

    def _moved(self, request: blk.Request, full: bool) -> None:
        """Go on with a request that was begun without a coroutine."""
        if full:
            self._end(request, blk.OK, sum(map(len, request.writable)))
        else:
            self._start(request)

    def _start(self, request: blk.Request) -> None:
        eager.start(self._request(request), self._device.tasks, f"virtio-blk {request.kind}")

    async def _request(self, request: blk.Request) -> None:
        written = 0
        code = blk.IOERR
        try:
            code, written = await self._device.perform(request)
        except (OSError, QmpError):
            pass
        finally:
            self._end(request, code, written)

    def _end(self, request: blk.Request, code: int, written: int) -> None:
        """Give a chain back; the driver is called once for all that end in this turn."""
        request.status[0] = code
        try:
            if self._dirty is not None:
                self._log_payload(self._dirty, request.head, written)
            self._push(request.head, written + 1)
            if self._dirty is not None:
                self._log_ring(self._dirty)
        except PeerError as exc:
            self._break(exc)
        if not self._signalling:
            self._signalling = True
            self._loop.call_soon(self._signal)
        self._leave(1)

    def _leave(self, count: int) -> None:
        self.in_flight -= count
        if not self.in_flight:
            for future in self._idle:
                if not future.done():
                    future.set_result(None)
            self._idle.clear()

    def _push(self, head: int, written: int) -> None:
        log = self._log
        if log is None:
            self.ring.push(head, written)
        else:
            log.finish(head)
            self.ring.push(head, written)
            log.finished(head, self.ring.used_idx)

    # Logging of what is written to memory

    def _log_payload(self, dirty: DirtyLog, head: int, written: int) -> None:
        """Note what was written for a chain: so many bytes, and the status at its end."""
        ranges = self.ring.written_ranges(head)
        for address, length in ranges:
            part = min(length, written)
            if part:
                dirty.mark(address, part)
            written -= part
        if ranges:
            address, length = ranges[-1]
            dirty.mark(address + length - 1, 1)

    def _log_ring(self, dirty: DirtyLog) -> None:
        if self._used_guest is not None:
            dirty.mark(self._used_guest, area_sizes(self.ring.size)[2])
