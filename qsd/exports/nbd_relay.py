# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Requests of NBD clients that go to another NBD server as they are: a fast path.

See :mod:`qsd.block.relay` for the idea.  This is the client's side of it: which requests may go,
and what happens at the end of each.  What may not is left in the receive buffer as if nobody had
looked at it; the plain way is the hot loop of :mod:`qsd.exports.nbd_transmission`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from qsd.block.relay import OWN_COOKIES
from qsd.exports.nbd_known import REGION_BITS
from qsd.exports.nbd_late import MAX_IN_FLIGHT, MAX_IN_FLIGHT_BYTES
from qsd.wire.nbd import messages as nbd

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qsd.block.backend import Backend
    from qsd.block.relay import RelayConnection, Relayed, RelayPath
    from qsd.exports.buffers import Buffer
    from qsd.exports.nbd_late import Connection
    from qsd.exports.nbd_requests import Requests
    from qsd.exports.outlet import Outlet
    from qsd.wire.nbd.server import Session

#: Bytes; longer reads are received in place, and answered from there.
MAX_READ: Final = 64 << 10
#: Requests, and bytes of them; a run ends behind so many, so that the server works beside us.
_RUN: Final = 32
_RUN_BYTES: Final = 64 << 10

_PLAIN_READ: Final = nbd.KEY_PLAIN_READ
_PLAIN_WRITE: Final = nbd.KEY_PLAIN_WRITE
_HEADER_SIZE: Final = nbd.REQUEST.size
#: Bytes in front of the cookie of a request.
_COOKIE: Final = 8

_unpack = nbd.KEYED_REQUEST.unpack_from
_pack_cookie = nbd.U64.pack_into


class RelayedRequests:
    """Those of one connection."""

    __slots__ = (
        "_backend",
        "_connection",
        "_generation",
        "_known",
        "_outlet",
        "_path",
        "_requests",
        "_session",
        "_taken_by",
    )

    def __init__(
        self,
        backend: Backend,
        session: Session,
        requests: Requests,
        outlet: Outlet,
        connection: Connection,
    ) -> None:
        self._backend = backend
        self._connection = connection
        self._requests = requests
        self._session = session
        self._known = requests.known_data.regions
        self._outlet = outlet
        self._generation = -1
        self._path: RelayPath | None = None
        # The graph does not change while requests are on their way, so it is theirs too.
        self._taken_by: RelayPath | None = None

    def serve(self, incoming: Buffer, position: int, end: int) -> int:
        """Send a run of requests on.

        Args:
            incoming: Where they are.
            position: Of the first of them.
            end: Of what was received.

        Returns:
            How many bytes of requests were taken, and accounted for.
        """
        backend = self._backend
        if self._generation != backend.generation:
            self._generation = backend.generation
            self._path = backend.relay_path()
        path = self._path
        if path is None:
            return 0
        target = path.server.relay_connection()
        if target is None:
            return 0
        count, weight, stop = self._take(path, target, incoming, position, end)
        if count:
            self._connection.in_flight += count
            self._connection.in_flight_bytes += weight
            backend.begin_nowait(count)
            self._taken_by = path
            target.relay(incoming.view[position:stop])
        return stop - position

    def _take(
        self, path: RelayPath, target: RelayConnection, incoming: Buffer, position: int, end: int
    ) -> tuple[int, int, int]:
        """Note requests that come first as being on their way.

        Returns:
            How many, of how many bytes, and where they end.
        """
        size, read_only, structured, _ = self._session
        size = min(size, path.size)
        longest = 0 if read_only or not path.takes_writes else path.longest
        # Replies to reads are handed on as they are, those to writes are always simple ones.
        longest_read = MAX_READ if structured is target.structured else 0
        requests, known, data = target.relayed, self._known, incoming.data
        connection = self._connection
        room = min(_RUN, MAX_IN_FLIGHT - connection.in_flight)
        if connection.in_flight_bytes > MAX_IN_FLIGHT_BYTES:
            room = 0
        count = weight = writes = 0
        while count < room and end - position >= _HEADER_SIZE and weight < _RUN_BYTES:
            key, theirs, offset, length = _unpack(data, position)
            stop = position + _HEADER_SIZE
            if offset + length > size or not length:
                break
            cookie = theirs
            if theirs in requests or theirs >= OWN_COOKIES:
                cookie = target.new_cookie()
            if key == _PLAIN_WRITE:
                if stop + length > end or length > longest:
                    break
                requests[cookie] = (self, theirs, offset, length, incoming, stop)
                writes += 1
                stop += length
            elif key == _PLAIN_READ:
                if length > longest_read or (
                    structured
                    and not (
                        known[offset >> REGION_BITS] and known[(offset + length - 1) >> REGION_BITS]
                    )
                ):
                    break  # nobody has looked for holes there yet
                requests[cookie] = (self, theirs, offset, length, None, 0)
            else:
                break
            if cookie != theirs:
                _pack_cookie(data, position + _COOKIE, cookie)
            count += 1
            weight += length
            position = stop
        incoming.hold(writes)
        return count, weight, position

    # The end of requests

    def relayed(self, replies: memoryview, requests: Sequence[Relayed]) -> None:
        """Send replies on."""
        assert self._taken_by is not None
        self._taken_by.account(requests)
        self._outlet.send(replies)
        weight = 0
        for _, _, _, length, held, _ in requests:
            weight += length
            if held is not None:
                held.drop()
        self._end(weight, len(requests))

    def answered(self, request: Relayed, data: memoryview | None) -> None:
        """Make the reply ourselves."""
        _, cookie, offset, length, held, _ = request
        if data is not None:
            buffer, payload = self._requests.take_buffer(length)
            payload[:] = data  # it came in an unusual way, e.g. with a hole
            self._requests.put_data(cookie, offset, length, buffer, True)
        else:
            assert self._taken_by is not None
            self._taken_by.account((request,))
            self._outlet.put(nbd.simple_reply(cookie))
        if held is not None:
            held.drop()
        self._end(length, 1)

    def not_relayed(self, request: Relayed) -> None:
        """Carry it out the plain way, which accounts for it."""
        _, cookie, offset, length, held, place = request
        if held is None:
            command, payload = nbd.CMD_READ, None
        else:
            command, payload = nbd.CMD_WRITE, held.view[place : place + length]
        self._requests.start(self._connection, 0, command, cookie, offset, length, payload, held)
        self._backend.end()

    def _end(self, weight: int, count: int) -> None:
        # The client goes first: what it sends in turn keeps the backend busy.
        try:
            self._connection.ended(weight, count)
        finally:
            self._backend.end(count)
