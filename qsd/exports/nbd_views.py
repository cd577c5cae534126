# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Runs of NBD reads answered straight from the page cache: a fast path.

The replies to a run of plain reads are small headers and, between them, views of the image file
(:mod:`qsd.aio.pagemap`); one sendmsg(2) takes them all::

    [request][request][request] --> (header, view), (header, view), (header, view) --> sendmsg

The kernel copies what it takes, so nothing is owed afterwards.  When it does not take all, the
reply that was cut is completed with a copy that waits in the outlet, and the requests after it are
left in the receive buffer as if nobody had looked at them.

What is cached, but in a place of the file where not all is, is copied in between.  The plain way,
which serves whatever is not served here, is the hot loop of :mod:`qsd.exports.nbd_transmission`:
one read into the batch of replies for each request.
"""

from __future__ import annotations

import socket
from time import monotonic
from typing import TYPE_CHECKING, Final

from qsd.aio.fdio import read_full
from qsd.block.node import refuse_view
from qsd.errors import describe
from qsd.exports.nbd_known import DATA, REGION_BITS
from qsd.wire.nbd import messages as nbd

if TYPE_CHECKING:
    from qsd.block.backend import Backend
    from qsd.exports.buffers import Buffer, BufferPool
    from qsd.exports.nbd_known import KnownData
    from qsd.exports.outlet import Outlet
    from qsd.net.tls import StreamSocket
    from qsd.wire.nbd.server import Session

#: Bytes; longer reads are sent by sendfile(2).  That copies nothing here, but the client copies
#: from pages that are in no processor's cache.  64 KiB at queue depth 16: 39,000/s, by sendfile(2)
#: 31,300/s, because fio spends 21 us on each instead of 28.
MAX_VIEW: Final = 64 << 10
#: Requests of one run; each takes two of the 1024 pieces that sendmsg(2) accepts.
MAX_RUN: Final = 256
#: Bytes after which a run ends; a socket takes not much more at once.
RUN_BYTES: Final = 1 << 20
#: A shorter run, with other requests behind it, is left to the hot loop, which answers all of them
#: together.
_MIN_RUN: Final = 8
#: Bytes; neither is a run of so many, which would not be copied there.  `qemu-img convert` sends a
#: long read together with its next question.
_ENOUGH: Final = 32 << 10
#: Batches that are left to the hot loop after one that was not cached for the most part.
_PAUSE: Final = 16
#: Seconds; a call that took longer may have waited for a disk.
SLOW_SEND: Final = 0.001

_PLAIN_READ: Final = nbd.KEY_PLAIN_READ
_SIMPLE: Final = nbd.KEY_SIMPLE
_WHOLE_CHUNK: Final = nbd.KEY_WHOLE_CHUNK
_HEADER_SIZE: Final = nbd.REQUEST.size
#: Where in a header the lower half of the command is: most batches of writes begin with one.
_COMMAND_BYTE: Final = 7

_requests_in = nbd.KEYED_REQUEST.iter_unpack
_pack_simple = nbd.KEYED_SIMPLE_REPLY.pack
_pack_chunk = nbd.KEYED_DATA_CHUNK.pack


class ViewReads:
    """Serves the reads of one connection that can be served so."""

    __slots__ = (
        "_backend", "_is_unix", "_known", "_outlet", "_pause", "_pool", "_size", "_structured",
    )  # fmt: skip

    def __init__(
        self,
        backend: Backend,
        session: Session,
        known_data: KnownData,
        outlet: Outlet,
        sock: StreamSocket,
        pool: BufferPool,
    ) -> None:
        self._backend = backend
        self._size = session.size
        self._structured = session.structured
        self._is_unix = isinstance(sock, socket.socket) and sock.family == socket.AF_UNIX
        self._known = known_data
        self._outlet = outlet
        self._pool = pool
        self._pause = 0  # batches to come that are left to the hot loop

    def serve(self, incoming: Buffer, position: int, end: int) -> int:
        """Answer a run of plain reads.  Nothing may be waiting in the outlet.

        With 32 reads of 4 KiB in a batch and no real socket this takes 1.5 us of processor time for
        each, the plain way 3.6 us (a copy of two).

        Args:
            incoming: Where the requests are.
            position: Of the first of them.
            end: Of what was received.

        Returns:
            How many bytes of requests were served.  If something waits in the outlet afterwards,
            the client must take that first.
        """
        see = self._backend.view_nowait
        if see is refuse_view or incoming.data[position + _COMMAND_BYTE] != nbd.CMD_READ:
            return 0
        if self._pause:
            self._pause -= 1
            return 0
        parts: list[bytes | memoryview] = []
        add = parts.append
        total = copied = 0
        copies = None
        size, structured, known = self._size, self._structured, self._known.regions
        stop = position + min((end - position) // _HEADER_SIZE, MAX_RUN) * _HEADER_SIZE
        for key, cookie, offset, length in _requests_in(incoming.view[position:stop]):
            if (
                key != _PLAIN_READ
                or offset + length > size
                or not 0 < length <= MAX_VIEW
                or total > RUN_BYTES
            ):
                break
            if (
                structured
                and not (
                    known[offset >> REGION_BITS]
                    == DATA
                    == known[(offset + length - 1) >> REGION_BITS]
                )
                and not self._known.covers(offset, length)
            ):
                break  # holes are told of
            view = see(offset, length)
            if view is None:
                if copies is None:
                    copies = self._pool.take_batch()
                view = copies.view[copied : copied + length]
                if len(view) < length or not self._read(offset, view):
                    break
                copied += length
            if structured:
                add(_pack_chunk(_WHOLE_CHUNK, cookie, 8 + length, offset))
            else:
                add(_pack_simple(_SIMPLE, cookie))
            add(view)
            total += length
        count = len(parts) // 2
        if copied * 2 > total and count >= _MIN_RUN:
            self._pause = _PAUSE
        if (
            count >= _MIN_RUN
            or total > _ENOUGH
            or (count and position + count * _HEADER_SIZE >= end)
        ):
            count = self._send(incoming, position, parts, total)
        else:
            count = 0
        if copies is not None:
            copies.drop()
        return count * _HEADER_SIZE

    def send_file(self, cookie: int, offset: int, length: int, flags: int) -> bool:
        """Fast path: answer a long read with pages of the kernel's cache, without copying them.

        Only for a range that is known to be data, lies in one piece in a plain file and is in the
        page cache.  For 64 KiB over a unix socket this takes 9 us of processor time where reading
        and sending takes 24 (measured).  Pages of formats that move data about are lent, see
        :mod:`qsd.block.loans`.  Nothing may be waiting in the outlet.

        Returns:
            Whether the reply is on its way.
        """
        backend = self._backend
        if backend.quiesced or (
            self._structured and not flags and not self._known.covers(offset, length)
        ):
            return False
        lent = backend.node.driver.lend_nowait(offset, length)
        if lent is None or not backend.graph.maps.probe.is_cached(lent.fd, lent.offset, length):
            return False
        if lent.loans is not None and not self._is_unix:
            return False  # nobody can tell when the client has taken the pages
        if self._structured:
            header = nbd.data_header(cookie, offset, length, final=True)
        else:
            header = nbd.simple_reply(cookie)
        self._outlet.send_file(header, lent.fd, lent.offset, length)
        if lent.loans is not None:
            lent.loans.note(self._outlet, self._outlet.position)
        return True

    def _read(self, offset: int, view: memoryview) -> bool:
        """Copy a range; False if it is not in memory or not to be read."""
        try:
            return self._backend.read_nowait(offset, view)
        except OSError:
            return False

    def _send(
        self, incoming: Buffer, position: int, parts: list[bytes | memoryview], total: int
    ) -> int:
        """Send replies with `total` bytes of data; return how many requests are answered."""
        count = len(parts) // 2
        before = monotonic()
        try:
            sent = self._outlet.send_parts(parts)
        except OSError:  # EFAULT: the file became shorter
            self._backend.graph.maps.forget()
            return 0
        if monotonic() - before > SLOW_SEND:
            self._backend.graph.maps.note_slowness()
        if sent < total + count * len(parts[0]) and not self._outlet.closed:
            count = self.cut(incoming, position, parts, sent)
        return count

    def cut(
        self, incoming: Buffer, position: int, parts: list[bytes | memoryview], sent: int
    ) -> int:
        """Deal with a socket that took so many bytes; return how many requests are answered."""
        index = 0
        head = len(parts[0])
        while sent >= head + len(parts[index + 1]):
            sent -= head + len(parts[index + 1])
            index += 2
        served = index // 2
        _, _, offset, length = nbd.KEYED_REQUEST.unpack_from(
            incoming.data, position + served * _HEADER_SIZE
        )
        self._complete(parts[index], offset, length, sent)
        return served + 1

    def _complete(self, header: bytes | memoryview, offset: int, length: int, sent: int) -> None:
        """Let the rest of a reply wait for the client.

        Args:
            header: Of the reply.
            offset: Of the image.
            length: Bytes of it.
            sent: How much of the reply was sent, header included.
        """
        head = len(header)
        buffer = self._pool.take(head + length)
        buffer.view[:head] = header  # of 16 or 28 bytes
        payload = buffer.view[head : head + length]
        try:
            if not self._backend.read_nowait(offset, payload):
                self._read_anyway(offset, payload)
        except OSError as exc:
            buffer.drop()
            # A reply that cannot be completed is the end, as in the C daemon.
            self._outlet.fail(f"reading from file failed: {describe(exc)}")
            return
        self._outlet.put_rest(buffer.view[sent : head + length], buffer)

    def _read_anyway(self, offset: int, payload: memoryview) -> None:
        """Read what was seen just now, although it is not in memory any more; may wait for a disk.

        Raises:
            OSError: It is not there any more.
        """
        place = self._backend.node.driver.locate_nowait(offset, len(payload))
        if place is None:
            raise OSError("the file has changed")
        read_full(place[0], payload, place[1])
