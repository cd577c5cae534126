# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
r"""The data plane of one connection to an NBD server: many requests in flight at once.

::

    submit() --> queue --one vectored send for each turn of the loop--> socket

    socket --recv_into--> staging buffer --> header --> payload that came with it: copied
                                                    \-> the rest of it: received in place

A batch of small replies costs one system call; their payload is copied out of the staging buffer,
which is cheaper than a system call for each.  While long reads are in flight only headers are
received into the staging buffer, so that payload goes straight to where it belongs.

The server is not trusted: a reply must belong to a request, lie within it and give each of its
bytes once.  Whatever breaks the protocol loses the connection, since nothing behind it can be
followed.

NBD specification: "Transmission", "Structured reply chunk message", "Structured reply types".
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final, Protocol

from qsd.errors import PeerError, describe, os_error
from qsd.util.zeroes import fill_zero
from qsd.wire.nbd import messages as nbd
from qsd.wire.nbd.client import system_errno

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence

    from qsd.wire.nbd.client import Agreement

#: Bytes of the staging buffer: a batch of 32 replies of 4 KiB and some.
STAGING: Final = 256 << 10
#: Bytes; payloads from here on are worth a system call of their own.
LONG: Final = 32 << 10
#: Bytes received in a row before others get their turn.
TURN: Final = 4 << 20
#: Views in one vectored send; well below the kernel's IOV_MAX of 1024.
_MAX_VIEWS: Final = 256
#: Bytes; error texts and block status replies that are taken in.
_MAX_CHUNK: Final = 64 << 10

_SIMPLE_SIZE: Final = nbd.SIMPLE_REPLY.size
_CHUNK_SIZE: Final = nbd.CHUNK.size
_DATA_SIZE: Final = nbd.DATA_CHUNK.size

_pack_request = nbd.REQUEST.pack
_unpack_data = nbd.DATA_CHUNK.unpack_from


class StreamSocket(Protocol):
    """What a connection needs of its non-blocking socket; a TLS layer offers the same."""

    def fileno(self) -> int:
        """Return the descriptor to watch."""

    def recv_into(self, buffer: memoryview) -> int:
        """Receive what is there; BlockingIOError if nothing is, 0 at the end."""

    def send(self, data: bytes | memoryview) -> int:
        """Send what fits; BlockingIOError if nothing does."""

    def sendmsg(self, buffers: Sequence[bytes | memoryview]) -> int:
        """Send what fits of several views."""

    def close(self) -> None:
        """Close the socket."""


class Request:
    """One request.

    Attributes:
        command: NBD_CMD_*.
        flags: NBD_CMD_FLAG_*.
        offset: Bytes.
        length: Bytes.
        view: What a read fills or a write sends; None for other commands.
        done: Called once, when the request is over.
        error: None if it succeeded.
        lost: Whether the connection failed before the answer came.
        received: Bytes of a read that have arrived.
        extents: What a block status reply said: (length, flags).
    """

    __slots__ = (
        "command", "done", "error", "extents", "flags", "length", "lost", "offset", "received",
        "view",
    )  # fmt: skip

    def __init__(
        self,
        command: int,
        flags: int,
        offset: int,
        length: int,
        view: memoryview | None,
        done: Callable[[Request], None],
    ) -> None:
        self.command = command
        self.flags = flags
        self.offset = offset
        self.length = length
        self.view = view
        self.done = done
        self.error: OSError | None = None
        self.lost = False
        self.received = 0
        self.extents: list[tuple[int, int]] = []


class Connection:
    """A connection in the transmission phase.

    Attributes:
        agreement: What the handshake settled.
        closed: Nothing can be submitted any more.
        requests: What is in flight, by cookie.
    """

    __slots__ = (
        "_again", "_blocked", "_cookie", "_direct", "_direct_done", "_direct_request", "_end",
        "_fd", "_is_plain", "_long", "_loop", "_lost", "_out", "_out_bytes", "_scheduled", "_sock",
        "_staging", "_start", "_view", "agreement", "closed", "requests",
    )  # fmt: skip

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: StreamSocket,
        agreement: Agreement,
        rest: bytes,
        lost: Callable[[Connection, str], None],
        *,
        is_plain: bool,
    ) -> None:
        """Take over a socket after the handshake.

        Args:
            loop: The event loop.
            sock: Non-blocking; it belongs to this object from now on.
            agreement: What the handshake settled.
            rest: What was received behind the handshake.
            lost: Called once with a reason, after all requests in flight have failed.
            is_plain: Whether a short receive means that nothing more is there (not so for TLS).
        """
        self._loop = loop
        self._sock = sock
        self._fd = sock.fileno()
        self._lost = lost
        self._is_plain = is_plain
        self.agreement = agreement
        self.closed = False
        self.requests: dict[int, Request] = {}
        self._cookie = 0
        self._long = 0
        self._staging = bytearray(STAGING)
        self._view = memoryview(self._staging)
        self._start = 0
        self._end = len(rest)
        self._staging[: len(rest)] = rest
        self._direct: memoryview | None = None
        self._direct_request: tuple[int, Request] | None = None
        self._direct_done = False
        self._out: list[bytes | memoryview] = []
        self._out_bytes = 0
        self._scheduled = False
        self._blocked = False
        self._again: asyncio.Handle | None = None
        loop.add_reader(self._fd, self._on_readable)
        if not is_plain or rest:
            # TLS may hold records that the descriptor does not show.
            self._again = loop.call_soon(self._on_readable)

    # Sending

    def submit(self, request: Request) -> None:
        """Send a request in this turn of the loop; its `done` is called later, never from here."""
        self._cookie = cookie = self._cookie + 1
        self.requests[cookie] = request
        header = _pack_request(
            nbd.REQUEST_MAGIC, request.flags, request.command, cookie, request.offset,
            request.length,
        )  # fmt: skip
        out = self._out
        out.append(header)
        if request.command == nbd.CMD_WRITE:
            assert request.view is not None
            out.append(request.view)
            self._out_bytes += request.length
        elif request.command == nbd.CMD_READ and request.length >= LONG:
            self._long += 1
        if not (self._scheduled or self._blocked):
            self._scheduled = True
            self._loop.call_soon(self._flush)

    def say_goodbye(self) -> None:
        """Tell the server that this is the end, as far as the socket takes it at once."""
        if self.closed:
            return
        self._out.append(_pack_request(nbd.REQUEST_MAGIC, 0, nbd.CMD_DISC, 0, 0, 0))
        if not self._blocked:
            self._flush()

    def _flush(self) -> None:
        self._scheduled = False
        if self.closed or self._blocked:
            return
        try:
            self._send()
        except BlockingIOError:
            self._blocked = True
            self._loop.add_writer(self._fd, self._on_writable)
        except OSError as exc:
            self._fail(f"Failed to send request: {describe(exc)}")

    def _send(self) -> None:
        """Send what waits.

        Raises:
            BlockingIOError: The socket does not take more.
            OSError: The connection is lost.
        """
        while self._out:
            out = self._out
            if self._out_bytes < LONG:
                # Many short pieces: one copy is cheaper than a vector of them.
                data = b"".join(out)
                sent = 0
                try:
                    sent = self._sock.send(data)
                finally:
                    self._out = [data[sent:]] if sent < len(data) else []
                    self._out_bytes = 0
            else:
                self._sent(self._sock.sendmsg(out[:_MAX_VIEWS]))

    def _sent(self, count: int) -> None:
        """Forget the first `count` bytes of what waits."""
        out = self._out
        for index, piece in enumerate(out):
            size = len(piece)
            if count < size:
                out[index] = memoryview(piece)[count:]
                del out[:index]
                return
            count -= size
        out.clear()
        self._out_bytes = 0

    def _on_writable(self) -> None:
        self._blocked = False
        self._flush()
        if not (self._blocked or self.closed):
            self._loop.remove_writer(self._fd)

    def abandon(self, request: Request) -> None:
        """Let nobody touch the memory of a request whose caller does not wait any longer."""
        view = request.view
        if view is None or request.lost:
            return
        if request.command == nbd.CMD_READ:
            request.view = memoryview(bytearray(request.length))
            if self._direct_request is not None and self._direct_request[1] is request:
                assert self._direct is not None
                self._direct = memoryview(bytearray(len(self._direct)))
        else:
            self._out = [bytes(p) if isinstance(p, memoryview) else p for p in self._out]

    # Receiving

    def _on_readable(self) -> None:
        self._again = None
        budget = TURN
        try:
            while not self.closed:
                if self._start < self._end and self._direct is None and self._parse():
                    continue
                wanted, count = self._receive()
                if not count:
                    self._fail("Unexpected end-of-file before all data were read")
                    return
                budget -= count
                if count < wanted and self._is_plain:
                    if self._direct is None:
                        self._parse()
                    return
                if budget <= 0:
                    self._again = self._loop.call_soon(self._on_readable)
                    return
        except BlockingIOError:
            return
        except PeerError as exc:
            self._fail(str(exc))
        except OSError as exc:
            self._fail(f"Unable to read from socket: {describe(exc)}")

    def _receive(self) -> tuple[int, int]:
        """Receive once, into a request's buffer or the staging buffer; return (asked for, got)."""
        direct = self._direct
        if direct is not None:
            wanted = len(direct)
            count = self._sock.recv_into(direct)
            if count == wanted:
                self._direct = None
                assert self._direct_request is not None
                cookie, request = self._direct_request
                self._direct_request = None
                if self._direct_done:
                    self._complete(cookie, request)
            else:
                self._direct = direct[count:]
            return wanted, count
        start, end = self._start, self._end
        if start == end:
            self._start = end = 0
        elif start:
            # What is left is the beginning of one reply, so it is short.
            self._staging[: end - start] = self._staging[start:end]
            end -= start
            self._start = 0
        limit = STAGING
        if self._long:
            least = _DATA_SIZE if self.agreement.structured else _SIMPLE_SIZE
            limit = least if end < least else STAGING
        self._end = end
        count = self._sock.recv_into(self._view[end:limit])
        self._end = end + count
        return limit - end, count

    def _parse(self) -> bool:
        """Handle the complete replies in the staging buffer; tell whether there is more to do.

        Returns:
            False when more must be received first.
        """
        staging = self._staging
        requests = self.requests
        progress = False
        while not self.closed and self._direct is None:
            start = self._start
            have = self._end - start
            if have < _SIMPLE_SIZE:
                break
            if have >= _DATA_SIZE:
                # Fast path: the answer to a read in one chunk.
                magic, flags, kind, cookie, length, offset = _unpack_data(staging, start)
                if magic == nbd.STRUCTURED_REPLY_MAGIC and kind == nbd.REPLY_OFFSET_DATA:
                    request = requests.get(cookie)
                    if request is None:
                        raise PeerError(f"Unexpected reply to cookie {cookie}")
                    self._start = start + _DATA_SIZE
                    self._payload(cookie, request, offset, length - 8, flags)
                    progress = True
                    continue
            if not self._slow():
                break
            progress = True
        return progress and self._start < self._end

    def _payload(
        self, cookie: int, request: Request, offset: int, length: int, flags: int
    ) -> None:
        """Take the payload that follows a header: what is there by copying, the rest in place."""
        at = offset - request.offset
        view = request.view
        if (
            request.command != nbd.CMD_READ
            or view is None
            or length <= 0
            or at < 0
            or at + length > request.length
            or request.received + length > request.length
        ):
            raise PeerError("Protocol error: server sent chunk exceeding requested region")
        request.received += length
        start = self._start
        have = self._end - start
        if have >= length:
            view[at : at + length] = self._view[start : start + length]
            self._start = start + length
            if flags & nbd.REPLY_FLAG_DONE:
                self._complete(cookie, request)
            return
        # Payload that came along with its header is copied; see the module for why.
        view[at : at + have] = self._view[start : start + have]
        self._start = self._end = 0
        self._direct = view[at + have : at + length]
        self._direct_request = (cookie, request)
        self._direct_done = bool(flags & nbd.REPLY_FLAG_DONE)

    def _slow(self) -> bool:
        """Handle one reply of any kind; False if it is not all there."""
        start = self._start
        have = self._end - start
        (magic,) = nbd.U32.unpack_from(self._staging, start)
        if magic == nbd.SIMPLE_REPLY_MAGIC:
            _, error, cookie = nbd.SIMPLE_REPLY.unpack_from(self._staging, start)
            request = self._find(cookie)
            self._start = start + _SIMPLE_SIZE
            if request.command in (nbd.CMD_READ, nbd.CMD_BLOCK_STATUS) and (
                self.agreement.structured
            ):
                raise PeerError(
                    "Protocol error: simple reply when structured reply chunk was expected"
                )
            if error:
                request.error = os_error(system_errno(error))
            elif request.command == nbd.CMD_READ:
                self._payload(
                    cookie, request, request.offset, request.length, nbd.REPLY_FLAG_DONE
                )
                return True
            self._complete(cookie, request)
            return True
        if magic != nbd.STRUCTURED_REPLY_MAGIC or not self.agreement.structured:
            raise PeerError(f"invalid magic (got 0x{magic:x})")
        if have < _CHUNK_SIZE:
            return False
        _, flags, kind, cookie, length = nbd.CHUNK.unpack_from(self._staging, start)
        request = self._find(cookie)
        if kind == nbd.REPLY_OFFSET_DATA:
            return False  # the offset is still to come; then the fast path takes it
        if length > _MAX_CHUNK:
            raise PeerError("Protocol error: reply chunk is too long")
        if have < _CHUNK_SIZE + length:
            return False
        data = bytes(self._view[start + _CHUNK_SIZE : start + _CHUNK_SIZE + length])
        self._start = start + _CHUNK_SIZE + length
        self._chunk(request, flags, kind, data)
        if flags & nbd.REPLY_FLAG_DONE:
            self._complete(cookie, request)
        return True

    def _find(self, cookie: int) -> Request:
        request = self.requests.get(cookie)
        if request is None:
            raise PeerError(f"Unexpected reply to cookie {cookie}")
        return request

    def _chunk(self, request: Request, flags: int, kind: int, data: bytes) -> None:
        """Handle a chunk without payload for a buffer."""
        if kind == nbd.REPLY_NONE:
            if data or not flags & nbd.REPLY_FLAG_DONE:
                raise PeerError("Protocol error: NBD_REPLY_TYPE_NONE chunk is malformed")
        elif kind & nbd.REPLY_IS_ERROR:
            if len(data) < nbd.ERROR_TEXT.size:
                raise PeerError("Protocol error: invalid payload for NBD_REPLY_TYPE_ERROR")
            code, _ = nbd.ERROR_TEXT.unpack_from(data)
            if request.error is None:
                request.error = os_error(system_errno(code) if code else errno.EINVAL)
        elif kind == nbd.REPLY_OFFSET_HOLE:
            self._hole(request, data)
        elif kind == nbd.REPLY_BLOCK_STATUS:
            self._status(request, data)
        else:
            raise PeerError(f"Protocol error: unexpected reply type {kind}")

    def _hole(self, request: Request, data: bytes) -> None:
        if len(data) != nbd.OFFSET_AND_HOLE.size or request.view is None:
            raise PeerError("Protocol error: invalid payload for NBD_REPLY_TYPE_OFFSET_HOLE")
        offset, length = nbd.OFFSET_AND_HOLE.unpack(data)
        at = offset - request.offset
        if (
            request.command != nbd.CMD_READ
            or not length
            or at < 0
            or at + length > request.length
            or request.received + length > request.length
        ):
            raise PeerError("Protocol error: server sent chunk exceeding requested region")
        request.received += length
        fill_zero(request.view[at : at + length])

    def _status(self, request: Request, data: bytes) -> None:
        extents = list(nbd.EXTENT.iter_unpack(data[4:])) if len(data) % 8 == 4 else []
        if (
            request.command != nbd.CMD_BLOCK_STATUS
            or not extents
            or request.extents
            or nbd.U32.unpack_from(data)[0] != self.agreement.context_id
            or not extents[0][0]
        ):
            raise PeerError("Protocol error: invalid payload for NBD_REPLY_TYPE_BLOCK_STATUS")
        request.extents = extents

    def _complete(self, cookie: int, request: Request) -> None:
        """The last of a reply is in."""
        if request.error is None:
            if request.command == nbd.CMD_READ and request.received != request.length:
                raise PeerError("Protocol error: server sent less data than was asked for")
            if request.command == nbd.CMD_BLOCK_STATUS and not request.extents:
                raise PeerError("Protocol error: server did not reply with any status extents")
        del self.requests[cookie]
        if request.length >= LONG and request.command == nbd.CMD_READ:
            self._long -= 1
        request.done(request)

    # The end

    def _fail(self, reason: str) -> None:
        """The connection is of no use any more: all requests in flight fail."""
        if self.closed:
            return
        requests = list(self.requests.values())
        self.close()
        for request in requests:
            request.lost = True
            request.error = os_error(errno.EIO)
            request.done(request)
        self._lost(self, reason)

    def fail(self) -> None:
        """Give the connection up from our side; requests in flight fail."""
        self._fail("Connection was given up")

    def close(self) -> None:
        """Close the socket; nobody is told.  Idempotent."""
        if self.closed:
            return
        self.closed = True
        self._loop.remove_reader(self._fd)
        if self._blocked:
            self._blocked = False
            self._loop.remove_writer(self._fd)
        if self._again is not None:
            self._again.cancel()
        self.requests.clear()
        self._out.clear()
        self._direct = self._direct_request = None
        self._sock.close()
