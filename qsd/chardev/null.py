# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""A character device to nowhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qsd.chardev.base import Chardev

if TYPE_CHECKING:
    from qsd.qapi.schema.char import ChardevCommon


class NullChardev(Chardev):
    """Takes everything, gives nothing, and nobody is ever there."""

    def __init__(self, label: str, options: ChardevCommon) -> None:
        del options
        super().__init__(label, "null")
