# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The error tree.

::

    QsdError                       base of everything this project raises on its own account
    +-- QmpError                   what a QMP or command-line user is told: class and description
    |   +-- PermissionConflict     an edge wants or shares what another edge forbids
    |   +-- ReadOnlyConflict       somebody wants to write to a read-only node
    +-- PeerError                  a remote peer broke its protocol
    +-- ClosedError                an object was used after it was closed
    OSError                        an I/O request failed; carries the errno that exports must send

I/O failures are plain :class:`OSError` with an errno, because every export has to send one.
Whoever adds context to an error uses :func:`prefixed`, which keeps class, errno and QMP class.
"""

from __future__ import annotations

import os

GENERIC_ERROR = "GenericError"
COMMAND_NOT_FOUND = "CommandNotFound"
DEVICE_NOT_ACTIVE = "DeviceNotActive"
DEVICE_NOT_FOUND = "DeviceNotFound"


class QsdError(Exception):
    """Base of all errors that are not I/O errors."""


class QmpError(QsdError):
    """An error as QMP reports it.

    Attributes:
        desc: Human-readable description, the ``desc`` member on the wire.
        error_class: The ``class`` member on the wire (QMP reference, "QapiErrorClass").
        hint: Extra lines that the command line prints after the message, or None.
    """

    def __init__(
        self, desc: str, error_class: str = GENERIC_ERROR, *, hint: str | None = None
    ) -> None:
        super().__init__(desc)
        self.desc = desc
        self.error_class = error_class
        self.hint = hint


class PermissionConflict(QmpError):
    """Two users of a node need what the other does not share."""


class ReadOnlyConflict(QmpError):
    """Somebody wants to write to a read-only node.

    Attributes:
        node_name: The node.
    """

    def __init__(self, node_name: str) -> None:
        super().__init__("Block node is read-only")
        self.node_name = node_name


class PeerError(QsdError):
    """A remote peer violated its protocol.

    Attributes:
        survives: Whether the connection can go on after the error was reported to the peer.
    """

    def __init__(self, text: str, *, survives: bool = False) -> None:
        super().__init__(text)
        self.survives = survives


class ClosedError(QsdError):
    """The object was closed before this call."""


def os_error(errno: int, text: str | None = None) -> OSError:
    """Make an OSError whose text is the C library's unless another one is given."""
    return OSError(errno, text if text is not None else os.strerror(errno))


def describe(exc: BaseException) -> str:
    """Return the text a user should read for `exc`, without Python's decorations."""
    if isinstance(exc, QmpError):
        return exc.desc
    if isinstance(exc, OSError):
        return exc.strerror or str(exc)
    return str(exc)


def describe_path_error(exc: OSError | ValueError) -> str:
    """Return what is wrong with a path; one with a NUL byte, Python's ValueError, is not there."""
    return describe(exc) if isinstance(exc, OSError) else "No such file or directory"


def prefixed(exc: QmpError | OSError, prefix: str) -> QmpError:
    """Return a QmpError that reads `prefix` + the text of `exc` and keeps its QMP class."""
    error_class = exc.error_class if isinstance(exc, QmpError) else GENERIC_ERROR
    hint = exc.hint if isinstance(exc, QmpError) else None
    return QmpError(prefix + describe(exc), error_class, hint=hint)
