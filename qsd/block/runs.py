# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Block status of many extents at once, packed.

A fragmented image has tens of thousands of extents, and an object for each of them costs more than
finding it.  So the fast path of block status hands on two arrays, which are joined, translated and
sent as a whole.
"""

from __future__ import annotations

from array import array
from itertools import compress
from typing import Final

_IS_CHANGE: Final = bytes(value != 0 for value in range(256))


class Runs:
    """Extents one after the other, neighbours of one kind joined.

    Attributes:
        lengths: Bytes of each.
        flags: One byte for each: ST_DATA or ST_ZERO, both, or 0.  What 0 says is up to who gives
            the runs: a layer leaves it to its backing file, of a whole chain nothing is known.
        total: How many bytes are described.
        ends: Whether the last extent is known to end there; otherwise it may go on.
    """

    __slots__ = ("ends", "flags", "lengths", "total")

    def __init__(self) -> None:
        self.lengths: array[int] = array("Q")
        self.flags = bytearray()
        self.total = 0
        self.ends = False

    def __len__(self) -> int:
        return len(self.flags)

    def add(self, length: int, flags: int) -> None:
        """Append one extent."""
        self.total += length
        if self.flags and self.flags[-1] == flags:
            self.lengths[-1] += length
        else:
            self.lengths.append(length)
            self.flags.append(flags)

    def extend(self, lengths: array[int], flags: bytes | bytearray, total: int) -> None:
        """Append extents, which are joined already among themselves and are so long in all."""
        self.total += total
        if self.flags and flags and self.flags[-1] == flags[0]:
            self.lengths[-1] += lengths[0]
            lengths, flags = lengths[1:], flags[1:]
        self.lengths.extend(lengths)
        self.flags.extend(flags)

    def extend_by(self, other: Runs) -> None:
        """Append the extents of another one, of which more may follow."""
        self.extend(other.lengths, other.flags, other.total)

    def trim(self, start: int, end: int) -> None:
        """Shorten the first extent by so many bytes at its start, and the last one at its end."""
        self.lengths[0] -= start
        self.lengths[-1] -= end
        self.total -= start + end

    def cut(self, limit: int) -> None:
        """Drop what goes beyond `limit` extents."""
        if len(self.flags) > limit:
            self.ends = True
            self.total -= sum(self.lengths[limit:])
            del self.lengths[limit:]
            del self.flags[limit:]


def split(flags: bytes, unit_bits: int) -> tuple[array[int], bytes]:
    """Join equal neighbours among units of 2^`unit_bits` bytes with one byte of flags each.

    Where one kind ends and another begins shows in the XOR with the same bytes shifted by one.

    Returns:
        The lengths of the runs in bytes, and their flags.
    """
    count = len(flags)
    number = int.from_bytes(flags, "little")
    # Each byte XOR the one before it; 255 before the first, which stands for no kind.
    changes = (number ^ (number << 8 | 0xFF)).to_bytes(count + 1, "little")[:count]
    changes = changes.translate(_IS_CHANGE)
    rests = changes.split(b"\1")[1:]  # what follows the first unit of each run
    size = 1 << unit_bits
    lengths = array("Q", [len(rest) * size + size for rest in rests])
    return lengths, _alternating(flags, len(lengths)) or bytes(compress(flags, changes))


def _alternating(flags: bytes, count: int) -> bytes:
    """Return the flags of `count` runs where there are but two kinds, otherwise nothing."""
    first = flags[:1]
    others = flags.translate(None, first)
    second = others[:1]
    if others.translate(None, second):
        return b""
    return ((first + second) * (count // 2 + 1))[:count]


def all_allocated(length: int) -> Runs:
    """Return the answer of a layer that has none below it to whether it decides a range."""
    runs = Runs()
    runs.add(length, 1)
    return runs
