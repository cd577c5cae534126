# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""NBD requests that wait for a device, without a coroutine: a fast path.

Whatever cannot be begun in this way, or does not end well, goes the plain way of
:mod:`qsd.exports.nbd_requests`, which meets the same error and tells the client.

A coroutine and its task cost more than the rest of such a request.  Begun straight from the hot
loop, 4 KiB with O_DIRECT at queue depth 32 take 31 us of processor time; 45 when each request was
unpacked and checked a second time on its way here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from qsd.wire.nbd import messages as nbd

if TYPE_CHECKING:
    from qsd.block.backend import Backend
    from qsd.exports.buffers import Buffer
    from qsd.exports.nbd_requests import Requests
    from qsd.exports.outlet import Outlet

#: Requests that wait for the image.
MAX_IN_FLIGHT: Final = 128
#: Bytes of payload of those.
MAX_IN_FLIGHT_BYTES: Final = 64 << 20


class Connection(Protocol):
    """Whose requests these are.

    Attributes:
        in_flight: Requests that wait for the image.
        in_flight_bytes: Their payload.
    """

    in_flight: int
    in_flight_bytes: int

    def ended(self, weight: int) -> None:
        """Account for the end of a request of so many bytes."""

    def run_plainly(
        self,
        flags: int,
        command: int,
        cookie: int,
        offset: int,
        length: int,
        payload: memoryview | None,
        held: Buffer | None,
    ) -> None:
        """Carry out a request, which was accounted for, the plain way; `held` is dropped then."""


class LateRequests:
    """Begins requests of one connection whose ends the loop will report."""

    __slots__ = ("_backend", "_connection", "_outlet", "_requests")

    def __init__(
        self, backend: Backend, requests: Requests, outlet: Outlet, connection: Connection
    ) -> None:
        self._backend = backend
        self._requests = requests
        self._outlet = outlet
        self._connection = connection

    def _begin(self, weight: int) -> bool:
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

    def read(self, flags: int, cookie: int, offset: int, length: int) -> bool:
        """Begin a read that is answered with one chunk.

        Args:
            flags: From the request, like the next three; checked.
            cookie: Whose reply it is.
            offset: Bytes.
            length: Bytes; not 0.

        Returns:
            Whether it was begun, and accounted for.
        """
        requests, connection = self._requests, self._connection
        if not requests.takes_one_chunk(flags, offset, length) or not self._begin(length):
            return False
        buffer, payload = requests.take_buffer(length)

        def finished(full: bool) -> None:
            if full:
                requests.put_data(cookie, offset, length, buffer, True)
                connection.ended(length)
            else:
                buffer.drop()
                connection.run_plainly(flags, nbd.CMD_READ, cookie, offset, length, None, None)

        if self._backend.read_later(offset, payload, finished):
            return True
        buffer.drop()
        self._give_up(length)
        return False

    def write(self, cookie: int, offset: int, payload: memoryview, held: Buffer) -> bool:
        """Begin a write without flags.

        Args:
            cookie: Whose reply it is.
            offset: Bytes.
            payload: What to write; checked and not empty.
            held: The buffer that it lies in.

        Returns:
            Whether it was begun, and accounted for.
        """
        length = len(payload)
        connection = self._connection
        if not self._begin(length):
            return False
        held.hold()

        def finished(full: bool) -> None:
            if full:
                held.drop()
                self._outlet.put(nbd.simple_reply(cookie))
                connection.ended(length)
            else:
                connection.run_plainly(0, nbd.CMD_WRITE, cookie, offset, length, payload, held)

        if self._backend.write_later(offset, payload, finished):
            return True
        held.drop()
        self._give_up(length)
        return False

    def _give_up(self, weight: int) -> None:
        self._connection.in_flight -= 1
        self._connection.in_flight_bytes -= weight
