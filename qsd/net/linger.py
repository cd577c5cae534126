# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Closing a connection whose peer may still be talking.

A kernel that gets data for a socket that is closed, or whose unread data is thrown away, resets the
connection.  Whoever is at the other end then gets an error in place of the last reply, or of the
end, and which one depends on who was faster.  So our side says that it has ended, reads and forgets
what still comes, and closes when the peer has ended too, or has had time and room enough to.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from qsd.net.tls import StreamSocket

#: Seconds for the peer to close its side.
LIMIT: Final = 1.0
#: Bytes of the peer that are forgotten before it is cut off; options of NBD are shorter by far.
MAX_FORGOTTEN: Final = 1 << 20
#: Sockets that wait for their peers at a time; further ones are closed at once.
MAX_SOCKETS: Final = 64
#: Bytes of one receive.
_RECEIVE: Final = 64 << 10


class Lingering:
    """Sockets that wait for their peers to close."""

    __slots__ = ("_loop", "_sockets")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        # When each is cut off, and how many bytes it may still send.
        self._sockets: dict[socket.socket, tuple[asyncio.TimerHandle, int]] = {}

    def __len__(self) -> int:
        return len(self._sockets)

    def close(self, sock: StreamSocket, raw: socket.socket) -> None:
        """Close a socket that nobody watches any more, at once or a little later.

        Args:
            sock: Non-blocking; what was talked through, `raw` or a layer on it.
            raw: The kernel's socket.
        """
        try:
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            raw.close()  # the peer went away
            return
        if len(self._sockets) >= MAX_SOCKETS:
            raw.close()
            return
        timer = self._loop.call_later(LIMIT, self._end, raw)
        self._sockets[raw] = timer, MAX_FORGOTTEN
        self._loop.add_reader(raw.fileno(), self._forget, raw)
        self._forget(raw)

    def _forget(self, raw: socket.socket) -> None:
        """Read what is there, as far as one turn of the loop allows."""
        timer, room = self._sockets[raw]
        try:
            count = len(raw.recv(_RECEIVE))
        except BlockingIOError:
            return
        except OSError:
            count = 0
        if count and room > count:
            self._sockets[raw] = timer, room - count
        else:
            self._end(raw)

    def _end(self, raw: socket.socket) -> None:
        timer, _ = self._sockets.pop(raw)
        timer.cancel()
        self._loop.remove_reader(raw.fileno())
        raw.close()

    def stop(self) -> None:
        """Close all sockets now."""
        for raw in list(self._sockets):
            self._end(raw)
