# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""A multiplexer: several users share one device, one of them has the input."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qsd.chardev.base import Chardev
from qsd.errors import QmpError
from qsd.qapi.schema.char import ChardevMux

if TYPE_CHECKING:
    from qsd.chardev.base import Environment, Frontend

MAX_USERS = 4


class MuxChardev(Chardev):
    """Users write to the same device; the last one that came reads from it.

    The escape character with which a person at a terminal switches users is left out: the users of
    a storage daemon are monitors, and in JSON that character is an error, not a key.
    """

    OFFERS_OOB = False

    def __init__(self, label: str, options: ChardevMux) -> None:
        super().__init__(label, "mux")
        self._base_label = options.chardev
        self._base: Chardev | None = None
        self._users: list[Frontend] = []

    @classmethod
    def over(cls, label: str, base: Chardev) -> MuxChardev:
        """Make a multiplexer on a device that nobody uses."""
        made = cls(label, ChardevMux(chardev=base.label))
        made._use(base)
        return made

    async def _open(self, env: Environment) -> None:
        base = env.find(self._base_label)
        if base is None:
            raise QmpError(f"mux: base chardev {self._base_label} not found")
        self._use(base)

    def _use(self, base: Chardev) -> None:
        base.attach(self)
        self._base = base

    async def _close(self) -> None:
        if self._base is not None:
            self._base.detach()
            self._base = None

    @property
    def is_busy(self) -> bool:
        """Always: the original does not let go of a multiplexer."""
        return True

    @property
    def pending(self) -> int:
        """Bytes that wait in the device below."""
        return 0 if self._base is None else self._base.pending

    def attach(self, frontend: Frontend) -> None:
        """Add a user, which gets the input from now on.

        Raises:
            QmpError: There are too many.
        """
        if len(self._users) == MAX_USERS:
            raise QmpError(f"too many uses of multiplexed chardev '{self.label}' (maximum is 4)")
        self._users.append(frontend)
        self.frontend = frontend
        if self.is_open:
            frontend.chardev_opened()
        self.resume()

    def detach(self) -> None:
        """Take away the user that has the input; the one before gets it."""
        if self._users:
            self._users.pop()
        self.frontend = self._users[-1] if self._users else None

    def _write(self, data: bytes) -> None:
        if self._base is not None:
            self._base.write(data)

    def pause(self) -> None:
        """Stop reading the device below."""
        if self._base is not None:
            self._base.pause()

    def resume(self) -> None:
        """Go on reading the device below."""
        if self._base is not None:
            self._base.resume()

    # As the user of the device below

    @property
    def is_ready(self) -> bool:
        """Whether anybody would get input."""
        return bool(self._users)

    def chardev_opened(self) -> None:
        """Tell all users that someone is there."""
        self.is_open = True
        for user in tuple(self._users):
            user.chardev_opened()

    def chardev_data(self, data: bytes) -> None:
        """Hand input to the user that has it."""
        self._received(data)

    def chardev_closed(self) -> None:
        """Tell all users that nobody is there any more."""
        self.is_open = False
        for user in tuple(self._users):
            user.chardev_closed()

    def chardev_drained(self) -> None:
        """Tell all users that the output was taken."""
        for user in tuple(self._users):
            user.chardev_drained()
