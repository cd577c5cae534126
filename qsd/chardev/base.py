# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""What a character device offers, and what its user provides.

A device has two sides.  The *backend* is what bytes go through: a socket, a terminal, a file.  The
*frontend* is the one user inside the daemon, normally a monitor.  A backend may come and go, as
clients connect and leave; the frontend is told by :meth:`Frontend.chardev_opened` and
:meth:`Frontend.chardev_closed`, and in between it gets :meth:`Frontend.chardev_data`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, ClassVar, Protocol

from qsd.errors import QmpError, describe_path_error

if TYPE_CHECKING:
    from collections.abc import Callable

    from qsd.net.tls import TlsSession
    from qsd.qapi.schema.char import ChardevCommon


class Frontend(Protocol):
    """The user of a character device.  Calls come from the loop and must not raise."""

    @property
    def is_ready(self) -> bool:
        """Whether it takes input; a multiplexer without users does not."""

    def chardev_opened(self) -> None:
        """Someone is there."""

    def chardev_data(self, data: bytes) -> None:
        """Bytes have arrived."""

    def chardev_closed(self) -> None:
        """Whoever was there is gone; another may come."""

    def chardev_drained(self) -> None:
        """All that was pending has been written."""


class Environment:
    """What a character device may use of its daemon.

    Attributes:
        by_monitor: Whether a QMP client is asking, not the command line.
        in_background: Whether the daemon goes to the background, where it has no terminal.
        report: Prints a message on standard error.
        find: Returns another device by its label, or None.
        has_kind: Tells whether there is a device of that kind.
        find_tls: Takes the name of TLS credentials, the endpoint and the name of what decides about
            clients, and returns what begins a connection to a host; raises a QmpError if there are
            no such credentials.
    """

    __slots__ = ("by_monitor", "find", "find_tls", "has_kind", "in_background", "report")

    def __init__(
        self,
        *,
        by_monitor: bool,
        in_background: bool,
        report: Callable[[str], None],
        find: Callable[[str], Chardev | None],
        has_kind: Callable[[str], bool],
        find_tls: Callable[[str, str, str | None], Callable[[str | None], TlsSession]],
    ) -> None:
        self.by_monitor = by_monitor
        self.in_background = in_background
        self.report = report
        self.find = find
        self.has_kind = has_kind
        self.find_tls = find_tls


class Chardev:
    """One character device.

    Subclasses override the methods whose names begin with an underscore, and :attr:`filename` where
    it says more than the kind.

    Attributes:
        label: Its name.
        kind: The name of its backend.
        frontend: Its user, or None.
        is_open: Whether someone is at the other end now.
        pty: The terminal's path, of a pty.
    """

    #: Whether a monitor on this backend offers out-of-band execution.
    OFFERS_OOB: ClassVar[bool] = True

    def __init__(self, label: str, kind: str) -> None:
        self.label = label
        self.kind = kind
        self.frontend: Frontend | None = None
        self.is_open = False
        self.pty: str | None = None
        self._log_fd: int | None = None

    @property
    def filename(self) -> str:
        """What ``query-chardev`` shows as the name."""
        return self.kind

    @property
    def pending(self) -> int:
        """Bytes that were written but not taken by the other side yet."""
        return 0

    @property
    def has_open_frontend(self) -> bool:
        """Whether the user, if there is one, is ready to talk."""
        return self.frontend is not None and self.frontend.is_ready

    @property
    def is_busy(self) -> bool:
        """Whether it has a user and may not be removed."""
        return self.frontend is not None

    # ------------------------------------------------------------------------------- life cycle

    async def open(self, common: ChardevCommon | None, env: Environment) -> None:
        """Open the log file and the backend.

        Args:
            common: The options that all backends have.
            env: What the device may use.

        Raises:
            QmpError: It cannot be opened; nothing is left behind.
        """
        if common is not None and common.logfile is not None:
            self._log_fd = _open_log(common.logfile, append=bool(common.logappend))
        try:
            await self._open(env)
        except BaseException:
            await self.close()
            raise

    async def _open(self, env: Environment) -> None:
        """Open the backend; :meth:`_close` is called even if this fails."""

    async def close(self) -> None:
        """Close the backend and the log file.  Idempotent; pending output is dropped."""
        await self._close()
        self.is_open = False
        if self._log_fd is not None:
            os.close(self._log_fd)
            self._log_fd = None

    async def _close(self) -> None:
        """Close the backend."""

    # -------------------------------------------------------------------------------- frontend

    def attach(self, frontend: Frontend) -> None:
        """Give the device a user, which is told at once if someone is there.

        Raises:
            QmpError: It has one already.
        """
        if self.frontend is not None:
            raise QmpError(f"Device '{self.label}' is in use")
        self.frontend = frontend
        if self.is_open:
            frontend.chardev_opened()
        self._attached()

    def detach(self) -> None:
        """Take the user away; input waits for the next one."""
        self.frontend = None
        self.pause()
        self._detached()

    def _attached(self) -> None:
        """Begin to deliver input."""
        self.resume()

    def _detached(self) -> None:
        """Note that nobody takes input any more."""

    def write(self, data: bytes) -> None:
        """Send bytes to the other side; dropped if nobody is there."""
        if self._log_fd is not None:
            _write_log(self._log_fd, data)
        self._write(data)

    def _write(self, data: bytes) -> None:
        """Send bytes through the backend."""

    def pause(self) -> None:
        """Stop delivering input."""

    def resume(self) -> None:
        """Go on delivering input."""

    def send_break(self) -> None:
        """Send a break; most devices have none and do nothing."""

    # --------------------------------------------------------------------- for the subclasses

    def _opened(self) -> None:
        self.is_open = True
        if self.frontend is not None:
            self.frontend.chardev_opened()

    def _closed(self) -> None:
        if self.is_open:
            self.is_open = False
            if self.frontend is not None:
                self.frontend.chardev_closed()

    def _received(self, data: bytes) -> None:
        if self.frontend is not None:
            self.frontend.chardev_data(data)

    def _drained(self) -> None:
        if self.frontend is not None:
            self.frontend.chardev_drained()


def _open_log(path: str, *, append: bool) -> int:
    flags = os.O_WRONLY | os.O_CREAT | (os.O_APPEND if append else os.O_TRUNC)
    try:
        return os.open(path, flags, 0o666)
    except (OSError, ValueError) as exc:
        raise QmpError(f"Could not create '{path}': {describe_path_error(exc)}") from None


def _write_log(fd: int, data: bytes) -> None:
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(fd, view) :]
    except OSError:
        pass  # a full disk must not take the monitor down


def open_file(path: str, flags: int) -> int:
    """Open a file for a backend.

    Raises:
        QmpError: It cannot be opened.
    """
    try:
        return os.open(path, flags, 0o666)
    except (OSError, ValueError) as exc:
        raise QmpError(f"Could not open '{path}': {describe_path_error(exc)}") from None
