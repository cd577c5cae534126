# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
r"""Short NBD writes of equal length, here and there, that came together: a fast path.

What most writers send::

    [hdr 4K][hdr 4K][hdr 4K][hdr 4K][hdr 2..      received together
       |       |       |       |
     write   write   write   write                by the driver's function: no bitmap looks at it
       |       |       |       |
     reply   reply   reply   reply                one send
       \-------\-------\-------/
               one note of all offsets            for each dirty bitmap of the node

Behind each system call the interpreter is slow, so that to mark a bitmap for each write costs 0.5
to 0.9 us of 7 to 8, however it is done.  To keep the offset costs nothing that can be measured, to
mark thousands of them together 0.2 us each.  And to know what the requests look like makes each
write 0.5 us cheaper, with bitmaps or without.

The plain way, which serves whatever is not served here, is the hot loop of
:mod:`qsd.exports.nbd_transmission`.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Final

from qsd.wire.nbd import messages as nbd

if TYPE_CHECKING:
    from qsd.block.backend import Backend, UnrecordedPath
    from qsd.exports.buffers import Buffer
    from qsd.wire.nbd.server import Session

#: Bytes; longer requests are left to the hot loop.
_MAX_LENGTH: Final = 16 << 10
#: Seconds; after so much time spent with writes, the client gets the replies so far and can go on.
#: Only slow ones (copies on write) take as long.  Over a backing file, queue depth 32, on a busy
#: machine: 12,500 writes of 4 KiB a second instead of 9,700.
SEND_AFTER: Final = 0.0003

_PLAIN_WRITE: Final = nbd.KEY_PLAIN_WRITE
_SIMPLE: Final = nbd.KEY_SIMPLE
_HEADER_SIZE: Final = nbd.REQUEST.size
_REPLY_SIZE: Final = nbd.SIMPLE_REPLY.size

_unpack = nbd.KEYED_REQUEST.unpack_from
_pack = nbd.KEYED_SIMPLE_REPLY.pack_into


class ScatteredWrites:
    """Serves such writes of one connection."""

    __slots__ = ("_backend", "_generation", "_path", "_session")

    def __init__(self, backend: Backend, session: Session) -> None:
        self._backend = backend
        self._session = session
        self._generation = -1
        self._path: UnrecordedPath | None = None

    def serve(self, incoming: Buffer, position: int, end: int, out: Buffer) -> tuple[int, int, int]:
        """Serve writes without flags that come first, all as long as the first of them.

        Arguments and result are those of :meth:`qsd.exports.nbd_runs.Runs.serve`.
        """
        backend = self._backend
        if self._generation != backend.generation:
            self._generation = backend.generation
            self._path = None if self._session.read_only else backend.unrecorded_path()
        if self._path is None or end - position < _HEADER_SIZE:
            return 0, 0, 0
        key, _, _, length = _unpack(incoming.data, position)
        stride = _HEADER_SIZE + length
        if key != _PLAIN_WRITE or not 0 < length <= _MAX_LENGTH or end - position < 2 * stride:
            return 0, 0, 0  # one alone is the hot loop's
        count = self._write(self._path, incoming, position, end, out, length)
        if not count:
            return 0, 0, 0
        taken = count * stride
        return taken, count * _REPLY_SIZE, self._needed(incoming, position + taken, end, length)

    def _write(
        self,
        path: UnrecordedPath,
        incoming: Buffer,
        position: int,
        end: int,
        out: Buffer,
        length: int,
    ) -> int:
        """Write, record and put replies together; return for how many requests."""
        write, bitmaps = path
        requests, payload, replies = incoming.data, incoming.view, out.data
        last = self._session.size - length
        stride = _HEADER_SIZE + length
        is_noted, offsets, filled = bool(bitmaps), list[int](), 0
        due = monotonic() + SEND_AFTER
        try:
            for start in range(position, end - stride + 1, stride):
                key, cookie, offset, own = _unpack(requests, start)
                if key != _PLAIN_WRITE or own != length or offset > last:
                    break
                if is_noted:
                    offsets.append(offset)  # a part may be written even if it fails
                if not write(offset, payload[start + _HEADER_SIZE : start + stride]):
                    break
                _pack(replies, filled, _SIMPLE, cookie)
                filled += _REPLY_SIZE
                if monotonic() > due:
                    break
        except OSError:
            pass  # the plain way meets the same error and answers with it
        finally:
            for bitmap in bitmaps:
                bitmap.mark_all(offsets, length)
        return filled // _REPLY_SIZE

    def _needed(self, incoming: Buffer, start: int, end: int, length: int) -> int:
        """Return how long the request is that comes next, if a part of it is missing, or 0."""
        if not _HEADER_SIZE <= end - start < _HEADER_SIZE + length:
            return 0
        key, _, offset, own = _unpack(incoming.data, start)
        is_alike = key == _PLAIN_WRITE and own == length and offset + own <= self._session.size
        return _HEADER_SIZE + length if is_alike else 0
