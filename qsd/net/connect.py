# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""From a socket address to a connected socket."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import TYPE_CHECKING, Final

from qsd.errors import QmpError
from qsd.net import address as addresses
from qsd.qapi.schema.sockets import InetSocketAddress, UnixSocketAddress, VsockSocketAddress

if TYPE_CHECKING:
    from typing import Any

    from qsd.net.address import AnyAddress

#: Seconds between attempts while a unix listener's backlog is full.
BACKLOG_PAUSE: Final = 0.01


async def connect(address: AnyAddress, *, by_monitor: bool = False) -> socket.socket:
    """Connect to `address`; a host's addresses are tried in turn.

    Args:
        address: Flat or legacy form; of kind "fd" it names a socket that is connected already.
        by_monitor: Whether a QMP client asks; see :func:`qsd.net.address.take_fd`.

    Returns:
        A non-blocking socket that the caller owns.

    Raises:
        QmpError: With the text of the real daemon.
        asyncio.CancelledError: The attempt is given up; nothing is left open.
    """
    part = addresses.body(address)
    if isinstance(part, UnixSocketAddress):
        return await _connect_unix(part)
    if isinstance(part, InetSocketAddress):
        return await _connect_inet(part)
    if isinstance(part, VsockSocketAddress):
        cid, port = addresses.vsock_numbers(part)
        try:
            return await _connect_one(socket.AF_VSOCK, 0, (cid, port))
        except OSError as exc:
            raise _failed(address, exc) from None
    sock = addresses.take_fd(part, by_monitor=by_monitor)
    sock.setblocking(False)
    return sock


async def _connect_unix(address: UnixSocketAddress) -> socket.socket:
    name = addresses.unix_name(address)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.setblocking(False)
    try:
        while True:
            try:
                connect_unix(sock, name)
            except BlockingIOError:
                # connect(2), EAGAIN: the backlog is full; there is nothing to wait for but time.
                await asyncio.sleep(BACKLOG_PAUSE)
            else:
                return sock
    except OSError as exc:
        sock.close()
        raise QmpError(f"Failed to connect to '{address.path}': {exc.strerror}") from None
    except BaseException:
        sock.close()
        raise


def connect_unix(sock: socket.socket, name: bytes) -> None:
    """Connect to a path that may fill sun_path completely, which the socket module refuses.

    Raises:
        OSError: connect() failed.
    """
    if not name:
        # In C it is a path of zeroes only, which is a name in the abstract space that nobody has.
        name = bytes(addresses.SUN_PATH_MAX)
    if len(name) < addresses.SUN_PATH_MAX or name[:1] == b"\0":
        sock.connect(name)
        return
    from qsd.net.longpath import call_with_full_path

    call_with_full_path("connect", sock, name)


async def _connect_inet(address: InetSocketAddress) -> socket.socket:
    loop = asyncio.get_running_loop()
    # The resolver may take seconds; the loop's own executor is what asyncio has for it.
    names = await loop.run_in_executor(None, _resolve, address)
    error: OSError | None = None
    protocol = addresses.stream_protocol(address)
    for family, name in names:
        try:
            sock = await _connect_one(family, protocol, name)
        except OSError as exc:
            error = exc
            continue
        if address.keep_alive:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        return sock
    assert error is not None
    raise _failed(addresses.flat(address), error)


def _resolve(address: InetSocketAddress) -> list[tuple[int, tuple[Any, ...]]]:
    return addresses.resolve(address, passive=False)


async def _connect_one(family: int, protocol: int, name: tuple[Any, ...]) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM, protocol)
    sock.setblocking(False)
    try:
        try:
            sock.connect(name)
        except BlockingIOError:
            await _writable(sock)
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                raise OSError(code, os.strerror(code)) from None
    except BaseException:
        sock.close()
        raise
    return sock


async def _writable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_writer(sock, wake)
    try:
        await ready
    finally:
        loop.remove_writer(sock)


def _failed(address: AnyAddress, exc: OSError) -> QmpError:
    return QmpError(f"Failed to connect to '{addresses.shown(address)}': {exc.strerror}")
