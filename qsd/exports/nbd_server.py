# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The NBD server: listening sockets, and the way of a client from its accept to the end.

::

    accept --> handshake (qsd.wire.nbd.handshake; 10 seconds at most) --> transmission --> gone
                   |  NBD_OPT_STARTTLS
                   v
               TLS handshake by `tls`

At most `max_connections` clients are served at a time; further ones wait, not accepted, until one
leaves.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from typing import TYPE_CHECKING, Final, Protocol

from qsd.errors import QmpError, QsdError, describe
from qsd.exports.buffers import BufferPool
from qsd.exports.nbd import NbdClient, NbdDirectory, NbdExport
from qsd.exports.nbd_transmission import Transmission
from qsd.exports.outlet import Outlet
from qsd.net.descriptors import has_room_for_client
from qsd.net.linger import Lingering
from qsd.wire.nbd import handshake, machine
from qsd.wire.nbd.server import Session

if TYPE_CHECKING:
    from collections.abc import Callable

    from qsd.aio.tasks import TaskOwner
    from qsd.exports.base import ExportRegistry
    from qsd.net.address import AnyAddress
    from qsd.net.listen import Listening
    from qsd.net.tls import StreamSocket

#: Clients at a time unless told otherwise (QMP reference, "nbd-server-start", 7.2.22).
DEFAULT_MAX_CONNECTIONS: Final = 100
#: Seconds for the whole handshake, as the original's.
HANDSHAKE_LIMIT: Final = 10.0
#: Bytes; one receive during the handshake.
_HANDSHAKE_RECEIVE: Final = 16 << 10
#: Connections taken from one listening socket in a turn of the loop.
_ACCEPTS: Final = 16
#: Seconds until clients that found no room are looked at again.
_RETRY: Final = 0.1
#: Bytes that the kernel takes of replies before it says that the socket is full; a wish.
_SEND_BUFFER: Final = 1 << 20
_SERVER: Final = NbdExport.TYPE
#: Connections that the kernel keeps until they are accepted.
BACKLOG: Final = 128


class TlsProvider(Protocol):
    """Starts TLS on accepted connections."""

    async def accept(self, sock: socket.socket) -> StreamSocket:
        """Do the TLS handshake on a non-blocking socket and check who the client is.

        Raises:
            QsdError: With the reason why the client is not let in; the socket stays the caller's.
            OSError: The connection failed.
        """


class NbdServer(NbdDirectory):
    """A running NBD server.

    Attributes:
        tls: Starts TLS, which is then required of every client; None serves in the clear.
        lingering: Sockets of clients that were turned away.
    """

    __slots__ = (
        "_accepting",
        "_clients",
        "_idle",
        "_is_short",
        "_listening",
        "_loop",
        "lingering",
        "pool",
        "report",
        "tasks",
        "tls",
    )

    def __init__(
        self,
        listening: Listening,
        tasks: TaskOwner,
        *,
        max_connections: int = DEFAULT_MAX_CONNECTIONS,
        tls: TlsProvider | None = None,
        report: Callable[[str], None],
    ) -> None:
        """Serve at once.

        Args:
            listening: The sockets; they belong to the server from now on.
            tasks: Owner of all tasks of clients.
            max_connections: Clients at a time; 0 means no limit.
            tls: See the class.
            report: Told of clients that misbehave.
        """
        super().__init__(max_connections)
        self._loop = asyncio.get_running_loop()
        self._listening = listening
        self.tasks = tasks
        self.tls = tls
        self.report = report
        self.pool = BufferPool()
        self.lingering = Lingering(self._loop)
        self._clients: set[_Connection] = set()
        self._accepting = False
        self._is_short = False  # of descriptors, as of the last attempt
        self._idle: list[asyncio.Future[None]] = []
        self._update_accepting()

    # Accepting

    def _update_accepting(self) -> None:
        wanted = bool(self._listening.sockets) and not (
            self.max_connections and len(self._clients) >= self.max_connections
        )
        if wanted == self._accepting:
            return
        self._accepting = wanted
        for sock in self._listening.sockets:
            if wanted:
                self._loop.add_reader(sock.fileno(), self._accept, sock)
            else:
                self._loop.remove_reader(sock.fileno())

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(_ACCEPTS):
            if not self._accepting:
                return
            try:
                if not has_room_for_client(listener.fileno()):
                    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
                sock, _ = listener.accept()
            except (BlockingIOError, ConnectionAbortedError, InterruptedError):
                return
            except OSError as exc:
                self._accept_later(exc)
                return
            self._is_short = False
            sock.setblocking(False)
            if sock.family in (socket.AF_INET, socket.AF_INET6):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            elif sock.family == socket.AF_UNIX:
                # The default holds three replies of 64 KiB; TCP adapts its buffer by itself.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
            client = _Connection(self, self._loop, sock)
            self._clients.add(client)
            self._update_accepting()
            client.start()

    def _accept_later(self, why: OSError) -> None:
        """Let clients wait until there is room for them, and look again a little later."""
        if not self._is_short:
            self._is_short = True
            self.report(f"Failed to accept a connection: {describe(why)}")
        self._accepting = False
        for sock in self._listening.sockets:
            self._loop.remove_reader(sock.fileno())
        self._loop.call_later(_RETRY, self._update_accepting)

    def connection_gone(self, connection: _Connection) -> None:
        """Take note that a client's socket is closed."""
        self._clients.discard(connection)
        self._update_accepting()
        if not self._clients:
            for future in self._idle:
                if not future.done():
                    future.set_result(None)
            self._idle.clear()

    async def stop(self) -> None:
        """Close the listening sockets, disconnect all clients and wait until they are gone."""
        if self._accepting:
            self._accepting = False
            for sock in self._listening.sockets:
                self._loop.remove_reader(sock.fileno())
        self._listening.close()
        for client in list(self._clients):
            client.kill()
        while self._clients:
            future: asyncio.Future[None] = self._loop.create_future()
            self._idle.append(future)
            await future
        self.lingering.stop()


class _Connection(NbdClient):
    """One client from accept to close."""

    __slots__ = (
        "_export",
        "_handshake",
        "_in_tls",
        "_loop",
        "_outlet",
        "_raw",
        "_server",
        "_sock",
        "_timer",
        "_tls_task",
        "_transmission",
        "_watching",
    )

    def __init__(
        self, server: NbdServer, loop: asyncio.AbstractEventLoop, sock: socket.socket
    ) -> None:
        self._server = server
        self._loop = loop
        self._raw = sock
        self._sock: StreamSocket | None = sock
        self._export: NbdExport | None = None
        self._transmission: Transmission | None = None
        self._handshake = handshake.ServerHandshake(server, tls_required=server.tls is not None)
        self._outlet = Outlet(loop, sock, self._advance, self._lost)
        self._timer = loop.call_later(HANDSHAKE_LIMIT, self.kill)
        self._watching = False
        self._in_tls = False
        self._tls_task: asyncio.Task[None] | None = None

    # Handshake

    def start(self) -> None:
        """Greet the client and listen to it."""
        self._send()
        self._watch()

    def _watch(self) -> None:
        """Watch the socket exactly while the handshake wants input."""
        wanted = (
            self._sock is not None
            and self._handshake.phase in (handshake.FLAGS, handshake.OPTIONS)
            and self._outlet.pending < handshake.MAX_OUTPUT
        )
        if wanted != self._watching and self._sock is not None:
            self._watching = wanted
            if wanted:
                self._loop.add_reader(self._sock.fileno(), self._on_readable)
                self._look_again()
            else:
                self._loop.remove_reader(self._sock.fileno())

    def _look_again(self) -> None:
        """Have a TLS layer asked once more: it may hold data that the descriptor does not show."""
        if self._sock is not self._raw:
            self._loop.call_soon(self._on_readable)

    def _on_readable(self) -> None:
        if self._sock is None or not self._watching:
            return
        buffer = self._server.pool.take(_HANDSHAKE_RECEIVE)
        try:
            count = self._sock.recv_into(buffer.view[:_HANDSHAKE_RECEIVE])
            if count:
                self._handshake.receive(buffer.view[:count])
            else:
                self._handshake.eof()
        except BlockingIOError:
            return
        except OSError as exc:
            self._handshake.eof(f"Unable to read from socket: {describe(exc)}")
        finally:
            buffer.drop()
        self._look_again()
        self._follow()

    def _advance(self) -> None:
        """Go on after replies were sent."""
        self._handshake.advance()
        self._follow()

    def _send(self) -> None:
        out = self._handshake.take_output()
        if out:
            self._outlet.put(out)
            self._outlet.flush()

    def _follow(self) -> None:
        """Do what the handshake's phase asks for."""
        self._send()
        if self._sock is None or self._transmission is not None:
            return
        phase = self._handshake.phase
        self._watch()
        if phase == machine.FAILED:
            self._server.report(f"option negotiation failed: {self._handshake.error}")
            self._close()
        elif phase == handshake.CLOSING:
            if not self._outlet.pending:
                self._close()
        elif phase == machine.TLS:
            if not (self._outlet.pending or self._in_tls):
                self._in_tls = True
                self._tls_task = self._server.tasks.spawn(
                    self._start_tls(), "NBD client's TLS handshake", self._tls_over
                )
        elif phase == machine.DONE and not self._outlet.pending:
            self._begin()

    async def _start_tls(self) -> None:
        assert self._server.tls is not None
        try:
            sock = await self._server.tls.accept(self._raw)
        except ConnectionError:
            return  # the client has thought better of it
        except (QsdError, OSError) as exc:
            self._server.report(f"option negotiation failed: {describe(exc)}")
            return
        self._outlet.close()
        self._sock = sock
        self._outlet = Outlet(self._loop, sock, self._advance, self._lost)
        self._in_tls = False

    def _tls_over(self, task: asyncio.Task[None]) -> None:
        """TLS was started, or failed, or was given up."""
        del task
        self._tls_task = None
        if self._in_tls:
            self._close()
        else:
            self._handshake.tls_started()
            self._watch()

    def _begin(self) -> None:
        """Hand the socket to the data plane, or give the client up if that cannot be."""
        try:
            self._transmit()
        except Exception as exc:
            # A defect of ours: the client must not wait for ever, nor count as one.
            self._loop.call_exception_handler({"message": "NBD export failed", "exception": exc})
            if self._transmission is None and self._export is not None:
                self._export.remove_client(self)
            self.kill()

    def _transmit(self) -> None:
        export = self._handshake.export
        assert isinstance(export, NbdExport)
        assert self._sock is not None
        self._timer.cancel()
        self._outlet.close()
        self._export = export
        export.add_client(self)
        session = Session(
            export.size,
            not export.writable,
            self._handshake.structured,
            tuple(number for number, _ in self._handshake.contexts),
        )
        self._transmission = Transmission(
            self._loop,
            self._sock,
            session,
            export.backend,
            export.bitmaps,
            export.known_data,
            self._server.pool,
            self._server.tasks,
            self._server.report,
            self._gone,
        )
        self._transmission.start(self._handshake.take_rest())

    # The end

    def _lost(self, reason: str) -> None:
        del reason
        self._handshake.eof("Unable to write to socket")
        self._close()

    def _close(self) -> None:
        """Close a connection that never got to transmission.

        The client does not count as one any more, though its socket may wait for it to see why.
        """
        if self._sock is None or self._transmission is not None:
            return
        if self._tls_task is not None:
            self._tls_task.cancel()  # it watches the socket; then this is called again
            return
        if self._watching:
            self._watching = False
            self._loop.remove_reader(self._sock.fileno())
        self._timer.cancel()
        self._outlet.close()
        self._server.lingering.close(self._sock, self._raw)
        self._sock = None
        self._server.connection_gone(self)

    def _gone(self) -> None:
        """The transmission is over and its socket closed."""
        assert self._export is not None
        self._sock = None
        self._export.remove_client(self)
        self._server.connection_gone(self)

    def kill(self) -> None:
        """End the connection from our side."""
        if self._transmission is not None:
            self._transmission.kill()
        else:
            self._close()


async def start_nbd_server(
    registry: ExportRegistry,
    address: AnyAddress,
    *,
    tls_creds: str | None = None,
    tls_authz: str | None = None,
    max_connections: int | None = None,
    by_monitor: bool = False,
) -> None:
    """Start the one NBD server of a daemon (QMP reference, "nbd-server-start").

    Args:
        registry: Gets the server.
        address: Where to listen.
        tls_creds: Id of the TLS credentials, None to serve in the clear.
        tls_authz: Id of the object that says which TLS clients are let in; looked up for each
            client.
        max_connections: Clients at a time; None for the default, 0 for no limit.
        by_monitor: Whether a QMP client asks, which matters for file descriptors.

    Raises:
        QmpError: It runs already, cannot listen there, or the credentials do not fit.
    """
    if _SERVER in registry.servers:
        raise QmpError("NBD server already running")
    from qsd.net.listen import listen

    if address.type == "inet":
        # Resolving a host name may take seconds.
        listening = await registry.graph.pool.run(
            listen, address, backlog=BACKLOG, by_monitor=by_monitor
        )
    else:
        listening = listen(address, backlog=BACKLOG, by_monitor=by_monitor)
    try:
        if _SERVER in registry.servers:
            raise QmpError("NBD server already running")
        tls = None
        if tls_creds is not None:
            tls = _find_tls(registry, tls_creds, tls_authz)
        registry.servers[_SERVER] = NbdServer(
            listening,
            registry.tasks,
            max_connections=(
                DEFAULT_MAX_CONNECTIONS if max_connections is None else max_connections
            ),
            tls=tls,
            report=registry.report,
        )
    except BaseException:
        listening.close()
        raise
    # Every connection asks for the ring; making the first one takes as long as ten requests do.
    registry.graph.pool.ring()


def _find_tls(registry: ExportRegistry, tls_creds: str, tls_authz: str | None) -> TlsProvider:
    from qsd.objects.tls_creds import ServerTls, find_creds

    return ServerTls(registry.objects, find_creds(registry.objects, tls_creds, "server"), tls_authz)


async def stop_nbd_server(registry: ExportRegistry) -> None:
    """Stop the NBD server and delete its exports (QMP reference, "nbd-server-stop").

    Raises:
        QmpError: None runs.
    """
    server = registry.servers.get(_SERVER)
    if server is None:
        raise QmpError("NBD server not running")
    del registry.servers[_SERVER]
    await server.stop()
    await registry.close_type(_SERVER)
