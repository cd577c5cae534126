# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""A byte stream over descriptors: sockets, pipes, terminals, files.

Control-plane traffic only.  Reading is by callback and can be paused; writing never blocks: what
the kernel does not take at once is kept and sent when it does.  The owner looks at
:attr:`ByteStream.pending` and stops producing when it grows.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

#: Bytes; the most that one read takes.  It bounds how long hostile input can hold up the loop.
READ_SIZE: Final = 16 << 10


class ByteStream:
    """Reads and writes without blocking; owns neither descriptor.

    Both descriptors are made non-blocking.  Callbacks are called from the loop, never from within a
    call of the owner, except `on_data` from :meth:`start` and :meth:`resume` never, either.

    Attributes:
        closed: Set by :meth:`close`, after which nothing is called any more.
    """

    __slots__ = (
        "_handle", "_loop", "_on_data", "_on_drained", "_on_eof", "_output", "_read_fd",
        "_read_mode", "_size", "_write_fd", "_writing", "closed",
    )  # fmt: skip

    def __init__(
        self,
        read_fd: int | None,
        write_fd: int | None,
        *,
        on_data: Callable[[bytes], None],
        on_eof: Callable[[], None],
        on_drained: Callable[[], None],
    ) -> None:
        """Prepare a stream; nothing is read before :meth:`start`.

        Args:
            read_fd: Where to read, or None.
            write_fd: Where to write, or None.
            on_data: Called with what was read, never with nothing.
            on_eof: Called once when no more can be read, be it because the other side is gone.
            on_drained: Called when all that was pending has been written.
        """
        self._loop = asyncio.get_running_loop()
        self._read_fd = read_fd
        self._write_fd = write_fd
        self._on_data = on_data
        self._on_eof = on_eof
        self._on_drained = on_drained
        self._output: list[bytes] = []
        self._size = 0
        self._writing = False
        self._read_mode = _STOPPED
        self._handle: asyncio.Handle | None = None
        self.closed = False
        for fd in (read_fd, write_fd):
            if fd is not None:
                os.set_blocking(fd, False)

    @property
    def pending(self) -> int:
        """Bytes that were written but not taken by the kernel yet."""
        return self._size

    # ---------------------------------------------------------------------------------- reading

    def start(self) -> None:
        """Begin or go on reading."""
        if self._read_fd is None or self._read_mode != _STOPPED or self.closed:
            return
        try:
            self._loop.add_reader(self._read_fd, self._readable)
        except OSError:
            # epoll refuses regular files and some devices, which are always readable.
            self._read_mode = _POLLED
            self._handle = self._loop.call_soon(self._readable)
        else:
            self._read_mode = _WATCHED

    resume = start

    def pause(self) -> None:
        """Stop reading until :meth:`resume`; the end of the stream goes unnoticed meanwhile."""
        if self._read_mode == _WATCHED:
            assert self._read_fd is not None
            self._loop.remove_reader(self._read_fd)
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        self._read_mode = _STOPPED

    def _readable(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        assert self._read_fd is not None
        try:
            data = os.read(self._read_fd, READ_SIZE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""  # reset by peer, or the other side of a pty is closed
        if not data:
            self.pause()
            self._on_eof()
            return
        self._on_data(data)
        if self._read_mode != _STOPPED and self._handle is None:
            # Also where the descriptor is watched: when the other side resets the connection, libuv
            # reports that once and watches no longer (uv__poll_io on POLLERR).  What is left must
            # be read to its end, or the end would go unnoticed.
            self._handle = self._loop.call_soon(self._readable)

    # ---------------------------------------------------------------------------------- writing

    def write(self, data: bytes) -> None:
        """Send `data` after what is pending; dropped once the other side is gone."""
        if self.closed or self._write_fd is None or not data:
            return
        self._output.append(data)
        self._size += len(data)
        if not self._writing:
            self._flush()

    def _flush(self) -> None:
        """Write as much as the kernel takes."""
        assert self._write_fd is not None
        while self._output:
            data = b"".join(self._output) if len(self._output) > 1 else self._output[0]
            try:
                count = os.write(self._write_fd, data)
            except (BlockingIOError, InterruptedError):
                count = 0
            except OSError:
                # Nobody reads any more.  The reader notices that by itself, if there is one.
                self._drop_output()
                return
            self._size -= count
            rest = data[count:]
            self._output = [rest] if rest else []
            if count < len(data):
                self._watch_writer()
                return

    def _watch_writer(self) -> None:
        if not self._writing:
            assert self._write_fd is not None
            self._writing = True
            self._loop.add_writer(self._write_fd, self._writable)

    def _unwatch_writer(self) -> None:
        if self._writing:
            assert self._write_fd is not None
            self._writing = False
            self._loop.remove_writer(self._write_fd)

    def _writable(self) -> None:
        self._flush()
        if not self._output:
            self._unwatch_writer()
            self._on_drained()

    def _drop_output(self) -> None:
        self._output.clear()
        self._size = 0

    def close(self) -> None:
        """Stop reading and writing; what is pending is dropped.  Idempotent."""
        if self.closed:
            return
        self.pause()
        self._unwatch_writer()
        self._drop_output()
        self.closed = True


_STOPPED, _WATCHED, _POLLED = range(3)
