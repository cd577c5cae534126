# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Runs of short NBD requests that are cheaper together than one by one: a fast path.

For nodes that work on the data, as encrypted ones do: a call of a cipher costs the same for 4 KiB
and for 64, and a thread for 64 KiB waits for the interpreter's lock more often than it is worth
(measured: 205 us of processor time for a read with one, 165 here).  Such a node has a *run path*
(:meth:`qsd.block.driver.Driver.run_path`)::

    [request][request][request] --> read_run / write_run --> [header data][header data][header data]

On other nodes, adjacent writes are (:mod:`qsd.exports.nbd_joins`), and short ones that look alike
(:mod:`qsd.exports.nbd_scattered`).

What is not served is left in the receive buffer as if nobody had looked at it; the plain way is
the hot loop of :mod:`qsd.exports.nbd_transmission`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from qsd.exports.nbd_joins import JoinedWrites
from qsd.exports.nbd_known import DATA, REGION_BITS
from qsd.exports.nbd_scattered import ScatteredWrites
from qsd.wire.nbd import messages as nbd

if TYPE_CHECKING:
    from qsd.block.backend import Backend
    from qsd.block.driver import RunPath
    from qsd.exports.buffers import Buffer
    from qsd.exports.nbd_known import KnownData
    from qsd.wire.nbd.server import Session

#: Fewer requests are left to the hot loop, unless there is so much data in them (bytes).
_MIN_RUN: Final = 3
_MUCH: Final = 32 << 10
#: Bytes; longer requests end a run.
_MAX_LENGTH: Final = 64 << 10
#: Bytes of data and headers of a run, and of replies: eight of the longest requests, or 128 of
#: 4 KiB.  With AES that is 0.8 ms in which nobody else is served, of the four that a turn may take;
#: half as much costs a fifth more processor time for each request, as calls of the cipher do.
RUN_BYTES: Final = (512 << 10) + 4096

_PLAIN_READ: Final = nbd.KEY_PLAIN_READ
_PLAIN_WRITE: Final = nbd.KEY_PLAIN_WRITE
_SIMPLE: Final = nbd.KEY_SIMPLE
_CHUNK: Final = nbd.KEY_WHOLE_CHUNK
_HEADER_SIZE: Final = nbd.REQUEST.size

_unpack = nbd.KEYED_REQUEST.unpack_from
_pack_simple = nbd.KEYED_SIMPLE_REPLY.pack_into
_pack_chunk = nbd.KEYED_DATA_CHUNK.pack_into


class Runs:
    """Serves the runs of one connection.

    Attributes:
        room: Bytes that replies may take; 0 if any buffer for a batch will do.
    """

    __slots__ = (
        "_backend", "_generation", "_joins", "_known", "_path", "_scattered", "_session", "room",
    )  # fmt: skip

    def __init__(self, backend: Backend, session: Session, known_data: KnownData) -> None:
        self._backend = backend
        self._session = session
        self._known = known_data.regions
        self._generation = -1
        self._path: RunPath | None = None
        self.room = 0
        self._joins = JoinedWrites(backend, session)
        self._scattered = ScatteredWrites(backend, session)

    def serve(self, incoming: Buffer, position: int, end: int, out: Buffer) -> tuple[int, int, int]:
        """Serve a run of reads or of writes.

        Args:
            incoming: Where the requests are.
            position: Of the first of them.
            end: Of what was received.
            out: Room for replies.

        Returns:
            How many bytes of requests were served, of replies there are, and of the request behind
            them, if a part of it is known to be missing; zeroes if none.
        """
        if self._generation != self._backend.generation:
            self._generation = self._backend.generation
            self._path = self._backend.run_path()
            self.room = RUN_BYTES if self._path is not None else 0
        path = self._path
        if path is None:
            served = self._joins.serve(incoming, position, end, out)
            return served if served[0] else self._scattered.serve(incoming, position, end, out)
        if end - position < _HEADER_SIZE:
            return 0, 0, 0
        key, _, _, length = _unpack(incoming.data, position)
        if length <= _MUCH and end - position < _MIN_RUN * _HEADER_SIZE:
            return 0, 0, 0  # likely one alone, which the hot loop is quicker with
        if key == _PLAIN_WRITE:
            return (*self._write(path, incoming, position, end, out), 0)
        if key == _PLAIN_READ:
            return (*self._read(path, incoming, position, end, out), 0)
        return 0, 0, 0

    def _read(
        self, path: RunPath, incoming: Buffer, position: int, end: int, out: Buffer
    ) -> tuple[int, int]:
        size, _, structured, _ = self._session
        head = nbd.DATA_CHUNK.size if structured else nbd.SIMPLE_REPLY.size
        requests, room, known, cookies = incoming.data, out.view, self._known, []
        limit = min(RUN_BYTES, out.size)
        views: list[tuple[int, memoryview]] = []
        filled = 0
        for start in range(position, end - _HEADER_SIZE + 1, _HEADER_SIZE):
            key, cookie, offset, length = _unpack(requests, start)
            stop = filled + head + length
            if (
                key != _PLAIN_READ
                or not 0 < length <= _MAX_LENGTH
                or offset + length > size
                or stop > limit
                or (
                    structured
                    and not (
                        known[offset >> REGION_BITS]
                        == DATA
                        == known[(offset + length - 1) >> REGION_BITS]
                    )
                )
            ):
                break
            views.append((offset, room[filled + head : stop]))
            cookies.append(cookie)
            filled = stop
        count = path.read_run(views) if len(views) >= _MIN_RUN or filled > _MUCH else 0
        filled = 0
        for cookie, (offset, view) in zip(cookies[:count], views, strict=False):
            if structured:
                _pack_chunk(out.data, filled, _CHUNK, cookie, 8 + len(view), offset)
            else:
                _pack_simple(out.data, filled, _SIMPLE, cookie)
            filled += head + len(view)
        return count * _HEADER_SIZE, filled

    def _write(
        self, path: RunPath, incoming: Buffer, position: int, end: int, out: Buffer
    ) -> tuple[int, int]:
        size, read_only, _, _ = self._session
        if read_only:
            return 0, 0
        requests, payload, cookies = incoming.data, incoming.view, []
        views: list[tuple[int, memoryview]] = []
        start, taken = position, [0]
        while end - start >= _HEADER_SIZE:
            key, cookie, offset, length = _unpack(requests, start)
            stop = start + _HEADER_SIZE + length
            if (
                key != _PLAIN_WRITE
                or not 0 < length <= _MAX_LENGTH
                or offset + length > size
                or stop > end
                or stop - position > RUN_BYTES
            ):
                break
            views.append((offset, payload[start + _HEADER_SIZE : stop]))
            cookies.append(cookie)
            start = stop
            taken.append(stop - position)
        count = path.write_run(views) if len(views) >= _MIN_RUN or taken[-1] > _MUCH else 0
        filled = 0
        for cookie in cookies[:count]:
            _pack_simple(out.data, filled, _SIMPLE, cookie)
            filled += nbd.SIMPLE_REPLY.size
        return taken[count], filled
