# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Socket addresses (QMP reference, "Socket data types").

``SocketAddress`` is the flat form.  ``SocketAddressLegacy``, which character devices and
``nbd-server-start`` take, wraps the same in ``{"type": ..., "data": {...}}``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

from qsd.qapi.model import Struct, Union

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import ClassVar

    from qsd.qapi.model import UInt16
    from qsd.qapi.schema.common import String


NetworkAddressFamily: TypeAlias = Literal["ipv4", "ipv6", "unix", "vsock", "unknown"]
"""QMP reference, "NetworkAddressFamily"."""


class InetSocketAddressBase(Struct):
    """Host and port (QMP reference, "InetSocketAddressBase")."""

    host: str
    port: str


class InetSocketAddress(InetSocketAddressBase):
    """A TCP address (QMP reference, "InetSocketAddress")."""

    numeric: bool | None = None
    to: UInt16 | None = None
    ipv4: bool | None = None
    ipv6: bool | None = None
    keep_alive: bool | None = None
    mptcp: bool | None = None


class UnixSocketAddress(Struct):
    """The address of a unix socket (QMP reference, "UnixSocketAddress")."""

    path: str
    abstract: bool | None = None
    tight: bool | None = None


class VsockSocketAddress(Struct):
    """An address between host and guest (QMP reference, "VsockSocketAddress")."""

    cid: str
    port: str


class InetSocketAddressWrapper(Struct):
    """QMP reference, "InetSocketAddressWrapper"."""

    data: InetSocketAddress


class UnixSocketAddressWrapper(Struct):
    """QMP reference, "UnixSocketAddressWrapper"."""

    data: UnixSocketAddress


class VsockSocketAddressWrapper(Struct):
    """QMP reference, "VsockSocketAddressWrapper"."""

    data: VsockSocketAddress


class StringWrapper(Struct):
    """QMP reference, "StringWrapper"."""

    data: String


class SocketAddressLegacy(Union):
    """A socket address with its members wrapped in "data" (QMP reference)."""

    type: SocketAddressType

    TAG: ClassVar[str] = "type"
    BRANCHES: ClassVar[Mapping[str, str]] = {
        "inet": "InetSocketAddressWrapper",
        "unix": "UnixSocketAddressWrapper",
        "vsock": "VsockSocketAddressWrapper",
        "fd": "StringWrapper",
    }


SocketAddressType: TypeAlias = Literal["inet", "unix", "vsock", "fd"]
"""The kinds of socket addresses (QMP reference, "SocketAddressType")."""


class SocketAddress(Union):
    """A socket address (QMP reference, "SocketAddress")."""

    type: SocketAddressType

    TAG: ClassVar[str] = "type"
    BRANCHES: ClassVar[Mapping[str, str]] = {
        "inet": "InetSocketAddress",
        "unix": "UnixSocketAddress",
        "vsock": "VsockSocketAddress",
        "fd": "String",
    }
