# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""NBD requests that wait for a device, without a coroutine: a fast path.

Whatever cannot be begun in this way, or does not end well, goes the plain way of
:mod:`qsd.exports.nbd_requests`, which meets the same error and tells the client.

A coroutine and its task cost more than the rest of such a request.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final, Protocol

import qsd.block.late  # noqa: F401 - 2 ms that the first request of a client need not wait for
from qsd.aio.operations import HEAD, LONGEST, SLICE
from qsd.exports import nbd_requests
from qsd.exports.nbd_known import DATA, REGION_BITS
from qsd.wire.nbd import messages as nbd

if TYPE_CHECKING:
    from qsd.aio.operations import PooledOperation
    from qsd.block.backend import Backend
    from qsd.block.late import Route
    from qsd.exports.buffers import Buffer
    from qsd.exports.nbd_requests import Requests
    from qsd.exports.outlet import Outlet
    from qsd.net.tls import StreamSocket

#: Requests that wait for the image.
MAX_IN_FLIGHT: Final = 128
#: Bytes of payload of those.
MAX_IN_FLIGHT_BYTES: Final = 64 << 20
#: Bytes that a unix socket takes of replies that come from a device; the kernel doubles it.  While
#: more is copied to the socket in one go, the client's next requests wait and the device idles;
#: with less the client has to be waited for more often.  64 KiB at queue depth 16, medians of ten
#: rounds: 10,600/s; with 104 KiB 8,700/s, with 1 MiB 7,800/s.
_SEND_BUFFER: Final = 208 << 10

_DATA_SIZE: Final = nbd.DATA_CHUNK.size
_pack_data = nbd.DATA_CHUNK.pack_into


class Connection(nbd_requests.Connection, Protocol):
    """Whose requests these are.

    Attributes:
        in_flight: Requests that wait for the image.
        in_flight_bytes: Their payload.
    """

    in_flight: int
    in_flight_bytes: int


class LateRequests:
    """Begins requests of one connection whose ends the loop will report.

    Most go in company, by slices of a batch (:mod:`qsd.block.late`).  What has no such
    route, because it has to be decrypted for instance, or is long, is begun by itself.

    Attributes:
        is_direct: There is no use in asking the page cache before.
    """

    __slots__ = (
        "_backend",
        "_connection",
        "_generation",
        "_head",
        "_known",
        "_length",
        "_outlet",
        "_reading",
        "_reads",
        "_requests",
        "_room",
        "_shelf",
        "_writes",
        "_writing",
        "is_direct",
    )

    def __init__(
        self, backend: Backend, requests: Requests, outlet: Outlet, connection: Connection
    ) -> None:
        self._backend = backend
        self._requests = requests
        self._known = requests.known_data.regions
        self._outlet = outlet
        self._connection = connection
        self._head = requests.header_size
        self._generation = -1
        self._reads: Route | None = None
        self._writes: Route | None = None
        self._room = 0  # for how many more there is room in this batch
        # What is to begin with the next slice, or at the end of the batch.
        self._reading: list[PooledOperation] = []
        self._writing: list[PooledOperation] = []
        # The length of the last read, and where there may be an operation for another like it.
        self._length = 0
        self._shelf: list[PooledOperation] = []
        self.is_direct = False

    def prepare(self, sock: StreamSocket) -> None:
        """Choose how much a socket holds; called before replies are sent."""
        self.look()
        if self.is_direct and isinstance(sock, socket.socket) and sock.family == socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)

    # A batch

    def look(self) -> None:
        """A batch begins: find out how its requests can be begun."""
        backend, connection = self._backend, self._connection
        if self._generation != backend.generation:
            self._generation = backend.generation
            self._reads = backend.route(False, self._have_read)
            self._writes = backend.route(True, self._have_written)
            self.is_direct = self._reads is not None and self._reads.is_direct
            self._length = 0
        is_full = connection.in_flight_bytes > MAX_IN_FLIGHT_BYTES
        self._room = 0 if is_full else MAX_IN_FLIGHT - connection.in_flight

    def begin(self) -> None:
        """Begin what was taken; called at the end of each batch."""
        if self._reading:
            self._begin_all(nbd.CMD_READ, self._reads, self._reading)
            self._reading = []
        if self._writing:
            self._begin_all(nbd.CMD_WRITE, self._writes, self._writing)
            self._writing = []

    def _begin_slice(self, route: Route) -> None:
        """Keep the device busy, and the client, while more of the batch is looked at."""
        self.begin()
        route.advance()

    def _begin_all(
        self, command: int, route: Route | None, operations: list[PooledOperation]
    ) -> None:
        assert route is not None  # it gave us these
        connection = self._connection
        connection.in_flight += len(operations)
        connection.in_flight_bytes += sum([operation.length for operation in operations])
        for operation in route.begin(operations):
            self._run_plainly(command, operation)

    def _run_plainly(self, command: int, operation: PooledOperation) -> None:
        """Do what could not be begun, or did not end well, the plain way."""
        self._requests.start(
            self._connection,
            operation.flags,
            command,
            operation.tag,
            operation.origin,
            operation.length,
            operation.payload() if command == nbd.CMD_WRITE else None,
            operation,
        )

    def read(self, flags: int, cookie: int, offset: int, length: int) -> bool:
        """Take a read that is answered with one chunk.

        Args:
            flags: From the request, like the next three; checked.
            cookie: Whose reply it is.
            offset: Bytes.
            length: Bytes; not 0.

        Returns:
            Whether it was taken, and accounted for.
        """
        requests, route = self._requests, self._reads
        first, last = offset >> REGION_BITS, (offset + length - 1) >> REGION_BITS
        if (first != last or self._known[first] != DATA) and not requests.takes_one_chunk(
            flags, offset, length
        ):
            return False
        if route is None or length > LONGEST:
            return self._read_alone(flags, cookie, offset, length)
        if self._room <= 0:
            return False
        self._room -= 1
        operation = self._take(route, length, offset)
        operation.tag, operation.flags = cookie, flags
        if self._head == _DATA_SIZE:
            _pack_data(
                operation.memory,
                HEAD - _DATA_SIZE,
                nbd.STRUCTURED_REPLY_MAGIC,
                1,
                nbd.REPLY_OFFSET_DATA,
                cookie,
                8 + length,
                offset,
            )
        else:
            requests.pack_header(operation.memory, HEAD, cookie, offset, length)
        self._reading.append(operation)
        if len(self._reading) >= SLICE:
            self._begin_slice(route)
        return True

    def _take(self, route: Route, length: int, offset: int) -> PooledOperation:
        """Return an operation; most are as long as the one before."""
        if length != self._length:
            self._length, self._shelf = length, route.shelf(length)
        if not self._shelf:
            return route.take(length, offset)
        operation = self._shelf.pop()
        operation.length = length
        operation.origin = operation.offset = offset
        operation.sink = route
        return operation

    def _have_read(self, operations: list[PooledOperation]) -> None:
        """Answer reads that have ended."""
        head = self._head
        views: list[memoryview] = []
        weight = 0
        for operation in operations:
            length = operation.length
            if operation.result != length:
                self._have_read_badly(operations)
                return
            if len(operation.piece) != head + length:
                operation.cut(head)
            views.append(operation.piece)
            weight += length
        self._outlet.put_all(views, weight + head * len(views), operations)
        self._connection.ended(weight, len(views))

    def _have_read_badly(self, operations: list[PooledOperation]) -> None:
        """Answer reads some of which failed or met the end of the file."""
        well = [operation for operation in operations if operation.is_full]
        if well:
            self._have_read(well)
        for operation in operations:
            if not operation.is_full:
                self._run_plainly(nbd.CMD_READ, operation)

    def write(self, cookie: int, offset: int, payload: memoryview, held: Buffer) -> bool:
        """Take a write without flags.

        Args:
            cookie: Whose reply it is.
            offset: Bytes.
            payload: What to write; checked and not empty.
            held: The buffer that it lies in.

        Returns:
            Whether it was taken, and accounted for.
        """
        route, length = self._writes, len(payload)
        if route is None or length > LONGEST:
            return self._write_alone(cookie, offset, payload, held)
        if self._room <= 0:
            return False
        self._room -= 1
        operation = self._take(route, length, offset)
        operation.tag, operation.flags = cookie, 0
        # The kernel writes from aligned memory only.
        operation.memory[HEAD : HEAD + length] = payload
        self._writing.append(operation)
        if len(self._writing) >= SLICE:
            self._begin_slice(route)
        return True

    def _have_written(self, operations: list[PooledOperation]) -> None:
        """Answer writes that have ended."""
        replies: list[bytes] = []
        weight = 0
        for operation in operations:
            if operation.result == operation.length:
                replies.append(nbd.simple_reply(operation.tag))
                weight += operation.length
                operation.drop()
            else:
                self._run_plainly(nbd.CMD_WRITE, operation)
        if replies:
            self._outlet.put(b"".join(replies))
            self._connection.ended(weight, len(replies))

    # One by one

    def _begin_alone(self, weight: int) -> bool:
        """Count a request, unless there are too many."""
        connection = self._connection
        if (
            connection.in_flight >= MAX_IN_FLIGHT
            or connection.in_flight_bytes > MAX_IN_FLIGHT_BYTES
        ):
            return False
        connection.in_flight += 1
        connection.in_flight_bytes += weight
        return True

    def _read_alone(self, flags: int, cookie: int, offset: int, length: int) -> bool:
        """Begin a read that has no company."""
        requests, connection = self._requests, self._connection
        if not self._begin_alone(length):
            return False
        buffer, payload = requests.take_buffer(length)

        def finished(full: bool) -> None:
            if full:
                requests.put_data(cookie, offset, length, buffer, True)
                connection.ended(length)
            else:
                buffer.drop()
                self._requests.start(
                    connection, flags, nbd.CMD_READ, cookie, offset, length, None, None
                )

        if self._backend.read_later(offset, payload, finished):
            return True
        buffer.drop()
        self._give_up(length)
        return False

    def _write_alone(self, cookie: int, offset: int, payload: memoryview, held: Buffer) -> bool:
        """Begin a write that has no company."""
        length = len(payload)
        connection = self._connection
        if not self._begin_alone(length):
            return False
        held.hold()

        def finished(full: bool) -> None:
            if full:
                held.drop()
                self._outlet.put(nbd.simple_reply(cookie))
                connection.ended(length)
            else:
                self._requests.start(
                    connection, 0, nbd.CMD_WRITE, cookie, offset, length, payload, held
                )

        if self._backend.write_later(offset, payload, finished):
            return True
        held.drop()
        self._give_up(length)
        return False

    def _give_up(self, weight: int) -> None:
        self._connection.in_flight -= 1
        self._connection.in_flight_bytes -= weight
