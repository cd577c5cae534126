# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Half-open ranges and alignment arithmetic; everything in bytes unless a name says otherwise."""

from __future__ import annotations

from collections.abc import Iterator


def align_down(value: int, alignment: int) -> int:
    """Round down to a multiple of `alignment`, which need not be a power of two."""
    return value - value % alignment


def align_up(value: int, alignment: int) -> int:
    """Round up to a multiple of `alignment`."""
    return value + -value % alignment


def div_up(value: int, divisor: int) -> int:
    """Divide, rounding up."""
    return -(-value // divisor)


def split(offset: int, length: int, chunk: int) -> Iterator[tuple[int, int]]:
    """Cut a range into pieces of at most `chunk` bytes: yields (offset, length)."""
    end = offset + length
    while offset < end:
        piece = min(chunk, end - offset)
        yield offset, piece
        offset += piece
