# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""A character device that writes to a file, and reads from another one if asked to."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from qsd.chardev.base import open_file
from qsd.chardev.descriptor import DescriptorChardev

if TYPE_CHECKING:
    from qsd.chardev.base import Environment
    from qsd.qapi.schema.char import ChardevFile


class FileChardev(DescriptorChardev):
    """Files as the two directions."""

    def __init__(self, label: str, options: ChardevFile) -> None:
        super().__init__(label, "file")
        self._options = options

    async def _open(self, env: Environment) -> None:
        del env
        flags = os.O_WRONLY | os.O_CREAT
        flags |= os.O_APPEND if self._options.append else os.O_TRUNC
        out = open_file(self._options.out, flags)
        source = None
        if self._options.in_ is not None:
            try:
                source = open_file(self._options.in_, os.O_RDONLY)
            except BaseException:
                os.close(out)
                raise
        self._use(source, out)
