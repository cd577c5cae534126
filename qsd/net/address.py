# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Socket addresses (QMP reference, "Socket data types").

QMP has two forms of the same thing, the flat ``SocketAddress`` and the nested
``SocketAddressLegacy``.  Every function here takes both.
"""

from __future__ import annotations

import os
import socket
import stat
from typing import TYPE_CHECKING, Final, TypeAlias

from qsd.errors import QmpError
from qsd.qapi.schema.common import String
from qsd.qapi.schema.sockets import (
    InetSocketAddress,
    SocketAddress,
    SocketAddressLegacy,
    UnixSocketAddress,
    VsockSocketAddress,
)

if TYPE_CHECKING:
    from typing import Any

AnyAddress: TypeAlias = SocketAddress | SocketAddressLegacy
AddressBody: TypeAlias = InetSocketAddress | UnixSocketAddress | VsockSocketAddress | String

#: Length of sun_path (Linux unix(7), "Address format").
SUN_PATH_MAX: Final = 108
#: From linux/in.h; the socket module of Python 3.11 may lack it.
IPPROTO_MPTCP: Final = 262


def body(address: AnyAddress) -> AddressBody:
    """Return the part of an address that its type selects."""
    branch: Any = address.branch
    if isinstance(address, SocketAddressLegacy):
        branch = branch.data
    found: AddressBody = branch
    return found


def flat(part: AddressBody) -> SocketAddress:
    """Wrap the part of an address into the flat form."""
    if isinstance(part, InetSocketAddress):
        return SocketAddress(type="inet", branch=part)
    if isinstance(part, UnixSocketAddress):
        return SocketAddress(type="unix", branch=part)
    if isinstance(part, VsockSocketAddress):
        return SocketAddress(type="vsock", branch=part)
    return SocketAddress(type="fd", branch=part)


def legacy(part: AddressBody) -> SocketAddressLegacy:
    """Wrap the part of an address into the nested form."""
    from qsd.qapi.schema import sockets

    if isinstance(part, InetSocketAddress):
        return SocketAddressLegacy(type="inet", branch=sockets.InetSocketAddressWrapper(data=part))
    if isinstance(part, UnixSocketAddress):
        return SocketAddressLegacy(type="unix", branch=sockets.UnixSocketAddressWrapper(data=part))
    if isinstance(part, VsockSocketAddress):
        return SocketAddressLegacy(
            type="vsock", branch=sockets.VsockSocketAddressWrapper(data=part)
        )
    return SocketAddressLegacy(type="fd", branch=sockets.StringWrapper(data=part))


def unix_name(address: UnixSocketAddress) -> bytes:
    """Return what bind() and connect() take: the path, or the abstract name behind a NUL.

    An abstract name that is not tight is padded to the full length of sun_path (QMP reference,
    "UnixSocketAddress").

    Raises:
        QmpError: The path does not fit.
    """
    path = os.fsencode(address.path)
    limit = SUN_PATH_MAX - 1 if address.abstract else SUN_PATH_MAX
    if len(path) > limit:
        raise QmpError(
            f"UNIX socket path '{address.path}' is too long",
            hint=f"Path must be less than {limit} bytes",
        )
    if not address.abstract:
        return path
    name = b"\0" + path
    return name if address.tight is not False else name.ljust(SUN_PATH_MAX, b"\0")


def inet_family(address: InetSocketAddress) -> tuple[int, bool]:
    """Return the family to resolve for, and whether an IPv6 socket must leave IPv4 alone.

    Raises:
        QmpError: Both families are switched off.
    """
    if address.ipv4 is False and address.ipv6 is False:
        raise QmpError("Cannot disable IPv4 and IPv6 at same time")
    if address.ipv4 and address.ipv6:
        return socket.AF_INET6, False
    if address.ipv6 or address.ipv4 is False:
        return socket.AF_INET6, True
    if address.ipv4 or address.ipv6 is False:
        return socket.AF_INET, False
    return socket.AF_UNSPEC, False


def resolve(
    address: InetSocketAddress, *, passive: bool, kind: int = socket.SOCK_STREAM
) -> list[tuple[int, tuple[Any, ...]]]:
    """Ask the resolver for the addresses of a host; this may block for seconds.

    Args:
        address: Host and port; an empty host is every local address if `passive`.
        passive: Whether the addresses are to be bound.
        kind: SOCK_STREAM or SOCK_DGRAM.

    Returns:
        Families and socket addresses, at least one, best first.

    Raises:
        QmpError: There is none.
    """
    family, _ = inet_family(address)
    flags = socket.AI_ADDRCONFIG | socket.AI_V4MAPPED
    if passive:
        flags |= socket.AI_PASSIVE
    if address.numeric:
        flags |= socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    host = None if passive and not address.host else address.host
    try:
        found = socket.getaddrinfo(host, address.port, family, kind, 0, flags)
    except (socket.gaierror, UnicodeError, ValueError) as exc:
        reason = exc.strerror if isinstance(exc, socket.gaierror) else "Name or service not known"
        raise QmpError(
            f"address resolution failed for {address.host}:{address.port}: {reason}"
        ) from None
    return [(entry[0], entry[4]) for entry in found]


def stream_protocol(address: InetSocketAddress) -> int:
    """Return the protocol number for a stream socket of this address."""
    return IPPROTO_MPTCP if address.mptcp else socket.IPPROTO_TCP


def vsock_numbers(address: VsockSocketAddress) -> tuple[int, int]:
    """Return context id and port.

    Raises:
        QmpError: One of them is no 32-bit number.
    """
    return _uint32("cid", address.cid), _uint32("port", address.port)


def _uint32(what: str, text: str) -> int:
    try:
        number = int(text, 0) if text.isascii() and "_" not in text else -1
    except ValueError:
        number = -1
    if not 0 <= number < 1 << 32:
        raise QmpError(f"Failed to parse {what} '{text}'")
    return number


def take_fd(address: String, *, by_monitor: bool) -> socket.socket:
    """Take over the socket that a descriptor number of our own process names.

    Args:
        address: The number.
        by_monitor: Whether a QMP client asks.  It may not name descriptors: those would come from
            ``getfd``, which the storage daemon does not have.

    Raises:
        QmpError: It is no number, or what it names is no socket.
    """
    text = address.str
    if by_monitor:
        raise QmpError("only QEMU supports file descriptor passing")
    digits = text.lstrip("+-")
    if not digits.isascii() or not digits.isdecimal() or len(text) - len(digits) > 1:
        raise QmpError(f"Unable to parse FD number {text}")
    number = int(text)
    try:
        is_socket = 0 <= number < 1 << 31 and stat.S_ISSOCK(os.fstat(number).st_mode)
    except OSError:
        is_socket = False
    if not is_socket:
        raise QmpError(f"File descriptor '{text}' is not a socket")
    os.set_inheritable(number, False)
    return socket.socket(fileno=number)


def local_address(sock: socket.socket) -> SocketAddress | None:
    """Return what getsockname() says as an address, None if the family has none here."""
    return _from_name(sock.family, sock.getsockname())


def peer_address(sock: socket.socket) -> SocketAddress | None:
    """Return what getpeername() says as an address, None if there is no peer."""
    try:
        name = sock.getpeername()
    except OSError:
        return None
    return _from_name(sock.family, name)


def _from_name(family: int, name: Any) -> SocketAddress | None:
    if family in (socket.AF_INET, socket.AF_INET6):
        return flat(InetSocketAddress(host=name[0], port=str(name[1])))
    if family == socket.AF_UNIX:
        if isinstance(name, bytes):
            abstract = name[:1] == b"\0"
            return flat(
                UnixSocketAddress(
                    path=os.fsdecode(name[1:] if abstract else name), abstract=abstract or None
                )
            )
        return flat(UnixSocketAddress(path=name))
    if family == socket.AF_VSOCK:
        return flat(VsockSocketAddress(cid=str(name[0]), port=str(name[1])))
    return None


def shown(address: AnyAddress) -> str:
    """Return an address as error messages show it: ``host:port``, path, number."""
    part = body(address)
    if isinstance(part, InetSocketAddress):
        return f"{part.host}:{part.port}"
    if isinstance(part, UnixSocketAddress):
        return part.path
    if isinstance(part, VsockSocketAddress):
        return f"{part.cid}:{part.port}"
    return part.str
