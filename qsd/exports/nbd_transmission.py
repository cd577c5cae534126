# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
r"""The data plane of an NBD connection: batches in, batches out.

::

    socket --recv_into--> receive buffer     [hdr][hdr][hdr payload][hd          a batch
                              |  for every complete request
                              v
              fast: backend.read_nowait / write_nowait -----> reply buffer [hdr data][hdr data]
              slow: a coroutine, started eagerly                     |  one send for the batch
                              |  when it is done                     v
                              \----> its own reply ------------> outlet --> socket

Why it is built like this (measured beside asyncio's transports and streams): the cost of a small
request is its system calls and its Python calls.  One receive and one send serve a whole batch,
payload is read into its place behind the reply header and written from where it was received, and a
request that the page cache can answer costs neither a coroutine nor a task.

Buffers come from the pool for one batch and go back after it, so that an idle connection owns none
and the busy ones take turns with the same warm memory.  A request that has to wait holds the receive
buffer that its payload lies in.

Bounds for one connection: `MAX_PENDING` bytes of replies not yet taken by the client, `MAX_IN_FLIGHT`
requests and `MAX_IN_FLIGHT_BYTES` bytes of buffers of requests that wait.  At any of them it stops
to read.  After `TURN_COST` it lets others run before it goes on.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any, Final

from qsd.aio import eager
from qsd.errors import describe
from qsd.exports.buffers import BATCH, CLASSES
from qsd.exports.nbd_requests import Requests
from qsd.exports.outlet import Outlet
from qsd.wire.nbd import messages as nbd
from qsd.wire.nbd import server

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Coroutine, Sequence

    from qsd.aio.tasks import TaskOwner
    from qsd.block.backend import Backend
    from qsd.exports.buffers import Buffer, BufferPool
    from qsd.exports.nbd_bitmaps import ExportedBitmap
    from qsd.exports.nbd_requests import KnownData
    from qsd.exports.outlet import StreamSocket

#: Bytes of replies that wait for the client before no more requests are looked at.
MAX_PENDING: Final = 1 << 20
#: Requests that wait for the image.
MAX_IN_FLIGHT: Final = 128
#: Bytes of payload of those.
MAX_IN_FLIGHT_BYTES: Final = 64 << 20
#: Bytes, each request counting `REQUEST_COST` more; after so many another connection gets its turn.
TURN_COST: Final = 2 << 20
REQUEST_COST: Final = 4096
#: Bytes; when more of a payload is missing, nothing behind it is received with it, so that the next
#: one starts at the front of the buffer and never has to be moved.
_EXACT_RECEIVE: Final = 64 << 10
#: Bytes; receive buffers longer than this are not kept for the next batch.
_USUAL_BUFFER: Final = CLASSES[3]

#: A hole of a file is at least one block long, so a range without such a run of zeroes has none.
_ZERO_BLOCK: Final = bytes(512)

_HEADER_SIZE: Final = nbd.REQUEST.size
_SIMPLE_SIZE: Final = nbd.SIMPLE_REPLY.size
_DATA_SIZE: Final = nbd.DATA_CHUNK.size
#: Bytes in the reply buffer that are always left for replies without payload.
_ROOM: Final = 1024


class Transmission:
    """One client in the transmission phase.

    Attributes:
        phase: One of the phases of :mod:`qsd.wire.nbd.server`.
        in_flight: Requests that wait for the image.
    """

    __slots__ = (
        "_backend",
        "_closed",
        "_end",
        "_fd",
        "_in",
        "_in_class",
        "_in_flight_bytes",
        "_loop",
        "_needed",
        "_outlet",
        "_pool",
        "_position",
        "_processing",
        "_reading",
        "_report",
        "_requests",
        "_resume_scheduled",
        "_session",
        "_sock",
        "_tasks",
        "in_flight",
        "phase",
    )

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
        self._requests = Requests(backend, session, bitmaps, known_data, self._outlet, pool)
        self.phase = server.SERVING
        self.in_flight = 0
        self._in_flight_bytes = 0
        self._in: Buffer | None = None
        self._in_class = BATCH
        self._position = 0  # of the first request that was not handled
        self._end = 0  # of what was received
        self._needed = _HEADER_SIZE  # bytes of that request that must be there to handle it
        self._reading = False
        self._processing = False
        self._resume_scheduled = False

    def start(self, received: bytes) -> None:
        """Serve; `received` are the bytes that came with the last bytes of the handshake."""
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
                self._loop.add_reader(self._fd, self._on_readable)
            else:
                self._loop.remove_reader(self._fd)

    def _is_full(self) -> bool:
        return (
            self._outlet.pending > MAX_PENDING
            or self.in_flight >= MAX_IN_FLIGHT
            or self._in_flight_bytes > MAX_IN_FLIGHT_BYTES
        )

    def _on_readable(self) -> None:
        if self._resume_scheduled:
            return  # what was received already comes first
        buffer = self._in
        if buffer is None:
            buffer = self._in = self._pool.take(self._in_class)
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
        self._end = end + count
        if count >= missing:
            self._process()

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
        try:
            self._serve_batch()
        finally:
            self._processing = False
        if self.phase == server.SERVING:
            self._keep_rest()
            if self._is_full() == self._reading:
                self._update_reading()
            if self._reading and self._in is not None:
                if self._end - self._position >= self._needed:
                    # There was no room when the loop ended, but there is now.
                    self._yield()
        else:
            self._drop_input()
            self._maybe_close()

    def _serve_batch(self) -> None:
        """The hot loop: one pass for each request.

        Reads and writes without flags that need no waiting are answered here; everything else goes
        through :meth:`_serve_slowly`.
        """
        incoming = self._in
        assert incoming is not None
        requests, payload = incoming.data, incoming.view
        position, end = self._position, self._end
        outgoing = self._pool.take(BATCH)
        replies, room = outgoing.data, outgoing.view
        capacity = outgoing.size - _ROOM
        filled = 0
        cost = 0
        backend = self._backend
        known = self._requests.known_data
        size, read_only, structured, _ = self._session
        head = _DATA_SIZE if structured else _SIMPLE_SIZE
        # A read with one of these flags takes the slow way.
        slow_flags = ~nbd.CMD_FLAG_DF if structured else -1
        unpack = nbd.REQUEST.unpack_from
        pack_simple = nbd.SIMPLE_REPLY.pack_into
        pack_data = nbd.DATA_CHUNK.pack_into
        needed = _HEADER_SIZE
        while end - position >= _HEADER_SIZE:
            if filled > capacity:
                if not self._outlet.put_batch(outgoing, filled):
                    outgoing = self._pool.take(BATCH)
                    replies, room = outgoing.data, outgoing.view
                filled = 0
                if self._is_full() or self.phase != server.SERVING:
                    break
            if cost > TURN_COST:
                self._yield()
                break
            magic, flags, command, cookie, offset, length = unpack(requests, position)
            stop = filled + head + length
            try:
                if (
                    command == 0
                    and magic == nbd.REQUEST_MAGIC
                    and not flags & slow_flags
                    and length > 0
                    and offset + length <= size
                    and stop <= capacity
                    and backend.read_nowait(offset, room[filled + head : stop])
                ):
                    # Fast path: plain data in memory.
                    if not structured:
                        pack_simple(replies, filled, nbd.SIMPLE_REPLY_MAGIC, 0, cookie)
                        filled = stop
                        position += _HEADER_SIZE
                        cost += length + REQUEST_COST
                        continue
                    if (
                        flags
                        or (known.start <= offset
                        and offset + length <= known.end)
                        or replies.find(
                            _ZERO_BLOCK
                            if not (offset | length) & 511
                            else _ZERO_BLOCK[: min(16, length)],
                            filled + head,
                            stop,
                        )
                        < 0
                    ):
                        # One chunk: no hole can be in there (or none may be told of).
                        pack_data(
                            replies,
                            filled,
                            nbd.STRUCTURED_REPLY_MAGIC,
                            1,
                            1,
                            cookie,
                            8 + length,
                            offset,
                        )
                        filled = stop
                        position += _HEADER_SIZE
                        cost += length + REQUEST_COST
                        continue
                elif (
                    command == 1
                    and magic == nbd.REQUEST_MAGIC
                    and not flags
                    and not read_only
                    and 0 < length <= end - position - _HEADER_SIZE
                    and offset + length <= size
                    and backend.write_nowait(
                        offset,
                        payload[position + _HEADER_SIZE : position + _HEADER_SIZE + length],
                    )
                ):
                    # Fast path: a write that is a memory copy.
                    pack_simple(replies, filled, nbd.SIMPLE_REPLY_MAGIC, 0, cookie)
                    filled += _SIMPLE_SIZE
                    position += _HEADER_SIZE + length
                    cost += length + REQUEST_COST
                    continue
            except OSError:
                pass  # the slow way meets the same error and answers with it
            if filled and stop > capacity:
                # No room for this reply behind the others: they go ahead, and it is tried again.
                if not self._outlet.put_batch(outgoing, filled):
                    outgoing = self._pool.take(BATCH)
                    replies, room = outgoing.data, outgoing.view
                filled = 0
                if self._is_full() or self.phase != server.SERVING:
                    break
                continue
            taken = self._serve_slowly(position, end, incoming)
            if not taken:
                if command == nbd.CMD_WRITE:
                    needed = _HEADER_SIZE + length
                break
            position += taken
            cost += length + REQUEST_COST
            if self._is_full() or self.phase != server.SERVING:
                break
        self._position = position
        self._needed = needed
        if not filled or self._outlet.put_batch(outgoing, filled):
            outgoing.drop()
        self._outlet.flush()

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
        refusal = server.refuse_header(magic, command, length)
        if refusal is None:
            if command == nbd.CMD_DISC:
                self._finish()
                return 0
            taken = _HEADER_SIZE + (length if command == nbd.CMD_WRITE else 0)
            if taken > end - position:
                return 0
            refusal = server.refuse(session, flags, command, offset, length)
        if refusal is not None:
            self._outlet.put(
                nbd.error_reply(cookie, refusal.error, refusal.message, session.structured)
            )
            if refusal.fatal:
                self._report(f"Disconnect client, due to: {server.LOST_TRACK}")
                self._finish()
                return 0
            return taken
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
        self._in_flight_bytes += weight
        self._start(
            self._guard(
                self._requests.run(flags, command, cookie, offset, length, payload),
                cookie,
                weight,
                held,
            ),
            nbd.command_name(command),
        )
        return taken

    def _start(self, coro: Coroutine[Any, Any, None], name: str) -> None:
        eager.start(coro, self._tasks, name)

    async def _guard(
        self, request: Coroutine[Any, Any, None], cookie: int, weight: int, held: Buffer | None
    ) -> None:
        """Run a request and account for its end, whatever that is."""
        try:
            await request
        except Exception as exc:
            # A defect of ours: the client gets an error, the loop's handler the details.
            self._outlet.put(nbd.error_reply(cookie, 5, "internal error", self._session.structured))
            self._loop.call_exception_handler({"message": "NBD request failed", "exception": exc})
        finally:
            if held is not None:
                held.drop()
            self.in_flight -= 1
            self._in_flight_bytes -= weight
            if not self._processing:
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
            return
        # Part of a request at the end of the buffer, or in one that others still use: it moves to
        # where there is room for all of it.  A long payload moves at most what came with its header.
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
