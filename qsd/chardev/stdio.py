# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""A character device on standard input and output."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from qsd.chardev.descriptor import DescriptorChardev
from qsd.errors import QmpError

if TYPE_CHECKING:
    from qsd.chardev.base import Environment
    from qsd.qapi.schema.char import ChardevStdio

_STDIN, _STDOUT = 0, 1


class StdioChardev(DescriptorChardev):
    """The process has one terminal, so it can have one such device.

    A terminal is switched to unbuffered input without echo, as qemu(1) says of "-chardev stdio",
    and restored when the device is closed.  The end of input closes the connection; the daemon runs
    on.
    """

    def __init__(self, label: str, options: ChardevStdio) -> None:
        super().__init__(label, "stdio")
        self._has_signals = options.signal is not False
        self._saved: list[tuple[int, bool, list[Any] | None]] = []

    async def _open(self, env: Environment) -> None:
        if env.in_background:
            raise QmpError("cannot use stdio with -daemonize")
        if env.has_kind("stdio"):
            raise QmpError("cannot use stdio by multiple character devices")
        for fd in (_STDIN, _STDOUT):
            self._saved.append((fd, os.get_blocking(fd), None))
        if os.isatty(_STDIN):
            self._set_terminal()
        self._use(_STDIN, _STDOUT)
        self._owned = ()

    def _set_terminal(self) -> None:
        import termios

        saved: list[Any] = termios.tcgetattr(_STDIN)
        self._saved[0] = (_STDIN, self._saved[0][1], saved)
        mode: list[Any] = [*saved[:6], list(saved[6])]
        mode[0] &= ~(termios.IGNBRK | termios.BRKINT | termios.PARMRK | termios.ISTRIP)
        mode[0] &= ~(termios.INLCR | termios.IGNCR | termios.ICRNL | termios.IXON)
        mode[1] |= termios.OPOST
        mode[3] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.IEXTEN)
        if not self._has_signals:
            mode[3] &= ~termios.ISIG
        termios.tcsetattr(_STDIN, termios.TCSANOW, mode)

    async def _close(self) -> None:
        await super()._close()
        for fd, blocking, mode in self._saved:
            try:
                os.set_blocking(fd, blocking)
                if mode is not None:
                    import termios

                    termios.tcsetattr(fd, termios.TCSANOW, mode)
            except OSError:
                pass  # the terminal is gone
        self._saved.clear()
