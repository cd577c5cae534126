# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Character devices on hardware of the host: serial and parallel ports."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from qsd.chardev.base import open_file
from qsd.chardev.descriptor import DescriptorChardev
from qsd.errors import QmpError

if TYPE_CHECKING:
    from qsd.chardev.base import Environment
    from qsd.qapi.schema.char import ChardevHostdev

#: Claim a parallel port (linux/ppdev.h, PPCLAIM).
_PPCLAIM: Final = 0x708B


class SerialChardev(DescriptorChardev):
    """A serial line, switched to raw mode; anything that is no terminal is used as it is."""

    def __init__(self, label: str, options: ChardevHostdev) -> None:
        super().__init__(label, "serial")
        self._path = options.device

    async def _open(self, env: Environment) -> None:
        del env
        fd = open_file(self._path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        if os.isatty(fd):
            import tty

            tty.setraw(fd)
        self._use(fd, fd)

    def send_break(self) -> None:
        """Hold the line in the break condition for a moment (tcsendbreak(3))."""
        if self._owned and os.isatty(self._owned[0]):
            import termios

            termios.tcsendbreak(self._owned[0], 1)


class ParallelChardev(DescriptorChardev):
    """A parallel port that user space may claim."""

    def __init__(self, label: str, options: ChardevHostdev) -> None:
        super().__init__(label, "parallel")
        self._path = options.device

    async def _open(self, env: Environment) -> None:
        import fcntl

        del env
        fd = open_file(self._path, os.O_RDWR)
        try:
            fcntl.ioctl(fd, _PPCLAIM)
        except OSError as exc:
            os.close(fd)
            raise QmpError(f"not a parallel port: {exc.strerror}") from None
        self._use(None, fd)
