# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The sending side of a connection: whole batches with one call, and what the socket did not take.

Replies are put in; everything put in during one turn of the loop leaves with one vectored send.  What
the socket refuses waits until it is writable again.  The owner looks at `pending` and stops producing
when it grows; it is called back when everything is sent.
"""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, Final, Protocol

from qsd.errors import describe

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence

    from qsd.exports.buffers import Buffer

#: Views in one vectored send; well below the kernel's IOV_MAX of 1024.
_MAX_VIEWS: Final = 64


class StreamSocket(Protocol):
    """What a connection needs of its non-blocking socket; a TLS layer offers the same."""

    def fileno(self) -> int:
        """Return the descriptor to watch."""

    def recv_into(self, buffer: memoryview) -> int:
        """Receive what is there; BlockingIOError if nothing is, 0 at the end."""

    def send(self, data: memoryview) -> int:
        """Send what fits; BlockingIOError if nothing does."""

    def sendmsg(self, buffers: Sequence[memoryview]) -> int:
        """Send what fits of several views."""

    def shutdown(self, how: int) -> None:
        """Tell the peer that this is the end."""

    def close(self) -> None:
        """Close the socket."""


class Outlet:
    """What waits to be sent on one socket.

    Attributes:
        pending: Bytes that wait.
        closed: Nothing is sent any more.
    """

    __slots__ = (
        "_blocked",
        "_drained",
        "_fd",
        "_loop",
        "_lost",
        "_queue",
        "_scheduled",
        "_sock",
        "closed",
        "pending",
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
        self._queue: deque[tuple[memoryview, Buffer | None]] = deque()
        self._scheduled = False
        self._blocked = False
        self.pending = 0
        self.closed = False

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
        self._queue.append((memoryview(view), buffer))
        self.pending += len(view)
        if not (self._scheduled or self._blocked):
            self._scheduled = True
            self._loop.call_soon(self._turn)

    def put_batch(self, buffer: Buffer, length: int) -> bool:
        """Send the first `length` bytes of a buffer now, behind what waits already.

        Returns:
            Whether they are gone, so that the caller can use the buffer again.  Otherwise the caller
            has lost it: the outlet drops it once it is sent.
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
        while queue:
            try:
                if len(queue) == 1:
                    sent = self._sock.send(queue[0][0])
                else:
                    sent = self._sock.sendmsg([item[0] for item in islice(queue, _MAX_VIEWS)])
            except BlockingIOError:
                self._block()
                return
            except OSError as exc:
                self._fail(exc)
                return
            self.pending -= sent
            while queue and sent >= len(queue[0][0]):
                view, buffer = queue.popleft()
                sent -= len(view)
                if buffer is not None:
                    buffer.drop()
            if sent:
                view, buffer = queue[0]
                queue[0] = (view[sent:], buffer)

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
        self.close()
        self._lost(f"Failed to send reply: Unable to write to socket: {describe(exc)}")

    def close(self) -> None:
        """Drop what waits and send nothing more.  Idempotent."""
        if self.closed:
            return
        self.closed = True
        if self._blocked:
            self._blocked = False
            self._loop.remove_writer(self._fd)
        for _, buffer in self._queue:
            if buffer is not None:
                buffer.drop()
        self._queue.clear()
        self.pending = 0
