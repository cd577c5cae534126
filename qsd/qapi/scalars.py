# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Booleans and integers as the command line spells them; for sizes see :mod:`qsd.util.units`."""

from __future__ import annotations

import re
from typing import Final

_BOOLEANS: Final = {
    "on": True, "yes": True, "true": True, "y": True,
    "off": False, "no": False, "false": False, "n": False,
}  # fmt: skip

#: As text: compiling it takes as long as importing a module, and only integers need it.
_INTEGER: Final = r"[ \t\n\v\f\r]*([+-]?)(?:0[xX]([0-9a-fA-F]+)|(0[0-7]*)|([1-9][0-9]*))\Z"


def parse_bool(text: str) -> bool | None:
    """Return the boolean that `text` spells, or None; upper case does not count."""
    return _BOOLEANS.get(text)


def parse_integer(text: str, *, signed: bool) -> int | None:
    """Return the 64-bit integer that `text` spells in C's notation, or None.

    White space before it is allowed, after it is not; 0x and 0 stand for base 16 and 8.

    Args:
        text: What the user wrote.
        signed: Whether the integer is signed.  One that is not takes a negative number, too, for
            its two's complement, which the caller computes.
    """
    match = re.match(_INTEGER, text)
    if match is None:
        return None
    sign, hexadecimal, octal, decimal = match.groups()
    if hexadecimal:
        value = int(hexadecimal, 16)
    else:
        value = int(octal, 8) if octal else int(decimal)
    if sign == "-":
        value = -value
    lowest, limit = (-(1 << 63), 1 << 63) if signed else (1 - (1 << 64), 1 << 64)
    return value if lowest <= value < limit else None
