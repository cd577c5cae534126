# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""A character device on a datagram socket: each write is a datagram, each datagram is input."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Final

from qsd.chardev.base import Chardev
from qsd.errors import QmpError
from qsd.net import address as addresses
from qsd.qapi.schema.sockets import InetSocketAddress

if TYPE_CHECKING:
    from qsd.chardev.base import Environment
    from qsd.qapi.schema.char import ChardevUdp

#: Bytes; longer datagrams do not exist.
_READ_SIZE: Final = 64 << 10


class UdpChardev(Chardev):
    """Talks to one remote address; open from the beginning, as nobody can tell who listens."""

    def __init__(self, label: str, options: ChardevUdp) -> None:
        super().__init__(label, "udp")
        self._options = options
        self._sock: socket.socket | None = None
        self._is_reading = False

    async def _open(self, env: Environment) -> None:
        del env
        remote = addresses.body(self._options.remote)
        if not isinstance(remote, InetSocketAddress):
            raise QmpError("socket type unsupported for datagram")
        if not remote.port:
            raise QmpError("remote port not specified")
        local: InetSocketAddress | None = None
        if self._options.local is not None:
            part = addresses.body(self._options.local)
            if not isinstance(part, InetSocketAddress):
                raise QmpError("socket type unsupported for datagram")
            local = part
        loop = asyncio.get_running_loop()
        # Resolving names may take seconds.
        self._sock = await loop.run_in_executor(None, _datagram_socket, remote, local)
        self._opened()

    async def _close(self) -> None:
        self.pause()
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def _write(self, data: bytes) -> None:
        if self._sock is not None:
            try:
                self._sock.send(data)
            except OSError:
                pass  # datagrams get lost

    def pause(self) -> None:
        """Stop reading."""
        if self._is_reading and self._sock is not None:
            self._is_reading = False
            asyncio.get_running_loop().remove_reader(self._sock)

    def resume(self) -> None:
        """Go on reading if there is a user."""
        if not self._is_reading and self._sock is not None and self.frontend is not None:
            self._is_reading = True
            asyncio.get_running_loop().add_reader(self._sock, self._readable)

    def _readable(self) -> None:
        assert self._sock is not None
        try:
            data = self._sock.recv(_READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            # Nobody was there for what we sent.  After an error libuv no longer watches.
            self.pause()
            self.resume()
            return
        if data:
            self._received(data)


def _datagram_socket(remote: InetSocketAddress, local: InetSocketAddress | None) -> socket.socket:
    """Return a connected, non-blocking socket.

    Raises:
        QmpError: An address cannot be resolved or used.
    """
    if not remote.host:
        remote = InetSocketAddress(
            host="localhost", port=remote.port, ipv4=remote.ipv4, ipv6=remote.ipv6
        )
    family, name = addresses.resolve(remote, passive=False, kind=socket.SOCK_DGRAM)[0]
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        if local is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            wanted = InetSocketAddress(
                host=local.host,
                port=local.port or "0",
                ipv4=family == socket.AF_INET,
                ipv6=family == socket.AF_INET6,
            )
            _, own = addresses.resolve(wanted, passive=True, kind=socket.SOCK_DGRAM)[0]
            try:
                sock.bind(own)
            except OSError as exc:
                raise QmpError(f"Failed to bind socket: {exc.strerror}") from None
        try:
            sock.connect(name)
        except OSError as exc:
            raise QmpError(f"Failed to connect socket: {exc.strerror}") from None
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock
