# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""``pr-manager-helper``: the connection to a helper for SCSI persistent reservations.

A storage daemon has no guest that sends reservation commands, so the object holds the connection
and reports its state; management software watches for that.  The handshake is four bytes of feature
flags from the helper and four from us (QEMU's manual, "Persistent reservation helper protocol").

A helper has half a minute for them.  The C daemon waits for ever, and with it all its monitors and
clients, if what listens there has nothing to say; it may be an export of its own.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, ClassVar, Final

from qsd.errors import QmpError
from qsd.objects.base import Property, UserCreatable, attribute
from qsd.qapi.model import Event

if TYPE_CHECKING:
    import socket

    from qsd.objects.base import Surroundings

#: Length of the feature flags, bytes; no feature is defined, so ours are zero.
_FEATURES_LENGTH = 4

#: Longest path of a Unix socket, bytes (unix(7): sun_path has 108, one of them for the NUL).
_MAX_PATH = 107

#: Seconds; a helper that has not shaken hands by then will not.
_PATIENCE: Final = 30.0

_END_OF_FILE: Final = "Unexpected end-of-file before all data were read"


class PrManagerStatusChanged(Event):
    """The connection to the helper was made or lost (QEMU's QMP reference; not in our schema).

    The C daemon emits it although its schema does not list it, and so do we.
    """

    NAME: ClassVar[str] = "PR_MANAGER_STATUS_CHANGED"

    id: str
    connected: bool


class PrManagerHelper(UserCreatable):
    """A connection to the helper.

    Attributes:
        socket_path: Where the helper listens.
    """

    TYPE = "pr-manager-helper"
    PROPERTIES: ClassVar[tuple[Property, ...]] = (attribute("path", "string", "socket_path"),)

    def __init__(self, tree: Surroundings) -> None:
        super().__init__(tree)
        self.socket_path: str | None = None
        self._connection: socket.socket | None = None

    async def complete(self) -> None:
        """Connect and exchange the feature flags.

        Raises:
            QmpError: There is no path, or the helper is not there or does not answer.
        """
        path = self.socket_path
        if path is None:
            raise QmpError("path not set")
        if self.tree.workers is not None:
            connection = await self.tree.workers.run(_connect, path)
        else:
            connection = _connect(path)
        try:
            if self.tree.workers is not None:
                await self.tree.workers.run(_shake_hands, connection)
            else:
                _shake_hands(connection)
        except QmpError:
            connection.close()
            self._report(is_connected=False)
            raise
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        self._report(is_connected=True)

    async def finalize(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _report(self, *, is_connected: bool) -> None:
        if self.tree.events is not None:
            self.tree.events.emit(PrManagerStatusChanged(id=self.name, connected=is_connected))


def _connect(path: str) -> socket.socket:
    """Connect to the helper.  Blocks.

    Raises:
        QmpError: It is not there.
    """
    import socket

    address = os.fsencode(path)
    if len(address) > _MAX_PATH:
        raise QmpError(f"UNIX socket path '{path}' is too long")
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        # An empty name would be the kernel's "autobind" address; a NUL after it makes it abstract
        # and, as with the C daemon, nobody is there.
        connection.connect(address or b"\0")
    except OSError as exc:
        connection.close()
        raise QmpError(f"Failed to connect to '{path}': {exc.strerror}") from None
    return connection


def _shake_hands(connection: socket.socket) -> None:
    """Read the helper's feature flags and send ours.  Blocks.

    Raises:
        QmpError: The helper went away, or says nothing.
    """
    received = 0
    connection.settimeout(_PATIENCE)
    try:
        while received < _FEATURES_LENGTH:
            chunk = connection.recv(_FEATURES_LENGTH - received)
            if not chunk:
                raise QmpError(_END_OF_FILE)
            received += len(chunk)
        connection.sendall(bytes(_FEATURES_LENGTH))
    except TimeoutError:
        raise QmpError("Unable to read from socket: Connection timed out") from None
    except OSError as exc:
        raise QmpError(f"Unable to read from socket: {exc.strerror}") from None
