# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
r"""A connection to an NBD server that is made again when it is lost.

::

    CONNECTED --lost--> WAITING --reconnect-delay is over--> FAILING
        ^                  |                                    |
        \------ made again-+------------------------------------/

While WAITING, requests wait and those that were in flight are sent again.  While FAILING they fail
with EIO; attempts to connect go on, ever more seldom, but a request brings the next one forward.
Without a delay, WAITING is left at once.

QMP reference, "BlockdevOptionsNbd": `reconnect-delay`, `open-timeout`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from typing import TYPE_CHECKING, Final

from qsd.errors import QmpError, QsdError, describe, os_error
from qsd.net.connect import connect
from qsd.protocols.nbd.connection import Connection
from qsd.wire.nbd.client import ClientHandshake
from qsd.wire.nbd.machine import DONE, EOF_TEXT, TLS
from qsd.wire.nbd.metacontext import BASE_ALLOCATION

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from qsd.aio.tasks import TaskOwner
    from qsd.net.tls import StreamSocket
    from qsd.qapi.schema.block_protocols import BlockdevOptionsNbd
    from qsd.wire.nbd.client import Agreement

    TlsStarter = Callable[[socket.socket], Awaitable[StreamSocket]]

#: Seconds between the first two attempts to connect, and at most.
FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 10.0
#: Seconds for one attempt to connect again; a server that accepts and says nothing is none.
ATTEMPT_LIMIT: Final = 30.0
#: Bytes; one receive during the handshake.
_RECEIVE: Final = 16 << 10
#: What is said of a TLS connection that ends although the server has not said so.
_TRUNCATED: Final = "Cannot read from TLS channel: Software caused connection abort"
#: Bytes that the kernel takes of requests before it says that the socket is full; a wish.
_SOCKET_BUFFER: Final = 1 << 20


async def _ready(fd: int, *, writing: bool) -> None:
    """Wait until a descriptor is readable or writable."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not future.done():
            future.set_result(None)

    add, remove = (
        (loop.add_writer, loop.remove_writer) if writing else (loop.add_reader, loop.remove_reader)
    )
    add(fd, wake)
    try:
        await future
    finally:
        remove(fd)


async def _send_all(sock: StreamSocket, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[sock.send(view) :]
        except BlockingIOError:
            await _ready(sock.fileno(), writing=True)
        except OSError as exc:
            raise QmpError(f"Unable to write to socket: {describe(exc)}") from None


async def _receive(sock: StreamSocket, buffer: memoryview) -> int:
    while True:
        try:
            return sock.recv_into(buffer)
        except BlockingIOError:
            await _ready(sock.fileno(), writing=False)


def _say_farewell(sock: StreamSocket, data: bytes) -> None:
    """Send what a server may want to know before the connection ends, if that is possible."""
    with contextlib.suppress(OSError):
        sock.send(data)


async def negotiate(
    sock: socket.socket, handshake: ClientHandshake, tls: TlsStarter | None
) -> StreamSocket:
    """Carry out a handshake.

    Args:
        sock: Connected and non-blocking; the caller closes it if this fails.
        handshake: Where it is to begin.
        tls: Starts TLS on the socket, where the handshake wants that.

    Returns:
        What to talk through from now on.

    Raises:
        QmpError: The handshake failed.
    """
    stream: StreamSocket = sock
    buffer = memoryview(bytearray(_RECEIVE))
    while True:
        out = handshake.take_output()
        if out:
            await _send_all(stream, out)
        if handshake.phase == DONE:
            return stream
        if handshake.phase == TLS:
            assert tls is not None
            try:
                stream = await tls(sock)
            except OSError as exc:
                raise QmpError(f"TLS handshake failed: {describe(exc)}") from exc
            handshake.tls_started()
            continue
        try:
            count = await _receive(stream, buffer)
        except OSError as exc:
            handshake.eof(f"Unable to read from socket: {describe(exc)}")
        if not count:
            handshake.eof(_TRUNCATED if getattr(stream, "is_truncated", False) else EOF_TEXT)
        try:
            handshake.receive(buffer[:count])
        except QmpError:
            _say_farewell(stream, handshake.take_output())
            raise


class Link:
    """The way to one export.

    Attributes:
        connection: What can be used now, or None.
        agreement: What the first handshake settled.
    """

    __slots__ = (
        "_by_monitor", "_connector", "_delay", "_is_once", "_is_waiting", "_loop", "_options",
        "_tasks", "_timer", "_tls", "_waiters", "_wanted", "agreement", "closing", "connection",
    )  # fmt: skip

    def __init__(
        self,
        options: BlockdevOptionsNbd,
        tasks: TaskOwner,
        tls: TlsStarter | None,
        *,
        by_monitor: bool = True,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._options = options
        self._by_monitor = by_monitor
        # A descriptor that was handed to us can be used once: by the time of another attempt its
        # number may be that of something else.
        self._is_once = options.server.type == "fd"
        self._tasks = tasks
        self._tls = tls
        self._delay = options.reconnect_delay or 0
        self._is_waiting = False
        self._timer: asyncio.TimerHandle | None = None
        self._connector: asyncio.Task[None] | None = None
        self._waiters: list[asyncio.Future[None]] = []
        self._wanted = asyncio.Event()
        self.connection: Connection | None = None
        self.closing = False
        self.agreement: Agreement

    async def open(self) -> None:
        """Make the first connection, trying again until `open-timeout` is over.

        Raises:
            QmpError: It failed.
        """
        limit = self._options.open_timeout
        if limit and not self._is_once:
            self.connection = await self._insist(limit)
        else:
            self.connection = await self._connect()
        self.agreement = self.connection.agreement

    async def _insist(self, limit: float) -> Connection:
        """Try to connect for so many seconds.

        Raises:
            QmpError: Why the last attempt failed.
        """
        refusal = QmpError("Connection attempt cancelled by timeout")
        pause = FIRST_PAUSE
        await asyncio.sleep(0)  # commands run eagerly, and a time-out needs a task
        try:
            async with asyncio.timeout(limit):
                while True:
                    try:
                        return await self._connect()
                    except QmpError as exc:
                        refusal = exc
                    await asyncio.sleep(pause)
                    pause = min(pause * 2, 1.0)
        except TimeoutError:
            raise refusal from None

    async def _connect(self) -> Connection:
        options = self._options
        handshake = ClientHandshake(
            options.export or "",
            context=BASE_ALLOCATION if options.x_dirty_bitmap is None else options.x_dirty_bitmap,
            tls=self._tls is not None,
        )
        sock = await connect(options.server, by_monitor=self._by_monitor)
        stream: StreamSocket = sock
        try:
            if sock.family in (socket.AF_INET, socket.AF_INET6):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            elif sock.family == socket.AF_UNIX:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER)
            stream = await negotiate(sock, handshake, self._tls)
        except BaseException:
            sock.close()
            raise
        assert handshake.agreement is not None
        return Connection(
            self._loop,
            stream,
            handshake.agreement,
            handshake.take_rest(),
            self._on_lost,
            raw=sock if stream is sock else None,
        )

    # Losing and finding it again

    def _on_lost(self, connection: Connection, reason: str) -> None:
        del reason
        if self.connection is not connection or self.closing:
            return
        self._start_over()

    def _start_over(self) -> None:
        self.connection = None
        if self._is_once:
            return
        if self._delay:
            self._is_waiting = True
            self._timer = self._loop.call_later(self._delay, self.give_up)
        self._connector = self._tasks.spawn(self._reconnect(), "NBD reconnect")

    def give_up(self) -> None:
        """Let requests wait no longer for a new connection: go from WAITING to FAILING."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._is_waiting = False
        self._wake()

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for future in waiters:
            if not future.done():
                future.set_result(None)

    async def _reconnect(self) -> None:
        pause = FIRST_PAUSE
        while not self.closing:
            try:
                async with asyncio.timeout(ATTEMPT_LIMIT):
                    connection = await self._connect()
            except (QsdError, OSError, TimeoutError):
                await self._rest(pause)
                pause = min(pause * 2, LONGEST_PAUSE)
                continue
            if not self._is_same(connection.agreement):
                # Another export: requests must not end up in the wrong image.
                connection.close()
                await self._rest(LONGEST_PAUSE)
                continue
            self.connection = connection
            self._is_waiting = False
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            self._wake()
            return

    async def _rest(self, pause: float) -> None:
        """Wait before the next attempt; not as long if somebody asks for the server meanwhile."""
        await asyncio.sleep(FIRST_PAUSE)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wanted.wait(), pause)
        self._wanted.clear()

    def _is_same(self, new: Agreement) -> bool:
        """Tell whether a new handshake gives all that was built on the first one."""
        old = self.agreement
        return (
            new.size == old.size
            and not old.flags & ~new.flags
            and new.min_block <= old.min_block
            and new.max_block >= old.max_block
            and (new.context_id is None) == (old.context_id is None)
        )

    async def usable(self) -> Connection:
        """Return the connection, waiting for a new one as long as `reconnect-delay` says.

        Raises:
            OSError: EIO, there is none.
        """
        while True:
            connection = self.connection
            if connection is not None and not connection.closed:
                return connection
            self._wanted.set()
            if not self._is_waiting or self.closing:
                raise os_error(errno.EIO)
            future: asyncio.Future[None] = self._loop.create_future()
            self._waiters.append(future)
            await future

    @property
    def is_waiting(self) -> bool:
        """Whether requests wait for a new connection rather than fail."""
        return self._is_waiting

    async def close(self) -> None:
        """Say goodbye and close."""
        self.closing = True
        self.give_up()
        if self._connector is not None and not self._connector.done():
            self._connector.cancel()
            await asyncio.wait([self._connector])
        if self.connection is not None:
            self.connection.say_goodbye()
            self.connection.close()
            self.connection = None
