# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""A character device that is the master side of a new pseudo terminal."""

from __future__ import annotations

import asyncio
import os
import select
from typing import TYPE_CHECKING, Final

from qsd.chardev.descriptor import DescriptorChardev
from qsd.errors import QmpError

if TYPE_CHECKING:
    from qsd.chardev.base import Environment
    from qsd.qapi.schema.char import ChardevCommon

#: Seconds between looks whether somebody has opened the terminal.
POLL_PAUSE: Final = 1.0


class PtyChardev(DescriptorChardev):
    """Opens when a program opens the terminal, closes when the last one closes it.

    A master whose slave nobody has open reports a hang-up without end, and nothing reports that
    the slave was opened; so while nobody is there, the device looks now and then.
    """

    def __init__(self, label: str, options: ChardevCommon) -> None:
        del options
        super().__init__(label, "pty")
        self._fd: int | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def _open(self, env: Environment) -> None:
        import tty

        try:
            master, slave = os.openpty()
        except OSError as exc:
            raise QmpError(f"Failed to create PTY: {exc.strerror}") from None
        self._owned = (master,)
        self._fd = master
        try:
            self.pty = os.ttyname(slave)
            tty.setraw(slave)
        finally:
            os.close(slave)
        os.set_blocking(master, False)
        self._look()
        if not env.by_monitor:
            # For the user of the command line, who has no other way to learn the name.
            text = f"char device redirected to {self.pty} (label {self.label})\n"
            os.write(1, text.encode())

    @property
    def filename(self) -> str:
        """The terminal's path."""
        return f"pty:{self.pty}"

    def _look(self) -> None:
        """Open the device if somebody is there, else look again later."""
        self._timer = None
        assert self._fd is not None
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        if any(events & select.POLLHUP for _, events in poll.poll(0)):
            self._timer = asyncio.get_running_loop().call_later(POLL_PAUSE, self._look)
            return
        self._use(self._fd, self._fd)
        self.resume()

    def _ended(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None
        self._closed()
        self._look()

    async def _close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        await super()._close()
        self._fd = None
