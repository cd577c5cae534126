# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
r"""The data plane of an NBD connection: batches in, batches out.

::

    socket --recv_into--> receive buffer     [hdr][hdr][hdr payload][hd          a batch
                              |  for every complete request
                              v
              fast: backend.read_nowait / write_nowait -----> reply buffer [hdr data][hdr data]
              late: backend.read_later / write_later                 |  one send for the batch
              slow: a coroutine, started eagerly                     |
                              |  when it is done                     v
                              \----> its own reply ------------> outlet --> socket

Why it is built like this (measured beside asyncio's transports and streams): the cost of a small
request is its system calls and its Python calls.  One receive and one send serve a whole batch,
payload is read into its place behind the reply header and written from where it was received, and a
request that the page cache can answer costs neither a coroutine nor a task.

Buffers come from the pool for one batch and go back after it, so that an idle connection owns none
and the busy ones take turns with the same warm memory.  A request that has to wait holds the
receive buffer that its payload lies in.

Bounds for one connection: `MAX_PENDING` bytes of replies not yet taken by the client (with an image
that is read around the page cache `MAX_DIRECT_PENDING`, so that the device is kept busy meanwhile),
`MAX_IN_FLIGHT` requests and `MAX_IN_FLIGHT_BYTES` bytes of buffers of requests that wait.  At any
of them it stops to read.  After `TURN_COST` it lets others run before it goes on.
"""

from __future__ import annotations

import socket
from time import monotonic
from typing import TYPE_CHECKING, Final

from qsd.errors import describe
from qsd.exports.buffers import BATCH, CLASSES
from qsd.exports.nbd_known import DATA, REGION_BITS
from qsd.exports.nbd_late import MAX_IN_FLIGHT, MAX_IN_FLIGHT_BYTES, LateRequests
from qsd.exports.nbd_quick import QuickReads
from qsd.exports.nbd_relay import RelayedRequests
from qsd.exports.nbd_requests import Requests
from qsd.exports.nbd_runs import Runs
from qsd.exports.nbd_scattered import SEND_AFTER
from qsd.exports.nbd_splice import SplicedWrites
from qsd.exports.nbd_views import ViewReads
from qsd.exports.outlet import Outlet
from qsd.wire.nbd import messages as nbd
from qsd.wire.nbd import server

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence

    from qsd.aio.tasks import TaskOwner
    from qsd.block.backend import Backend
    from qsd.exports.buffers import Buffer, BufferPool
    from qsd.exports.nbd_bitmaps import ExportedBitmap
    from qsd.exports.nbd_known import KnownData
    from qsd.net.tls import StreamSocket

#: Bytes of replies that wait for the client before no more requests are looked at.
MAX_PENDING: Final = 1 << 20
#: The same where data comes from a device, which should not idle while the client takes replies.
#: 1 MiB at queue depth 8, medians of nine rounds: 872/s; with 1 MiB 577/s.
MAX_DIRECT_PENDING: Final = 8 << 20
#: Bytes, each request counting `REQUEST_COST` more; after so many another connection gets its turn.
TURN_COST: Final = 2 << 20
REQUEST_COST: Final = 4096
#: Bytes; when more of a payload is missing, nothing behind it is received with it, so that the next
#: one starts at the front of the buffer and never has to be moved.
_EXACT_RECEIVE: Final = 64 << 10
#: Bytes; what is moved to the front of a buffer with less room than `_MUCH` behind it.
_SHORT_REST: Final = 64 << 10
_MUCH: Final = 200 << 10
#: Seconds; how soon it is noticed that a client went in the middle of a payload.
_LOOK_AGAIN: Final = 0.05
#: Bytes; receive buffers longer than this are not kept for the next batch.
_USUAL_BUFFER: Final = CLASSES[3]

#: Bytes; shorter reads are copied into the batch of replies, longer ones are sent from the page
#: cache where that is possible.  Below this, the extra system calls cost more than the copy.
SENDFILE_MIN: Final = 32 << 10

_HEADER_SIZE: Final = nbd.REQUEST.size
_SIMPLE_SIZE: Final = nbd.SIMPLE_REPLY.size
_DATA_SIZE: Final = nbd.DATA_CHUNK.size
#: Bytes of the reply buffer that are filled; behind them a reply without payload still fits.
_CAPACITY: Final = BATCH - 64

_STRUCTURED: Final = nbd.STRUCTURED_REPLY_MAGIC
_pack_simple = nbd.SIMPLE_REPLY.pack_into
_pack_data = nbd.DATA_CHUNK.pack_into

# What to do after a request that was not for the hot loop.
_NEXT: Final = 0
_COPY: Final = 1
_STOP: Final = 2


class Transmission:
    """One client in the transmission phase.

    Attributes:
        phase: One of the phases of :mod:`qsd.wire.nbd.server`.
        in_flight: Requests that wait for the image.
        in_flight_bytes: Their payload.
    """

    __slots__ = (
        "_asks", "_backend", "_closed", "_copy_limit", "_cost", "_end", "_fd", "_filled", "_in",
        "_in_class", "_is_layered", "_late", "_looks_again", "_loop", "_needed", "_out", "_outlet",
        "_poll", "_pool", "_position", "_processing", "_reader", "_reading", "_relay", "_report",
        "_requests", "_resume_scheduled", "_runs", "_session", "_sock", "_spliced", "_stalled",
        "_tasks", "_views", "in_flight", "in_flight_bytes", "phase",
    )  # fmt: skip

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: StreamSocket,
        session: server.Session,
        backend: Backend,
        bitmaps: Sequence[ExportedBitmap],
        known_data: KnownData,
        pool: BufferPool,
        tasks: TaskOwner,
        report: Callable[[str], None],
        closed: Callable[[], None],
    ) -> None:
        """Take over a socket after the handshake.

        Args:
            loop: The event loop.
            sock: Non-blocking; it belongs to this object from now on.
            session: What the handshake settled.
            backend: Where requests go.
            bitmaps: The export's bitmaps, in the order of their context ids.
            known_data: The export's.
            pool: Where buffers come from.
            tasks: Owner of requests that suspend.
            report: Told why a connection that misbehaved is ended.
            closed: Called once, when nothing is in flight any more and the socket is closed.
        """
        self._loop = loop
        self._sock = sock
        self._fd = sock.fileno()
        self._session = session
        self._backend = backend
        self._pool = pool
        self._tasks = tasks
        self._report = report
        self._closed = closed
        self._outlet = Outlet(loop, sock, self._resume, self._lost)
        self._requests = Requests(backend, session, bitmaps, known_data, self._outlet, pool, tasks)
        self._late = LateRequests(backend, self._requests, self._outlet, self)
        #: TLS is a layer above the kernel's sockets.
        self._is_layered = not isinstance(sock, socket.socket)
        #: Only the kernel may look into views, and move what nobody sees.
        self._views = self._spliced = None
        if isinstance(sock, socket.socket):
            self._views = ViewReads(backend, session, known_data, self._outlet, sock, pool)
            self._spliced = SplicedWrites(backend, session, self._requests, self._outlet, sock)
        self._runs = Runs(backend, session, known_data)
        self._relay = RelayedRequests(backend, session, self._requests, self._outlet, self)
        self._poll = backend.graph.poll
        self.phase = server.SERVING
        self.in_flight = 0
        self.in_flight_bytes = 0
        self._copy_limit = _CAPACITY if self._is_layered else SENDFILE_MIN
        self._in: Buffer | None = None
        self._in_class = BATCH
        self._position = 0  # of the first request that was not handled
        self._end = 0  # of what was received
        self._needed = _HEADER_SIZE  # bytes of that request that must be there to handle it
        self._out: Buffer
        self._filled = 0  # bytes of the reply buffer
        self._cost = 0  # of the batch so far
        self._reading = False
        self._processing = False
        self._asks = False  # for block status
        self._looks_again = False  # soon
        self._stalled = False  # a long reply waits for the ones before it
        self._resume_scheduled = False
        #: Receives what comes, and serves what it can.
        self._reader = self._on_readable
        if self._views is not None:
            self._reader = QuickReads(self, self._views, sock, session, known_data).on_readable

    def start(self, received: bytes) -> None:
        """Serve; `received` are the bytes that came with the last bytes of the handshake."""
        self._late.prepare(self._sock)
        if received:
            buffer = self._in = self._pool.take(max(len(received), BATCH))
            # Less than one receive of the handshake; it happens once.
            buffer.view[: len(received)] = received
            self._end = len(received)
            self._process()
        self._update_reading()

    # Receiving

    def _update_reading(self) -> None:
        """Watch the socket exactly while requests are wanted."""
        wanted = self.phase == server.SERVING and not self._is_full()
        if wanted != self._reading:
            self._reading = wanted
            if wanted:
                self._loop.add_reader(self._fd, self._reader)
                if self._is_layered:
                    self._loop.call_soon(self._on_readable)
            else:
                self._loop.remove_reader(self._fd)

    def _is_full(self) -> bool:
        return (
            self._stalled
            or self._outlet.pending > (MAX_DIRECT_PENDING if self._late.is_direct else MAX_PENDING)
            or self.in_flight >= MAX_IN_FLIGHT
            or self.in_flight_bytes > MAX_IN_FLIGHT_BYTES
        )

    def _on_readable(self) -> None:
        if self._resume_scheduled or not self._reading:
            if self._is_layered and self._reading:
                self._loop.call_soon(self._on_readable)
            return  # what was received already comes first
        buffer = self._in
        if buffer is None:
            if self._spliced is not None and self._spliced.is_on:
                if not self._spliced.fill():
                    self._serve_spliced(self._spliced)
                return
            buffer = self._in = self._take_input()
            self._position = self._end = 0
        end = self._end
        missing = self._position + self._needed - end
        limit = end + missing if missing > _EXACT_RECEIVE else buffer.size
        try:
            count = self._sock.recv_into(buffer.view[end:limit])
        except BlockingIOError:
            return
        except OSError as exc:
            self._lost(f"Unable to read from socket: {describe(exc)}")
            return
        if not count:
            self._on_eof()
            return
        self._poll.arrived(self._fd)
        self.received(buffer, count)

    def received(self, buffer: Buffer, count: int) -> None:
        """Serve what was received into the receive buffer, behind what was there."""
        end = self._end
        missing = self._position + self._needed - end
        if not end and self._asks and self._reply_at_once(buffer, count):
            return
        self._end = end + count
        if self._is_layered:
            # The layer may hold more than it gave, which the descriptor does not show.
            self._loop.call_soon(self._on_readable)
        if count >= missing:
            self._process()
        if self._in is not None and not self._is_layered:
            self._look_later()

    def _look_later(self) -> None:
        """Look again, soon, although nothing may have come."""
        if not self._looks_again:
            # Nothing will be sent, so only reading finds out that the client is gone; and when it
            # reset the connection, libuv has said so once and watches no longer.  At once there
            # would be little to read: writes of 1 MiB took 4 to 14% less processor time like this.
            self._looks_again = True
            self._loop.call_later(_LOOK_AGAIN, self._look_again)

    def _look_again(self) -> None:
        self._looks_again = False
        if self._in is not None or (self._spliced is not None and self._spliced.is_waiting):
            self._look_later()
            self._on_readable()

    def _serve_spliced(self, spliced: SplicedWrites) -> None:
        """Fast: serve writes that go to the file in the kernel, until something else comes."""
        self._processing = True
        try:
            goes_on = spliced.receive()
        except OSError as exc:
            goes_on = False
            self._lost(f"Unable to read from socket: {describe(exc)}")
        finally:
            self._processing = False
        if self.phase != server.SERVING:
            self._drop_input()
            self._maybe_close()
        elif goes_on and spliced.is_on:
            self._look_later()
            self._update_reading()
        else:
            self._in, self._end = spliced.hand_over(self._pool)
            self._position = 0
            if goes_on:
                self._process()
            else:
                self._on_eof()

    def _reply_at_once(self, buffer: Buffer, count: int) -> bool:
        """Fast: answer a question for block status that came alone; the plain way is a batch.

        For the map of a file with 16384 extents, of which `qemu-img` asks for one after the other,
        each takes 15 us of processor time, the plain way 43.  For reads there is
        :mod:`qsd.exports.nbd_quick`.
        """
        if count != _HEADER_SIZE or self._outlet.pending:
            return False
        reply = self._requests.status.reply_nowait(buffer.data, 0)
        if not reply:
            return False
        self._outlet.send(reply)
        if self._in is buffer:  # else the client is gone, and the buffer too
            self._in = None
            buffer.drop()
            if not self.in_flight:
                self._poll.served(self._fd)
        return True

    def _take_input(self) -> Buffer:
        if self._in_class == BATCH:
            return self._pool.take_batch()
        return self._pool.take(self._in_class)

    def _on_eof(self) -> None:
        if self._end - self._position >= _HEADER_SIZE:
            self._lost(
                "Failed to read CMD_WRITE data: Unexpected end-of-file before all data were read"
            )
        elif self._end > self._position:
            self._lost("Unexpected end-of-file before all bytes were read")
        else:
            self._lost(None)

    def _resume(self) -> None:
        """Go on with requests that were received but left alone, now that there may be room."""
        self._resume_scheduled = False
        if not self._outlet.pending:
            self._stalled = False
        if self.phase == server.SERVING:
            if not self._processing and not self._is_full():
                if self._in is not None and self._end - self._position >= self._needed:
                    self._process()
                self._update_reading()
        else:
            self._maybe_close()

    # Requests

    def _process(self) -> None:
        """Handle all complete requests in the receive buffer and send one batch of replies."""
        self._processing = True
        self._late.look()
        try:
            self._serve_batch()
        except Exception as exc:
            # A defect of ours: nobody knows what was answered, so the client is not left waiting.
            self._loop.call_exception_handler({"message": "NBD batch failed", "exception": exc})
            self._lost("internal error")
        finally:
            self._late.begin()
            self._processing = False
        if self.phase == server.SERVING:
            self._keep_rest()
            if self._is_full() == self._reading:
                self._update_reading()
            if self._reading and self._in is not None:
                if self._end - self._position >= self._needed:
                    # There was no room when the loop ended, but there is now.
                    self._yield()
            if not self.in_flight:
                self._poll.served(self._fd)
        else:
            self._drop_input()
            self._maybe_close()

    def _serve_batch(self) -> None:
        """Serve runs of fast requests, and one by one what comes between them."""
        self._cost = 0
        self._needed = _HEADER_SIZE
        if self._stalled:
            return
        if self._asks and self._serve_status():
            return
        if self._serve_relayed():
            return
        if self._views is not None and not self._outlet.pending and self._serve_views():
            return
        if self._asks and self._serve_status():
            return
        self._out = self._take_output()
        goes_on = not self._serve_runs()
        limit = self._copy_limit
        began = monotonic()
        while goes_on and self._serve_fast(limit):
            if self._filled and monotonic() - began > SEND_AFTER:
                self._send_batch()
                began = monotonic()
                continue
            if self._cost > TURN_COST:
                self._yield()
                break
            copied = limit > self._copy_limit
            limit = self._copy_limit
            step = self._serve_other(copied)
            if step == _COPY:
                limit = _CAPACITY
            elif step == _STOP or self._is_full() or self.phase != server.SERVING:
                break
        self._send_batch()
        self._out.drop()
        self._outlet.flush()

    def _serve_status(self) -> bool:
        """Serve requests for one extent that come first; return whether that is all for now."""
        incoming, position = self._in, self._position
        assert incoming is not None
        self._position += self._requests.status.serve(
            incoming, position, self._end, self._outlet.send
        )
        return self._end - self._position < _HEADER_SIZE or self._outlet.closed

    def _serve_relayed(self) -> bool:
        """Hand what comes first on to another server; return whether that is all for now."""
        incoming, serve = self._in, self._relay.serve
        assert incoming is not None
        while taken := serve(incoming, self._position, self._end):
            self._position += taken
            if self._end - self._position < _HEADER_SIZE:
                return True
        return self._is_full()

    def _serve_views(self) -> bool:
        """Serve what comes first and can be sent from where it is.

        Returns:
            Whether that is all for now.
        """
        incoming, views = self._in, self._views
        assert incoming is not None
        assert views is not None
        while taken := views.serve(incoming, self._position, self._end):
            self._position += taken
            if self._outlet.pending:
                self._stalled = True  # the client takes this first
                return True
            if self._end - self._position < _HEADER_SIZE or self._outlet.closed:
                return True
            self._cost += TURN_COST // 2
            if self._cost > TURN_COST:
                self._yield()
                return True
        return False

    def _serve_runs(self) -> bool:
        """Serve what comes first and is cheaper together; return whether that is all for now."""
        incoming, end = self._in, self._end
        assert incoming is not None
        while self._cost < TURN_COST and not self._outlet.closed:
            position = self._position
            taken, self._filled, needed = self._runs.serve(incoming, position, end, self._out)
            if not taken:
                return False
            self._position = position + taken
            self._cost += max(taken, self._filled)
            self._send_batch()
            if end - self._position < (needed or _HEADER_SIZE):
                self._needed = needed or _HEADER_SIZE
                return True
        return False

    def _send_batch(self) -> None:
        """Send the replies that were put together so far."""
        filled, self._filled = self._filled, 0
        if filled and not self._outlet.put_batch(self._out, filled):
            self._out = self._take_output()

    def _take_output(self) -> Buffer:
        room = self._runs.room
        return self._pool.take(room) if room else self._pool.take_batch()

    def _serve_fast(self, limit: int) -> bool:
        """The hot loop, one pass for each request.

        Reads and writes without flags that need no waiting are answered here.

        Args:
            limit: Bytes; longer reads are left to :meth:`_serve_other`.

        Returns:
            Whether there is a request that is not for this function, or the replies so far should
            be sent; False if no request is complete.
        """
        incoming = self._in
        assert incoming is not None
        requests, payload = incoming.data, incoming.view
        position, end = self._position, self._end
        replies, room = self._out.data, self._out.view
        filled, backend, holes = self._filled, self._backend, self._requests.known_data
        late, known = self._late, holes.regions
        size, read_only, structured, _ = self._session
        head = _DATA_SIZE if structured else _SIMPLE_SIZE
        is_direct = late.is_direct
        # A read with one of these flags takes the slow way.
        slow_flags = ~nbd.CMD_FLAG_DF if structured else -1
        unpack = nbd.REQUEST.unpack_from
        budget, due, is_due = TURN_COST - self._cost, monotonic() + SEND_AFTER, False
        try:
            while end - position >= _HEADER_SIZE:
                magic, flags, command, cookie, offset, length = unpack(requests, position)
                if (
                    magic != nbd.REQUEST_MAGIC
                    or not length
                    or offset + length > size
                    or budget < 0
                    or filled > _CAPACITY
                    or is_due
                ):
                    return True
                try:
                    if command == 0:
                        start = filled + head
                        stop = start + length
                        if flags & slow_flags or (
                            not is_direct and (length > limit or stop > _CAPACITY)
                        ):
                            return True
                        if is_direct or not backend.read_nowait(offset, room[start:stop]):
                            if not late.read(flags, cookie, offset, length):
                                return True
                        elif not structured:
                            _pack_simple(replies, filled, nbd.SIMPLE_REPLY_MAGIC, 0, cookie)
                            filled = stop
                        elif (
                            flags
                            or known[offset >> REGION_BITS]
                            == DATA
                            == known[(offset + length - 1) >> REGION_BITS]
                            or not holes.may_have_hole(replies, start, stop, offset)
                        ):
                            # One chunk: no hole is in there, or none may be told of.
                            _pack_data(
                                replies, filled, _STRUCTURED, 1, 1, cookie, 8 + length, offset
                            )
                            filled = stop
                        else:
                            return True
                        position += _HEADER_SIZE
                    else:
                        start = position + _HEADER_SIZE
                        stop = start + length
                        if command != 1 or flags or read_only or stop > end:
                            return True
                        if not is_direct and backend.write_nowait(offset, payload[start:stop]):
                            _pack_simple(replies, filled, nbd.SIMPLE_REPLY_MAGIC, 0, cookie)
                            filled += _SIMPLE_SIZE
                            is_due = monotonic() > due
                        elif not late.write(cookie, offset, payload[start:stop], incoming):
                            return True
                        position = stop
                except OSError:
                    return True  # the slow way meets the same error and answers with it
                budget -= length + REQUEST_COST
            return False
        finally:
            self._position = position
            self._filled = filled
            self._cost = TURN_COST - budget

    def _serve_other(self, copied: bool) -> int:
        """Serve the request at the head of the receive buffer, which is not for the hot loop.

        Args:
            copied: Whether the hot loop had its chance with a long read.

        Returns:
            _NEXT to go on, _COPY to let the hot loop try a long read, _STOP to end the batch.
        """
        incoming = self._in
        assert incoming is not None
        magic, flags, command, cookie, offset, length = nbd.REQUEST.unpack_from(
            incoming.data, self._position
        )
        if self._filled and self._filled + _DATA_SIZE + length > _CAPACITY:
            # No room behind the others: they go ahead, and it is tried again.
            self._send_batch()
            return _NEXT
        if (
            command == nbd.CMD_READ
            and length > self._copy_limit
            and not self._late.is_direct
            and magic == nbd.REQUEST_MAGIC
            and offset + length <= self._session.size
            and not copied
            and not flags & ~(nbd.CMD_FLAG_DF if self._session.structured else 0)
        ):
            self._send_batch()
            if self._outlet.pending:
                self._stalled = True  # the client has not taken the replies before this one
                return _STOP
            if self._views is not None and self._views.send_file(cookie, offset, length, flags):
                self._position += _HEADER_SIZE
                self._cost += length + REQUEST_COST
                return _NEXT
            looks = self._session.structured and not flags
            if length + _DATA_SIZE <= _CAPACITY and not (
                looks and self._requests.known_data.is_unknown(offset)
            ):
                return _COPY
        taken = self._serve_slowly(self._position, self._end, incoming)
        if not taken:
            if command == nbd.CMD_WRITE:
                self._needed = _HEADER_SIZE + length
                if self._spliced is not None:
                    self._spliced.expect(length)
            return _STOP
        self._position += taken
        self._cost += length + REQUEST_COST
        return _NEXT

    def _serve_slowly(self, position: int, end: int, incoming: Buffer) -> int:
        """Check one request and start it.

        Returns:
            The bytes it took from the receive buffer; 0 if more of it must be received first or if
            there will be no further one.
        """
        magic, flags, command, cookie, offset, length = nbd.REQUEST.unpack_from(
            incoming.data, position
        )
        session = self._session
        taken = _HEADER_SIZE + (length if command == nbd.CMD_WRITE else 0)
        refusal = server.refuse_header(magic, command, length)
        if refusal is None:
            if command == nbd.CMD_DISC:
                self._finish()
                return 0
            if taken > end - position:
                return 0
            refusal = server.refuse(session, flags, command, offset, length)
        if refusal is not None:
            self._outlet.put(
                nbd.error_reply(cookie, refusal.error, refusal.message, session.structured)
            )
            if refusal.fatal:
                self.give_up(server.LOST_TRACK)
                return 0
            return taken
        if (
            command == nbd.CMD_READ
            and length
            and not flags & nbd.CMD_FLAG_FUA
            and self._late.read(flags, cookie, offset, length)
        ):
            return taken
        if command == nbd.CMD_BLOCK_STATUS:
            self._asks = True  # and once more, likely
            served = self._requests.status.serve(incoming, position, end, self._outlet.put)
            if served:
                return served
        payload = None
        if command == nbd.CMD_WRITE:
            payload = incoming.view[position + _HEADER_SIZE : position + taken]
            incoming.hold()
            held = incoming
            weight = length
        else:
            held = None
            weight = length if command == nbd.CMD_READ else 0
        self.in_flight += 1
        self.in_flight_bytes += weight
        self._requests.start(self, flags, command, cookie, offset, length, payload, held)
        return taken

    def give_up(self, reason: str) -> None:
        """End the connection, after the answers to what is in flight."""
        self._report(f"Disconnect client, due to: {reason}")
        self._finish()

    def ended(self, weight: int, count: int = 1) -> None:
        """Account for the end of requests."""
        self.in_flight -= count
        self.in_flight_bytes -= weight
        if not self.in_flight:
            self._poll.served(self._fd)
        if not (self._processing or self._reading):
            self._resume()

    def _yield(self) -> None:
        """Let others run before the next request is handled."""
        if not self._resume_scheduled:
            self._resume_scheduled = True
            self._loop.call_soon(self._resume)

    # The receive buffer between batches

    def _keep_rest(self) -> None:
        """Keep what was not handled where it can be completed, or give the buffer back."""
        buffer = self._in
        if buffer is None:
            return
        position, rest = self._position, self._end - self._position
        if not rest:
            self._in = None
            self._position = self._end = 0
            self._needed = _HEADER_SIZE
            if buffer.size > _USUAL_BUFFER:
                self._in_class = BATCH
            buffer.drop()
            return
        needed = self._needed
        if buffer.holders == 1 and position + needed <= buffer.size:
            if rest <= _SHORT_REST < needed and buffer.size - self._end < _MUCH:
                # Part of a long write.  With room for all that a socket holds there are 3.5 writes
                # of 64 KiB in a receive, else 2.3.
                buffer.view[:rest] = buffer.view[position : self._end]
                self._position, self._end = 0, rest
            return
        # Part of a request at the end of the buffer, or in one that others still use: it moves to
        # where there is room for all of it.  A long payload moves at most what came with its
        # header.
        if needed > self._in_class:
            self._in_class = min(needed, _USUAL_BUFFER)
        target = self._pool.take(max(needed, rest, self._in_class))
        target.view[:rest] = buffer.view[position : position + rest]
        buffer.drop()
        self._in = target
        self._position, self._end = 0, rest

    def _drop_input(self) -> None:
        buffer, self._in = self._in, None
        self._position = self._end = 0
        if buffer is not None:
            buffer.drop()
        if self._spliced is not None:
            self._spliced.close()

    # The end

    def _finish(self) -> None:
        """Take no more requests; answer those in flight, then close."""
        if self.phase == server.SERVING:
            self.phase = server.move(self.phase, server.FINISHING)
            self._update_reading()
            if not self._processing:
                self._drop_input()
                self._maybe_close()

    def _lost(self, reason: str | None) -> None:
        """The client is gone: answer nothing more, close when nothing is in flight."""
        if self.phase in (server.ABORTED, server.CLOSED):
            return
        if reason is not None:
            self._report(f"Disconnect client, due to: {reason}")
        self.phase = server.move(self.phase, server.ABORTED)
        self._update_reading()
        self._outlet.close()
        if not self._processing:
            self._drop_input()
            self._maybe_close()

    def _maybe_close(self) -> None:
        if self.in_flight or self.phase in (server.SERVING, server.CLOSED):
            return
        if self.phase == server.FINISHING and self._outlet.pending:
            return
        self.phase = server.move(self.phase, server.CLOSED)
        self._outlet.close()
        self._sock.close()
        self._closed()

    def kill(self) -> None:
        """End the connection from our side: the client sees the end of the stream at once."""
        if self.phase in (server.ABORTED, server.CLOSED):
            return
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it was gone already
        self._loop.call_soon(self._lost, None)
