# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The sending side of a connection: whole batches with one call, and what the socket did not take.

Replies are put in; everything put in during one turn of the loop leaves with one vectored send.
What the socket refuses waits until it is writable again.  The owner looks at `pending` and stops
producing when it grows; it is called back when everything is sent.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, Final, Protocol

from qsd.errors import describe

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence

    from qsd.exports.buffers import Buffer
    from qsd.net.tls import StreamSocket

#: What a socket holds that the peer has not received (linux/sockios.h); bytes or more.
_SIOCOUTQ: Final = 0x5411

#: Views in one vectored send; well below the kernel's IOV_MAX of 1024.
_MAX_VIEWS: Final = 64
#: And in one that is put together elsewhere; as many as requests in flight.
_MOST_VIEWS: Final = 256

_sendfile = os.sendfile


def _unreceived(fd: int) -> int:
    """Return how much of what was sent on a unix socket waits in the kernel; 0 if nothing does."""
    (count,) = struct.unpack("=i", fcntl.ioctl(fd, _SIOCOUTQ, bytes(4)))
    return int(count)


class Held(Protocol):
    """Memory that is being sent."""

    def drop(self) -> None:
        """It is not used any more."""


class FileRange:
    """A range of a file that waits to be sent.

    Attributes:
        fd: A descriptor of its own, so that the image may be reopened or closed meanwhile.
        offset: Where the rest begins, bytes.
        length: How much is left, bytes.
    """

    __slots__ = ("fd", "length", "offset")

    def __init__(self, fd: int, offset: int, length: int) -> None:
        self.fd = os.dup(fd)
        self.offset = offset
        self.length = length

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.fd)


class Outlet:
    """What waits to be sent on one socket.

    Attributes:
        pending: Bytes that wait.
        sent: Bytes that the socket has taken.
        closed: Nothing is sent any more.
    """

    __slots__ = (
        "_blocked",
        "_capacity",
        "_drained",
        "_fd",
        "_loop",
        "_lost",
        "_queue",
        "_scheduled",
        "_sock",
        "closed",
        "pending",
        "sent",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: StreamSocket,
        drained: Callable[[], None],
        lost: Callable[[str], None],
    ) -> None:
        """Start without anything to send.

        Args:
            loop: The event loop.
            sock: A non-blocking socket that stays the caller's.
            drained: Called when all that waited is sent.
            lost: Called with a text when sending failed; nothing more will be sent.
        """
        self._loop = loop
        self._sock = sock
        self._fd = sock.fileno()
        self._drained = drained
        self._lost = lost
        self._queue: deque[tuple[memoryview, Held | None] | FileRange] = deque()
        self._scheduled = False
        self._blocked = False
        self._capacity = 0
        self.pending = 0
        self.sent = 0
        self.closed = False

    @property
    def position(self) -> int:
        """The place in the stream behind everything that was put in so far."""
        return self.sent + self.pending

    def has_delivered(self, position: int) -> bool:
        """Tell whether the peer has received what was sent on a unix socket, up to a position.

        A socket takes no more than its buffer holds before the peer receives; the kernel counts
        more than the bytes themselves, so twice the size is ample.  And it tells when it is empty.
        """
        if self.closed:
            return True
        beyond = self.sent - position
        if beyond < 0:
            return False
        if not self._capacity and isinstance(self._sock, socket.socket):
            self._capacity = 2 * self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        return beyond > self._capacity or not _unreceived(self._fd)

    def put(self, view: memoryview | bytes, buffer: Buffer | None = None) -> None:
        """Queue bytes; they leave in this turn of the loop or by the next :meth:`flush`.

        Args:
            view: The bytes, unchanged until they are sent.
            buffer: What they are part of; dropped once they are sent.
        """
        if self.closed:
            if buffer is not None:
                buffer.drop()
            return
        if not isinstance(view, memoryview):
            view = memoryview(view)
        self._queue.append((view, buffer))
        self.pending += len(view)
        if not (self._scheduled or self._blocked):
            self._scheduled = True
            self._loop.call_soon(self._turn)

    def put_all(self, views: list[memoryview], length: int, holders: Sequence[Held]) -> None:
        """Send several pieces at once, or queue what the socket does not take.

        Args:
            views: The bytes.
            length: Of all of them.
            holders: What each is part of, to be dropped once it is sent.
        """
        sent = 0
        if not self._queue and not self.closed and len(views) <= _MOST_VIEWS:
            try:
                sent = self._sock.sendmsg(views)
            except BlockingIOError:
                pass
            except OSError as exc:
                self._fail(exc)
            self.sent += sent
        if sent == length or self.closed:
            for holder in holders:
                holder.drop()
            return
        self._queue.extend(zip(views, holders, strict=True))
        self.pending += length - sent
        self._skip(sent)
        if sent:
            self._block()
        else:
            self.flush()

    def _skip(self, count: int) -> None:
        """Take from the queue what was sent of views."""
        queue = self._queue
        while queue:
            item = queue[0]
            if isinstance(item, FileRange):
                return
            view, holder = item
            if count < len(view):
                if count:
                    queue[0] = (view[count:], holder)
                return
            count -= len(view)
            queue.popleft()
            if holder is not None:
                holder.drop()

    def put_batch(self, buffer: Buffer, length: int) -> bool:
        """Send the first `length` bytes of a buffer now, behind what waits already.

        Returns:
            Whether they are gone, so that the caller can use the buffer again.  Otherwise the
            caller has lost it: the outlet drops it once it is sent.
        """
        view = buffer.view[:length]
        if not self._queue and not self.closed:
            try:
                sent = self._sock.send(view)
            except BlockingIOError:
                sent = 0
            except OSError as exc:
                self._fail(exc)
                return True
            self.sent += sent
            if sent == length:
                return True
            view = view[sent:]
            self._queue.append((view, buffer))
            self.pending += len(view)
            self._block()
            return False
        if self.closed:
            return True
        self._queue.append((view, buffer))
        self.pending += length
        self.flush()
        return False

    def send(self, data: bytes | memoryview) -> None:
        """Send bytes now, behind what waits already; what the socket does not take waits too.

        The memory is the caller's again when this returns.
        """
        if not self._queue and not self.closed:
            try:
                sent = self._sock.send(data)
            except BlockingIOError:
                sent = 0
            except OSError as exc:
                self._fail(exc)
                return
            self.sent += sent
            if sent == len(data):
                return
            data = data[sent:]
        self.put(bytes(data))

    def send_parts(self, parts: list[bytes | memoryview]) -> int:
        """Send as much as the socket takes now; nothing may be waiting before.

        Args:
            parts: Headers and views of files (:mod:`qsd.aio.pagemap`), at most 1024.

        Returns:
            How many bytes the socket took.  The rest is the caller's; see :meth:`put_rest`.

        Raises:
            OSError: EFAULT, a view cannot be read any more; nothing was sent.
        """
        try:
            sent = self._sock.sendmsg(parts)
        except BlockingIOError:
            return 0
        except OSError as exc:
            if exc.errno == errno.EFAULT:
                raise
            self._fail(exc)
            return 0
        self.sent += sent
        return sent

    def put_rest(self, view: memoryview, buffer: Buffer) -> None:
        """Queue what a full socket did not take; it leaves when the socket is writable again."""
        self._queue.append((view, buffer))
        self.pending += len(view)
        self._block()

    def send_file(self, header: bytes, fd: int, offset: int, length: int) -> None:
        """Send a header and a range of a file without copying it; nothing may be waiting before.

        The range should be in the page cache, or the kernel waits for the disk.

        Args:
            header: What goes before the range.
            fd: A plain file; it stays the caller's.
            offset: Bytes.
            length: Bytes.
        """
        self._queue.append((memoryview(header), None))
        self.pending += len(header)
        self._send()
        if self.closed:
            return
        if not self._queue:
            try:
                while length:
                    count = _sendfile(self._fd, fd, offset, length)
                    if not count:
                        break  # shorter than it was: FileRange deals with it
                    offset += count
                    length -= count
                    self.sent += count
            except BlockingIOError:
                self._block()
            except OSError as exc:
                self._fail(exc)
                return
            if not length:
                return
        self._queue.append(FileRange(fd, offset, length))
        self.pending += length
        self.flush()

    def _turn(self) -> None:
        self._scheduled = False
        self.flush()

    def flush(self) -> None:
        """Send as much as the socket takes."""
        if self._blocked or self.closed or not self._queue:
            return
        self._send()
        if not (self._queue or self.closed):
            self._drained()

    def _send(self) -> None:
        queue = self._queue
        try:
            while queue:
                first = queue[0]
                if isinstance(first, FileRange):
                    self._send_range(first)
                else:
                    self._send_views()
        except BlockingIOError:
            self._block()
        except OSError as exc:
            self._fail(exc)

    def _send_views(self) -> None:
        """Send the views at the head of the queue."""
        queue = self._queue
        views = []
        for item in islice(queue, _MAX_VIEWS):
            if isinstance(item, FileRange):
                break
            views.append(item[0])
        sent = self._sock.send(views[0]) if len(views) == 1 else self._sock.sendmsg(views)
        self.pending -= sent
        self.sent += sent
        self._skip(sent)

    def _send_range(self, item: FileRange) -> None:
        """Send the range of a file at the head of the queue."""
        while item.length:
            count = _sendfile(self._fd, item.fd, item.offset, item.length)
            if not count:
                # The file became shorter: the rest is zeroes, as with a read.
                self._queue[0] = (memoryview(bytes(item.length)), None)
                item.close()
                return
            item.offset += count
            item.length -= count
            self.pending -= count
            self.sent += count
        self._queue.popleft()
        item.close()

    def _block(self) -> None:
        if not self._blocked:
            self._blocked = True
            self._loop.add_writer(self._fd, self._on_writable)

    def _on_writable(self) -> None:
        self._blocked = False
        self._send()
        if not self._blocked:
            self._loop.remove_writer(self._fd)
            if not self.closed:
                self._drained()

    def _fail(self, exc: OSError) -> None:
        self.fail(f"Unable to write to socket: {describe(exc)}")

    def fail(self, reason: str) -> None:
        """Give up: a reply cannot be sent, or not to its end."""
        self.close()
        self._lost(f"Failed to send reply: {reason}")

    def close(self) -> None:
        """Drop what waits and send nothing more.  Idempotent."""
        if self.closed:
            return
        self.closed = True
        if self._blocked:
            self._blocked = False
            self._loop.remove_writer(self._fd)
        for item in self._queue:
            if isinstance(item, FileRange):
                item.close()
            elif item[1] is not None:
                item[1].drop()
        self._queue.clear()
        self.pending = 0
