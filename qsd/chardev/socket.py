# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Character devices on sockets: as a server for one client after the other, or as a client.

A server accepts one client at a time; others wait in the listener's backlog until it leaves.  One
that is turned away by TLS or another protocol sees the end, and no reset, whatever it has sent
(:mod:`qsd.net.linger`).  A client connects when the device is made, or, with ``reconnect``, in the
background and again whenever the connection is lost.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Final, Protocol

from qsd.aio.tasks import TaskOwner
from qsd.chardev.base import Chardev, Environment
from qsd.errors import QmpError
from qsd.net import address as addresses
from qsd.net.connect import connect
from qsd.net.linger import Lingering
from qsd.net.listen import Listening, open_listening
from qsd.net.stream import ByteStream
from qsd.qapi.schema.sockets import InetSocketAddress, UnixSocketAddress, VsockSocketAddress

if TYPE_CHECKING:
    from collections.abc import Callable

    from qsd.net.tls import TlsSession
    from qsd.qapi.schema.char import ChardevSocket
    from qsd.qapi.schema.sockets import SocketAddress, SocketAddressLegacy

#: Seconds between attempts to accept when that fails for want of resources.
ACCEPT_PAUSE: Final = 1.0
_TCP_NODELAY: Final = (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class Filter(Protocol):
    """A protocol between the socket and the device, such as telnet.  Bytes in, bytes out."""

    is_ready: bool
    """Whether the opening handshake is over; the device opens only then."""

    def start(self) -> bytes:
        """Return what the server says first."""

    def receive(self, data: bytes) -> tuple[bytes, bytes, bool]:
        """Take bytes from the socket.

        Returns:
            Bytes for the device, bytes to answer at once, and whether the connection goes on.
        """

    def encode(self, data: bytes) -> bytes:
        """Wrap bytes of the device for the socket."""


class Layers:
    """One protocol on top of another, such as websocket over TLS.

    Attributes:
        is_ready: Whether both opening handshakes are over.
    """

    def __init__(self, outer: Filter, inner: Filter) -> None:
        self._outer = outer
        self._inner = inner
        self._is_started = False
        self.is_ready = False

    def start(self) -> bytes:
        """Return what the outer protocol says first; the inner one has to wait for it."""
        return self._outer.start()

    def receive(self, data: bytes) -> tuple[bytes, bytes, bool]:
        """Pass bytes up through both."""
        plain, answer, goes_on = self._outer.receive(data)
        if self._outer.is_ready and not self._is_started:
            self._is_started = True
            first = self._inner.start()
            if first:
                answer += self._outer.encode(first)
        if not plain:
            self.is_ready = self._is_started and self._inner.is_ready
            return b"", answer, goes_on
        result, inner_answer, inner_goes_on = self._inner.receive(plain)
        if inner_answer:
            answer += self._outer.encode(inner_answer)
        self.is_ready = self._inner.is_ready
        return result, answer, goes_on and inner_goes_on

    def encode(self, data: bytes) -> bytes:
        """Pass bytes down through both."""
        return self._outer.encode(self._inner.encode(data))


class SocketChardev(Chardev):
    """A device on a socket.

    Attributes:
        options: As given.
    """

    def __init__(self, label: str, options: ChardevSocket) -> None:
        super().__init__(label, "socket")
        self.options = options
        self._is_server = options.server is not False
        self._address: SocketAddress = addresses.flat(addresses.body(options.addr))
        self._listening: Listening | None = None
        self._is_accepting = False
        self._is_peeking = False
        self._sock: socket.socket | None = None
        self._stream: ByteStream | None = None
        self._filter: Filter | None = None
        self._tasks: TaskOwner | None = None
        self._lingering: Lingering | None = None
        self._arrival: asyncio.Future[None] | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._has_complained = False
        self._report: Callable[[str], None] | None = None
        self._new_tls: Callable[[str | None], TlsSession] | None = None

    # -------------------------------------------------------------------------------- opening

    async def _open(self, env: Environment) -> None:
        self._new_tls = check_options(self.options, env)
        self._report = env.report
        self._tasks = TaskOwner(f"chardev {self.label}")
        self._lingering = Lingering(asyncio.get_running_loop())
        if self._is_server:
            # The bound address tells the port; what was asked for tells how to bind.
            self._listening = await open_listening(self.options.addr, by_monitor=env.by_monitor)
            if self._address.type in ("inet", "fd") or not self._unix_path():
                self._address = self._listening.address
            if self.options.wait:
                env.report(f"info: QEMU waiting for connection on: {self.filename}")
                self._arrival = asyncio.get_running_loop().create_future()
            self._accept()
            if self._arrival is not None:
                await self._arrival
        elif self._reconnect_pause > 0:
            self._connect_later()
        else:
            self._connected(await connect(self.options.addr, by_monitor=env.by_monitor))
            # Should the server be a device of ours, let it accept before anybody asks about it.
            for _ in range(2):
                await asyncio.sleep(0)

    @property
    def _reconnect_pause(self) -> int:
        return max(self.options.reconnect or 0, 0)

    def _unix_path(self) -> str:
        part = addresses.body(self._address)
        return part.path if isinstance(part, UnixSocketAddress) else ""

    def _accept(self) -> None:
        if self._listening is not None and not self._is_accepting:
            self._is_accepting = True
            loop = asyncio.get_running_loop()
            for listener in self._listening.sockets:
                loop.add_reader(listener, self._acceptable, listener)

    def _stop_accepting(self) -> None:
        if self._listening is not None and self._is_accepting:
            self._is_accepting = False
            loop = asyncio.get_running_loop()
            for listener in self._listening.sockets:
                loop.remove_reader(listener)

    def _acceptable(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except BlockingIOError:
            return  # gone already
        except OSError:
            # Out of descriptors, most likely: the listener stays readable, so let it rest.
            self._stop_accepting()
            loop = asyncio.get_running_loop()
            self._retry = loop.call_later(ACCEPT_PAUSE, self._accept)
            return
        self._stop_accepting()
        self._connected(sock)

    def _connect_later(self) -> None:
        self._retry = None
        if self._tasks is not None:
            self._tasks.spawn(self._connect_once(), f"chardev {self.label} connect")

    async def _connect_once(self) -> None:
        try:
            sock = await connect(self.options.addr)
        except QmpError as exc:
            if not self._has_complained and self._report is not None:
                self._has_complained = True
                self._report(f"Unable to connect character device {self.label}: {exc.desc}")
            self._schedule_retry()
            return
        self._has_complained = False
        self._connected(sock)

    def _schedule_retry(self) -> None:
        loop = asyncio.get_running_loop()
        self._retry = loop.call_later(self._reconnect_pause, self._connect_later)

    # ------------------------------------------------------------------------------ connection

    def _connected(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        if self.options.nodelay and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(*_TCP_NODELAY)
        self._sock = sock
        try:
            self._filter = self._make_filter()
            greeting = b"" if self._filter is None else self._filter.start()
        except QmpError as exc:
            if self._report is not None:
                self._report(exc.desc)
            sock.close()
            self._sock = None
            self._accept()
            return
        self._stream = ByteStream(
            sock.fileno(),
            sock.fileno(),
            on_data=self._arrived,
            on_eof=self._disconnected,
            on_drained=self._drained,
        )
        self._stream.write(greeting)
        if self._filter is None or self._filter.is_ready:
            self._begin()
        else:
            self._stream.start()

    def _make_filter(self) -> Filter | None:
        """Return what is spoken on a new connection.

        Raises:
            QmpError: TLS cannot be set up.
        """
        inner = make_filter(self.options) if self._is_server else None
        if self._new_tls is None:
            return inner
        from qsd.net.tls import TlsFilter

        part = addresses.body(self.options.addr)
        hostname = part.host if isinstance(part, InetSocketAddress) else None
        outer = TlsFilter(self._new_tls(hostname), self._report)
        return outer if inner is None else Layers(outer, inner)

    def _begin(self) -> None:
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)
        self._opened()
        self.resume()

    def _arrived(self, data: bytes) -> None:
        if self._filter is None:
            self._received(data)
            return
        data, answer, goes_on = self._filter.receive(data)
        assert self._stream is not None
        self._stream.write(answer)
        if not self.is_open and self._filter.is_ready:
            self._begin()
        if data:
            self._received(data)
        if not goes_on:
            self._turn_away()

    def _turn_away(self) -> None:
        """End a connection whose peer does not know of it, and may still be talking."""
        sock, self._sock = self._sock, None
        assert sock is not None  # it was talked through
        assert self._lingering is not None  # there is one from the beginning
        self._disconnected()
        self._lingering.close(sock, sock)

    def _disconnected(self) -> None:
        self._drop_connection()
        self._closed()
        if self._is_server:
            self._accept()
        elif self._reconnect_pause > 0:
            self._schedule_retry()

    def _drop_connection(self) -> None:
        self._stop_peeking()
        if self._stream is not None:
            self._stream.close()
            self._stream = None
        if self._sock is not None:
            self._sock.close()
            self._sock = None
        self._filter = None

    async def _close(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self._tasks is not None:
            await self._tasks.close()
        self._stop_accepting()
        self._drop_connection()
        if self._lingering is not None:
            self._lingering.stop()
        if self._listening is not None:
            self._listening.close()
            self._listening = None

    # -------------------------------------------------------------------------------- frontend

    @property
    def pending(self) -> int:
        """Bytes that were written but not taken by the kernel yet."""
        return 0 if self._stream is None else self._stream.pending

    def _write(self, data: bytes) -> None:
        if self._stream is not None and self.is_open:
            self._stream.write(data if self._filter is None else self._filter.encode(data))

    def pause(self) -> None:
        """Stop reading the socket."""
        if self._stream is not None:
            self._stream.pause()

    def resume(self) -> None:
        """Go on reading the socket, or without a user only look whether the client leaves."""
        if self._stream is None:
            return
        if self.frontend is None:
            self._peek()
        else:
            self._stop_peeking()
            self._stream.start()

    def _detached(self) -> None:
        self.resume()

    def _peek(self) -> None:
        if self._sock is not None and not self._is_peeking:
            self._is_peeking = True
            asyncio.get_running_loop().add_reader(self._sock, self._peekable)

    def _stop_peeking(self) -> None:
        if self._sock is not None and self._is_peeking:
            self._is_peeking = False
            asyncio.get_running_loop().remove_reader(self._sock)

    def _peekable(self) -> None:
        assert self._sock is not None
        try:
            data = self._sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._stop_peeking()  # input waits for a user
        else:
            self._disconnected()

    # -------------------------------------------------------------------------------- filename

    @property
    def filename(self) -> str:
        """The address, or both ends of the connection."""
        suffix = ",server=on" if self._is_server else ""
        scheme = "tcp"
        if self.options.telnet:
            scheme = "telnet"
        elif self.options.websocket:
            scheme = "websocket"
        if self._sock is None or not self.is_open:
            return f"disconnected:{_address_text(self._address, scheme, suffix)}"
        local = addresses.local_address(self._sock)
        part = None if local is None else addresses.body(local)
        if isinstance(part, UnixSocketAddress):
            return f"unix:{'' if part.abstract else part.path}{suffix}"
        peer = addresses.peer_address(self._sock)
        if isinstance(part, InetSocketAddress) and peer is not None:
            return f"{scheme}:{_bracketed(part)}{suffix} <-> {_bracketed(addresses.body(peer))}"
        return "unknown"


def check_options(
    options: ChardevSocket, env: Environment
) -> Callable[[str | None], TlsSession] | None:
    """Check what the schema cannot, in the original's order.

    Returns:
        What begins a TLS connection, None where there is to be no TLS.

    Raises:
        QmpError: Options contradict each other.
    """
    is_server = options.server is not False
    if options.tls_authz is not None and options.tls_creds is None:
        raise QmpError("'tls_authz' option requires 'tls_creds' option")
    new_tls = None
    if options.tls_creds is not None:
        endpoint = "server" if is_server else "client"
        new_tls = env.find_tls(options.tls_creds, endpoint, options.tls_authz)
        kind = addresses.body(options.addr)
        if isinstance(kind, (UnixSocketAddress, VsockSocketAddress)):
            name = "unix" if isinstance(kind, UnixSocketAddress) else "vsock"
            raise QmpError(f"'tls_creds' option is incompatible with '{name}' address type")
    if options.websocket and not is_server:
        raise QmpError("Websocket client is not implemented")
    if options.reconnect is not None and is_server:
        raise QmpError("'reconnect' option is incompatible with socket in server listen mode")
    if options.wait is not None and not is_server:
        raise QmpError("'wait' option is incompatible with socket in client connect mode")
    return new_tls


def make_filter(options: ChardevSocket) -> Filter | None:
    """Return the protocol that a server speaks on top of the socket, None for plain bytes."""
    if options.websocket:
        from qsd.chardev.websocket import WebSocketFilter

        return WebSocketFilter()
    if options.telnet or options.tn3270:
        from qsd.chardev.telnet import TelnetFilter

        return TelnetFilter(tn3270=bool(options.tn3270))
    return None


def _address_text(address: SocketAddress | SocketAddressLegacy, scheme: str, suffix: str) -> str:
    part = addresses.body(address)
    if isinstance(part, InetSocketAddress):
        return f"{scheme}:{part.host}:{part.port}{suffix}"
    if isinstance(part, UnixSocketAddress):
        flags = ""
        if part.abstract:
            flags = ",abstract=on" + (",tight=on" if part.tight is not False else "")
        return f"unix:{part.path}{flags}{suffix}"
    if isinstance(part, VsockSocketAddress):
        return f"vsock:{part.cid}:{part.port}"
    return f"fd:{part.str}{suffix}"


def _bracketed(part: addresses.AddressBody) -> str:
    if not isinstance(part, InetSocketAddress):
        return "unknown"
    host = f"[{part.host}]" if ":" in part.host else part.host
    return f"{host}:{part.port}"
