# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""L2 entries looked at by the column.

A table's bytes are split into eight columns, one for each byte of an entry; a table of 256 values
says for each column what its bytes tell, one bit for each thing; and the columns are put together
again by one OR of two long integers.  So no entry is looked at by itself.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final, NamedTuple

from qsd.formats.qcow2.layout import OFFSET_MASK
from qsd.util.zeroes import is_zero

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_ENTRY_BYTES: Final = 8


class Column(NamedTuple):
    """One byte of each entry.

    Attributes:
        place: Where the byte is in an entry in memory.
        table: What each of its 256 values tells.
    """

    place: int
    table: bytes


def column(number: int, table: bytes) -> Column:
    """Make the column of the byte with the bits ``8 * number`` and up."""
    return Column(number if sys.byteorder == "little" else _ENTRY_BYTES - 1 - number, table)


def told_by(raw: bytes, columns: Sequence[Column]) -> bytes:
    """Return for each entry what its columns tell together."""
    told = 0
    for place, table in columns:
        values = raw[place::_ENTRY_BYTES]
        # The upper bytes of offsets are zero, and most often this tells nothing.
        if table[0] or not is_zero(memoryview(values)):
            told |= int.from_bytes(values.translate(table), "little")
    return told.to_bytes(len(raw) // _ENTRY_BYTES, "little")


def columns_of(meanings: Iterable[tuple[int, int]]) -> list[Column]:
    """Return the columns that tell which bits entries have.

    Args:
        meanings: Masks, and what it means that an entry has one of their bits.
    """
    columns = []
    for number in range(_ENTRY_BYTES):
        told = 0
        for mask, meaning in meanings:
            told |= int.from_bytes(_with_bits(mask >> 8 * number & 0xFF, meaning), "little")
        if told:
            columns.append(column(number, told.to_bytes(256, "little")))
    return columns


def _with_bits(bits: int, meaning: int) -> bytes:
    """Return `meaning` for each byte that has one of some bits."""
    if bits == 0xFF:
        return b"\0" + bytes((meaning,)) * 255
    return bytes([meaning if value & bits else 0 for value in range(256)]) if bits else b""


# --------------------------------------------------------------------------------------------------
# Offsets between two others

# What the bytes of an offset tell.
_AT_START: Final = 1  # the upper byte is that of the start
_AT_END: Final = 2
_OUTSIDE: Final = 4
_AFTER_START: Final = 8  # the lower byte is not below that of the start
_BEFORE_END: Final = 16


def _is_inside(told: int) -> bool:
    return not (
        told & _OUTSIDE
        or (told & _AT_START and not told & _AFTER_START)
        or (told & _AT_END and not told & _BEFORE_END)
    )


#: What the columns of offsets tell, to 1 for those that lie inside.
IS_INSIDE: Final = bytes(map(_is_inside, range(256)))


def columns_between(start: int, end: int, cluster_bits: int) -> list[Column]:
    """Return columns that tell whether clusters lie between two offsets; see `IS_INSIDE`.

    Two bytes of an offset are compared, and no byte above them may be set.  So clusters just after
    the start or just before the end may pass for outside, never the other way round.
    """
    last = min(max(end - (1 << cluster_bits), 0), OFFSET_MASK)
    lower = max((last.bit_length() + 7) // 8, 2) - 2
    shift = 8 * lower
    first = -(-start >> shift)
    # Exact where all that is below these two bytes is zero.
    limit = min((last >> shift) + (shift <= cluster_bits), 0xFFFF)
    if first >= limit or end - start < 1 << cluster_bits:
        return [column(0, bytes((_OUTSIDE,)) * 256)]
    upper_first, upper_limit = first >> 8, limit >> 8
    upper = bytearray((_OUTSIDE,)) * 256
    upper[upper_first : upper_limit + 1] = bytes(upper_limit + 1 - upper_first)
    upper[upper_first] |= _AT_START
    upper[upper_limit] |= _AT_END
    below = bytes(
        (_AFTER_START if value >= first & 0xFF else 0)
        | (_BEFORE_END if value < limit & 0xFF else 0)
        for value in range(256)
    )
    outside = b"\0" + bytes((_OUTSIDE,)) * 255
    return [
        column(lower, below),
        column(lower + 1, bytes(upper)),
        # The topmost byte has flags, which are not part of an offset.
        *(column(number, outside) for number in range(lower + 2, _ENTRY_BYTES - 1)),
    ]
