# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""A character device on named pipes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from qsd.chardev.base import open_file
from qsd.chardev.descriptor import DescriptorChardev
from qsd.errors import QmpError

if TYPE_CHECKING:
    from qsd.chardev.base import Environment
    from qsd.qapi.schema.char import ChardevHostdev


class PipeChardev(DescriptorChardev):
    """Reads ``PATH.in`` and writes ``PATH.out``; where one is missing, ``PATH`` serves as both.

    Opened for reading and writing, so that opening does not wait for the other side and the other
    side may come and go (fifo(7)).
    """

    def __init__(self, label: str, options: ChardevHostdev) -> None:
        super().__init__(label, "pipe")
        self._path = options.device

    async def _open(self, env: Environment) -> None:
        del env
        flags = os.O_RDWR
        try:
            source = open_file(f"{self._path}.in", flags)
        except QmpError:
            both = open_file(self._path, flags)
            self._use(both, both)
            return
        try:
            sink = open_file(f"{self._path}.out", flags)
        except QmpError:
            os.close(source)
            both = open_file(self._path, flags)
            self._use(both, both)
            return
        self._use(source, sink)
