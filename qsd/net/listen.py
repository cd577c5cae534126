# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""From a socket address to listening sockets.

One address may need several sockets: a host name stands for all addresses it resolves to.  Opening
them does not wait for peers, but resolving a host name can take seconds; who must not be held up
uses :func:`open_listening`.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from typing import TYPE_CHECKING

from qsd.errors import QmpError, describe_path_error
from qsd.net import address as addresses
from qsd.qapi.schema.sockets import InetSocketAddress, UnixSocketAddress, VsockSocketAddress

if TYPE_CHECKING:
    from typing import Any

    from qsd.net.address import AnyAddress
    from qsd.qapi.schema.common import String
    from qsd.qapi.schema.sockets import SocketAddress


class Listening:
    """Listening sockets and what must be removed with them.

    Attributes:
        sockets: At least one; non-blocking.
        address: Where they really listen: with the port that was found and the generated path.
        unlink_path: A file to remove at the end, or None.
    """

    __slots__ = ("address", "sockets", "unlink_path")

    def __init__(
        self, sockets: list[socket.socket], address: SocketAddress, unlink_path: str | None = None
    ) -> None:
        self.sockets = sockets
        self.address = address
        self.unlink_path = unlink_path
        for sock in sockets:
            sock.setblocking(False)

    def close(self) -> None:
        """Close the sockets and remove the file, which may be another's by now.  Idempotent."""
        for sock in self.sockets:
            sock.close()
        self.sockets.clear()
        path, self.unlink_path = self.unlink_path, None
        if path is not None:
            try:
                os.unlink(path)
            except OSError:
                pass  # someone was faster, which is fine


def listen(address: AnyAddress, *, backlog: int = 1, by_monitor: bool = False) -> Listening:
    """Open listening sockets for `address`.

    Args:
        address: Flat or legacy form.
        backlog: Connections that may wait for accept(), as for listen(2).
        by_monitor: Whether a QMP client asks; see :func:`qsd.net.address.take_fd`.

    Returns:
        Sockets that the caller closes through the returned object.

    Raises:
        QmpError: With the text of the real daemon.
    """
    part = addresses.body(address)
    if isinstance(part, InetSocketAddress):
        return _listen_inet(part, backlog)
    if isinstance(part, UnixSocketAddress):
        return _listen_unix(part, backlog)
    if isinstance(part, VsockSocketAddress):
        return _listen_vsock(part, backlog)
    return _listen_fd(part, backlog, by_monitor)


async def open_listening(
    address: AnyAddress, *, backlog: int = 1, by_monitor: bool = False
) -> Listening:
    """Do what :func:`listen` does without holding up the loop while a name is resolved."""
    part = addresses.body(address)
    if isinstance(part, InetSocketAddress) and not part.host.replace(".", "").isdecimal():
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(None, _listen_inet, part, backlog)
    return listen(address, backlog=backlog, by_monitor=by_monitor)


def _listen_unix(address: UnixSocketAddress, backlog: int) -> Listening:
    path = address.path
    if not path and not address.abstract:
        import tempfile

        # The real daemon invents a name too; a private directory would not be removed with it.
        handle, path = tempfile.mkstemp(prefix="qemu-socket-")
        os.close(handle)
        address = UnixSocketAddress(path=path, tight=address.tight)
    name = addresses.unix_name(address)
    if not address.abstract:
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as exc:
            raise QmpError(f"Failed to unlink socket {path}: {describe_path_error(exc)}") from None
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        bind_unix(sock, name)
        _start(sock, backlog)
    except OSError as exc:
        sock.close()
        raise QmpError(f"Failed to bind socket to {path}: {exc.strerror}") from None
    except BaseException:
        sock.close()
        raise
    return Listening([sock], addresses.flat(address), None if address.abstract else path)


def bind_unix(sock: socket.socket, name: bytes) -> None:
    """Bind to a path that may fill sun_path completely, which the socket module refuses.

    Raises:
        OSError: bind() failed.
    """
    if len(name) < addresses.SUN_PATH_MAX or name[:1] == b"\0":
        sock.bind(name)
        return
    from qsd.net.longpath import call_with_full_path

    call_with_full_path("bind", sock, name)


def _start(sock: socket.socket, backlog: int) -> None:
    try:
        sock.listen(backlog)
    except OSError as exc:
        raise QmpError(f"Failed to listen on socket: {exc.strerror}") from None


def _listen_inet(address: InetSocketAddress, backlog: int) -> Listening:
    _, only_v6 = addresses.inet_family(address)
    sockets: list[socket.socket] = []
    error: QmpError | None = None
    for family, name in addresses.resolve(address, passive=True):
        try:
            sockets.append(_bind_inet(address, family, name, only_v6, backlog))
        except QmpError as exc:
            error = exc
    if not sockets:
        raise error or QmpError("Failed to create a socket")
    host, port = sockets[0].getsockname()[:2]
    return Listening(sockets, addresses.flat(InetSocketAddress(host=host, port=str(port))))


def _bind_inet(
    address: InetSocketAddress, family: int, name: tuple[Any, ...], only_v6: bool, backlog: int
) -> socket.socket:
    """Bind one socket to the first free port of the range and listen there."""
    first = name[1]
    last = first if address.to is None else address.to
    if last < first:
        raise QmpError("Failed to create a socket")
    protocol = addresses.stream_protocol(address)
    for port in range(first, last + 1):
        try:
            sock = socket.socket(family, socket.SOCK_STREAM, protocol)
        except OSError as exc:
            raise QmpError(f"Failed to create a socket: {exc.strerror}") from None
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            _bind_dual(sock, (name[0], port, *name[2:]), only_v6)
            sock.listen(backlog)
        except OSError as exc:
            sock.close()
            if exc.errno != errno.EADDRINUSE:
                raise QmpError(f"Failed to bind socket: {exc.strerror}") from None
        else:
            return sock
    raise QmpError(f"Failed to find an available port: {os.strerror(errno.EADDRINUSE)}")


def _bind_dual(sock: socket.socket, name: tuple[Any, ...], only_v6: bool) -> None:
    """Bind; an IPv6 socket serves IPv4 too unless it must not or another socket does already."""
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only_v6)
        if not only_v6:
            try:
                sock.bind(name)
            except OSError as exc:
                if exc.errno != errno.EADDRINUSE:
                    raise
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            else:
                return
    sock.bind(name)


def _listen_vsock(address: VsockSocketAddress, backlog: int) -> Listening:
    cid, port = addresses.vsock_numbers(address)
    try:
        sock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    except OSError as exc:
        raise QmpError(f"Failed to create socket: {exc.strerror}") from None
    try:
        sock.bind((cid, port))
        _start(sock, backlog)
    except OSError as exc:
        sock.close()
        raise QmpError(f"Failed to bind socket: {exc.strerror}") from None
    except BaseException:
        sock.close()
        raise
    return Listening([sock], addresses.flat(address))


def _listen_fd(address: String, backlog: int, by_monitor: bool) -> Listening:
    sock = addresses.take_fd(address, by_monitor=by_monitor)
    try:
        sock.listen(backlog)
    except OSError as exc:
        sock.close()
        raise QmpError(f"Failed to listen on fd socket: {exc.strerror}") from None
    where = addresses.local_address(sock)
    path = None
    if where is not None and isinstance(where.branch, UnixSocketAddress):
        path = where.branch.path if not where.branch.abstract else None
    return Listening([sock], where or addresses.flat(address), path)
