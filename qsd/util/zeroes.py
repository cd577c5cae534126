# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Zeroes: finding them and having them at hand."""

from __future__ import annotations

#: Bytes; the longest piece in which zeroes are written or compared.
ZERO_CHUNK = 1 << 20

_PROBE = 64
_ZEROES = bytes(ZERO_CHUNK)
ZEROES = memoryview(_ZEROES)


def is_zero(view: memoryview) -> bool:
    """Tell whether all bytes are zero.

    A look at both ends settles most non-zero buffers; the rest is copied out and compared in one
    memcmp each, which beats every way of looping over a memoryview.
    """
    length = len(view)
    if bytes(view[:_PROBE]).strip(b"\0") or bytes(view[-_PROBE:]).strip(b"\0"):
        return False
    for start in range(0, length, ZERO_CHUNK):
        part = bytes(view[start : start + ZERO_CHUNK])
        if part != (_ZEROES if len(part) == ZERO_CHUNK else _ZEROES[: len(part)]):
            return False
    return True


def fill_zero(view: memoryview) -> None:
    """Set all bytes to zero."""
    length = len(view)
    for start in range(0, length, ZERO_CHUNK):
        part = view[start : start + ZERO_CHUNK]
        part[:] = ZEROES[: len(part)]
